//! Since when a claimant serves, by this client's clock.

use crate::time::BootTime;
use std::time::Duration;

/// Nanoseconds after the start of this client's machine; below zero for what has been up for longer than that. So every client has the same spans between claimants, whenever it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Since(i128);

impl Since {
    /// Of what says now that it has been up for so long.
    pub(super) fn told(uptime: Duration, now: BootTime) -> Self {
        Self(nanos(now.since_boot()) - nanos(uptime))
    }

    /// Whether it lies later than the other by more than that.
    pub(super) fn is_later_than(self, other: Self, by: Duration) -> bool {
        self.0 - other.0 > nanos(by)
    }

    /// When it will be or was so long ago; the start of this machine for all that lies before.
    pub(super) fn after(self, span: Duration) -> BootTime {
        let nanos = u128::try_from(self.0 + nanos(span)).unwrap_or(0);
        let seconds = u64::try_from(nanos / NANOS_PER_S).unwrap_or(u64::MAX);
        BootTime::from_duration(Duration::new(seconds, (nanos % NANOS_PER_S) as u32))
    }
}

const NANOS_PER_S: u128 = 1_000_000_000;

/// At most 2^94, whatever anybody says.
fn nanos(span: Duration) -> i128 {
    span.as_nanos() as i128
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_word_of_a_claimant_and_no_clock_is_too_large() {
        let (start, end) = (BootTime::default(), BootTime::from_duration(Duration::MAX));
        let (first, last) = (Since::told(Duration::MAX, start), Since::told(Duration::ZERO, end));
        assert!(first < last && last.is_later_than(first, Duration::MAX));
        assert_eq!((first.after(Duration::ZERO), last.after(Duration::ZERO)), (start, end));
        assert!(last.after(Duration::MAX) > start);
    }
}
