//! The root is changed while a server starts, and while a session is open.

use super::{
    agent::{Agent, one_agent},
    server::TestServer,
};
use crate::{gate::Limits, settings::Settings, store::testing::eventually};
use proto::{
    root::RootSecret,
    session::{AgentMessage, MapState},
};

#[tokio::test]
async fn a_server_whose_root_is_changed_before_it_runs_presents_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let (server, listener) = TestServer::made(dir.path(), 1, Settings::default(), Limits::default()).await;
    let before = server.tls();
    let root = server.cluster.state().root.public();
    server.cluster.rotate_root(&root, false).await.unwrap();
    let server = TestServer::run(server, listener).await.unwrap();
    eventually("another certificate", async || {
        !std::sync::Arc::ptr_eq(&before, &server.running.server.tls())
    })
    .await;
    // Pins the new root alone.
    Agent::new("web").dial(&server).await;
}

#[tokio::test]
async fn who_confirms_a_root_before_its_server_knows_it_has_confirmed_it() {
    let (server, agent) = one_agent().await;
    let mut talk = agent.serving(&server, 1, MapState::default()).await;
    let next = RootSecret::generate().unwrap();
    talk.say(AgentMessage::Root(next.public().fingerprint()));
    talk.heartbeat(1).await;
    let cluster = &server.running.server.cluster;
    let root = cluster.state().root.public();
    cluster.rotate_root_to(&next, &root, false).await.unwrap();
    eventually("it is confirmed", async || cluster.state().unconfirmed().count() == 0).await;
    assert_eq!(cluster.state().root_number(), 1);
}
