//! Time as the machines see it.

use std::{
    ops::{Add, Sub},
    time::Duration,
};

/// Time since boot, sleep included (CLOCK_BOOTTIME): it never jumps, and a machine that wakes from sleep sees how long it slept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootTime(Duration);

impl BootTime {
    pub const fn from_duration(since_boot: Duration) -> Self {
        Self(since_boot)
    }

    pub const fn since_boot(self) -> Duration {
        self.0
    }

    /// The time that passed since `earlier`; zero if it lies in the future.
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for BootTime {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }
}

impl Sub<Duration> for BootTime {
    type Output = Self;

    fn sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span))
    }
}

/// When a machine wants to be called again, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline {
    pub at: BootTime,
    pub cause: Cause,
}

/// What a deadline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A server did not answer a dial or a Hello in time.
    DialTimeout,
    /// A server may be tried again.
    Retry,
    /// A name is to be resolved again.
    Resolve,
    /// A heartbeat is due.
    Heartbeat,
    /// A heartbeat's answer is late: suspicion.
    HeartbeatLate,
    /// A suspected server is declared dead.
    ServerDead,
    /// A failover that servers asked to be spread.
    Spread,
    /// Bad news that nobody contradicted is believed.
    BadNews,
    /// A peer's handshake is repeated or given up.
    Handshake,
    /// A peer had no data for the idle timeout.
    Idle,
    /// Answers to path probes are collected, or a claimant is asked whether it is there.
    Probe,
    /// A claimant that does not answer is judged.
    PeerDead,
    /// One that claims a prefix is there for long enough to serve it again.
    Claim,
    /// Those who use us are waited for.
    Leaving,
    /// Those who use us are told again that our claims are withdrawn.
    Withdrawing,
    /// The word of somebody who uses us is over.
    Users,
    /// A peer did not say that it knows the removals it was told.
    Gossip,
    /// A map that was asked for does not come.
    Fetch,
    /// A certificate or a login ends.
    Expiry,
    /// State is written to disk.
    Save,
}

/// The earlier of two deadlines.
pub(crate) fn earliest(deadlines: impl IntoIterator<Item = Option<Deadline>>) -> Option<Deadline> {
    deadlines.into_iter().flatten().min()
}
