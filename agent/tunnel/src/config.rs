//! What a tunnel is started with, and what it is told about a peer.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{Device, PresharedKey, PrivateKey, PublicKey, Rule};

/// Ethernet's 1500 bytes less 80: IPv6 40, UDP 8, WireGuard 32.
pub const DEFAULT_MTU: u16 = 1420;

/// One initiation goes to at most this many endpoints; the rest are ignored.
pub const MAX_ENDPOINTS: usize = 8;

/// What [`crate::start`] needs.
#[derive(Debug)]
pub struct Config {
    /// Without one nobody is spoken to.
    pub private_key: Option<PrivateKey>,
    pub policy: Policy,
    pub device: Device,
    /// UDP port for both address families; 0 is any. If it is taken another is bound: see
    /// [`crate::Tunnel::listen_port`].
    pub listen_port: u16,
    /// Mark of the sockets' packets (SO_MARK, Linux), so that routes can leave them out of the tunnel.
    pub fwmark: Option<u32>,
    /// The node's own overlay addresses. Messages are sent from the first of the peer's family.
    pub addresses: Vec<IpAddr>,
    /// The agents' own UDP port inside tunnels. Datagrams to it are never taken from, nor written to, the interface.
    pub message_port: Option<u16>,
    /// What peers may open here, from the first packet on; `Some` of nothing: they only answer. `None`: no filter, now
    /// or later.
    pub filter: Option<Vec<Rule>>,
}

impl Config {
    /// A share for each worker, in order: each has a queue of the interface.
    pub(crate) fn split(mut self) -> Vec<Self> {
        let queues = self.device.take_queues();
        let share = |device| Self {
            private_key: self.private_key.clone(),
            policy: self.policy,
            device,
            listen_port: self.listen_port,
            fwmark: self.fwmark,
            addresses: self.addresses.clone(),
            message_port: self.message_port,
            filter: self.filter.clone(),
        };
        let others: Vec<Self> = queues.into_iter().map(share).collect();
        std::iter::once(self).chain(others).collect()
    }
}

/// Who decides when there are sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// The owner, by commands. Sources are checked against [`Peer::sources`].
    Owner,
    /// WireGuard's own rules: a packet or a persistent keepalive makes a session, endpoints follow their peers at
    /// once, and a packet's source must route back to its sender. Configured by [`crate::Tunnel::configure`].
    WireGuard,
}

/// A peer as configured. Idle, it costs a few hundred bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub key: PublicKey,
    /// Where its packets go (longest prefix wins; a prefix belongs to the peer that was given it last). The first
    /// entry is the peer's own address: messages go there and are taken from there only.
    pub allowed_ips: Vec<IpNet>,
    /// What it may send from: every packet that leaves its tunnel is checked. Several peers may share a prefix here. With several
    /// workers each tracks the connections of its own peers: the answers of one that went out to a peer come in by peers of the
    /// same worker, until a packet of it goes out to another's.
    pub sources: Vec<IpNet>,
    pub preshared_key: Option<PresharedKey>,
}
