//! What the data plane reports.

use std::{net::SocketAddr, time::Duration};

use ipnet::IpNet;

use crate::PublicKey;

/// Something happened. Handlers run on the data plane's thread and must return at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A packet for a peer without a session was put by (bounded per peer and in total). Told once, then again
    /// after [`crate::Command::Initiate`], [`crate::Command::Forget`] or a session.
    PacketWaiting { peer: PublicKey },
    /// An authenticated session is up; also when one was renewed (every 2 minutes while data flows). The initiator
    /// hears it with the answer, the other side with the first packet that proves the new session.
    HandshakeDone { peer: PublicKey, endpoint: SocketAddr, initiator: bool },
    /// The peer's packets come from elsewhere, and ours follow: after an authenticated data or keepalive packet
    /// only, and not twice within a second. Messages do not move it, as they may try another path.
    EndpointChanged { peer: PublicKey, endpoint: SocketAddr },
    /// Peers with data in either direction since the last report (keepalives and messages are not data). At most
    /// one report a second.
    Active(Vec<PublicKey>),
    /// Data was sent and nothing authenticated came back for 15 s (WireGuard's keepalive and rekey timeouts): the
    /// path may be dead. Once until something comes.
    Unanswered { peer: PublicKey },
    /// A watched peer ([`crate::Command::Watch`]) has not answered data that was sent that long ago. Once until `Heard`.
    Silent { peer: PublicKey, elapsed: Duration },
    /// Something authentic came from a watched peer that was silent. That its session ended is no such thing; that a new one is up, is.
    Heard { peer: PublicKey },
    /// So many TCP connections to a prefix that ran by this peer were broken off ([`crate::Command::Reset`]): at least one.
    Reset { prefix: IpNet, from: PublicKey, connections: u64 },
    /// The session expired, or a handshake was given up after 90 s. Waiting packets are gone.
    SessionLost { peer: PublicKey },
    /// Transport data for a session that is not here: its sender has not noticed a restart. Rate-limited.
    UnknownIndex { from: SocketAddr },
    /// An authentic initiation whose timestamp is older than one seen before: a replay, or the peer's clock was set back, and then only a
    /// handshake from our side makes a session. Rate-limited.
    StaleInitiation { peer: PublicKey, from: SocketAddr },
    /// A datagram of the peer's agent, from the peer's own address; `from` is the path it took.
    Message { peer: PublicKey, payload: Vec<u8>, from: SocketAddr },
    /// Somebody deleted the interface. The data plane has stopped.
    Gone { what: String },
    /// The interface or the sockets failed, or a defect came to light. The data plane has stopped; start another.
    Fault { what: String },
}
