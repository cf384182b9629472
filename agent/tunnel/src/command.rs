//! What the data plane is told to do.

use std::{net::SocketAddr, time::Duration};

use ipnet::IpNet;

use crate::{Peer, PublicKey, Rule};

/// One order to the data plane. Orders about a key that is not configured are ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Adds or replaces a peer. An existing one keeps its session, endpoint and counters, except that another
    /// preshared key ends the session.
    Upsert(Peer),
    Remove(PublicKey),
    /// Sends one fresh handshake initiation, the same datagram to each endpoint (at most [`crate::MAX_ENDPOINTS`]).
    /// May be repeated as fast as the caller likes; by itself WireGuard repeats it to the same endpoints after 5 s and a little
    /// until it gives up after 90 s ([`crate::Event::SessionLost`]). Packets that wait keep waiting.
    Initiate {
        peer: PublicKey,
        endpoints: Vec<SocketAddr>,
    },
    /// The peer is idle: its session, timers and waiting packets go. Its endpoint, counters and the timestamp that
    /// guards against replayed handshakes stay.
    Forget {
        peer: PublicKey,
    },
    /// While there is a session, sends a keepalive when nothing was sent for `interval`, and renews the session.
    SetKeepalive {
        peer: PublicKey,
        interval: Option<Duration>,
    },
    /// Sends from now on to `endpoint` (a better path was proven). For a second, packets from elsewhere do not move
    /// it again.
    SetEndpoint {
        peer: PublicKey,
        endpoint: SocketAddr,
    },
    /// Sends `payload` as a UDP datagram inside the tunnel to the message port of the peer's own address. Needs a
    /// session, else it is dropped and counted. `via` tries another path without leaving the current one.
    SendMessage {
        peer: PublicKey,
        payload: Vec<u8>,
        via: Option<SocketAddr>,
    },
    /// Other rules for the filter; a connection from outside that these would not allow is over. Without a filter
    /// ([`crate::Config::filter`]) it is ignored.
    SetRules(Vec<Rule>),
    /// Tell when data to the peer is unanswered for this long ([`crate::Event::Silent`]), and when something authentic comes
    /// after that; `None`: no longer. For few peers.
    Watch {
        peer: PublicKey,
        silence: Option<Duration>,
    },
    /// The prefix belongs to another peer by now, which cannot go on with its TCP connections: those that went by way of `from` are broken
    /// off at this end, and at the other as far as `from` has a session. What is not routed away from `from` stays, and so does a SYN that
    /// nobody answered yet. Needs a filter, which knows the connections. Takes as many turns as the table needs; told by
    /// [`crate::Event::Reset`].
    Reset {
        prefix: IpNet,
        from: PublicKey,
    },
    /// Packets to exactly this prefix go to nobody, also where a shorter one is a peer's, until a peer gets it; or no longer.
    Withhold {
        prefix: IpNet,
        withheld: bool,
    },
    /// The network changed: new sockets, on the same port where possible.
    Rebind,
    Shutdown,
}

impl Command {
    /// The one peer whose worker alone it concerns. `None`: all workers have to know.
    pub(crate) fn peer(&self) -> Option<&PublicKey> {
        match self {
            Self::Initiate { peer, .. }
            | Self::Forget { peer }
            | Self::SetKeepalive { peer, .. }
            | Self::SetEndpoint { peer, .. }
            | Self::SendMessage { peer, .. }
            | Self::Watch { peer, .. }
            | Self::Reset { from: peer, .. } => Some(peer),
            Self::Upsert(_)
            | Self::Remove(_)
            | Self::SetRules(_)
            | Self::Withhold { .. }
            | Self::Rebind
            | Self::Shutdown => None,
        }
    }
}
