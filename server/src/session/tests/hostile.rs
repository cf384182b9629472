//! What is not spoken here is survived.

use super::{
    agent::{Agent, PATIENCE, number, one_agent, raw},
    server::TestServer,
};
use crate::{gate::Limits, settings::Settings};
use proto::{
    map::MapVersion,
    session::{AgentMessage, Hello, MapState, Reason, ServerMessage, SessionNumber, Signal},
    setup_key::SetupSecret,
    wire::{self, agent_message::Kind, enrol_response::Outcome},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

#[tokio::test]
async fn a_message_of_an_unknown_kind_is_passed_over() {
    let (server, agent) = one_agent().await;
    let mut talk = agent.standby(&server, 1).await;
    // A kind from the future decodes as none.
    talk.say_raw(wire::AgentMessage { kind: None });
    assert_eq!(talk.said_so_far().await, []);
}

#[tokio::test]
async fn an_invalid_message_ends_its_session_with_the_field() {
    let (server, agent) = one_agent().await;
    let mut talk = agent.serving(&server, 1, MapState::default()).await;
    talk.say_raw(wire::AgentMessage {
        kind: Some(Kind::Signal(wire::Signal { peer: vec![1], ..Default::default() })),
    });
    let refused = talk.refused().await;
    assert_eq!(refused.reason, Reason::Invalid);
    assert!(refused.detail.contains("peer"), "{refused}");
}

#[tokio::test]
async fn whoever_speaks_before_hello_or_twice_is_refused() {
    let (server, agent) = one_agent().await;
    let first = AgentMessage::Heartbeat { sequence: 1, standby: false, interval: std::time::Duration::ZERO }
        .into_wire(None, "t");
    assert_eq!(agent.dial(&server).await.open_with(first).await.refused().await.reason, Reason::Invalid);
    let mut talk = agent.standby(&server, 1).await;
    talk.say_raw(AgentMessage::Hello(agent.hello(2)).into_wire(Some(talk.line.proof()), "t"));
    assert_eq!(talk.refused().await.reason, Reason::Invalid);
}

#[tokio::test]
async fn an_agent_of_no_version_is_told_which_is_spoken() {
    let (server, agent) = one_agent().await;
    let line = agent.dial(&server).await;
    let mut hello = AgentMessage::Hello(agent.hello(1)).into_wire(Some(line.proof()), "t");
    if let Some(Kind::Hello(hello)) = &mut hello.kind {
        hello.version = None;
    }
    assert_eq!(line.open_with(hello).await.refused().await.reason, Reason::Version);
}

#[tokio::test]
async fn garbage_on_the_port_is_closed_and_others_are_served() {
    let server = TestServer::alone().await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 4096], &[0xff; 64], b"\x16\x03\x01\x00\x00"] {
        let mut stream = raw(server.addr).await;
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // A reset is an end, too.
        let _ended = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it is not closed");
    }
    let agent = Agent::enrolled("a", &server).await;
    agent.standby(&server, 1).await.heartbeat(1).await;
}

#[tokio::test]
async fn a_large_message_is_a_members_alone_and_only_the_list_of_a_fetch() {
    let (server, agent) = one_agent().await;
    let object = wire::ObjectRef { kind: 1, id: vec![1; 64], hash: vec![2; 32] };
    let large = wire::FetchMapRequest { have: vec![object.clone(); 2000] };
    let beyond_need = wire::FetchMapRequest { have: vec![object; 10_000] };
    let mut stranger = agent.dial(&server).await;
    let refused = stranger.client.fetch_map(large.clone()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{refused}");
    let mut talk = agent.standby(&server, 1).await;
    assert!(talk.line.client.fetch_map(large).await.is_ok());
    let refused = talk.line.client.fetch_map(beyond_need).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::OutOfRange, "{refused}");
    talk.say_raw(wire::AgentMessage {
        kind: Some(Kind::Signal(wire::Signal { peer: vec![1; 100_000], ..Default::default() })),
    });
    assert_eq!(talk.find(|_| None::<()>).await, None, "the session ends");
}

#[tokio::test]
async fn a_proof_taken_from_another_connection_or_another_node_is_worth_nothing() {
    let server = TestServer::alone().await;
    let (agent, other) = (Agent::enrolled("a", &server).await, Agent::enrolled("b", &server).await);
    let (first, second) = (agent.dial(&server).await, agent.dial(&server).await);
    let replayed = AgentMessage::Hello(agent.hello(1)).into_wire(Some(first.proof()), "t");
    assert_eq!(second.open_with(replayed).await.refused().await.reason, Reason::TlsTerminated);
    let line = agent.dial(&server).await;
    let forged = wire::Proof { node_key: other.key().0.to_vec(), ..line.proof() };
    let forged = AgentMessage::Hello(agent.hello(1)).into_wire(Some(forged), "t");
    assert_eq!(line.open_with(forged).await.refused().await.reason, Reason::BadProof);
    // The connection whose proof was heard by others is as good as before.
    let hello = AgentMessage::Hello(agent.hello(2)).into_wire(Some(first.proof()), "t");
    first.open_with(hello).await.welcome().await;
}

#[tokio::test]
async fn a_session_number_that_no_agent_counts_to_locks_nobody_out() {
    let (server, agent) = one_agent().await;
    let most = SessionNumber { boot: u64::MAX, counter: u64::MAX };
    let hello = Hello { number: most, activate: true, ..agent.hello(1) };
    assert_eq!(agent.dial(&server).await.open(hello).await.refused().await.reason, Reason::Invalid);
    let mut talk = agent.standby(&server, 1).await;
    talk.say(AgentMessage::Activate { number: most, map: MapState::default() });
    assert_eq!(talk.refused().await.reason, Reason::Invalid);
    agent.serving(&server, 2, MapState::default()).await.heartbeat(1).await;
}

#[tokio::test]
async fn a_map_from_the_future_is_waited_for_and_harms_nobody() {
    let server = TestServer::alone().await;
    let (agent, other) = (Agent::enrolled("a", &server).await, Agent::enrolled("b", &server).await);
    let version = MapVersion { epoch: u64::MAX, revision: u64::MAX };
    let mut talk = agent.serving(&server, 1, MapState { version, ..MapState::default() }).await;
    talk.heartbeat(1).await;
    let mut honest = other.serving(&server, 1, MapState::default()).await;
    honest.fetched_map().await;
}

#[tokio::test]
async fn old_and_repeated_activations_change_nothing_for_the_session_that_serves() {
    let (server, agent) = one_agent().await;
    let mut serving = agent.serving(&server, 5, MapState::default()).await;
    let mut stale = agent.standby(&server, 4).await;
    stale.say(AgentMessage::Activate { number: number(4), map: MapState::default() });
    assert_eq!(stale.refused().await.reason, Reason::StaleSession);
    for sequence in 0..5 {
        serving.say(AgentMessage::Activate { number: number(5), map: MapState::default() });
        serving.heartbeat(sequence).await;
    }
}

#[tokio::test]
async fn facts_that_cannot_be_printed_or_are_too_long_are_refused() {
    let (server, agent) = one_agent().await;
    for hostname in ["a\u{1b}[2J".to_owned(), "x".repeat(5000), "a\0b".to_owned()] {
        let mut talk = agent.standby(&server, 1).await;
        let facts = wire::Facts { hostname, ..wire::Facts::default() };
        let update = wire::NodeUpdate { facts: Some(facts), endpoints: vec![] };
        talk.say_raw(wire::AgentMessage { kind: Some(Kind::Update(update)) });
        assert_eq!(talk.refused().await.reason, Reason::Invalid);
    }
}

#[tokio::test]
async fn signals_to_oneself_and_to_strangers_go_nowhere() {
    let (server, agent) = one_agent().await;
    let mut talk = agent.serving(&server, 1, MapState::default()).await;
    talk.fetched_map().await;
    talk.said_so_far().await;
    for peer in [agent.key(), Agent::new("stranger").key()] {
        talk.say(AgentMessage::Signal(Signal { peer, id: 1, endpoints: vec![] }));
    }
    assert_eq!(talk.said_so_far().await, []);
}

#[tokio::test]
async fn a_flood_in_a_session_is_read_slowly_and_others_are_served() {
    let server = TestServer::alone().await;
    let (flooder, other) = (Agent::enrolled("a", &server).await, Agent::enrolled("b", &server).await);
    let mut flood = flooder.standby(&server, 1).await;
    let mut honest = other.serving(&server, 1, MapState::default()).await;
    let flooded_at = tokio::time::Instant::now();
    for sequence in 0..400 {
        flood.say(AgentMessage::Heartbeat { sequence, standby: true, interval: std::time::Duration::ZERO });
    }
    honest.heartbeat(1).await;
    let last = flood.find(|message| {
        let ServerMessage::Heartbeat(ack) = message else { return None };
        (ack.sequence == 99).then_some(())
    });
    last.await.expect("what comes too fast is answered later");
    // 50 at once, 10 a second then.
    assert!(flooded_at.elapsed() > std::time::Duration::from_secs(4), "{:?}", flooded_at.elapsed());
    honest.heartbeat(2).await;
}

#[tokio::test]
async fn setup_keys_are_guessed_a_few_times_only() {
    let server = TestServer::alone().await;
    let agent = Agent::new("a");
    let mut reasons = Vec::new();
    for _ in 0..120 {
        let wrong = SetupSecret::generate().unwrap().expose();
        let outcome = agent.dial(&server).await.enrol(&wrong, agent.facts()).await;
        let Outcome::Refused(refused) = outcome else { panic!("{outcome:?}") };
        reasons.push(refused.reason());
        if refused.reason() == wire::refused::Reason::Full {
            assert!(refused.retry_after_ms > 0 && refused.detail.contains("setup key"), "{refused:?}");
            break;
        }
    }
    assert_eq!(reasons.last(), Some(&wire::refused::Reason::Full), "{reasons:?}");
    assert!(reasons.len() > 20, "honest mistakes are not punished: {reasons:?}");
}

#[tokio::test]
async fn above_the_bound_of_connections_new_ones_are_closed_and_old_ones_served() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start_limited(
        dir.path(),
        1,
        Settings::default(),
        Limits { max_connections: 4, ..Limits::default() },
    )
    .await
    .unwrap();
    let agent = Agent::enrolled("a", &server).await;
    let mut talk = agent.standby(&server, 1).await;
    let (mut first, mut second) = (raw(server.addr).await, raw(server.addr).await);
    // One source may have half: one of the two is closed at once.
    let (mut one, mut other) = ([0], [0]);
    let closed = async {
        tokio::select! {
            closed = first.read(&mut one) => closed,
            closed = second.read(&mut other) => closed,
        }
    };
    assert!(matches!(timeout(PATIENCE, closed).await.expect("one is closed"), Ok(0) | Err(_)));
    talk.heartbeat(1).await;
}

#[tokio::test]
async fn a_list_of_objects_is_read_for_one_fetch_at_a_time() {
    let (server, agent) = one_agent().await;
    let mut talk = agent.standby(&server, 1).await;
    let slot = server.running.server.hub.all().pop().unwrap();
    let turn = slot.begin_fetch().unwrap();
    let malformed = wire::FetchMapRequest { have: vec![wire::ObjectRef::default(); 2000] };
    let refused = talk.line.client.fetch_map(malformed.clone()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Aborted, "before it is read: {refused}");
    drop(turn);
    let mut codes = Vec::new();
    for _ in 0..20 {
        codes.push(talk.line.client.fetch_map(malformed.clone()).await.unwrap_err().code());
    }
    assert_eq!(codes[0], tonic::Code::InvalidArgument, "the turn was given back");
    assert_eq!(codes.last(), Some(&tonic::Code::ResourceExhausted), "{codes:?}");
    talk.heartbeat(1).await;
}
