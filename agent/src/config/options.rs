//! One layer of settings: every value may be absent. The same type is filled by clap, by the environment, by the TOML file and by what is kept.

use super::{Check, CheckRule, ClaimRule, Hook, Listen, Span, WorkerCount};
use agent_core::config::PeerMode;
use clap::Args;
use proto::{Invalid, server_url::ServerUrl};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr};

#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct Options {
    /// Control servers in the order of preference
    #[arg(long, value_name = "HOST:PORT,..")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) servers: Option<ServerList>,
    /// Name to ask for in the network [default: the system's host name]
    #[arg(long, value_name = "NAME", value_parser = hostname)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hostname: Option<String>,
    /// UDP port for WireGuard; another is taken where it is in use [default: 51820]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) listen_port: Option<u16>,
    /// Threads that carry packets, 1 to 8 [default: one; half the cores from 4 cores on, 4 at most]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) workers: Option<WorkerCount>,
    /// Between two heartbeats to the control server [default: 1s]
    #[arg(long, value_name = "SPAN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) keepalive: Option<Span>,
    /// A silent control server is dead after this [default: 3s]
    #[arg(long, value_name = "SPAN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) peer_timeout: Option<Span>,
    /// A tunnel without data for this long is closed [default: 5m, at least 4m]
    #[arg(long, value_name = "SPAN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idle_timeout: Option<Span>,
    /// Serve metrics for Prometheus at http://ADDRESS/metrics; a port alone is on this machine only [default: off]
    #[arg(long, value_name = "[ADDR:]PORT|off")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) metrics_listen: Option<Listen>,
    /// When tunnels are up: lazy, always or reachable; of one peer alone with =PEER (name, address or key). May be repeated
    #[arg(long, value_name = "MODE[=PEER]")]
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_many")]
    pub(crate) peer_mode: Vec<ModeRule>,
    /// A prefix to serve for others, which needs leave: `server node allow-claim`. May be repeated; `none` takes all back
    #[arg(long, value_name = "PREFIX[@PRIORITY]")]
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_one_or_many")]
    pub(crate) claim: Option<Vec<ClaimRule>>,
    /// Among equal claimants, take the own claims back after a failure
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) preempt: Option<bool>,
    /// Among equal claimants that all say so, clients distribute themselves
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) spread: Option<bool>,
    /// One of those who claim the same serves it at a time, for everybody: servers give the claims to one. All who claim them say so
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exclusive: Option<bool>,
    /// Rewrite the source of what goes to the claimed subnets to this machine's own address
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) masquerade: Option<bool>,
    /// Use subnets that others claim; host addresses are used without it
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) accept_routes: Option<bool>,
    /// Between two probes of a claimant that is in doubt [default: 50ms]
    #[arg(long, value_name = "SPAN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) probe_interval: Option<Span>,
    /// A claimant that is silent for this long is dead [default: 500ms]
    #[arg(long, value_name = "SPAN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dead_after: Option<Span>,
    /// Claims are served only while this works; may be repeated, then all must. `none` takes all back
    #[arg(long, value_name = "tcp:PORT|tcp:HOST:PORT|cmd:COMMAND")]
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_one_or_many")]
    pub(crate) claim_check: Option<Vec<CheckRule>>,
    /// Between the starts of two runs of a check [default: 1s]
    #[arg(long, value_name = "SPAN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) claim_check_interval: Option<Span>,
    /// A check that takes longer has failed [default: 1s]
    #[arg(long, value_name = "SPAN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) claim_check_timeout: Option<Span>,
    /// So many passes in a row, and claims are served [default: 2]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) claim_check_rise: Option<u32>,
    /// So many failures in a row, and claims are withdrawn [default: 3]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) claim_check_fall: Option<u32>,
    /// Run by the shell when a claim gets its first user; `none` takes it back
    #[arg(long, value_name = "COMMAND")]
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_parsed")]
    pub(crate) on_serving: Option<Hook>,
    /// Run by the shell when the last user of a claim is gone; `none` takes it back
    #[arg(long, value_name = "COMMAND")]
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_parsed")]
    pub(crate) on_idle: Option<Hook>,
}

impl Options {
    /// This layer, and what it leaves open from a lower one.
    pub(crate) fn or(self, lower: &Self) -> Self {
        Self {
            servers: self.servers.or_else(|| lower.servers.clone()),
            hostname: self.hostname.or_else(|| lower.hostname.clone()),
            listen_port: self.listen_port.or(lower.listen_port),
            workers: self.workers.or(lower.workers),
            keepalive: self.keepalive.or(lower.keepalive),
            peer_timeout: self.peer_timeout.or(lower.peer_timeout),
            idle_timeout: self.idle_timeout.or(lower.idle_timeout),
            metrics_listen: self.metrics_listen.or(lower.metrics_listen),
            peer_mode: with_modes(&lower.peer_mode, self.peer_mode),
            claim: self.claim.or_else(|| lower.claim.clone()),
            preempt: self.preempt.or(lower.preempt),
            spread: self.spread.or(lower.spread),
            exclusive: self.exclusive.or(lower.exclusive),
            masquerade: self.masquerade.or(lower.masquerade),
            accept_routes: self.accept_routes.or(lower.accept_routes),
            probe_interval: self.probe_interval.or(lower.probe_interval),
            dead_after: self.dead_after.or(lower.dead_after),
            claim_check: self.claim_check.or_else(|| lower.claim_check.clone()),
            claim_check_interval: self.claim_check_interval.or(lower.claim_check_interval),
            claim_check_timeout: self.claim_check_timeout.or(lower.claim_check_timeout),
            claim_check_rise: self.claim_check_rise.or(lower.claim_check_rise),
            claim_check_fall: self.claim_check_fall.or(lower.claim_check_fall),
            on_serving: self.on_serving.or_else(|| lower.on_serving.clone()),
            on_idle: self.on_idle.or_else(|| lower.on_idle.clone()),
        }
    }

    /// Whether there is anything for the shell.
    pub(crate) fn has_commands(&self) -> bool {
        let is_command = |rule: &CheckRule| matches!(rule, CheckRule::Check(Check::Command(_)));
        let hooks = [&self.on_serving, &self.on_idle];
        self.claim_check.iter().flatten().any(is_command)
            || hooks.into_iter().flatten().any(|hook| hook.0.is_some())
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A newer rule replaces an older one for the same peer.
fn with_modes(lower: &[ModeRule], upper: Vec<ModeRule>) -> Vec<ModeRule> {
    let replaced = |rule: &&ModeRule| !upper.iter().any(|newer| newer.peer == rule.peer);
    let mut rules: Vec<ModeRule> = lower.iter().filter(replaced).cloned().collect();
    rules.extend(upper);
    rules
}

fn hostname(text: &str) -> Result<String, String> {
    match text.is_empty() || text.len() > 253 || text.chars().any(char::is_control) {
        true => Err("a host name has 1 to 253 characters".into()),
        false => Ok(text.to_owned()),
    }
}

/// A list of servers without duplicates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerList(pub(crate) Vec<ServerUrl>);

impl FromStr for ServerList {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        ServerUrl::parse_list(text).map(Self)
    }
}

impl Serialize for ServerList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0)
    }
}

impl<'de> Deserialize<'de> for ServerList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = Texts::deserialize(deserializer)?.into_vec();
        texts.join(",").parse().map_err(serde::de::Error::custom)
    }
}

/// `lazy`, `always` or `reachable`, for all peers or for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModeRule {
    pub(crate) mode: PeerMode,
    /// Name, overlay address or public key.
    pub(crate) peer: Option<String>,
}

impl FromStr for ModeRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mode, peer) = match text.split_once('=') {
            Some((_, "")) => return Err(format!("{text:?} names no peer after =")),
            Some((mode, peer)) => (mode, Some(peer.to_owned())),
            None => (text, None),
        };
        let mode = match mode {
            "lazy" => PeerMode::Lazy,
            "always" => PeerMode::Always,
            "reachable" => PeerMode::Reachable,
            _ => return Err(format!("{mode:?} is no mode: lazy, always or reachable")),
        };
        Ok(Self { mode, peer })
    }
}

impl fmt::Display for ModeRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.mode {
            PeerMode::Lazy => "lazy",
            PeerMode::Always => "always",
            PeerMode::Reachable => "reachable",
        };
        match &self.peer {
            Some(peer) => write!(f, "{mode}={peer}"),
            None => f.write_str(mode),
        }
    }
}

impl Serialize for ModeRule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A text or a list of texts.
#[derive(Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Many(Vec<String>),
}

impl Texts {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

fn one_or_many<'de, D: Deserializer<'de>, T: FromStr<Err = String>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let texts = Texts::deserialize(deserializer)?.into_vec();
    texts.iter().map(|text| text.parse().map_err(serde::de::Error::custom)).collect()
}

fn some_one_or_many<'de, D: Deserializer<'de>, T: FromStr<Err = String>>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    one_or_many(deserializer).map(Some)
}

fn some_parsed<'de, D: Deserializer<'de>, T: FromStr<Err = String>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    String::deserialize(deserializer)?.parse().map(Some).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Result<Options, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn the_upper_layer_wins_value_by_value() {
        let upper = options("keepalive = '2s'\npeer-mode = 'always=b'").unwrap();
        let lower = options("keepalive = 9\nlisten-port = 7\npeer-mode = ['lazy', 'reachable=b']").unwrap();
        let both = upper.or(&lower);
        assert_eq!(
            both,
            options("keepalive = 2\nlisten-port = 7\npeer-mode = ['lazy', 'always=b']").unwrap()
        );
    }

    #[test]
    fn what_is_kept_is_read_again() {
        let text = "servers = 'a,b:99'\nworkers = 2\nhostname = 'n'\nidle-timeout = '6m'\nmetrics-listen = 9586\npeer-mode = ['always', 'lazy=x']\n\
            claim = ['10.1.0.0/24@7', 'fd00::1']\npreempt = true\nspread = false\nexclusive = true\nmasquerade = true\naccept-routes = true\n\
            probe-interval = '20ms'\ndead-after = '150ms'\nclaim-check = ['tcp:80', 'cmd:test -f /x, -a 1']\n\
            claim-check-interval = '2s'\nclaim-check-timeout = 3\nclaim-check-rise = 1\nclaim-check-fall = 5\n\
            on-serving = 'echo a b'\non-idle = 'none'";
        let written = serde_json::to_string(&options(text).unwrap()).unwrap();
        assert_eq!(serde_json::from_str::<Options>(&written).unwrap(), options(text).unwrap());
    }

    #[test]
    fn unknown_keys_and_bad_values_are_errors_that_name_them() {
        for (text, named) in [
            ("keep-alive = 1", "keep-alive"),
            ("servers = ''", "empty entry"),
            ("servers = []", "empty entry"),
            ("servers = 'http://a'", "http"),
            ("peer-mode = 'sometimes'", "sometimes"),
            ("peer-mode = 'always='", "no peer"),
            ("listen-port = 70000", "70000"),
            ("workers = 9", "\"9\" is no number of workers"),
            ("workers = 'some'", "some"),
            ("metrics-listen = 'everywhere'", "everywhere"),
            ("claim = '10.1.0.1/24'", "10.1.0.0/24"),
            ("spread = 'yes'", "boolean"),
            ("claim-check = 'http:80'", "a check is"),
            ("on-idle = ''", "the command is empty"),
        ] {
            let error = options(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
