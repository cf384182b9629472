//! An agent that comes up from a cached map of ten thousand peers, without any server: how long `status --json` takes.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use agent_core::{
    Agent, BootTime, Config, ConnId, Identity, Saved,
    config::{ControlConfig, PeerConfig},
};
use proto::{
    key::{NodeSecret, PublicKey},
    map::{Content, Delta, Map, MapVersion, Network, Object, Peer},
    root::RootSecret,
    session::{Facts, ServerMessage},
    statement::{Membership, NetworkId, NodeId, Statement},
    time::UnixTime,
    wire,
};
use serde_json::Value;
use std::{
    fs,
    net::Ipv4Addr,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const AGENT: &str = env!("CARGO_BIN_EXE_agent");
const PEERS: u32 = 10_000;
const NETWORK: NetworkId = NetworkId([3; 16]);
const ROUNDS: usize = 20;
/// Unoptimised code is several times slower; what counts is the release build.
const BOUND: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1500 } else { 200 });

fn membership(root: &RootSecret, key: PublicKey, number: u32) -> Vec<u8> {
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + number + 1);
    let membership = Membership {
        node_id: NodeId(number.into()),
        node_key: key,
        addresses: vec![address.into()],
        claims: Vec::new(),
        issued_at: UnixTime(1_760_000_000),
        not_after: None,
    };
    Statement::Membership(membership).sign(NETWORK, root)
}

fn peer(root: &RootSecret, number: u32) -> Object {
    let mut key = [7; 32];
    key[..4].copy_from_slice(&number.to_le_bytes());
    let peer = Peer {
        node_id: NodeId(number.into()),
        name: format!("node-{number}"),
        membership: membership(root, PublicKey(key), number),
        endpoints: vec!["192.0.2.1:51820".parse().unwrap()],
        os: "linux".into(),
        agent_version: "0.1.0".into(),
        expires_at: None,
        ephemeral: false,
    };
    Object::new(&Content::Peer(peer), key.to_vec()).unwrap()
}

fn whole_map(root: &RootSecret) -> Delta {
    let network = Network {
        name: "test".into(),
        overlay_v4: "100.64.0.0/10".parse().unwrap(),
        overlay_v6: "fd00:1:2::/48".parse().unwrap(),
    };
    let mut put = vec![Object::new(&Content::Network(network), Vec::new()).unwrap()];
    put.extend((1..=PEERS).map(|number| peer(root, number)));
    let mut map = Map::default();
    put.iter().for_each(|object| {
        map.put(object.clone());
    });
    let version = MapVersion { epoch: 1, revision: 1 };
    Delta { version, digest: map.digest(), put, last: true, ..Delta::default() }
}

/// What an agent of a large network leaves on disk.
fn prepare(state: &Path) {
    let (root, secret) = (RootSecret::generate().unwrap(), NodeSecret::generate().unwrap());
    let config = Config {
        servers: Vec::new(),
        facts: Facts::default(),
        control: ControlConfig::default(),
        peer: PeerConfig::default(),
    };
    let identity = Identity { key: secret.public(), boot: 1, can_enrol: true };
    let now = BootTime::default();
    let mut agent = Agent::new(config, identity, Saved::default(), None, 1, now);
    let enrolled = wire::Enrolled {
        root: root.public().to_bytes().to_vec(),
        membership: membership(&root, secret.public(), 0),
        node_id: 0,
        servers: Vec::new(),
    };
    agent.handle_enrolled(ConnId(1), &enrolled, now);
    agent.handle_message(ConnId(1), ServerMessage::Map(whole_map(&root)), now);
    fs::write(state.join("node.key"), secret.to_text().as_bytes()).unwrap();
    fs::write(state.join("map.cache"), agent.map_cache()).unwrap();
    let kept = serde_json::json!({ "format": 1, "boot": 1, "core": agent.saved() });
    fs::write(state.join("state.json"), kept.to_string()).unwrap();
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
    prepare(state.path());
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
