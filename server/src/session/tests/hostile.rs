//! What is not spoken here is survived.

use super::{
    agent::{Agent, PATIENCE, raw},
    server::TestServer,
};
use proto::{
    session::{AgentMessage, MapState, Reason},
    wire::{self, agent_message::Kind},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

#[tokio::test]
async fn a_message_of_an_unknown_kind_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(dir.path(), 1).await;
    let agent = Agent::enrolled("a", &server).await;
    let mut talk = agent.standby(&server, 1).await;
    // A kind from the future decodes as none.
    talk.say_raw(wire::AgentMessage { kind: None });
    assert_eq!(talk.said_so_far().await, []);
}

#[tokio::test]
async fn an_invalid_message_ends_its_session_with_the_field() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(dir.path(), 1).await;
    let agent = Agent::enrolled("a", &server).await;
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
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(dir.path(), 1).await;
    let agent = Agent::enrolled("a", &server).await;
    let first = AgentMessage::Heartbeat { sequence: 1, standby: false, interval: std::time::Duration::ZERO }
        .into_wire(None, "t");
    assert_eq!(agent.dial(&server).await.open_with(first).await.refused().await.reason, Reason::Invalid);
    let mut talk = agent.standby(&server, 1).await;
    talk.say_raw(AgentMessage::Hello(agent.hello(2)).into_wire(Some(talk.line.proof()), "t"));
    assert_eq!(talk.refused().await.reason, Reason::Invalid);
}

#[tokio::test]
async fn an_agent_of_no_version_is_told_which_is_spoken() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(dir.path(), 1).await;
    let agent = Agent::enrolled("a", &server).await;
    let line = agent.dial(&server).await;
    let mut hello = AgentMessage::Hello(agent.hello(1)).into_wire(Some(line.proof()), "t");
    if let Some(Kind::Hello(hello)) = &mut hello.kind {
        hello.version = None;
    }
    assert_eq!(line.open_with(hello).await.refused().await.reason, Reason::Version);
}

#[tokio::test]
async fn garbage_on_the_port_is_closed_and_others_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(dir.path(), 1).await;
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
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(dir.path(), 1).await;
    let agent = Agent::enrolled("a", &server).await;
    let object = wire::ObjectRef { kind: 1, id: vec![1; 64], hash: vec![2; 32] };
    let large = wire::FetchMapRequest { have: vec![object.clone(); 2000] };
    let beyond_need = wire::FetchMapRequest { have: vec![object; 10_000] };
    let mut stranger = agent.dial(&server).await;
    let refused = stranger.client.fetch_map(large.clone()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::OutOfRange, "{refused}");
    let mut talk = agent.standby(&server, 1).await;
    assert!(talk.line.client.fetch_map(large).await.is_ok());
    let refused = talk.line.client.fetch_map(beyond_need).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::OutOfRange, "{refused}");
    talk.say_raw(wire::AgentMessage {
        kind: Some(Kind::Signal(wire::Signal { peer: vec![1; 100_000], ..Default::default() })),
    });
    assert_eq!(talk.find(|_| None::<()>).await, None, "the session ends");
}
