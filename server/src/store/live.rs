//! What is beside the log: servers with their leases, presence, and who runs which job. Times are the database's.

use crate::settings::Shared;
use proto::{
    server_url::ServerUrl,
    session::{ServerId, SessionNumber},
    statement::NodeId,
    time::UnixTime,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, time::Duration};

/// One run of a server's process: random, so that two servers with one id are told apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(into = "String")]
pub struct Incarnation(pub [u8; 16]);

impl Incarnation {
    /// # Errors
    /// The system has no random source.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// A row of before there were any reads as zeros, which nobody is.
    pub(crate) fn stored(bytes: &[u8]) -> Self {
        Self(bytes.try_into().unwrap_or_default())
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u128::from_be_bytes(self.0) >> 96)
    }
}

impl From<Incarnation> for String {
    fn from(incarnation: Incarnation) -> Self {
        incarnation.to_string()
    }
}

impl std::str::FromStr for Incarnation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = Some(text).filter(|text| text.len() == 32);
        let number = digits.and_then(|text| u128::from_str_radix(text, 16).ok());
        number.map(|number| Self(number.to_be_bytes())).ok_or_else(|| format!("{text:?} is no incarnation"))
    }
}

/// A server, as it tells the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerRow {
    pub id: ServerId,
    pub incarnation: Incarnation,
    pub name: String,
    /// The machine's own name.
    pub host: String,
    /// Where agents reach it.
    pub urls: Vec<ServerUrl>,
    pub version: String,
    /// By how much its wall clock is ahead of the database's.
    pub clock_ahead_ms: i64,
    pub report: ServerReport,
}

/// What a server says of itself to people and other servers. A server of another version may leave out parts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerReport {
    pub settings: Option<Shared>,
    pub health: Option<HealthReport>,
}

/// How a server stood when it last renewed its lease.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthReport {
    /// The database's host that it uses, where it has hosts.
    pub database_host: Option<String>,
    /// Of a look at the log.
    pub database_answer_ms: u64,
    /// Since the state was last level with the log.
    pub log_age_ms: u64,
    /// Whether other servers' notifications arrive.
    pub is_hearing: bool,
    /// Connections of the pool, where there is one.
    pub connections_used: Option<usize>,
    pub connections_limit: Option<usize>,
    pub degraded: Vec<Degraded>,
}

/// One thing that is wrong with a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Degraded {
    pub what: String,
    pub since_unix_s: u64,
    pub reason: String,
}

/// A host of the database, as it is just now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostState {
    pub host: String,
    pub state: HostRole,
    /// Why it cannot be used, if it cannot.
    pub reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostRole {
    TakesWrites,
    ReadOnly,
    Away,
}

/// A server that holds a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveServer {
    pub server: ServerRow,
    pub lease_remaining: Duration,
}

/// What came of a renewal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseAnswer {
    Held {
        /// The database's clock, milliseconds since 1970.
        now_ms: u64,
        /// No server held a lease just before.
        begins_period: bool,
    },
    /// Another incarnation holds the lease of this id.
    Taken(Box<LiveServer>),
}

/// Which server serves a node, by which of the agent's sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionRow {
    pub node: NodeId,
    pub server: ServerId,
    pub number: SessionNumber,
    pub online: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenSession {
    pub row: SessionRow,
    pub sequence: u64,
    /// Whether the row's server held its lease when this was read; else the node counts as offline.
    pub leased: bool,
}

impl SeenSession {
    pub fn is_online(&self) -> bool {
        self.row.online && self.leased
    }
}

/// When a node was last there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastSeen {
    Online,
    /// It went, or its server took its leave, at this time.
    Until(UnixTime),
    /// It was at a server that fell silent then, and was not heard of since: it went, or is there still.
    Unheard(UnixTime),
    Never,
}

/// When some nodes were last there, as of one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attendance {
    /// Since when, without a break, some server held a lease.
    pub served_since: UnixTime,
    pub now: UnixTime,
    pub nodes: BTreeMap<NodeId, LastSeen>,
}

/// What one server at a time does for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Job {
    /// Ephemeral nodes that stay away are removed.
    Ephemeral,
    /// What ended by time long ago is forgotten.
    Expiry,
    /// What a former root signed is signed under the current one.
    Root,
    /// What a former root's secret left in the database's file is erased.
    Erasure,
}

impl Job {
    /// As it is stored.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ephemeral => "ephemeral",
            Self::Expiry => "expiry",
            Self::Root => "root",
            Self::Erasure => "erasure",
        }
    }
}

/// The right to run a job, until somebody takes a newer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobLock {
    pub job: Job,
    pub holder: Incarnation,
    /// Counts the holders.
    pub token: u64,
}

/// A job as `server status` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRow {
    pub name: String,
    pub server: ServerId,
    /// Of whoever holds it now; `None`: it rests.
    pub held_for: Option<Duration>,
    pub last_run: Option<UnixTime>,
}

/// What another version writes in another form says nothing, and hides no server.
pub(crate) fn readable_report(stored: serde_json::Value) -> ServerReport {
    serde_json::from_value(stored).unwrap_or_default()
}

/// The addresses in a row that can be read: another server's odd one must not hide the rest.
pub(crate) fn readable_urls(stored: serde_json::Value) -> Vec<ServerUrl> {
    let serde_json::Value::Array(entries) = stored else { return Vec::new() };
    entries.into_iter().filter_map(|entry| serde_json::from_value(entry).ok()).collect()
}
