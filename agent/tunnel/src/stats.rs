//! Counters: of each peer, and of the node, whose totals keep what removed peers carried. What is dropped is counted by
//! reason, and with its peer where there is one. [`Drops::named`] gives the reasons the names that people read, so a new reason
//! is one line here and reaches every place that shows them.

use std::{net::SocketAddr, ops::AddAssign, time::Duration};

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
    /// Packets inside the tunnel, counted as bytes are.
    pub rx_packets: u64,
    pub tx_packets: u64,
    /// Handshakes completed, whoever began them.
    pub handshakes: u64,
    pub drops: PeerDrops,
    /// Whether there is a session now.
    pub live: bool,
}

/// What the node has carried since the start, for peers that were removed as well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub handshakes: u64,
}

/// The node's counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub traffic: Traffic,
    pub drops: Drops,
    /// Peers that have a session now.
    pub sessions: u64,
    /// Threads that carry packets.
    pub workers: u64,
    /// Packets (as the system gave them, before they are split) and datagrams that came to one worker and were another's.
    pub handed_over: u64,
    /// TCP connections broken off, as another peer got their prefix ([`crate::Command::Reset`]).
    pub reset_connections: u64,
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.rx_bytes += other.rx_bytes;
        self.tx_bytes += other.tx_bytes;
        self.rx_packets += other.rx_packets;
        self.tx_packets += other.tx_packets;
        self.handshakes += other.handshakes;
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.traffic += other.traffic;
        self.drops += other.drops;
        self.sessions += other.sessions;
        self.workers += other.workers;
        self.handed_over += other.handed_over;
        self.reset_connections += other.reset_connections;
    }
}

/// A counter per reason, which bears the reason's name.
macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$reason_doc:meta])* $reason:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$reason_doc])* pub $reason: u64,)+
        }

        impl $name {
            /// Every reason's name with its count, in a fixed order.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($reason), self.$reason)),+].into_iter()
            }
        }

        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                $(self.$reason += other.$reason;)+
            }
        }
    };
}

reasons! {
    /// Packets dropped since the start, one counter per reason.
    Drops {
        /// From the interface: not IP, or larger than the offloads allow.
        malformed,
        /// From the interface: larger than a datagram can carry. Whoever sent it is told.
        too_large,
        /// From the interface: no peer has the destination.
        no_route,
        /// From the interface: the peer's endpoint is not known ([`crate::Policy::WireGuard`]).
        no_endpoint,
        /// From the network or the owner: an endpoint that nothing can be sent to (port 0, multicast, broadcast).
        bad_endpoint,
        /// From the interface or a peer: the agents' own port.
        message_port,
        /// Too many packets waited for a handshake.
        queue_full,
        /// A message to a peer without a session or address.
        message_unsent,
        /// A socket refused a datagram.
        send_failed,
        /// The interface refused a packet.
        write_failed,
        /// From the network: not WireGuard.
        not_wireguard,
        /// A handshake whose MAC is not for this node's key.
        bad_mac,
        /// A handshake that was answered with a cookie, or not at all, as there were too many.
        under_load,
        /// A handshake from a key that is not configured.
        unknown_key,
        /// An initiation as old as one already seen.
        replayed_handshake,
        /// For a session that is not here.
        unknown_index,
        /// Of a session, and not authentic.
        not_authentic,
        /// A packet of a session that came before, or so late that it cannot be told.
        replayed,
        /// A peer sent from an address that is not its own.
        bad_source,
        /// From a peer: no rule of the filter allows it, and it answers nothing.
        denied,
        /// From a peer: the filter cannot read it, as it is cut short or built to mislead.
        malformed_inside,
        /// It was another worker's, which had too much to do ([`crate::Workers`]).
        overrun,
    }
}

reasons! {
    /// Those of [`Drops`] that can be laid to one peer.
    PeerDrops {
        queue_full,
        send_failed,
        replayed_handshake,
        not_authentic,
        replayed,
        bad_source,
        message_port,
        denied,
        malformed_inside,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_bear_their_names_and_add_up() {
        let mut sum = Drops { no_route: 1, bad_source: 2, ..Drops::default() };
        sum += Drops { bad_source: 3, replayed: 4, ..Drops::default() };
        let counted: Vec<_> = sum.named().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [("no_route", 1), ("replayed", 4), ("bad_source", 5)]);
    }

    #[test]
    fn what_a_peer_is_blamed_for_is_a_reason_of_the_node() {
        let known: Vec<_> = Drops::default().named().map(|(name, _)| name).collect();
        for (name, _) in PeerDrops::default().named() {
            assert!(known.contains(&name), "{name}");
        }
    }
}
