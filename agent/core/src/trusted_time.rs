//! What time it is, for judging certificates: told by servers and carried on by the boot clock; else the wall clock, but not before
//! the newest time that the root signed.
//!
//! A wall clock that was set back so brings nobody back. What servers tell needs no such floor: who could tell a wrong time could renew certificates as well. And it
//! must not have one, or a single certificate that was issued while a clock ran ahead would end all others early.

use crate::time::BootTime;
use proto::time::UnixTime;
use std::time::Duration;

/// What the time is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Told,
    /// So long after the newest signature that is known.
    WallClock {
        since_signed: Option<Duration>,
    },
    /// The wall clock is behind it by so much.
    Signature {
        wall_behind: Duration,
    },
}

/// The estimate.
#[derive(Debug, Clone, Copy, Default)]
pub struct TrustedTime {
    told: Option<(UnixTime, BootTime)>,
    wall: Option<(UnixTime, BootTime)>,
    newest_signed: Option<UnixTime>,
}

impl TrustedTime {
    /// A server told the time.
    pub fn on_told(&mut self, time: UnixTime, now: BootTime) {
        self.told = Some((time, now));
    }

    /// The wall clock's time.
    pub fn on_wall_clock(&mut self, time: UnixTime, now: BootTime) {
        self.wall = Some((time, now));
    }

    /// A statement under the root was issued at this time.
    pub fn on_signed(&mut self, time: UnixTime) {
        self.newest_signed = self.newest_signed.max(Some(time));
    }

    /// The wall clock less the servers' time, seconds; `None` while only one of them is known.
    pub fn wall_ahead(&self, now: BootTime) -> Option<i64> {
        Some(self.wall_at(now)?.0 as i64 - self.told_at(now)?.0 as i64)
    }

    /// The time that a server told since the start, carried on.
    pub fn told_at(&self, now: BootTime) -> Option<UnixTime> {
        let (time, since) = self.told?;
        Some(time.saturating_add(now.since(since)))
    }

    /// `None` while there is nothing to go by: then no certificate is judged.
    pub fn at(&self, now: BootTime) -> Option<UnixTime> {
        match self.told_at(now) {
            Some(told) => Some(told),
            None => Some(self.wall_at(now)?.max(self.newest_signed.unwrap_or(UnixTime(0)))),
        }
    }

    /// By what [`TrustedTime::at`] goes.
    pub fn source(&self, now: BootTime) -> Option<Source> {
        if self.told.is_some() {
            return Some(Source::Told);
        }
        let wall = self.wall_at(now)?;
        Some(match self.newest_signed {
            Some(signed) if signed > wall => Source::Signature { wall_behind: signed.since(wall) },
            signed => Source::WallClock { since_signed: signed.map(|signed| wall.since(signed)) },
        })
    }

    fn wall_at(&self, now: BootTime) -> Option<UnixTime> {
        let (time, since) = self.wall?;
        Some(time.saturating_add(now.since(since)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const START: BootTime = BootTime::from_duration(Duration::from_secs(1000));

    #[test]
    fn a_server_is_believed_before_the_wall_clock_and_carried_on() {
        let mut time = TrustedTime::default();
        assert_eq!(time.at(START), None);
        time.on_wall_clock(UnixTime(5), START);
        assert_eq!(time.at(START + Duration::from_secs(2)), Some(UnixTime(7)));
        time.on_told(UnixTime(1_000), START);
        time.on_wall_clock(UnixTime(9_999_999), START);
        assert_eq!(time.at(START + Duration::from_secs(60)), Some(UnixTime(1_060)));
    }

    #[test]
    fn a_clock_behind_the_newest_signature_is_not_believed() {
        let mut time = TrustedTime::default();
        time.on_wall_clock(UnixTime(5), START);
        time.on_signed(UnixTime(2_000));
        time.on_signed(UnixTime(1_500));
        assert_eq!(time.at(START), Some(UnixTime(2_000)));
        assert_eq!(time.source(START), Some(Source::Signature { wall_behind: Duration::from_secs(1_995) }));
        let later = START + Duration::from_secs(3_000);
        let since_signed = Some(Duration::from_secs(1_005));
        assert_eq!(time.source(later), Some(Source::WallClock { since_signed }));
    }

    #[test]
    fn a_signature_of_a_clock_that_ran_ahead_does_not_hasten_what_servers_tell() {
        let mut time = TrustedTime::default();
        time.on_signed(UnixTime(50_000));
        time.on_told(UnixTime(2_000), START);
        assert_eq!(time.at(START + Duration::from_secs(60)), Some(UnixTime(2_060)));
        assert_eq!(time.source(START), Some(Source::Told));
    }
}
