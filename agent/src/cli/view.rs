//! The status as commands read it: the part of the documented JSON that they need.

use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Debug, Clone, Deserialize)]
pub(super) struct View {
    pub(super) state: String,
    #[serde(rename = "self")]
    pub(super) own: Own,
    pub(super) control: Control,
    #[serde(default)]
    pub(super) peers: Vec<Peer>,
    #[serde(default)]
    pub(super) claims: Vec<Claim>,
    #[serde(default)]
    pub(super) warnings: Vec<String>,
    #[serde(default)]
    pub(super) drops: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Own {
    pub(super) name: String,
    pub(super) public_key: String,
    pub(super) addresses: Vec<String>,
    pub(super) interface: String,
    pub(super) listen_port: u16,
    #[serde(default)]
    pub(super) claims: Vec<OwnClaim>,
    #[serde(default)]
    pub(super) users: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct OwnClaim {
    pub(super) prefix: String,
    pub(super) state: String,
    pub(super) reason: Option<String>,
    pub(super) holder: Option<Holder>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Holder {
    pub(super) name: String,
    pub(super) held_seconds: Option<u64>,
    pub(super) fence: u64,
    pub(super) stuck: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Claim {
    pub(super) prefix: String,
    pub(super) active: Option<String>,
    #[serde(default)]
    pub(super) candidates: Vec<String>,
    pub(super) switches: u64,
    pub(super) unused: Option<String>,
    pub(super) holder: Option<Holder>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Control {
    pub(super) state: String,
    pub(super) server: Option<Server>,
    pub(super) standby: Option<Server>,
    pub(super) connected_since: Option<f64>,
    pub(super) revision: u64,
    pub(super) failovers: u64,
    pub(super) map_source: String,
    pub(super) map_age_seconds: Option<u64>,
    pub(super) servers: Vec<Candidate>,
    pub(super) refused: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Server {
    pub(super) url: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Candidate {
    pub(super) url: String,
    pub(super) state: String,
    pub(super) rtt_ms: Option<f64>,
    pub(super) last_error: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) public_key: String,
    pub(super) addresses: Vec<String>,
    #[serde(default)]
    pub(super) os: String,
    pub(super) online: bool,
    #[serde(default)]
    pub(super) expired: bool,
    pub(super) tunnel: String,
    pub(super) path: Path,
    pub(super) rx_bytes: u64,
    pub(super) tx_bytes: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Path {
    pub(super) kind: String,
    pub(super) endpoint: Option<String>,
}

impl View {
    pub(super) fn is_enrolled(&self) -> bool {
        self.state == "running"
    }

    /// The URL of the server that serves us, once its map is here.
    pub(super) fn ready_by(&self) -> Option<&str> {
        self.served_by().filter(|_| self.is_enrolled() && self.control.map_source == "live")
    }

    /// The URL of the server that serves us.
    pub(super) fn served_by(&self) -> Option<&str> {
        let connected = self.control.state == "connected";
        self.control.server.as_ref().filter(|_| connected).map(|server| server.url.as_str())
    }

    /// What this node claims and may not serve, and why.
    pub(super) fn refused_claims(&self) -> Vec<String> {
        let refused = self.own.claims.iter().filter(|claim| claim.state == "refused");
        let told =
            refused.map(|claim| (&claim.prefix, claim.reason.as_deref().unwrap_or("no reason is told")));
        told.map(|(prefix, reason)| format!("the claim of {prefix} is refused: {reason}")).collect()
    }

    pub(super) fn has_cached_map(&self) -> bool {
        self.is_enrolled() && self.control.map_source == "cache"
    }

    /// What went wrong with each server.
    pub(super) fn troubles(&self) -> String {
        let trouble = |server: &Candidate| Some(format!("{}: {}", server.url, server.last_error.as_ref()?));
        let troubles: Vec<String> = self.control.servers.iter().filter_map(trouble).collect();
        match troubles.is_empty() {
            true => "no server has answered yet".to_owned(),
            false => troubles.join("; "),
        }
    }
}

impl Peer {
    pub(super) fn is(&self, host: &str) -> bool {
        self.name.eq_ignore_ascii_case(host)
            || self.public_key == host
            || self.addresses.iter().any(|address| address == host)
    }
}
