//! What time it is, for judging certificates: told by servers and carried on by the boot clock, else the wall clock, and never before
//! the newest time that the root signed. So a wrong wall clock alone cuts nobody off.

use crate::time::BootTime;
use proto::time::UnixTime;

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
        let carried = |(time, since): (UnixTime, BootTime)| time.saturating_add(now.since(since)).0 as i64;
        Some(carried(self.wall?) - carried(self.told?))
    }

    /// The time that a server told since the start, carried on.
    pub fn told_at(&self, now: BootTime) -> Option<UnixTime> {
        let (time, since) = self.told?;
        Some(time.saturating_add(now.since(since)))
    }

    /// `None` while there is nothing to go by: then no certificate is judged.
    pub fn at(&self, now: BootTime) -> Option<UnixTime> {
        let (time, since) = self.told.or(self.wall)?;
        Some(time.saturating_add(now.since(since)).max(self.newest_signed.unwrap_or(UnixTime(0))))
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
    }
}
