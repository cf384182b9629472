//! What a server may be told about how it works, with defaults and limits. What concerns the whole cluster should be told to all servers alike.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

/// How a server works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long a server counts as living without a sign of it; a fifth of it lies between two signs.
    pub lease: Duration,
    /// Agents are asked to leave so much between two heartbeats; zero: as they like.
    pub heartbeat: Duration,
    /// An ephemeral node that is absent for so long is removed.
    pub ephemeral_timeout: Duration,
    /// So many nodes at most; `None`: as many as there are addresses.
    pub max_nodes: Option<usize>,
}

impl Settings {
    /// Shorter, a slow database ends it; longer, a dead server's agents stay online for too long.
    pub const LEASE: RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(300);
    /// Agents take no more; they have to notice a server's death.
    pub const HEARTBEAT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30);
    /// An agent that fails over or restarts must not be gone meanwhile.
    pub const EPHEMERAL_TIMEOUT: RangeInclusive<Duration> =
        Duration::from_secs(30)..=Duration::from_secs(365 * 24 * 3600);

    /// What the other servers are told of it.
    pub(crate) fn shared(&self) -> Shared {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Shared {
            lease_ms: millis(self.lease),
            heartbeat_ms: millis(self.heartbeat),
            ephemeral_timeout_ms: millis(self.ephemeral_timeout),
            max_nodes: self.max_nodes,
        }
    }

    /// Between two renewals of the lease.
    pub(crate) fn renewal_interval(&self) -> Duration {
        self.lease / 5
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(10),
            heartbeat: Duration::ZERO,
            ephemeral_timeout: Duration::from_secs(600),
            max_nodes: None,
        }
    }
}

/// What all servers of a cluster should be told alike, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shared {
    pub lease_ms: u64,
    /// 0: as agents like.
    pub heartbeat_ms: u64,
    pub ephemeral_timeout_ms: u64,
    pub max_nodes: Option<usize>,
}

impl Shared {
    /// Each option with its value.
    fn options(&self) -> [(&'static str, String); 4] {
        let seconds = |ms: u64| format!("{}s", ms as f64 / 1000.0);
        let heartbeat = match self.heartbeat_ms {
            0 => "not set".to_owned(),
            ms => seconds(ms),
        };
        [
            ("--lease", seconds(self.lease_ms)),
            ("--heartbeat", heartbeat),
            ("--ephemeral-timeout", seconds(self.ephemeral_timeout_ms)),
            ("--max-nodes", self.max_nodes.map_or("not set".to_owned(), |count| count.to_string())),
        ]
    }
}

/// The options that the servers named were told differently, each as a line with values and names.
pub(crate) fn differences(servers: &[(String, Shared)]) -> Vec<String> {
    let mut options: BTreeMap<&str, BTreeMap<String, Vec<&str>>> = BTreeMap::new();
    for (name, shared) in servers {
        for (option, value) in shared.options() {
            options.entry(option).or_default().entry(value).or_default().push(name);
        }
    }
    let differing = options.into_iter().filter(|(_, values)| values.len() > 1);
    let line = |(option, values): (&str, BTreeMap<String, Vec<&str>>)| {
        let values = values.iter().map(|(value, names)| format!("{value} on {}", names.join(", ")));
        format!("{option}: {}", values.collect::<Vec<_>>().join("; "))
    };
    differing.map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_servers_were_told_differently_is_named_with_values_and_servers() {
        let usual = Settings::default();
        let named = |name: &str, settings: Settings| (name.to_owned(), settings.shared());
        let (a, b) = (named("a", usual), named("b", usual));
        assert!(differences(&[a.clone(), b.clone()]).is_empty());
        let other = Settings { lease: Duration::from_millis(2500), max_nodes: Some(100), ..usual };
        let told = differences(&[a, b, named("c", other)]);
        assert_eq!(told, ["--lease: 10s on a, b; 2.5s on c", "--max-nodes: 100 on c; not set on a, b"]);
    }
}
