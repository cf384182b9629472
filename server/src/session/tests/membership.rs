//! Who gets in, who does not, and with which reason.

use super::{
    agent::{Agent, number},
    server::TestServer,
};
use crate::cluster::{expire, remove};
use proto::{
    map::MapVersion,
    root::RootKey,
    session::{AgentMessage, Hello, MapState, Reason, Refused, ServerMessage},
    statement::Statement,
    wire::enrol_response::Outcome,
};

fn refused(outcome: Outcome) -> Refused {
    match outcome {
        Outcome::Refused(refused) => refused.into(),
        Outcome::Enrolled(enrolled) => panic!("enrolled: {enrolled:?}"),
    }
}

#[tokio::test]
async fn an_enrolled_node_holds_a_certificate_under_the_root() {
    let server = TestServer::alone().await;
    let agent = Agent::new("web");
    let outcome = agent.dial(&server).await.enrol(&server.setup_key, agent.facts()).await;
    let Outcome::Enrolled(enrolled) = outcome else { panic!("{outcome:?}") };
    let root = RootKey::from_bytes(&enrolled.root).unwrap();
    assert_eq!(root.fingerprint(), server.fingerprint());
    let network = server.running.server.cluster.state().network_id;
    let statement = Statement::verify(&enrolled.membership, network, &root).unwrap();
    assert!(matches!(statement, Statement::Membership(m) if m.node_key == agent.key()));
    assert_eq!(enrolled.servers, [server.addr.to_string()]);
}

#[tokio::test]
async fn a_setup_key_that_is_used_up_unknown_or_malformed_is_refused_with_its_reason() {
    let server = TestServer::alone().await;
    let one_off = server.make_setup_key(false).await;
    let (first, second) = (Agent::new("first"), Agent::new("second"));
    for _again in 0..2 {
        let outcome = first.dial(&server).await.enrol(&one_off, first.facts()).await;
        assert!(matches!(outcome, Outcome::Enrolled(_)), "{outcome:?}");
    }
    for (key, reason) in [
        (&one_off[..], Reason::SetupKeyUsed),
        (&"0".repeat(40), Reason::SetupKeyUnknown),
        ("x", Reason::SetupKeyUnknown),
    ] {
        let refused = refused(second.dial(&server).await.enrol(key, second.facts()).await);
        assert_eq!(refused.reason, reason, "{refused}");
    }
}

#[tokio::test]
async fn a_useless_key_is_refused_while_somebody_else_holds_the_log() {
    let server = TestServer::alone().await;
    let cluster = &server.running.server.cluster;
    let locked = cluster.store().lock(cluster.state().head()).await.unwrap();
    let agent = Agent::new("stranger");
    let outcome = agent.dial(&server).await.enrol(&"0".repeat(40), agent.facts()).await;
    assert_eq!(refused(outcome).reason, Reason::SetupKeyUnknown);
    locked.unlock().await;
}

#[tokio::test]
async fn a_server_behind_what_an_agent_saw_does_not_call_it_removed() {
    let server = TestServer::alone().await;
    let agent = Agent::enrolled("back", &server).await;
    server.write(|state, now| remove(state, state.node_by_key(&agent.key()).unwrap(), now)).await;
    let MapVersion { epoch, revision } = server.running.server.cluster.state().version();
    let version = MapVersion { epoch, revision: revision + 1 };
    let hello = Hello { map: MapState { version, ..MapState::default() }, ..agent.hello(2) };
    let refused = agent.dial(&server).await.open(hello).await.refused().await;
    assert_eq!(refused.reason, Reason::UnknownNode);
}

#[tokio::test]
async fn two_servers_that_enrol_at_once_give_each_node_its_own_address() {
    let dir = tempfile::tempdir().unwrap();
    let servers = [TestServer::start(dir.path(), 1).await, TestServer::start(dir.path(), 2).await];
    let agents: Vec<_> = (0..20).map(|n| Agent::new(&format!("node{n}"))).collect();
    let setup_key = &servers[0].setup_key;
    let enrolments = agents
        .iter()
        .zip(servers.iter().cycle())
        .map(|(agent, server)| async move { agent.dial(server).await.enrol(setup_key, agent.facts()).await });
    let outcomes = futures_util::future::join_all(enrolments).await;
    let mut ids: Vec<_> = outcomes
        .into_iter()
        .map(|outcome| match outcome {
            Outcome::Enrolled(enrolled) => enrolled.node_id,
            Outcome::Refused(refused) => panic!("{refused:?}"),
        })
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), agents.len());
}

#[tokio::test]
async fn a_stranger_is_unknown_and_not_removed() {
    let server = TestServer::alone().await;
    let stranger = Agent::new("stranger");
    let refused = stranger.dial(&server).await.open(stranger.hello(1)).await.refused().await;
    assert_eq!(refused.reason, Reason::UnknownNode);
    assert!(refused.removal.is_empty());
}

#[tokio::test]
async fn a_removed_node_is_told_with_proof_at_once_and_when_it_comes_back() {
    let server = TestServer::alone().await;
    let agent = Agent::enrolled("gone", &server).await;
    let mut talk = agent.standby(&server, 1).await;
    server.write(|state, now| remove(state, state.node_by_key(&agent.key()).unwrap(), now)).await;
    let told = talk.refused().await;
    let again = agent.dial(&server).await.open(agent.hello(2)).await.refused().await;
    let state = server.running.server.cluster.state();
    for refused in [told, again] {
        assert_eq!(refused.reason, Reason::Removed);
        let statement = Statement::verify(&refused.removal, state.network_id, &state.root.public());
        assert!(matches!(statement, Ok(Statement::Removal(removal)) if removal.node_key == agent.key()));
    }
}

#[tokio::test]
async fn a_node_that_logs_out_is_a_member_no_more() {
    let server = TestServer::alone().await;
    let agent = Agent::enrolled("leaver", &server).await;
    let mut talk = agent.standby(&server, 1).await;
    talk.say(AgentMessage::Leave { logout: true });
    assert_eq!(talk.refused().await.reason, Reason::Removed);
    assert!(server.running.server.cluster.state().node_by_key(&agent.key()).is_none());
}

#[tokio::test]
async fn an_expired_login_ends_the_session_with_that_reason() {
    let server = TestServer::alone().await;
    let agent = Agent::enrolled("old", &server).await;
    let mut talk = agent.standby(&server, 1).await;
    server.write(|state, now| expire(state.node_by_key(&agent.key()).unwrap(), now)).await;
    assert_eq!(talk.refused().await.reason, Reason::Expired);
}

#[tokio::test]
async fn a_proof_for_another_connection_or_of_another_key_is_refused() {
    let server = TestServer::alone().await;
    let (agent, thief) = (Agent::enrolled("victim", &server).await, Agent::new("thief"));
    let stolen = agent.dial(&server).await.proof();
    let hello = |proof| {
        AgentMessage::Hello(Hello { number: number(9), ..agent.hello(9) }).into_wire(Some(proof), "t")
    };
    let elsewhere = thief.dial(&server).await.open_with(hello(stolen)).await.refused().await;
    assert_eq!(elsewhere.reason, Reason::TlsTerminated);
    let line = thief.dial(&server).await;
    let mut forged = line.proof();
    forged.node_key = agent.key().0.to_vec();
    assert_eq!(line.open_with(hello(forged)).await.refused().await.reason, Reason::BadProof);
    let line = thief.dial(&server).await;
    let without = AgentMessage::Hello(thief.hello(1)).into_wire(None, "t");
    assert_eq!(line.open_with(without).await.refused().await.reason, Reason::Invalid);
}

#[tokio::test]
async fn a_new_certificate_is_pushed_to_its_node() {
    let server = TestServer::alone().await;
    let agent = Agent::enrolled("router", &server).await;
    let mut talk = agent.standby(&server, 1).await;
    let claim = "10.1.0.0/16".parse().unwrap();
    server
        .write(|state, now| {
            let node = state.node_by_key(&agent.key()).unwrap();
            crate::cluster::allow_claim(state, node, claim, now).unwrap()
        })
        .await;
    let signed =
        talk.find(|m| if let ServerMessage::Membership(signed) = m { Some(signed) } else { None }).await;
    let Ok((_, Statement::Membership(membership))) = Statement::trust(&signed.unwrap()) else { panic!() };
    assert_eq!(membership.claims, [claim]);
}
