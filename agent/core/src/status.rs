//! `agent status`: the shape of its JSON is a contract with scripts.

use crate::{cache::Source, config::PeerMode};
use ipnet::IpNet;
use proto::{key::PublicKey, root::Fingerprint, session::ServerId};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

/// The whole status. The driver fills in what only it knows: interface, listen port, counters.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    pub state: RunState,
    #[serde(rename = "self")]
    pub own: Own,
    pub control: Control,
    pub peers: Vec<Peer>,
    pub claims: Vec<Claim>,
    /// What the tunnel carried; `None`: there is none.
    pub traffic: Option<Traffic>,
    /// Packets dropped since the tunnel began, by reason.
    pub drops: BTreeMap<&'static str, u64>,
    /// What is wrong with this node and what to do, for people.
    pub warnings: Vec<String>,
}

/// Of all peers, removed ones as well, since the tunnel began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub handshakes: u64,
    /// Peers with a session now.
    pub sessions: u64,
    /// Threads that carry packets.
    pub workers: u64,
    /// Packets and datagrams that one of them had to give to another.
    pub handed_over: u64,
    /// TCP connections that were broken off, since another node serves their prefix now.
    pub reset_connections: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    Running,
    Stopped,
    NeedsEnrolment,
}

#[derive(Debug, Clone, Serialize)]
pub struct Own {
    pub name: String,
    pub public_key: PublicKey,
    pub addresses: Vec<IpAddr>,
    pub interface: String,
    pub listen_port: u16,
    /// When the membership certificate ends, seconds since 1970; `None`: never, or no certificate.
    pub certificate_not_after: Option<u64>,
    pub certificate: Certificate,
    /// The fingerprint of the cluster's root; `None`: not a member.
    pub root: Option<Fingerprint>,
    /// The wall clock less the servers' time; `None` while only one of them is known.
    pub clock_ahead_seconds: Option<i64>,
    pub draining: bool,
    /// What this node claims.
    pub claims: Vec<OwnClaim>,
    /// Peers that use what this node serves now.
    pub users: u64,
}

/// A prefix that this node claims.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct OwnClaim {
    pub prefix: IpNet,
    pub priority: u16,
    pub state: OwnClaimState,
    /// Why it is not served, and what to do.
    pub reason: Option<String>,
    /// Peers that use it now.
    pub users: u64,
    /// Of what is claimed exclusively; `None`: it is not, or nobody was ever given it.
    pub holder: Option<Holder>,
}

/// Who was given what is claimed exclusively.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Holder {
    pub name: String,
    pub since_unix_s: u64,
    /// `None`: what time it is, no server has told yet.
    pub held_seconds: Option<u64>,
    pub fence: u64,
    /// Why nobody could take over just now.
    pub stuck: Option<String>,
}

/// All but the seconds, which pass: whether something is news is judged by it.
impl std::hash::Hash for Holder {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (&self.name, self.since_unix_s, self.fence, &self.stuck).hash(state);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OwnClaimState {
    Served,
    /// Another node holds it, or nobody yet.
    Standby,
    Refused,
    /// A check fails: those who use it have moved, or do.
    Withdrawn,
}

/// The own membership certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Certificate {
    pub state: CertificateState,
    /// Seconds since 1970; `None`: never.
    pub not_after: Option<u64>,
    /// Negative: it ended so long ago.
    pub ends_in_seconds: Option<i64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CertificateState {
    #[default]
    None,
    Good,
    /// Its end is near, and no server has renewed it.
    Ending,
    Ended,
}

#[derive(Debug, Clone, Serialize)]
pub struct Control {
    pub state: ControlState,
    pub server: Option<Server>,
    pub standby: Option<Server>,
    /// Seconds that the current server has served us.
    pub connected_since: Option<f64>,
    pub epoch: u64,
    pub revision: u64,
    /// Times that we moved from one server to another.
    pub failovers: u64,
    pub map_source: Source,
    pub map_age_seconds: Option<u64>,
    pub servers: Vec<Candidate>,
    /// Why servers refuse us, where they do.
    pub refused: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ControlState {
    Connected,
    Connecting,
    Offline,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Server {
    pub id: ServerId,
    pub url: String,
}

#[derive(Debug, Clone, Serialize)]
pub struct Candidate {
    pub url: String,
    pub id: Option<ServerId>,
    pub state: ServerState,
    pub rtt_ms: Option<f64>,
    pub last_error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerState {
    Active,
    Standby,
    Up,
    Down,
    Unknown,
}

#[derive(Debug, Clone, Serialize)]
pub struct Peer {
    pub name: String,
    pub public_key: PublicKey,
    pub addresses: Vec<IpAddr>,
    pub os: String,
    pub online: bool,
    pub expired: bool,
    pub mode: PeerMode,
    pub tunnel: TunnelState,
    pub path: Path,
    pub last_handshake_seconds: Option<u64>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub handshakes: u64,
    /// Only reasons that occurred.
    pub drops: BTreeMap<&'static str, u64>,
    /// What it claims and was granted.
    pub claims: Vec<IpNet>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelState {
    Idle,
    Connecting,
    Connected,
}

#[derive(Debug, Clone, Serialize)]
pub struct Path {
    pub kind: PathKind,
    pub endpoint: Option<SocketAddr>,
    pub rtt_ms: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PathKind {
    Direct,
    Relay,
    None,
}

/// A shared prefix and who serves it.
#[derive(Debug, Clone, Serialize)]
pub struct Claim {
    pub prefix: IpNet,
    pub active: Option<String>,
    /// Who is kept ready while it is in use.
    pub standby: Option<String>,
    pub candidates: Vec<String>,
    pub switches: u64,
    /// Why it is not routed on this machine.
    pub unused: Option<String>,
    /// Only its holder serves it.
    pub exclusive: bool,
    /// Of what is claimed exclusively; `None`: it is not, or nobody was ever given it.
    pub holder: Option<Holder>,
}
