//! The database went back while no server ran: agents tell it, and are members again.

use super::{agent::Agent, server::TestServer};
use crate::{
    cluster::{Node, State},
    store::testing::{Database, eventually},
};
use proto::session::{AgentMessage, Hello, MapState, Reason};
use std::{path::Path, sync::Arc};

/// A server on a copy of before `lost` enrolled, and the state that was lost.
async fn restored(dir: &Path) -> (TestServer, Agent, Arc<State>) {
    let server = TestServer::start(dir, 1).await;
    Agent::enrolled("kept", &server).await;
    let database = Database::at(dir);
    database.copy().await;
    let lost = Agent::enrolled("lost", &server).await;
    let past = server.running.server.cluster.state();
    server.running.drain().await;
    database.restore_copy().await;
    (TestServer::start(dir, 1).await, lost, past)
}

fn node_of(state: &State, agent: &Agent) -> Node {
    Node::clone(state.node_by_key(&agent.key()).unwrap())
}

fn hello(agent: &Agent, past: &State, receipt: proto::receipt::Receipt) -> Hello {
    let map = MapState { version: past.version(), receipt, ..MapState::default() };
    Hello { map, membership: node_of(past, agent).membership, ..agent.hello(1) }
}

#[tokio::test]
async fn a_lost_agent_proves_the_past_and_is_a_member_again_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (server, lost, past) = restored(dir.path()).await;
    assert!(server.running.server.cluster.state().node_by_key(&lost.key()).is_none());
    let mut talk = lost.dial(&server).await.open(hello(&lost, &past, past.receipt())).await;
    let welcome = talk.welcome().await;
    assert!(welcome.at > past.version(), "in an epoch above all it saw");
    let (before, after) = (node_of(&past, &lost), node_of(&server.running.server.cluster.state(), &lost));
    assert_eq!((after.id, after.addresses(), after.name), (before.id, before.addresses(), before.name));
    assert_eq!(welcome.membership, before.membership, "its certificate is good still");
}

#[tokio::test]
async fn many_lost_agents_that_come_at_once_are_taken_in_by_few_changes() {
    const LOST: usize = 24;
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(dir.path(), 1).await;
    Agent::enrolled("kept", &server).await;
    let database = Database::at(dir.path());
    database.copy().await;
    let mut lost = Vec::new();
    for number in 0..LOST {
        lost.push(Agent::enrolled(&format!("lost-{number}"), &server).await);
    }
    let past = server.running.server.cluster.state();
    server.running.drain().await;
    database.restore_copy().await;
    let server = TestServer::start(dir.path(), 1).await;
    let cluster = server.running.server.cluster.clone();
    cluster.show_version(past.version(), &past.receipt());
    eventually("an epoch is begun", async || cluster.state().recovery().is_some()).await;
    let before = cluster.state().version().revision;
    let log = cluster.store().lock(cluster.state().head()).await.unwrap();
    let come = lost.iter().map(async |agent| {
        agent.dial(&server).await.open(hello(agent, &past, past.receipt())).await.welcome().await
    });
    let all_wait = async {
        let returns = &server.running.server.returns;
        eventually("all but the first wait for its change", async || returns.count() == LOST - 1).await;
        log.unlock().await;
    };
    tokio::join!(futures_util::future::join_all(come), all_wait);
    for agent in &lost {
        let (before, after) = (node_of(&past, agent), node_of(&cluster.state(), agent));
        assert_eq!((after.id, after.addresses()), (before.id, before.addresses()));
    }
    assert_eq!(cluster.state().version().revision - before, 2, "the first, and all others");
}

#[tokio::test]
async fn without_a_receipt_nothing_is_begun_and_the_unknown_stay_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let (server, lost, past) = restored(dir.path()).await;
    let forged = proto::receipt::Receipt([7; 24]);
    let refused = lost.dial(&server).await.open(hello(&lost, &past, forged)).await.refused().await;
    assert_eq!(refused.reason, Reason::UnknownNode);
    assert!(server.running.server.cluster.state().recovery().is_none());
}

#[tokio::test]
async fn a_certificate_of_somebody_else_takes_nobody_in() {
    let dir = tempfile::tempdir().unwrap();
    let (server, lost, past) = restored(dir.path()).await;
    let thief = Agent::new("thief");
    let hello = Hello { number: thief.hello(1).number, ..hello(&lost, &past, past.receipt()) };
    let refused = thief.dial(&server).await.open(hello).await.refused().await;
    assert_eq!(refused.reason, Reason::UnknownNode);
    assert!(server.running.server.cluster.state().node_by_key(&lost.key()).is_none());
}

#[tokio::test]
async fn a_removal_that_a_served_agent_shows_ends_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(dir.path(), 1).await;
    let (teller, gone) = (Agent::enrolled("teller", &server).await, Agent::enrolled("gone", &server).await);
    let database = Database::at(dir.path());
    database.copy().await;
    server
        .write(|state, now| crate::cluster::remove(state, state.node_by_key(&gone.key()).unwrap(), now))
        .await;
    let signed = server.running.server.cluster.state().removal(&gone.key()).unwrap().signed.clone();
    server.running.drain().await;
    database.restore_copy().await;
    let server = TestServer::start(dir.path(), 1).await;
    let talk = teller.serving(&server, 1, MapState::default()).await;
    talk.say(AgentMessage::Removal(signed));
    let mut back = gone.dial(&server).await.open(gone.hello(1)).await;
    assert_eq!(
        back.find(|m| if let proto::session::ServerMessage::Refused(r) = m { Some(r.reason) } else { None })
            .await,
        Some(Reason::Removed)
    );
    eventually("it is out", async || {
        server.running.server.cluster.state().node_by_key(&gone.key()).is_none()
    })
    .await;
}
