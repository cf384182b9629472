//! What `agent status --json` prints, as scripts may rely on it: every field here is required.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use serde::Deserialize;

#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    pub state: String,
    #[serde(rename = "self")]
    pub own: Own,
    pub control: Control,
    pub peers: Vec<Peer>,
    pub claims: Vec<Claim>,
    #[serde(default)]
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Own {
    pub name: String,
    pub public_key: String,
    pub addresses: Vec<String>,
    pub interface: String,
    pub listen_port: u16,
    #[serde(default)]
    pub certificate: Certificate,
    #[serde(default)]
    pub root: Option<String>,
    pub clock_ahead_seconds: Option<i64>,
    #[serde(default)]
    pub claims: Vec<OwnClaim>,
    #[serde(default)]
    pub users: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct OwnClaim {
    pub prefix: String,
    pub state: String,
    pub reason: Option<String>,
    #[serde(default)]
    pub users: u64,
    #[serde(default)]
    pub holder: Option<Holder>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Holder {
    pub name: String,
    pub fence: u64,
    pub stuck: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct Certificate {
    pub state: String,
    pub not_after: Option<u64>,
    pub ends_in_seconds: Option<i64>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Control {
    pub state: String,
    pub server: Option<ServerRef>,
    pub standby: Option<ServerRef>,
    pub connected_since: serde_json::Value,
    pub revision: serde_json::Value,
    pub failovers: u64,
    pub map_source: String,
    pub map_age_seconds: serde_json::Value,
    pub servers: Vec<ServerLine>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct ServerRef {
    pub id: String,
    pub url: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ServerLine {
    pub url: String,
    pub id: Option<String>,
    pub state: String,
    pub rtt_ms: Option<f64>,
    pub last_error: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Peer {
    pub name: String,
    pub public_key: String,
    pub addresses: Vec<String>,
    pub online: Option<bool>,
    pub tunnel: String,
    pub path: Path,
    pub last_handshake_seconds: Option<f64>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub claims: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Path {
    pub kind: String,
    pub endpoint: Option<String>,
    pub rtt_ms: Option<f64>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Claim {
    pub prefix: String,
    pub active: Option<String>,
    pub standby: Option<String>,
    pub candidates: Vec<String>,
    pub switches: u64,
    #[serde(default)]
    pub holder: Option<Holder>,
}

impl Status {
    /// The server that serves the agent now.
    pub fn served_by(&self) -> Option<&ServerRef> {
        if self.control.state == "connected" { self.control.server.as_ref() } else { None }
    }

    pub fn has_standby(&self) -> bool {
        self.served_by().is_some() && self.control.standby.is_some()
    }

    pub fn peer(&self, name: &str) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.name == name)
    }

    /// The agent's own overlay address.
    pub fn address(&self) -> Result<Ipv4Addr> {
        first_v4(&self.own.addresses).context("the agent has no IPv4 address")
    }
}

impl Peer {
    pub fn address(&self) -> Result<Ipv4Addr> {
        first_v4(&self.addresses).with_context(|| format!("peer {} has no IPv4 address", self.name))
    }

    pub fn is_connected(&self) -> bool {
        self.tunnel == "connected"
    }
}

fn first_v4(addresses: &[String]) -> Option<Ipv4Addr> {
    addresses.iter().find_map(|address| address.split('/').next()?.parse().ok())
}
