//! What the driver does for the machines: dial, send, configure the tunnel, save.

use crate::{control::Served, rules::Allow};
use ipnet::IpNet;
use proto::{
    key::PublicKey,
    server_url::ServerUrl,
    session::{AgentMessage, Refused, ServerId},
    wire::ObjectRef,
};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// A control connection, from its dial to its end. Numbers are never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// What the driver must do.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "few wait at a time, and messages are most of them")]
pub enum Output {
    /// Look the host of the URL up; report [`handle_resolved`](crate::Agent::handle_resolved).
    Resolve(ServerUrl),
    /// Connect (TCP, TLS), enrol if asked; report [`handle_connected`](crate::Agent::handle_connected) or [`handle_closed`](crate::Agent::handle_closed). The session's stream opens
    /// with the first message: a connection that is closed before costs the server no more.
    Dial(Dial),
    /// Send on the session's stream. Order is kept. A Hello gets its proof from the driver.
    Send { conn: ConnId, message: AgentMessage },
    /// Call FetchMap on this connection; report [`handle_fetched`](crate::Agent::handle_fetched) for every part.
    Fetch { conn: ConnId, have: Vec<ObjectRef> },
    /// Close; the connection is forgotten, no report is expected.
    Close { conn: ConnId },
    /// Give the interface these addresses, and route these prefixes into it: the overlay, and what others serve. What this node
    /// serves itself: single addresses are the interface's as well, but not to send from; to subnets packets are forwarded.
    Configure { addresses: Vec<IpAddr>, overlay: Vec<IpNet>, served: Vec<IpNet> },
    /// A command for the data plane.
    Tunnel(TunnelCommand),
    /// Write [`map_cache`](crate::Agent::map_cache) to disk.
    SaveMap,
    /// Write [`saved`](crate::Agent::saved) to disk.
    SaveState,
    /// Something that a person or a waiting command wants to know.
    Notice(Notice),
}

/// A connection to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dial {
    pub conn: ConnId,
    pub url: ServerUrl,
    pub addr: SocketAddr,
    /// For TCP alone. The rest is timed by the machine, which closes.
    pub connect_timeout: Duration,
    /// Call Enrol with the setup key first; report [`handle_enrolled`](crate::Agent::handle_enrolled).
    pub enrol: bool,
}

/// What happened, for logs, `status --watch` and waiting commands.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// A server serves us.
    Served(Served),
    /// No server does any more.
    Unserved,
    /// The map changed, from a server.
    MapChanged { revision: u64 },
    /// Servers refuse us, and a second one was asked.
    Refused(Refused),
    /// We are a member now.
    Enrolled,
    /// A peer's tunnel came up or went down.
    Peer { key: PublicKey, up: bool },
    /// Another node serves a shared prefix for us.
    Claim { prefix: IpNet, active: Option<PublicKey>, before: Option<PublicKey> },
    /// So many peers use what this node serves under this claim.
    Users { prefix: IpNet, users: u64 },
    /// This node holds a prefix from now on, with this fence; `None`: no more.
    Held { prefix: IpNet, fence: Option<u64> },
    /// So many connections to a shared prefix were broken off, since the node that they ran to does not serve it for us any more.
    Reset { prefix: IpNet, from: PublicKey, to: Option<PublicKey>, connections: u64 },
    /// The answer to [`ping`](crate::Agent::ping).
    Pong { id: u64, rtt: Duration, endpoint: Option<SocketAddr> },
}

/// Why a connection ended or was never made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closed {
    /// Nothing listens, or the network says no.
    Connect(String),
    /// No answer in time.
    TimedOut,
    /// Another cluster, a proxy, something that is no Holdfast server.
    NotOurs(String),
    /// The server said why.
    Refused(Refused),
    /// Reset or ended after the session was open.
    Ended(String),
    /// It does what no server does: it is left alone for a while.
    Broken(String),
}

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect(error) | Self::NotOurs(error) | Self::Ended(error) | Self::Broken(error) => {
                f.write_str(error)
            }
            Self::TimedOut => f.write_str("no answer in time"),
            Self::Refused(refused) => refused.fmt(f),
        }
    }
}

/// What a connection's TLS handshake told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connected {
    pub server: ServerId,
}

/// A command for the data plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TunnelCommand {
    /// Add a peer or change it in place: a session and endpoint are kept. Prefixes that another peer had are its from now on.
    Upsert {
        peer: PublicKey,
        /// What goes to it: first its own addresses, then what it serves for us.
        allowed_ips: Vec<IpNet>,
        /// What it may send from: its own addresses, and every claim it was granted.
        sources: Vec<IpNet>,
    },
    Remove {
        peer: PublicKey,
    },
    /// Send one fresh handshake initiation to all of these.
    Initiate {
        peer: PublicKey,
        endpoints: Vec<SocketAddr>,
    },
    /// Drop session, timers and waiting packets.
    Forget {
        peer: PublicKey,
    },
    SetKeepalive {
        peer: PublicKey,
        interval: Option<Duration>,
    },
    SetEndpoint {
        peer: PublicKey,
        endpoint: SocketAddr,
    },
    /// A datagram to the peer's agent, inside the tunnel; by this path if one is given.
    Message {
        peer: PublicKey,
        payload: Vec<u8>,
        via: Option<SocketAddr>,
    },
    /// What others may open here, instead of what they could before; until the first, they may open nothing.
    SetRules(Vec<Allow>),
    /// Tell when data to the peer is unanswered for this long, and when something comes after that; `None`: no longer.
    Watch {
        peer: PublicKey,
        silence: Option<Duration>,
    },
    /// The prefix has moved away from this peer: TCP connections to it that ran there cannot go on, and are broken off at both ends.
    Reset {
        prefix: IpNet,
        from: PublicKey,
    },
    /// Packets to the prefix, as far as no longer one is routed, go to nobody until a peer has it; or no longer.
    Withhold {
        prefix: IpNet,
        withheld: bool,
    },
    /// New sockets: the network changed.
    Rebind,
}

/// What the data plane reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TunnelEvent {
    /// A packet waits for a session. Said once until Initiate or Forget.
    PacketWaiting { peer: PublicKey },
    /// A session is up, begun by either side.
    HandshakeDone { peer: PublicKey, endpoint: SocketAddr },
    /// The peer moved; authenticated.
    EndpointChanged { peer: PublicKey, endpoint: SocketAddr },
    /// These carried data since the last report, in either direction.
    Active(Vec<PublicKey>),
    /// Data was sent and nothing came back for WireGuard's 15 s.
    Unanswered { peer: PublicKey },
    /// Data that was sent that long ago is unanswered: for as long as was asked for by Watch. Said once until Heard.
    Silent { peer: PublicKey, elapsed: Duration },
    /// Something authentic came from one that was Silent.
    Heard { peer: PublicKey },
    /// So many connections were broken off, as Reset asked.
    Reset { prefix: IpNet, from: PublicKey, connections: u64 },
    /// The session expired.
    SessionLost { peer: PublicKey },
    /// Somebody uses a session that we do not have (any more).
    UnknownIndex { from: SocketAddr },
    /// The peer's handshakes are refused, as its clock was set back (or somebody replays an old one): ours would be taken.
    StaleInitiation { peer: PublicKey, from: SocketAddr },
    /// From the peer's agent, inside the tunnel.
    Message { peer: PublicKey, payload: Vec<u8>, from: SocketAddr },
}
