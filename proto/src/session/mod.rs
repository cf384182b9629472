//! The messages of a control session, typed. Reading a message whose kind is not known gives `None`: it came from a newer program and is survived.

mod conversion;
mod refused;
#[cfg(test)]
mod tests;

pub use refused::{Reason, Refused};

use crate::{
    Invalid, PROTOCOL_VERSION,
    claim::Claim,
    key::PublicKey,
    map::{Delta, MapDigest, MapVersion},
    receipt::Receipt,
    root::Fingerprint,
    root_list::RootList,
    server_url::ServerUrl,
    statement::NodeId,
    wire,
};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// The longest text taken from the other side in one field, bytes.
const MAX_TEXT: usize = 1024;

/// Servers and addresses taken of a list.
const MAX_SERVERS: usize = 64;

/// The agent's numbering of its sessions: a larger number replaces a smaller one, whichever servers they are with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionNumber {
    /// Counts the starts of the agent; persisted.
    pub boot: u64,
    /// Counts within a start.
    pub counter: u64,
}

impl SessionNumber {
    /// Where an agent's leaps over numbers that were refused as old end: room is left in a signed column.
    pub const LAST_LEAP: u64 = i64::MAX as u64 / 2;
    /// .. and for the starts to come.
    const MAX_BOOT: u64 = Self::LAST_LEAP + (1 << 32);
    const MAX_COUNTER: u64 = 1 << 48;

    /// Whether an agent could have counted to it. What is above would outrank all that the agent says later.
    pub fn is_sane(self) -> bool {
        self.boot < Self::MAX_BOOT && self.counter < Self::MAX_COUNTER
    }
}

/// A server's own random id, kept in its data directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerId(pub [u8; 16]);

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::hex::encode(&self.0))
    }
}

impl fmt::Debug for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::hex::encode(&self.0[..4]))
    }
}

impl std::str::FromStr for ServerId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        crate::hex::decode(text)
            .map(Self)
            .ok_or_else(|| Invalid::new("server id", "expected 32 hexadecimal digits"))
    }
}

impl TryFrom<String> for ServerId {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<ServerId> for String {
    fn from(id: ServerId) -> Self {
        id.to_string()
    }
}

/// What a node says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    pub hostname: String,
    pub os: String,
    pub os_version: String,
    pub agent_version: String,
    /// What it wants to serve.
    #[serde(default)]
    pub claims: Vec<Claim>,
}

/// Which map an agent holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MapState {
    pub version: MapVersion,
    pub digest: MapDigest,
    /// For the version, as a server gave it.
    pub receipt: Receipt,
}

/// The first message of a session, but for the proof, which belongs to the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub number: SessionNumber,
    pub facts: Facts,
    pub endpoints: Vec<SocketAddr>,
    pub map: MapState,
    /// Serve at once, without an `Activate`.
    pub activate: bool,
    pub heartbeat_interval: Duration,
    /// The node's own newest certificate, an encoded `Signed`, or empty.
    pub membership: Vec<u8>,
    /// The newest root that the agent keeps.
    pub root: Option<Fingerprint>,
}

/// What an agent says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentMessage {
    Hello(Hello),
    Heartbeat {
        sequence: u64,
        standby: bool,
        /// The one to expect on a primary; zero: as before.
        interval: Duration,
    },
    Activate {
        number: SessionNumber,
        map: MapState,
    },
    Deactivate,
    Signal(Signal),
    Update {
        facts: Facts,
        endpoints: Vec<SocketAddr>,
    },
    Leave {
        logout: bool,
    },
    /// An encoded `Signed` removal that the server may have lost.
    Removal(Vec<u8>),
    /// The newest root that the agent keeps from now on.
    Root(Fingerprint),
}

/// A peer asks another, through the servers, to open its side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signal {
    /// The receiver when an agent says it, the sender when a server does.
    pub peer: PublicKey,
    /// The same on both sessions of the sender.
    pub id: u64,
    pub endpoints: Vec<SocketAddr>,
}

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerMessage {
    Welcome(Welcome),
    Refused(Refused),
    Heartbeat(HeartbeatAck),
    Activated {
        number: SessionNumber,
        version: MapVersion,
        receipt: Receipt,
    },
    Map(Delta),
    /// Call FetchMap.
    Fetch(MapVersion),
    Presence(Presence),
    Signal(Signal),
    Drain {
        reason: String,
    },
    /// An encoded `Signed` membership of the node itself.
    Membership(Vec<u8>),
    Servers(ServerList),
    Roots(RootList),
}

/// The servers that live.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerList {
    /// Every address of every one.
    pub urls: Vec<ServerUrl>,
    /// Empty from a server that does not tell.
    pub ids: Vec<ServerId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    pub server: ServerId,
    pub server_name: String,
    pub servers: ServerList,
    /// The least the server wants between two heartbeats.
    pub heartbeat_interval: Duration,
    pub at: MapVersion,
    pub unix_ms: u64,
    pub observed_address: Option<IpAddr>,
    /// An encoded `Signed` membership of the node itself.
    pub membership: Vec<u8>,
    /// `None`: the root never changed.
    pub roots: Option<RootList>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeartbeatAck {
    pub sequence: u64,
    pub server: ServerId,
    pub at: MapVersion,
    /// Since the server last knew itself level with the database.
    pub revision_age: Duration,
    pub database_ok: bool,
    /// Failovers are to be spread over this time.
    pub spread: Duration,
    pub heartbeat_interval: Duration,
    pub unix_ms: u64,
    /// For `at`.
    pub receipt: Receipt,
    /// Of the map that the session was told in full; the default: of none.
    pub map: MapVersion,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Presence {
    /// `online` is everyone who is online, not a change.
    pub whole: bool,
    pub online: Vec<NodeId>,
    pub offline: Vec<NodeId>,
}

/// The version message of this program.
pub fn own_version(software: &str) -> wire::Version {
    wire::Version { protocol: PROTOCOL_VERSION, software: software.to_owned(), capabilities: Vec::new() }
}

fn millis(span: Duration) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}

/// A text for people: shortened and without control characters, so that it can be printed.
fn clipped(text: String) -> String {
    match text.len() <= MAX_TEXT && !text.chars().any(char::is_control) {
        true => text,
        false => text.chars().filter(|c| !c.is_control()).take(MAX_TEXT / 4).collect(),
    }
}
