//! When a data plane that failed is made anew: at once if that is rare, and ever later while it goes on.

use agent_core::BootTime;
use std::time::Duration;

const FIRST_DELAY: Duration = Duration::from_secs(1);
const MAX_DELAY: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(super) struct Renewals {
    last: Option<BootTime>,
    /// From the last one to the next.
    delay: Duration,
}

impl Renewals {
    /// The moment for the next, after a fault now. A plane that ran for long enough is forgiven the earlier ones.
    pub(super) fn next(&mut self, now: BootTime) -> BootTime {
        let recent = self.last.filter(|last| now.since(*last) < 2 * MAX_DELAY);
        self.delay = match recent {
            Some(_) => (2 * self.delay).clamp(FIRST_DELAY, MAX_DELAY),
            None => Duration::ZERO,
        };
        let at = recent.map_or(now, |last| now.max(last + self.delay));
        self.last = Some(at);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_in_a_row_are_answered_ever_later_and_a_rare_one_at_once() {
        let mut renewals = Renewals::default();
        let mut now = BootTime::from_duration(Duration::from_secs(100));
        assert_eq!(renewals.next(now), now);
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            let at = renewals.next(now);
            assert_eq!(at.since(now), Duration::from_secs(seconds));
            now = at;
        }
        let later = now + Duration::from_secs(60);
        assert_eq!(renewals.next(later), later);
    }
}
