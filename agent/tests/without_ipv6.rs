//! A system with IPv6 switched off: the overlay's IPv4 is routed into the tunnel all the same, and nothing of it stays behind.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use agent_core::{
    Agent, BootTime, Config, ConnId, Identity, Saved,
    config::{ControlConfig, PeerConfig},
};
use proto::{
    key::NodeSecret,
    map::{Content, Delta, Map, MapVersion, Network, Object},
    root::RootSecret,
    session::{Facts, ServerMessage},
    statement::{Membership, NetworkId, NodeId, Statement},
    time::UnixTime,
    wire,
};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

const AGENT: &str = env!("CARGO_BIN_EXE_agent");
const NETWORK: NetworkId = NetworkId([3; 16]);

/// What an agent with addresses of both families leaves on disk.
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
    let membership = Membership {
        node_id: NodeId(1),
        node_key: secret.public(),
        addresses: vec!["100.64.0.1".parse().unwrap(), "fd00:1:2::1".parse().unwrap()],
        claims: Vec::new(),
        issued_at: UnixTime(1_760_000_000),
        not_after: None,
    };
    let enrolled = wire::Enrolled {
        root: root.public().to_bytes().to_vec(),
        membership: Statement::Membership(membership).sign(NETWORK, &root),
        node_id: 1,
        servers: Vec::new(),
    };
    agent.handle_enrolled(ConnId(1), &enrolled, now);
    agent.handle_message(ConnId(1), ServerMessage::Map(map()), now);
    fs::write(state.join("node.key"), secret.to_text().as_bytes()).unwrap();
    fs::write(state.join("map.cache"), agent.map_cache()).unwrap();
    let kept = serde_json::json!({ "format": 1, "boot": 1, "core": agent.saved() });
    fs::write(state.join("state.json"), kept.to_string()).unwrap();
}

fn map() -> Delta {
    let network = Network {
        name: "test".into(),
        overlay_v4: "100.64.0.0/10".parse().unwrap(),
        overlay_v6: "fd00:1:2::/48".parse().unwrap(),
    };
    let put = vec![Object::new(&Content::Network(network), Vec::new()).unwrap()];
    let mut map = Map::default();
    assert!(map.put(put[0].clone()));
    let version = MapVersion { epoch: 1, revision: 1 };
    Delta { version, digest: map.digest(), put, last: true, ..Delta::default() }
}

#[test]
fn without_ipv6_the_rest_is_routed_and_no_rule_stays_behind() {
    let state = tempfile::tempdir().unwrap();
    prepare(state.path());
    let text = "
        echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6
        echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6
        $A daemon & daemon=$!
        until ip route show table all | grep -q '^100.64.0.0/10 dev hf0'; do kill -0 $daemon; done
        until $A status >/dev/null; do kill -0 $daemon; done
        kill -TERM $daemon
        wait $daemon
        test -z \"$(ip -4 rule show | grep 52[0-9][0-9][0-9]; ip -6 rule show | grep 52[0-9][0-9][0-9])\"
        echo clean";
    let mut command = Command::new("unshare");
    command.args(["-Urn", "timeout", "-k", "1", "30", "sh", "-euc", text]).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HOLDFAST_")) {
        command.env_remove(name);
    }
    let output =
        command.env("A", format!("{AGENT} --state-dir {}", state.path().display())).output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("clean") && !said.contains("ERROR"), "{said}");
}
