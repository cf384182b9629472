//! Counters: per peer, and of everything dropped, by reason.

use std::{net::SocketAddr, time::Duration};

use crate::PublicKey;

/// A peer's state and traffic. Bytes are of the packets inside the tunnel, messages and keepalives not counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStats {
    pub key: PublicKey,
    /// Where packets are sent, or were last.
    pub endpoint: Option<SocketAddr>,
    /// How long ago the last handshake was completed.
    pub last_handshake: Option<Duration>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    /// Whether there is a session now.
    pub live: bool,
}

/// Packets dropped since the start, one counter per reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drops {
    /// From the interface: not IP, or larger than the offloads allow.
    pub malformed: u64,
    /// From the interface: no peer has the destination.
    pub no_route: u64,
    /// From the interface: the peer's endpoint is not known ([`crate::Policy::WireGuard`]).
    pub no_endpoint: u64,
    /// From the interface or a peer: the agents' own port.
    pub message_port: u64,
    /// Too many packets waited for a handshake.
    pub queue_full: u64,
    /// A message to a peer without a session or address.
    pub message_unsent: u64,
    /// A socket refused a datagram.
    pub send_failed: u64,
    /// The interface refused a packet.
    pub write_failed: u64,
    /// From the network: not WireGuard.
    pub not_wireguard: u64,
    /// A handshake whose MAC is not for this node's key.
    pub bad_mac: u64,
    /// A handshake that was answered with a cookie, or not at all, as there were too many.
    pub under_load: u64,
    /// A handshake from a key that is not configured.
    pub unknown_key: u64,
    /// An initiation as old as one already seen.
    pub replayed_handshake: u64,
    /// For a session that is not here.
    pub unknown_index: u64,
    /// Not authentic, or a packet seen before.
    pub not_authentic: u64,
    /// A peer sent from an address that is not its own.
    pub bad_source: u64,
}
