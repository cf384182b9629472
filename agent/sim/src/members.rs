//! The nodes that may take part, the roots of their cluster, and what those sign.

use ipnet::IpNet;
use proto::{
    key::PublicKey,
    map::MapVersion,
    receipt::ReceiptKey,
    root::{Fingerprint, RootKey, RootSecret},
    root_list::RootList,
    statement::{Membership, NetworkId, NodeId, Removal, Statement},
    time::UnixTime,
};
use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::OnceLock,
    time::Duration,
};

/// More agents than this are in no world.
pub(crate) const MAX_AGENTS: usize = 16;
pub(crate) const NETWORK: NetworkId = NetworkId([7; 16]);
/// The wall clock when the virtual clock stands at zero, seconds since 1970.
pub(crate) const EPOCH_S: u64 = 1_800_000_000;

/// A cluster has so many roots at most, one after the other.
pub(crate) const ROOTS: usize = 8;
/// Certificates that never end are dated so.
pub(crate) const FOUNDED: UnixTime = UnixTime(EPOCH_S);

/// One node's identity.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) key: PublicKey,
    pub(crate) node: NodeId,
    pub(crate) address: IpAddr,
}

#[derive(Debug)]
struct Cluster {
    /// Oldest first, and what each signed to name the next.
    roots: Vec<RootSecret>,
    next: Vec<Vec<u8>>,
    receipts: ReceiptKey,
    members: Vec<Member>,
}

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let roots: Vec<RootSecret> =
            (0..ROOTS).map(|root| RootSecret::from_seed(&[42 + root as u8; 32])).collect();
        let next = |pair: &[RootSecret]| Statement::NextRoot(pair[1].public()).sign(NETWORK, &pair[0]);
        Cluster {
            next: roots.windows(2).map(next).collect(),
            receipts: ReceiptKey::new(NETWORK, &roots[0]),
            roots,
            members: (0..MAX_AGENTS).map(member).collect(),
        }
    })
}

fn member(at: usize) -> Member {
    let number = at as u8 + 1;
    Member { key: PublicKey([number; 32]), node: NodeId(number.into()), address: [100, 64, 0, number].into() }
}

/// An agent's certificate under a root.
pub(crate) fn certificate(
    agent: usize,
    root: usize,
    issued_at: UnixTime,
    lifetime: Option<Duration>,
    claims: Vec<IpNet>,
) -> Vec<u8> {
    let member = of(agent);
    let membership = Membership {
        node_id: member.node,
        node_key: member.key,
        addresses: vec![member.address],
        claims,
        issued_at,
        not_after: lifetime.map(|lifetime| issued_at.saturating_add(lifetime)),
    };
    Statement::Membership(membership).sign(NETWORK, &cluster().roots[root])
}

/// An agent's removal under a root.
pub(crate) fn removal(agent: usize, root: usize, removed_at: UnixTime) -> Vec<u8> {
    let removal = Removal { node_key: of(agent).key, removed_at, until: None };
    Statement::Removal(removal).sign(NETWORK, &cluster().roots[root])
}

/// The node of an agent.
pub(crate) fn of(agent: usize) -> &'static Member {
    &cluster().members[agent]
}

/// Which agent has this key.
pub(crate) fn agent_of(key: &PublicKey) -> usize {
    usize::from(key.0[0]) - 1
}

/// Which agent is this node.
pub(crate) fn agent_of_node(node: NodeId) -> usize {
    node.0 as usize - 1
}

pub(crate) fn receipts() -> &'static ReceiptKey {
    &cluster().receipts
}

pub(crate) fn root(number: usize) -> RootKey {
    cluster().roots[number].public()
}

/// Which root this is.
pub(crate) fn number_of(root: Fingerprint) -> Option<usize> {
    cluster().roots.iter().position(|known| known.public().fingerprint() == root)
}

/// The roots of these numbers, as a server at this version tells them.
pub(crate) fn root_list(roots: RangeInclusive<usize>, after: MapVersion) -> RootList {
    let next = cluster().next[*roots.start()..*roots.end()].to_vec();
    RootList { first: root(*roots.start()), next, after }
}

/// An agent's endpoint after so many moves.
pub(crate) fn endpoint(agent: usize, moves: u32) -> SocketAddr {
    SocketAddr::from(([192, 0, (agent + 2) as u8, (moves % 250) as u8 + 1], 51820))
}

/// The address of the balancer that leads to all servers.
pub(crate) fn balancer_addr() -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 250], proto::CONTROL_PORT))
}

/// A server's own address.
pub(crate) fn server_addr(server: usize) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, server as u8 + 1], proto::CONTROL_PORT))
}
