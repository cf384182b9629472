//! An agent that comes up from a cached map of ten thousand peers, without any server: how long `status --json` takes.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod enrolled;

use proto::{
    key::PublicKey,
    map::{Content, Object, Peer},
    root::RootSecret,
    statement::NodeId,
};
use serde_json::Value;
use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const AGENT: &str = env!("CARGO_BIN_EXE_agent");
const PEERS: u32 = 10_000;
const ROUNDS: usize = 20;
/// Unoptimised code is several times slower; what counts is the release build.
const BOUND: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1500 } else { 200 });

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + number + 1).into()
}

fn peer(root: &RootSecret, number: u32) -> Object {
    let mut key = [7; 32];
    key[..4].copy_from_slice(&number.to_le_bytes());
    let node_id = NodeId(number.into());
    let peer = Peer {
        node_id,
        name: format!("node-{number}"),
        membership: enrolled::membership(root, PublicKey(key), node_id, vec![address(number)]),
        endpoints: vec!["192.0.2.1:51820".parse().unwrap()],
        os: "linux".into(),
        agent_version: "0.1.0".into(),
        expires_at: None,
        ephemeral: false,
        claims: Vec::new(),
    };
    Object::new(&Content::Peer(peer), key.to_vec()).unwrap()
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn status(state: &Path) -> Option<(Duration, Vec<u8>)> {
    let begun = Instant::now();
    let output =
        Command::new(AGENT).arg("--state-dir").arg(state).args(["status", "--json"]).output().unwrap();
    output.status.success().then(|| (begun.elapsed(), output.stdout))
}

#[test]
fn the_status_of_ten_thousand_peers_is_quick_and_they_come_up_from_the_cache() {
    let state = tempfile::tempdir().unwrap();
    let peers = |root: &RootSecret| (1..=PEERS).map(|number| peer(root, number)).collect();
    enrolled::write_state(state.path(), vec![address(0)], peers);
    let mut command = Command::new("unshare");
    command.args(["-Urn", AGENT, "--state-dir"]).arg(state.path()).arg("daemon");
    let begun = Instant::now();
    let mut daemon = Daemon(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let (_, first) = loop {
        assert!(daemon.0.try_wait().unwrap().is_none(), "the daemon ended");
        assert!(begun.elapsed() < Duration::from_secs(60), "the daemon does not answer");
        if let Some(told) = status(state.path()) {
            break told;
        }
    };
    let came_up = begun.elapsed();
    let json: Value = serde_json::from_slice(&first).unwrap();
    assert_eq!(json["peers"].as_array().unwrap().len(), PEERS as usize);
    assert_eq!(json["control"]["map_source"], "cache");

    let mut spans: Vec<Duration> = (0..ROUNDS).map(|_| status(state.path()).unwrap().0).collect();
    spans.sort_unstable();
    println!(
        "up with {PEERS} peers after {came_up:?}; status --json: p50 {:?}, worst {:?}",
        spans[ROUNDS / 2],
        spans[ROUNDS - 1]
    );
    assert!(spans[ROUNDS / 2] <= BOUND, "p50 {:?}, bound {BOUND:?}", spans[ROUNDS / 2]);
}
