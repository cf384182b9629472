//! Wall-clock time in messages and certificates.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Seconds since 1970-01-01 UTC, without leap seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixTime(pub u64);

impl UnixTime {
    /// `None` for 0, which messages use for "never" and "not said".
    pub fn from_wire(seconds: u64) -> Option<Self> {
        (seconds != 0).then_some(Self(seconds))
    }

    /// The reverse of [`UnixTime::from_wire`].
    pub fn to_wire(time: Option<Self>) -> u64 {
        time.map_or(0, |time| time.0)
    }

    pub fn saturating_add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span.as_secs()))
    }

    /// How long `earlier` is ago, zero if it is in the future.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0))
    }
}
