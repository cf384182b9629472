//! Presence: beside the map, across servers.

use super::{
    agent::{Agent, one_agent},
    server::TestServer,
};
use crate::{
    cluster::{Op, SetupKey, SetupKeyTerms},
    connection::LAST_WORDS_TIMEOUT,
    store::testing::eventually,
};
use proto::{
    session::{AgentMessage, MapState, Presence},
    setup_key::SetupSecret,
    statement::NodeId,
};
use std::time::Instant;

fn id(server: &TestServer, agent: &Agent) -> NodeId {
    server.running.server.cluster.state().node_by_key(&agent.key()).unwrap().id
}

#[tokio::test]
async fn an_agent_is_told_who_is_online_and_every_change_of_it() {
    let (one, two) = TestServer::two().await;
    let (a, b) = (Agent::enrolled("a", &one).await, Agent::enrolled("b", &one).await);
    let mut talk = a.serving(&one, 1, MapState::default()).await;
    let whole = talk.presence().await;
    assert_eq!(whole, Presence { whole: true, online: vec![], offline: vec![] });
    let other = b.serving(&two, 1, MapState::default()).await;
    let came = talk.presence().await;
    assert_eq!(came, Presence { whole: false, online: vec![id(&one, &b)], offline: vec![] });
    other.say(AgentMessage::Leave { logout: false });
    let went = talk.presence().await;
    assert_eq!(went, Presence { whole: false, online: vec![], offline: vec![id(&one, &b)] });
}

#[tokio::test]
async fn an_agent_that_moves_to_another_server_does_not_flicker() {
    let (one, two) = TestServer::two().await;
    let [a, b, c] = [
        Agent::enrolled("a", &one).await,
        Agent::enrolled("b", &one).await,
        Agent::enrolled("c", &one).await,
    ];
    let mut watcher = a.serving(&one, 1, MapState::default()).await;
    let mover = b.serving(&one, 1, MapState::default()).await;
    watcher.presence().await;
    assert_eq!(watcher.presence().await.online, [id(&one, &b)]);
    drop(mover);
    let _moved = b.serving(&two, 2, MapState::default()).await;
    // Another's coming is the next news, so nothing was said of the move before it.
    let _third = c.serving(&two, 1, MapState::default()).await;
    let next = watcher.presence().await;
    assert_eq!((next.online, next.offline), (vec![id(&one, &c)], vec![]));
}

#[tokio::test]
async fn a_session_that_ends_after_its_agent_went_elsewhere_ends_nothing_else() {
    let (one, two) = TestServer::two().await;
    let agent = Agent::enrolled("a", &one).await;
    let node = id(&one, &agent);
    let before = agent.serving(&one, 1, MapState::default()).await;
    let _now = agent.serving(&two, 2, MapState::default()).await;
    let store = two.running.server.cluster.store();
    let seat = async || store.sessions(0).await.unwrap().0.into_iter().find(|seen| seen.row.node == node);
    let is_at_two = async || seat().await.is_some_and(|seen| seen.row.server == two.running.server.id);
    eventually("it sits at the second", is_at_two).await;
    before.say(AgentMessage::Leave { logout: false });
    let mut connected = one.running.server.hub.connected();
    connected.wait_for(|count| *count == 0).await.unwrap();
    one.running.server.presence.end(&one.running.server).await.unwrap();
    assert!(seat().await.unwrap().is_online(), "the stale end changed nothing");
    assert!(two.running.server.presence.online().contains(&node));
}

#[tokio::test]
async fn the_stream_ends_right_after_leave() {
    let (server, agent) = one_agent().await;
    let mut talk = agent.serving(&server, 1, MapState::default()).await;
    let left_at = Instant::now();
    talk.say(AgentMessage::Leave { logout: false });
    assert!(talk.find(|_| None::<()>).await.is_none());
    assert!(left_at.elapsed() < LAST_WORDS_TIMEOUT, "not by its deadline");
}

#[tokio::test]
async fn an_ephemeral_node_is_served_once_the_database_knows_where() {
    let server = TestServer::alone().await;
    let secret = SetupSecret::generate().unwrap();
    let terms = SetupKeyTerms { ephemeral: true, ..SetupKeyTerms::default() };
    server.write(|state, now| vec![Op::put_setup_key(SetupKey::new(state, now, &secret, &terms).0)]).await;
    let agent = Agent::new("ephemeral");
    agent.dial(&server).await.enrol(&secret.expose(), agent.facts()).await;
    let _talk = agent.serving(&server, 1, MapState::default()).await;
    let (seats, _) = server.running.server.cluster.store().sessions(0).await.unwrap();
    assert!(seats.iter().any(|seen| seen.row.node == id(&server, &agent) && seen.is_online()), "{seats:?}");
}
