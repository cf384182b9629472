//! What time it is for the whole cluster: the database's clock, carried on by the monotonic one. So servers agree on when keys, logins and certificates
//! end, whatever their own clocks say. Until a database was heard, it is the machine's clock.

use proto::time::UnixTime;
use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

/// A machine's clock that is off by more is told of.
const SKEW_LIMIT_MS: u64 = 5_000;
/// A reading that took so long says too little.
const SLOW_READING: Duration = Duration::from_secs(1);

/// The cluster's time.
#[derive(Debug, Default)]
pub(crate) struct Clock(Mutex<State>);

#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// The database's milliseconds at a moment of the monotonic clock.
    read: Option<(u64, Instant)>,
    is_skewed: bool,
}

impl Clock {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The database said `database_ms` somewhere between `asked_at` and now. Returns by how much the machine's clock is ahead, where that is news.
    pub(crate) fn handle_reading(&self, database_ms: u64, asked_at: Instant, machine_ms: u64) -> Option<i64> {
        let took = asked_at.elapsed();
        let mut state = self.state();
        if took > SLOW_READING && state.read.is_some() {
            return None;
        }
        state.read = Some((database_ms, asked_at + took / 2));
        let ahead = difference(machine_ms, database_ms.saturating_add(millis(took / 2)));
        let was_skewed = state.is_skewed;
        // Told once; again when it was right in between, with some room so that it is not told in turns.
        state.is_skewed = ahead.unsigned_abs() > if was_skewed { SKEW_LIMIT_MS / 2 } else { SKEW_LIMIT_MS };
        (state.is_skewed != was_skewed).then_some(ahead)
    }

    /// Milliseconds since 1970.
    pub(crate) fn now_ms(&self) -> u64 {
        match self.state().read {
            Some((ms, at)) => ms.saturating_add(millis(at.elapsed())),
            None => machine_ms(),
        }
    }

    pub(crate) fn now(&self) -> UnixTime {
        UnixTime(self.now_ms() / 1000)
    }

    /// By how much the machine's clock is ahead of the database's.
    pub(crate) fn machine_ahead_ms(&self) -> i64 {
        difference(machine_ms(), self.now_ms())
    }

    /// Whether the machine's clock is wrong enough for a person to mend it.
    pub(crate) fn is_skewed(&self) -> bool {
        self.state().is_skewed
    }
}

fn difference(one: u64, other: u64) -> i64 {
    i64::try_from(i128::from(one) - i128::from(other)).unwrap_or(i64::MAX)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// The machine's own clock, milliseconds since 1970.
pub(crate) fn machine_ms() -> u64 {
    millis(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_databases_time_goes_on_without_it_and_a_wrong_machine_is_told_of_once() {
        let (clock, hour_ms) = (Clock::default(), 3_600_000);
        assert!(clock.now_ms().abs_diff(machine_ms()) < 1_000, "nothing was heard yet");
        let database_ms = machine_ms() - hour_ms;
        let read = || clock.handle_reading(database_ms, Instant::now(), database_ms + hour_ms);
        assert!(read().is_some_and(|ahead| ahead.abs_diff(3_600_000) < 1_000));
        assert_eq!(read(), None, "told once");
        assert!(clock.is_skewed());
        assert!(clock.now_ms().abs_diff(database_ms) < 1_000);
        assert!(clock.machine_ahead_ms().abs_diff(3_600_000) < 1_000);
        let mended = clock.handle_reading(database_ms, Instant::now(), database_ms);
        assert!(mended.is_some() && !clock.is_skewed(), "and so is its end");
    }

    #[test]
    fn a_reading_that_took_long_replaces_no_better_one() {
        let clock = Clock::default();
        clock.handle_reading(10_000, Instant::now(), 10_000);
        let Some(asked_at) = Instant::now().checked_sub(SLOW_READING * 2) else { return };
        clock.handle_reading(99_000, asked_at, 99_000);
        assert!(clock.now_ms() < 20_000);
    }
}
