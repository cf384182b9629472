//! The numbers of shared addresses, each with its reason.

use std::time::Duration;

/// The numbers of shared addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimsConfig {
    /// Between two probes of one that is in doubt.
    pub probe_interval: Duration,
    /// Silent for this long with unanswered data, the active one is dead, if it missed five probes as well.
    pub dead_after: Duration,
    /// Data that is unanswered for less is no reason to doubt; nor for less than two round trips. Half of `dead_after`, if that is less: five misses need their time.
    pub silence_floor: Duration,
    /// How long an answer is waited for before any round trip was measured.
    pub first_patience: Duration,
    /// Between two probes of the active one: notices when only what we send is lost. While it carries data they are three quarters of `dead_after` apart: who has our request, and dies before it answers, leaves nothing unanswered.
    pub check_interval: Duration,
    /// Between two probes of the standby: keeps its tunnel and its NAT mapping.
    pub warm_interval: Duration,
    /// Between two probes of one that might be returned to, at first.
    pub return_interval: Duration,
    /// For so long one that is preferred by configuration must be there again before it serves.
    pub preferred_hold: Duration,
    /// And one that is equal, and failed for this client alone.
    pub return_hold: Duration,
    /// A prefix without data for this long is not in use.
    pub idle_timeout: Duration,
    /// Subnets are used, and not only host addresses.
    pub accept_routes: bool,
}

impl Default for ClaimsConfig {
    fn default() -> Self {
        Self {
            probe_interval: Duration::from_millis(50),
            dead_after: Duration::from_millis(500),
            silence_floor: Duration::from_millis(150),
            first_patience: Duration::from_millis(300),
            check_interval: Duration::from_secs(2),
            warm_interval: Duration::from_secs(25),
            return_interval: Duration::from_secs(1),
            preferred_hold: Duration::from_secs(5),
            return_hold: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(300),
            accept_routes: false,
        }
    }
}
