//! Time in which this machine ran not even a thread that only sleeps, as others took it, or as it stood still.
//!
//! Programs under test waited like that thread. What waits for a condition is given the whole of such a time ([`between`]); a bound on how
//! long something takes is widened by what [`longest_since`] tells, but never beyond twice itself (`Scenario::widened`). It is measured by
//! that thread alone, whatever the programs do; what is shorter than `SHORTEST` is their business.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How often the thread asks to be run.
const PACE: Duration = Duration::from_millis(20);
const SHORTEST: Duration = Duration::from_millis(10);

static SEEN: OnceLock<Mutex<Seen>> = OnceLock::new();

struct Seen {
    /// When the thread wants to be run next.
    due: Instant,
    /// When it was not, although it was due.
    spans: Vec<(Instant, Instant)>,
}

fn seen() -> MutexGuard<'static, Seen> {
    let seen = SEEN.get_or_init(|| {
        std::thread::spawn(watch);
        Mutex::new(Seen { due: Instant::now() + PACE, spans: Vec::new() })
    });
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch() {
    loop {
        let due = seen().due;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let now = Instant::now();
        let mut seen = seen();
        seen.spans.extend(still((due, now)));
        seen.due = now + PACE;
    }
}

fn still((due, now): (Instant, Instant)) -> Option<(Instant, Instant)> {
    (now.saturating_duration_since(due) >= SHORTEST).then_some((due, now))
}

/// Begins to watch; whatever asks does so too.
pub fn begin() {
    drop(seen());
}

/// How long the machine stood still between two moments.
pub fn between(from: Instant, to: Instant) -> Duration {
    let seen = seen();
    // Who is run first after such a time asks before the thread has noted it.
    let latest = still((seen.due, Instant::now()));
    overlap(&seen.spans, from, to) + overlap(latest.as_slice(), from, to)
}

/// The longest time that it stood still at once, since a moment.
pub fn longest_since(moment: Instant) -> Duration {
    let seen = seen();
    let since = seen.spans.iter().filter(|(_, end)| *end > moment);
    since.map(|(start, end)| *end - *start).max().unwrap_or_default()
}

fn overlap(spans: &[(Instant, Instant)], from: Instant, to: Instant) -> Duration {
    // Newest last.
    let late = spans.iter().rev().take_while(|(_, end)| *end > from);
    late.map(|(start, end)| (*end).min(to).saturating_duration_since((*start).max(from))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_between_the_moments_counts() {
        let zero = Instant::now();
        let at = |ms: u64| zero + Duration::from_millis(ms);
        let spans = [(at(1000), at(2000)), (at(3000), at(3500))];
        let still = |from, to| overlap(&spans, at(from), at(to)).as_millis();
        assert_eq!((still(0, 900), still(2000, 3000), still(4000, 5000)), (0, 0, 0));
        assert_eq!((still(0, 4000), still(1500, 3100), still(1200, 1300)), (1500, 600, 100));
    }
}
