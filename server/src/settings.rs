//! What a server may be told about how it works, with defaults and limits. What concerns the whole cluster should be told to all servers alike.

use std::{ops::RangeInclusive, time::Duration};

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
