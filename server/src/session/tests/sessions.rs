//! Sessions: standby and serving, numbers, heartbeats, drain.

use super::{
    agent::{Agent, PATIENCE, number, one_agent},
    server::TestServer,
};
use crate::{
    settings::Settings,
    store::{Incarnation, ServerRow, testing::eventually},
};
use proto::{
    map::MapVersion,
    session::{AgentMessage, MapState, Reason, ServerMessage},
};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::timeout;

#[tokio::test]
async fn a_standby_is_told_nothing_of_the_map_until_it_is_activated() {
    let (server, agent) = one_agent().await;
    let mut talk = agent.standby(&server, 1).await;
    assert_eq!(talk.said_so_far().await, []);
    talk.say(AgentMessage::Activate { number: number(2), map: MapState::default() });
    let state = server.running.server.cluster.state();
    let (version, receipt) = (state.version(), state.receipt());
    assert_eq!(talk.next().await, ServerMessage::Activated { number: number(2), version, receipt });
    let (map, _) = talk.fetched_map().await;
    assert_eq!(map.len(), 2, "the network, and what may be opened");
}

#[tokio::test]
async fn a_heartbeat_is_answered_with_the_health_of_the_server() {
    let (server, agent) = one_agent().await;
    let mut talk = agent.standby(&server, 1).await;
    let ack = talk.heartbeat(7).await;
    assert_eq!(ack.server, server.running.server.id);
    assert_eq!(ack.at, server.running.server.cluster.state().version());
    assert!(ack.database_ok);
    assert!(ack.revision_age < Duration::from_secs(5));
}

#[tokio::test]
async fn an_older_session_number_is_stale_and_leaves_the_newer_session_alone() {
    let (server, agent) = one_agent().await;
    let mut newer = agent.serving(&server, 5, MapState::default()).await;
    let mut older = agent.standby(&server, 4).await;
    older.say(AgentMessage::Activate { number: number(4), map: MapState::default() });
    assert_eq!(older.refused().await.reason, Reason::StaleSession);
    newer.heartbeat(1).await;
    assert_eq!(server.running.server.hub.counts(), (1, 0));
}

#[tokio::test]
async fn a_newer_session_takes_over_and_the_older_becomes_a_standby() {
    let (server, agent) = one_agent().await;
    let mut older = agent.serving(&server, 1, MapState::default()).await;
    older.fetched_map().await;
    let _newer = agent.serving(&server, 2, MapState::default()).await;
    older.said_so_far().await;
    Agent::enrolled("b", &server).await;
    assert_eq!(older.said_so_far().await, [], "the map goes to the newer session alone");
    assert_eq!(server.running.server.hub.counts(), (1, 1));
}

#[tokio::test]
async fn a_session_replaced_on_another_server_stops_serving() {
    let (one, two) = TestServer::two().await;
    let agent = Agent::enrolled("a", &one).await;
    let mut old = agent.serving(&one, 1, MapState::default()).await;
    let _new = agent.serving(&two, 2, MapState::default()).await;
    eventually("it stands by", async || one.running.server.hub.counts() == (0, 1)).await;
    old.say(AgentMessage::Activate { number: number(1), map: MapState::default() });
    assert_eq!(old.refused().await.reason, Reason::StaleSession);
}

#[tokio::test]
async fn servers_learn_of_each_other_and_tell_their_agents() {
    let dir = tempfile::tempdir().unwrap();
    let one = TestServer::start(dir.path(), 1).await;
    let agent = Agent::enrolled("a", &one).await;
    let mut talk = agent.standby(&one, 1).await;
    let two = TestServer::start(dir.path(), 2).await;
    let told = talk.find(|m| if let ServerMessage::Servers(list) = m { Some(list) } else { None }).await;
    let told = told.unwrap();
    assert_eq!(told.urls, [one.addr.into(), two.addr.into()]);
    let both = BTreeSet::from([&one, &two].map(|server| server.running.server.id));
    assert_eq!(told.ids.into_iter().collect::<BTreeSet<_>>(), both);
    let mut second = agent.dial(&two).await.open(agent.hello(2)).await;
    assert_eq!(second.welcome().await.servers.urls, [two.addr.into(), one.addr.into()]);
}

#[tokio::test]
async fn a_server_that_drains_asks_everyone_to_leave_and_ends_when_they_have() {
    let (one, two) = TestServer::two().await;
    let (a, b) = (Agent::enrolled("a", &one).await, Agent::enrolled("b", &one).await);
    let mut serving = a.serving(&one, 1, MapState::default()).await;
    let mut standby = b.standby(&one, 1).await;
    let (addr, server) = (one.addr, one.running.server.clone());
    let drained = tokio::spawn(one.running.drain());
    for talk in [&mut serving, &mut standby] {
        talk.find(|m| matches!(m, ServerMessage::Drain { .. }).then_some(())).await.unwrap();
    }
    eventually("it accepts nobody", async || tokio::net::TcpStream::connect(addr).await.is_err()).await;
    standby.say(AgentMessage::Activate { number: number(2), map: MapState::default() });
    assert_eq!(standby.refused().await.reason, Reason::Draining);
    assert!(!drained.is_finished(), "an agent is still here");
    drop((serving, standby));
    timeout(PATIENCE, drained).await.expect("it does not end").unwrap();
    let live = two.running.server.cluster.store().live_servers().await.unwrap();
    assert_eq!(live.iter().map(|live| live.server.id).collect::<Vec<_>>(), [two.running.server.id]);
    let (seats, _) = server.cluster.store().sessions(0).await.unwrap();
    assert!(seats.iter().all(|seat| !seat.row.online), "{seats:?}");
}

#[tokio::test]
async fn a_session_whose_connection_ends_is_forgotten() {
    let (server, agent) = one_agent().await;
    drop(agent.serving(&server, 1, MapState::default()).await);
    let mut connected = server.running.server.hub.connected();
    timeout(PATIENCE, connected.wait_for(|count| *count == 0)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_task_that_ends_is_the_end_of_its_server() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = TestServer::start(dir.path(), 1).await;
    server.running.accepting.abort();
    let failed = timeout(PATIENCE, server.running.failed()).await.unwrap();
    assert!(failed.to_string().contains("task"), "{failed}");
}

#[tokio::test]
async fn an_agent_that_falls_silent_is_forgotten() {
    let (server, agent) = one_agent().await;
    let mut talk = agent.serving(&server, 1, MapState::default()).await;
    // What silence does after ten seconds, now.
    let slot = server.running.server.hub.all().remove(0);
    slot.ends_within(Duration::ZERO);
    assert!(talk.find(|_| None::<()>).await.is_none());
    let mut connected = server.running.server.hub.connected();
    timeout(PATIENCE, connected.wait_for(|count| *count == 0)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_behind_the_agent_says_nothing_of_the_map() {
    let (server, agent) = one_agent().await;
    let at = server.running.server.cluster.state().version();
    let ahead = MapVersion { revision: at.revision + 2, ..at };
    let held = MapState { version: ahead, ..MapState::default() };
    let mut talk = agent.serving(&server, 1, held).await;
    let is_map = |m: &ServerMessage| matches!(m, ServerMessage::Map(_) | ServerMessage::Fetch(_));
    assert!(!talk.said_so_far().await.iter().any(is_map));
    let refused = talk.line.fetch(&mut Default::default()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    server.make_setup_key(true).await;
    assert!(!talk.said_so_far().await.iter().any(is_map));
    server.make_setup_key(true).await;
    talk.fetched_map().await;
}

fn short_lease() -> Settings {
    Settings { lease: Duration::from_secs(2), ..Settings::default() }
}

#[tokio::test]
async fn of_two_servers_with_one_id_the_second_is_refused_and_both_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let first = TestServer::start_with(dir.path(), 1, short_lease()).await;
    let second = timeout(PATIENCE, TestServer::try_start(dir.path(), 1, short_lease())).await.unwrap();
    let Err(error) = second else { panic!("it was let in") };
    let (id, addr) = (first.running.server.id.to_string(), first.addr.to_string());
    let error = error.to_string();
    assert!(error.contains(&id) && error.contains(&addr) && error.contains("server-id"), "{error}");
    assert_eq!(first.running.server.servers.conflict(), None, "the first one serves on");
}

#[tokio::test]
async fn a_server_whose_id_another_one_took_stops_serving_and_says_why() {
    const SAID: &str = "two servers have the id";
    let dir = tempfile::tempdir().unwrap();
    let mut server = TestServer::start_with(dir.path(), 1, short_lease()).await;
    let agent = Agent::enrolled("a", &server).await;
    let mut talk = agent.standby(&server, 1).await;
    let me = server.running.server.servers.me.clone();
    let clone =
        ServerRow { incarnation: Incarnation::generate().unwrap(), host: "clone".to_owned(), ..me.clone() };
    let store = server.running.server.cluster.store().clone();
    // As after a time in which it was frozen.
    store.inherit_lease(&clone, me.incarnation).await.unwrap();
    talk.find(|message| matches!(message, ServerMessage::Drain { .. }).then_some(())).await.unwrap();
    assert!(server.running.server.servers.conflict().is_some_and(|told| told.contains(SAID)));
    drop(talk);
    let failed = timeout(PATIENCE, server.running.failed()).await.unwrap();
    assert!(failed.to_string().contains(SAID), "{failed}");
    assert_eq!(store.live_servers().await.unwrap()[0].server.incarnation, clone.incarnation);
}
