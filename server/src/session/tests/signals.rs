//! Signals: on one server, and across two.

use super::{agent::Agent, server::TestServer};
use proto::session::{AgentMessage, MapState, ServerMessage, Signal};

async fn signal_from_a_to_b(on_a: &TestServer, on_b: &TestServer) {
    let (a, b) = (Agent::enrolled("a", on_a).await, Agent::enrolled("b", on_a).await);
    let mut sender = a.serving(on_a, 1, MapState::default()).await;
    sender.presence().await;
    let mut receiver = b.serving(on_b, 1, MapState::default()).await;
    // By then the sender's server knows where the receiver is.
    assert_eq!(sender.presence().await.online.len(), 1);
    let endpoints = vec!["192.0.2.1:51820".parse().unwrap()];
    sender.say(AgentMessage::Signal(Signal { peer: b.key(), id: 77, endpoints: endpoints.clone() }));
    let heard =
        receiver.find(|m| if let ServerMessage::Signal(signal) = m { Some(signal) } else { None }).await;
    assert_eq!(heard.unwrap(), Signal { peer: a.key(), id: 77, endpoints });
}

#[tokio::test]
async fn a_signal_reaches_an_agent_on_the_same_server_under_the_senders_key() {
    let server = TestServer::alone().await;
    signal_from_a_to_b(&server, &server).await;
}

#[tokio::test]
async fn a_signal_reaches_an_agent_on_another_server() {
    let (one, two) = TestServer::two().await;
    signal_from_a_to_b(&one, &two).await;
}
