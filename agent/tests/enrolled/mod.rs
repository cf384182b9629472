//! What an enrolled agent leaves in its state directory, for tests of agents that start without any server.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use agent_core::claims::ClaimsConfig;
use agent_core::config::{ControlConfig, PeerConfig};
use agent_core::{Agent, BootTime, Config, ConnId, Identity, Saved};
use proto::key::{NodeSecret, PublicKey};
use proto::map::{Content, Delta, Map, MapVersion, Network, Object};
use proto::root::RootSecret;
use proto::rule::Rule;
use proto::session::{Facts, ServerMessage};
use proto::statement::{Membership, NetworkId, NodeId, Statement};
use proto::time::UnixTime;
use proto::wire;

const NETWORK: NetworkId = NetworkId([3; 16]);

/// Writes the key, the state and the map of a node with these addresses and peers.
pub(crate) fn write_state(
    state: &Path,
    addresses: Vec<IpAddr>,
    peers: impl FnOnce(&RootSecret) -> Vec<Object>,
) {
    let (root, secret) = (RootSecret::generate().unwrap(), NodeSecret::generate().unwrap());
    let config = Config {
        servers: Vec::new(),
        facts: Facts::default(),
        control: ControlConfig::default(),
        peer: PeerConfig::default(),
        claims: ClaimsConfig::default(),
    };
    let identity = Identity { key: secret.public(), boot: 1, can_enrol: true };
    let now = BootTime::default();
    let mut agent = Agent::new(config, identity, Saved::default(), None, 1, now);
    let enrolled = wire::Enrolled {
        root: root.public().to_bytes().to_vec(),
        membership: membership(&root, secret.public(), NodeId(0), addresses),
        node_id: 0,
        servers: Vec::new(),
        roots: None,
    };
    agent.handle_enrolled(ConnId(1), &enrolled, now);
    agent.handle_message(ConnId(1), ServerMessage::Map(whole_map(peers(&root))), now);
    fs::write(state.join("node.key"), secret.to_text().as_bytes()).unwrap();
    fs::write(state.join("map.cache"), agent.map_cache()).unwrap();
    let kept = serde_json::json!({ "format": 1, "boot": 1, "core": agent.saved() });
    fs::write(state.join("state.json"), kept.to_string()).unwrap();
}

/// A certificate of the network that [`write_state`] writes, without an end.
pub(crate) fn membership(
    root: &RootSecret,
    node_key: PublicKey,
    node_id: NodeId,
    addresses: Vec<IpAddr>,
) -> Vec<u8> {
    let issued_at = UnixTime(1_760_000_000);
    let membership =
        Membership { node_id, node_key, addresses, claims: Vec::new(), issued_at, not_after: None };
    Statement::Membership(membership).sign(NETWORK, root)
}

fn whole_map(peers: Vec<Object>) -> Delta {
    let network = Network {
        name: "test".into(),
        overlay_v4: "100.64.0.0/10".parse().unwrap(),
        overlay_v6: "fd00:1:2::/48".parse().unwrap(),
    };
    let everybody = Rule::all_from(vec![network.overlay_v4, network.overlay_v6]);
    let mut put = vec![
        Object::new(&Content::Network(network), Vec::new()).unwrap(),
        Object::new(&Content::Rule(everybody), Vec::new()).unwrap(),
    ];
    put.extend(peers);
    let mut map = Map::default();
    for object in &put {
        map.put(object.clone());
    }
    let version = MapVersion { epoch: 1, revision: 1 };
    Delta { version, digest: map.digest(), put, last: true, ..Delta::default() }
}
