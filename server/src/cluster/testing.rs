//! Small clusters for tests, without a store.

use crate::cluster::{
    Applicant, Change, ChangeId, Founding, Head, Node, Op, Root, SetupKey, SetupKeyTerms, Snapshot, State,
    StoredRoot, allow_claim, enrol as admit, observe, rotate,
};
use ipnet::IpNet;
use proto::{
    claim::Claim, key::NodeSecret, map::MapVersion, root::RootSecret, session::Facts, setup_key::SetupSecret,
    statement::NodeId, time::UnixTime,
};

pub(crate) const NOW: UnixTime = UnixTime(1_800_000_000);

pub(crate) fn state() -> State {
    let founding = Founding::generate().unwrap();
    let head = Head { version: MapVersion { epoch: 1, revision: 1 }, id: ChangeId::generate().unwrap() };
    State::from_snapshot(Snapshot {
        founding,
        head,
        next_node_id: NodeId(1),
        nodes: vec![],
        setup_keys: vec![],
        removals: vec![],
        recovery: None,
        settings: None,
        roots: None,
        holdings: None,
    })
}

pub(crate) fn apply(state: &mut State, ops: Vec<Op>) {
    let MapVersion { epoch, revision } = state.version();
    let version = MapVersion { epoch, revision: revision + 1 };
    let head = Head { version, id: ChangeId::generate().unwrap() };
    state.apply(&Change { head, at: NOW, actor: super::Actor::CommandLine, ops });
}

pub(crate) fn setup_key(state: &mut State, terms: &SetupKeyTerms) -> SetupSecret {
    let secret = SetupSecret::generate().unwrap();
    let (record, _) = SetupKey::new(state, NOW, &secret, terms);
    apply(state, vec![Op::put_setup_key(record)]);
    secret
}

pub(crate) fn applicant(secret: &SetupSecret, hostname: &str) -> Applicant {
    Applicant {
        setup_key_hash: secret.hash(),
        node_key: NodeSecret::generate().unwrap().public(),
        facts: Facts { hostname: hostname.to_owned(), os: "linux".to_owned(), ..Facts::default() },
        endpoints: vec!["192.0.2.7:51820".parse().unwrap()],
    }
}

pub(crate) fn enrol(state: &mut State, hostname: &str) -> Node {
    let secret = setup_key(state, &SetupKeyTerms::default());
    let (ops, node) = admit(state, NOW, &applicant(&secret, hostname)).unwrap();
    apply(state, ops);
    node
}

pub(crate) fn with_node(hostname: &str) -> (State, Node) {
    let mut state = state();
    let node = enrol(&mut state, hostname);
    (state, node)
}

pub(crate) fn snapshot(state: &State) -> Snapshot {
    let secret = state.root.secret().expect("a state of tests signs").clone();
    let root = StoredRoot::Plain(secret);
    let founding = Founding { network_id: state.network_id, root, network: state.network.clone() };
    Snapshot {
        founding,
        head: state.head(),
        next_node_id: state.next_node_id(),
        nodes: state.nodes().map(|node| Node::clone(node)).collect(),
        setup_keys: state.setup_keys().map(|key| SetupKey::clone(key)).collect(),
        removals: state.removals().map(|removed| super::Removed::clone(removed)).collect(),
        recovery: state.recovery().map(|recovery| super::Recovery::clone(recovery)),
        settings: Some(*state.settings()),
        roots: state.roots().map(|roots| super::Roots::clone(roots)),
        holdings: Some(super::Holdings::clone(state.holdings())),
    }
}

pub(crate) fn forget_removals(state: &mut State) {
    let gone = state.removals().map(|removed| Op::Delete(super::EntityId::Removal(removed.key))).collect();
    apply(state, gone);
}

/// As `Cluster::rotate_root` does.
pub(crate) fn rotated(state: &State, seed: u8) -> State {
    let next = RootSecret::from_seed(&[seed; 32]);
    let ops = rotate(state, &next, NOW, true).unwrap();
    let mut state = state.clone();
    apply(&mut state, ops);
    assert!(state.root.secret().is_none(), "the log carries no secret");
    state.root = Root::Secret(next);
    state
}

/// An address that several claim.
pub(crate) fn vip() -> IpNet {
    "10.99.0.1/32".parse().unwrap()
}

pub(crate) fn exclusive(priority: u16) -> Claim {
    Claim { priority, exclusive: true, ..Claim::new(vip()) }
}

/// The node claims this and nothing else from now on.
pub(crate) fn claims(state: &mut State, node: NodeId, claim: Option<Claim>) {
    let node = state.node(node).unwrap();
    let facts = Facts { claims: claim.into_iter().collect(), ..node.facts.clone() };
    let ops = observe(node, NOW, Some(&facts), None).into_iter().collect();
    apply(state, ops);
}

/// Nodes that claim the same exclusively, with these priorities, and may.
pub(crate) fn claimers(priorities: &[u16]) -> (State, Vec<NodeId>) {
    let mut state = state();
    let nodes = priorities.iter().enumerate().map(|(number, priority)| {
        let node = enrol(&mut state, &format!("n{number}"));
        let ops = allow_claim(&state, &node, vip(), NOW).unwrap();
        apply(&mut state, ops);
        claims(&mut state, node.id, Some(exclusive(*priority)));
        node.id
    });
    let nodes = nodes.collect();
    (state, nodes)
}
