//! What HTTP/2 and a session let a peer say without end: each flood is bounded, its connection ends, and others are served meanwhile. Frames are written byte by byte, as no
//! library would (RFC 9113, sections 4.1 and 6).

use super::{
    agent::{Agent, PATIENCE, one_agent},
    server::TestServer,
};
use crate::{
    gate::{Limits, Patience},
    store::testing::eventually,
};
use proto::{
    session::{AgentMessage, MapState, Reason, ServerMessage, Signal},
    tls::{client_config, server_name},
};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const CANCEL: [u8; 4] = [0, 0, 0, 8];
const ENHANCE_YOUR_CALM: u32 = 11;
/// No flood gets so far: a little is read, and the rest lies in the kernel's buffers.
const BOUND: usize = 16 << 20;
/// For a connection that never calls; the agent beside it calls sooner.
const FIRST_CALL: Duration = Duration::from_secs(3);

type Stream = TlsStream<TcpStream>;

async fn connect(server: &TestServer) -> Stream {
    let tls = TlsConnector::from(client_config(vec![server.fingerprint()]).unwrap());
    let tcp = TcpStream::connect(server.addr).await.unwrap();
    let mut stream = tls.connect(server_name(), tcp).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    stream
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A literal header that no table remembers (RFC 7541, section 6.2.2); short strings only.
fn literal(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}

/// The headers of a call.
fn call(path: &str) -> Vec<u8> {
    let headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "server"),
        (":path", path),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ];
    headers.iter().flat_map(|(name, value)| literal(name, value)).collect()
}

/// Sends what `next` gives, by the number of the turn, until the server ends the connection; the error code of its last GOAWAY.
async fn flood(stream: Stream, next: impl Fn(u32) -> Vec<u8>) -> Option<u32> {
    let (read, write) = tokio::io::split(stream);
    let hearing = tokio::spawn(last_goaway(read));
    timeout(PATIENCE, send(write, next)).await.expect("the flood goes on");
    timeout(PATIENCE, hearing).await.expect("the connection does not end").unwrap()
}

/// Until nothing is taken any more.
async fn send(mut write: WriteHalf<Stream>, next: impl Fn(u32) -> Vec<u8>) {
    let mut bytes = 0;
    for turn in 0.. {
        let frames = next(turn);
        if write.write_all(&frames).await.is_err() {
            break;
        }
        bytes += frames.len();
        assert!(bytes < BOUND, "the server reads on and on");
    }
}

async fn last_goaway(mut read: ReadHalf<Stream>) -> Option<u32> {
    let (mut heard, mut goaway) = (Vec::new(), None);
    while matches!(read.read_buf(&mut heard).await, Ok(1..)) {
        while let Some(length) = heard.first_chunk::<3>().map(|l| u32::from_be_bytes([0, l[0], l[1], l[2]])) {
            let length = 9 + length as usize;
            if heard.len() < length {
                break;
            }
            let frame: Vec<u8> = heard.drain(..length).collect();
            if frame[3] == GOAWAY {
                goaway = frame[13..17].try_into().ok().map(u32::from_be_bytes);
            }
        }
    }
    goaway
}

/// A server that soon ends who does not call, and a member.
async fn hasty() -> (TestServer, Agent) {
    let patience = Patience { first_call: FIRST_CALL, ..Patience::default() };
    let server = TestServer::limited(Limits { patience, ..Limits::default() }).await;
    let agent = Agent::enrolled("a", &server).await;
    (server, agent)
}

/// A flood beside an agent that is served, and is still served afterwards.
async fn beside_an_agent(next: impl Fn(u32) -> Vec<u8>) -> Option<u32> {
    let (server, agent) = hasty().await;
    let mut honest = agent.serving(&server, 1, MapState::default()).await;
    honest.fetched_map().await;
    let flooding = flood(connect(&server).await, next);
    tokio::pin!(flooding);
    for sequence in 0.. {
        tokio::select! {
            end = &mut flooding => {
                honest.heartbeat(u64::MAX - 1).await;
                let gate = &server.running.server.gate;
                eventually("the agent's connection is the only one", async || gate.load() == (1, 0)).await;
                return end;
            }
            () = tokio::time::sleep(Duration::from_millis(200)) => {
                honest.heartbeat(sequence).await;
            }
        }
    }
    unreachable!("sequences do not end")
}

#[tokio::test]
async fn calls_that_are_opened_and_reset_end_their_connection() {
    let block = call("/holdfast.v1.Control/Session");
    let goaway = beside_an_agent(|turn| {
        let stream = 2 * turn + 1;
        [frame(HEADERS, END_HEADERS, stream, &block), frame(RST_STREAM, 0, stream, &CANCEL)].concat()
    })
    .await;
    assert_eq!(goaway, Some(ENHANCE_YOUR_CALM));
}

#[tokio::test]
async fn headers_that_go_on_and_on_end_their_connection() {
    let piece: Vec<u8> = (0..100).flat_map(|_| literal("x-filler", &"x".repeat(120))).collect();
    let goaway = beside_an_agent(|turn| match turn {
        0 => frame(HEADERS, 0, 1, &call("/holdfast.v1.Control/Session")),
        _ => frame(CONTINUATION, 0, 1, &piece),
    })
    .await;
    assert!(goaway.is_some());
}

#[tokio::test]
async fn empty_continuations_end_their_connection() {
    let goaway = beside_an_agent(|turn| match turn {
        0 => frame(HEADERS, 0, 1, &call("/holdfast.v1.Control/Session")),
        _ => frame(CONTINUATION, 0, 1, &[]),
    })
    .await;
    assert!(goaway.is_some());
}

#[tokio::test]
async fn calls_with_headers_too_large_end_their_connection() {
    let large: Vec<u8> = (0..100).flat_map(|_| literal("x-filler", &"x".repeat(120))).collect();
    let block = [call("/holdfast.v1.Control/Session"), large].concat();
    beside_an_agent(|turn| frame(HEADERS, END_HEADERS | END_STREAM, 2 * turn + 1, &block)).await;
}

#[tokio::test]
async fn pings_without_a_call_are_ended_by_time() {
    beside_an_agent(|_| frame(PING, 0, 0, &[0; 8]).repeat(100)).await;
}

#[tokio::test]
async fn settings_without_a_call_are_ended_by_time() {
    beside_an_agent(|_| frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 1]).repeat(100)).await;
}

#[tokio::test]
async fn a_session_that_floods_on_and_on_is_told_why_it_ends() {
    let (server, flooder) = one_agent().await;
    let other = Agent::enrolled("b", &server).await;
    let mut honest = other.serving(&server, 1, MapState::default()).await;
    let mut flood = flooder.serving(&server, 1, MapState::default()).await;
    // 500 at once, 50 a second then: 300 that are late are too many.
    for id in 0..2000 {
        flood.say(AgentMessage::Signal(Signal { peer: other.key(), id, endpoints: vec![] }));
    }
    let refused = flood.refused().await;
    assert_eq!(refused.reason, Reason::Full, "{refused}");
    assert!(refused.detail.contains("signals") && refused.retry_after.is_some(), "{refused}");
    let signalled = honest.find(|m| matches!(m, ServerMessage::Signal(_)).then_some(()));
    signalled.await.expect("the other hears some of it");
    honest.heartbeat(1).await;
}
