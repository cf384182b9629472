//! What a person may set, and the numbers of the protocol: each with its reason.

use crate::claims::ClaimsConfig;
use ipnet::IpNet;
use proto::{key::PublicKey, server_url::ServerUrl};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// The least idle timeout: WireGuard sessions live 3 minutes, and a side must not forget one that the other may still use.
pub const MIN_IDLE_TIMEOUT: Duration = Duration::from_secs(240);

/// An agent's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// In the order of preference.
    pub servers: Vec<ServerUrl>,
    pub facts: proto::session::Facts,
    pub control: ControlConfig,
    pub peer: PeerConfig,
    pub claims: ClaimsConfig,
}

/// The numbers of the control session. `keepalive < peer_timeout` is the caller's to check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlConfig {
    /// Between two heartbeats to the server that serves us.
    pub keepalive: Duration,
    /// A silent server is dead after this.
    pub peer_timeout: Duration,
    /// Between two heartbeats to the standby: it is only asked whether it is still there.
    pub standby_keepalive: Duration,
    /// The least time after which a heartbeat is late; below it, a busy machine looks dead.
    pub late_floor: Duration,
    /// A heartbeat is late after this many smoothed round trips.
    pub late_rtts: u32,
    /// First back-off, doubled by each failure, with full jitter.
    pub backoff_base: Duration,
    /// Cap of the back-off in the first minute of an outage.
    pub backoff_early_cap: Duration,
    /// After that the cap is the outage's length divided by this ..
    pub backoff_outage_divisor: u32,
    /// .. but at most this.
    pub backoff_cap: Duration,
    /// Between two dials that run side by side, as in RFC 8305.
    pub dial_stagger: Duration,
    /// Dials at the same time.
    pub max_dials: usize,
    /// The time for TLS and Hello, after TCP is connected.
    pub greeting_timeout: Duration,
    /// What an enrolment may take besides: a server tells of a database that hangs after 5 s.
    pub enrolment_timeout: Duration,
    /// Bad news about the agent is believed when a second server says the same, or after this.
    pub bad_news_timeout: Duration,
    /// A server that breaks the protocol is not tried again before this.
    pub broken_patience: Duration,
    /// Messages of one session within a second: more is a flood. Many peers that wake, or a map in steps, are a tenth of it.
    pub flood: u32,
    /// A server whose revision is older than this is left for one that is level.
    pub stale_revision: Duration,
    /// Without a standby, an address that led to a server we already had a session with is tried again after this: another may answer there by now.
    pub twin_recheck: Duration,
    /// A name is resolved again when its addresses are older than this.
    pub resolve_interval: Duration,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self {
            keepalive: Duration::from_secs(1),
            peer_timeout: Duration::from_secs(3),
            standby_keepalive: Duration::from_secs(10),
            late_floor: Duration::from_millis(300),
            late_rtts: 4,
            backoff_base: Duration::from_millis(100),
            backoff_early_cap: Duration::from_secs(1),
            backoff_outage_divisor: 30,
            backoff_cap: Duration::from_secs(30),
            dial_stagger: Duration::from_millis(50),
            max_dials: 4,
            greeting_timeout: Duration::from_secs(3),
            enrolment_timeout: Duration::from_secs(6),
            bad_news_timeout: Duration::from_secs(10),
            broken_patience: Duration::from_secs(10),
            flood: 5000,
            stale_revision: Duration::from_secs(10),
            twin_recheck: Duration::from_secs(60),
            resolve_interval: Duration::from_secs(30),
        }
    }
}

/// When a peer's tunnel is up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerMode {
    /// While it carries data.
    #[default]
    Lazy,
    /// Always, and dialled again whatever happens.
    Always,
    /// Always, and kept open through NAT by a keepalive, so that the other side can wake us.
    Reachable,
}

/// The numbers of a tunnel's life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    pub mode: PeerMode,
    /// For single peers.
    pub modes: BTreeMap<PublicKey, PeerMode>,
    /// A tunnel without data for this long is forgotten; at least [`MIN_IDLE_TIMEOUT`].
    pub idle_timeout: Duration,
    /// The persistent keepalive of a tunnel that is kept: NAT mappings live 30 s at least (RFC 4787 says 2 minutes, devices do not).
    pub keepalive: Duration,
    /// An unanswered handshake is repeated after this, doubled each time. WireGuard's own 5 s would make one lost packet felt.
    pub handshake_retry: Duration,
    /// WireGuard's REKEY_TIMEOUT (whitepaper, section 6.1): the cap of the former.
    pub handshake_retry_cap: Duration,
    /// WireGuard's largest jitter.
    pub handshake_jitter: Duration,
    /// WireGuard's REKEY_ATTEMPT_TIME: a peer that data wants is given up after this.
    pub handshake_attempt_time: Duration,
    /// A peer that is greeted or that signalled is given up after this.
    pub greeting_time: Duration,
    /// A peer that is kept is tried at least this often, however long it is away.
    pub kept_retry_cap: Duration,
    /// Answers to path probes are awaited this long.
    pub probe_timeout: Duration,
}

impl Default for PeerConfig {
    fn default() -> Self {
        Self {
            mode: PeerMode::Lazy,
            modes: BTreeMap::new(),
            idle_timeout: Duration::from_secs(300),
            keepalive: Duration::from_secs(25),
            handshake_retry: Duration::from_millis(300),
            handshake_retry_cap: Duration::from_secs(5),
            handshake_jitter: Duration::from_millis(333),
            handshake_attempt_time: Duration::from_secs(90),
            greeting_time: Duration::from_secs(10),
            kept_retry_cap: Duration::from_secs(30),
            probe_timeout: Duration::from_secs(1),
        }
    }
}

impl PeerConfig {
    pub(crate) fn mode_of(&self, peer: &PublicKey) -> PeerMode {
        self.modes.get(peer).copied().unwrap_or(self.mode)
    }
}

/// Whether an endpoint may lie in a prefix of the overlay: then the tunnel would run inside itself.
pub(crate) fn inside(prefixes: &[IpNet], endpoint: std::net::SocketAddr) -> bool {
    prefixes.iter().any(|prefix| prefix.contains(&endpoint.ip()))
}
