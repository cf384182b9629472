//! The nodes that may take part, with certificates under one root. Signing costs more than a simulated second, so it is done once per process.

use proto::{
    key::PublicKey,
    receipt::ReceiptKey,
    root::{RootKey, RootSecret},
    statement::{Membership, NetworkId, NodeId, Removal, Statement},
    time::UnixTime,
};
use std::{net::SocketAddr, sync::OnceLock};

/// More agents than this are in no world.
pub(crate) const MAX_AGENTS: usize = 16;
pub(crate) const NETWORK: NetworkId = NetworkId([7; 16]);
/// The wall clock when the virtual clock stands at zero, seconds since 1970.
pub(crate) const EPOCH_S: u64 = 1_800_000_000;

/// One node's identity.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) key: PublicKey,
    pub(crate) node: NodeId,
    pub(crate) certificate: Vec<u8>,
    pub(crate) removal: Vec<u8>,
}

#[derive(Debug)]
struct Cluster {
    root: RootKey,
    receipts: ReceiptKey,
    members: Vec<Member>,
}

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let root = RootSecret::from_seed(&[42; 32]);
        let members = (0..MAX_AGENTS).map(|at| member(at, &root)).collect();
        Cluster { root: root.public(), receipts: ReceiptKey::new(NETWORK, &root), members }
    })
}

fn member(at: usize, root: &RootSecret) -> Member {
    let number = at as u8 + 1;
    let (key, node) = (PublicKey([number; 32]), NodeId(number.into()));
    let membership = Membership {
        node_id: node,
        node_key: key,
        addresses: vec![[100, 64, 0, number].into()],
        claims: Vec::new(),
        issued_at: UnixTime(EPOCH_S),
        not_after: None,
    };
    let removal = Removal { node_key: key, removed_at: UnixTime(EPOCH_S + 1), until: None };
    Member {
        key,
        node,
        certificate: Statement::Membership(membership).sign(NETWORK, root),
        removal: Statement::Removal(removal).sign(NETWORK, root),
    }
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

pub(crate) fn root() -> RootKey {
    cluster().root
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
