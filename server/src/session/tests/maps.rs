//! Maps: fetched, kept up to date, resumed by content.

use super::{
    agent::{Agent, apply},
    server::TestServer,
};
use crate::cluster::rename;
use proto::{
    map::{Content, ObjectId},
    session::{MapState, ServerMessage},
};

async fn rename_to(server: &TestServer, agent: &Agent, name: &str) {
    server
        .write(|state, now| rename(state, state.node_by_key(&agent.key()).unwrap(), name, now).unwrap())
        .await;
}

fn name_in(map: &proto::map::Map, agent: &Agent) -> String {
    let id = ObjectId::peer(agent.key());
    let content = Content::decode(&id, map.content(&id).unwrap()).unwrap();
    let Content::Peer(peer) = content else { panic!("{content:?}") };
    peer.name
}

#[tokio::test]
async fn a_fetched_map_has_everybody_but_the_node_itself_and_its_digest() {
    let server = TestServer::alone().await;
    let (a, b) = (Agent::enrolled("a", &server).await, Agent::enrolled("b", &server).await);
    let (map, _) = a.serving(&server, 1, MapState::default()).await.fetched_map().await;
    assert_eq!(map.len(), 3, "the other node, the network, and what may be opened");
    assert_eq!(name_in(&map, &b), "b");
    assert!(map.content(&ObjectId::network()).is_some());
}

#[tokio::test]
async fn a_rename_reaches_a_served_agent_as_a_small_change() {
    let server = TestServer::alone().await;
    let (a, b) = (Agent::enrolled("a", &server).await, Agent::enrolled("b", &server).await);
    let mut talk = a.serving(&server, 1, MapState::default()).await;
    let (mut map, _) = talk.fetched_map().await;
    rename_to(&server, &b, "c").await;
    let delta = talk.delta().await;
    assert_eq!(delta.put.len(), 1);
    apply(&mut map, &delta);
    assert_eq!(map.digest(), delta.digest);
    assert_eq!(name_in(&map, &b), "c");
}

#[tokio::test]
async fn a_change_through_one_server_reaches_an_agent_on_another() {
    let (one, two) = TestServer::two().await;
    let a = Agent::enrolled("a", &one).await;
    let mut talk = a.serving(&two, 1, MapState::default()).await;
    let (mut map, _) = talk.fetched_map().await;
    let b = Agent::enrolled("b", &one).await;
    apply(&mut map, &talk.delta().await);
    rename_to(&one, &b, "c").await;
    let delta = talk.delta().await;
    apply(&mut map, &delta);
    assert_eq!((name_in(&map, &b), map.digest()), ("c".to_owned(), delta.digest));
}

#[tokio::test]
async fn who_holds_the_map_already_is_sent_nothing_by_any_server() {
    let (one, two) = TestServer::two().await;
    let (a, b) = (Agent::enrolled("a", &one).await, Agent::enrolled("b", &one).await);
    let (mut map, held) = a.serving(&one, 1, MapState::default()).await.fetched_map().await;
    let mut talk = a.serving(&two, 2, held).await;
    let is_map = |m: &ServerMessage| matches!(m, ServerMessage::Map(_) | ServerMessage::Fetch(_));
    assert!(!talk.said_so_far().await.iter().any(is_map));
    rename_to(&one, &b, "c").await;
    let delta = talk.delta().await;
    apply(&mut map, &delta);
    assert_eq!(map.digest(), delta.digest, "changes go on from the map that was held");
}

#[tokio::test]
async fn who_holds_an_older_map_fetches_the_difference_alone() {
    let server = TestServer::alone().await;
    let (a, b) = (Agent::enrolled("a", &server).await, Agent::enrolled("b", &server).await);
    Agent::enrolled("c", &server).await;
    let (mut map, held) = a.serving(&server, 1, MapState::default()).await.fetched_map().await;
    rename_to(&server, &b, "d").await;
    let mut talk = a.serving(&server, 2, held).await;
    talk.find(|m| matches!(m, ServerMessage::Fetch(_)).then_some(())).await.unwrap();
    let last = talk.line.fetch(&mut map).await.unwrap();
    assert_eq!(last.put.len(), 1);
    assert_eq!((name_in(&map, &b), map.digest()), ("d".to_owned(), last.digest));
    rename_to(&server, &b, "e").await;
    let delta = talk.delta().await;
    apply(&mut map, &delta);
    assert_eq!(map.digest(), delta.digest, "changes go on from the map that was fetched");
}

#[tokio::test]
async fn a_map_is_for_those_with_a_session() {
    let server = TestServer::alone().await;
    let a = Agent::enrolled("a", &server).await;
    let refused = a.dial(&server).await.fetch(&mut Default::default()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
}

#[tokio::test]
async fn what_an_agent_says_of_itself_reaches_its_peers() {
    let server = TestServer::alone().await;
    let (a, b) = (Agent::enrolled("a", &server).await, Agent::enrolled("b", &server).await);
    let mut talk = a.serving(&server, 1, MapState::default()).await;
    let (mut map, _) = talk.fetched_map().await;
    let teller = b.serving(&server, 1, MapState::default()).await;
    let told = "192.0.2.9:51820".parse().unwrap();
    teller.say(proto::session::AgentMessage::Update { facts: b.facts(), endpoints: vec![told] });
    apply(&mut map, &talk.delta().await);
    let id = ObjectId::peer(b.key());
    let Ok(Content::Peer(peer)) = Content::decode(&id, map.content(&id).unwrap()) else { panic!() };
    assert_eq!(peer.endpoints, [told]);
}
