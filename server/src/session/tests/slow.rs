//! Who asks for its map and does not take it, while its session goes on.

use super::{
    agent::{AUTHORITY, Agent, PATIENCE},
    server::TestServer,
};
use crate::{
    cluster::{Node, Op},
    gate::{Limits, Patience},
    store::testing::eventually,
};
use metrics_exporter_prometheus::PrometheusBuilder;
use proto::{
    key::PublicKey,
    session::{AgentMessage, Hello, Reason, Refused, ServerMessage},
    statement::NodeId,
    wire,
};
use std::time::Duration;
use tokio::time::{interval, timeout};
use tonic::transport::Endpoint;

/// Their map is sent in several parts.
const CROWD: u32 = 4000;
/// Bytes that the agent takes of an answer before it reads.
const WINDOW: u32 = 1024;

/// Nodes like that of `agent`, put into the database.
async fn put_crowd(server: &TestServer, agent: &Agent) {
    let like = |node: &Node, number: u32| {
        let mut key = [0xc0; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        Op::put_node(Node {
            id: NodeId(node.id.0 + u64::from(number)),
            key: PublicKey(key),
            name: format!("crowd-{number}"),
            address_v4: (u32::from(node.address_v4) + number).into(),
            address_v6: (u128::from(node.address_v6) + u128::from(number)).into(),
            ..node.clone()
        })
    };
    server
        .write(|state, _now| {
            let node = state.node_by_key(&agent.key()).unwrap();
            (1..=CROWD).map(|number| like(node, number)).collect()
        })
        .await;
    let atlas = &server.running.server.atlas;
    eventually("they are in every map", async || atlas.load().object_count() > CROWD as usize).await;
}

#[tokio::test]
async fn who_does_not_take_its_map_is_told_so_ended_and_counted() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _counting = metrics::set_default_local_recorder(&recorder);
    let patience = Patience { fetch: Duration::from_secs(1), ..Patience::default() };
    let server = TestServer::limited(Limits { patience, ..Limits::default() }).await;
    let agent = Agent::enrolled("a", &server).await;
    put_crowd(&server, &agent).await;
    let narrow = Endpoint::from_static(AUTHORITY).initial_stream_window_size(WINDOW);
    let hello = Hello { activate: true, ..agent.hello(1) };
    let mut talk = agent.dial_by(&server, narrow).await.open(hello).await;
    talk.welcome().await;
    let _unread = talk.line.client.fetch_map(wire::FetchMapRequest { have: vec![] }).await.unwrap();
    let mut beats = interval(Duration::from_millis(100));
    let refused = async {
        loop {
            let beat = AgentMessage::Heartbeat { sequence: 1, standby: false, interval: Duration::ZERO };
            tokio::select! {
                _ = beats.tick() => talk.say_if_open(beat),
                said = talk.next() => if let ServerMessage::Refused(refused) = said {
                    return refused;
                },
            }
        }
    };
    let refused: Refused = timeout(PATIENCE, refused).await.expect("its map waits for ever");
    assert_eq!(refused.reason, Reason::Full, "{refused}");
    assert!(refused.detail.contains("does not take it") && refused.retry_after.is_some(), "{refused}");
    let gate = &server.running.server.gate;
    eventually("its connection is closed", async || gate.load() == (0, 0)).await;
    let counted = recorder.handle().render();
    let line = "holdfast_connections_timed_out_total{reason=\"fetches-too-slowly\"} 1";
    assert!(counted.contains(line), "{counted}");
}
