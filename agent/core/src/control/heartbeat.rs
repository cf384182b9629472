//! Heartbeats of one session: when the next is due, when its answer is late, when the server is dead; and the round-trip time.

use crate::{
    config::ControlConfig,
    time::{BootTime, Cause, Deadline},
};
use std::time::Duration;

/// Smoothed round-trip time and its variation (RFC 6298).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rtt {
    smoothed: Option<(Duration, Duration)>,
}

impl Rtt {
    pub fn sample(&mut self, rtt: Duration) {
        self.smoothed = Some(match self.smoothed {
            None => (rtt, rtt / 2),
            Some((srtt, var)) => ((srtt * 7 + rtt) / 8, (var * 3 + srtt.abs_diff(rtt)) / 4),
        });
    }

    pub fn smoothed(&self) -> Option<Duration> {
        self.smoothed.map(|(srtt, _)| srtt)
    }

    /// How long an answer is waited for: the retransmission time-out.
    pub fn patience(&self) -> Option<Duration> {
        self.smoothed.map(|(srtt, var)| srtt + var * 4)
    }
}

/// A heartbeat that awaits its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outstanding {
    sequence: u64,
    sent_at: BootTime,
    late_at: BootTime,
    is_late: bool,
}

/// The heartbeats of one session. At most one is outstanding: while it is, no other is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Heartbeats {
    pub(super) rtt: Rtt,
    sequence: u64,
    next_at: BootTime,
    outstanding: Option<Outstanding>,
}

impl Heartbeats {
    /// The first is sent at once: it measures the round trip.
    pub(super) fn new(now: BootTime) -> Self {
        Self { rtt: Rtt::default(), sequence: 0, next_at: now, outstanding: None }
    }

    /// How long an answer may take before the server is suspected.
    pub(super) fn patience(&self, config: &ControlConfig) -> Duration {
        let rtt = self.rtt.smoothed().unwrap_or_default();
        config.late_floor.max(rtt * config.late_rtts)
    }

    /// The sequence number of a heartbeat to send now, if one is due.
    pub(super) fn poll(&mut self, config: &ControlConfig, now: BootTime) -> Option<u64> {
        if self.outstanding.is_some() || now < self.next_at {
            return None;
        }
        self.sequence += 1;
        let late_at = now + self.patience(config);
        self.outstanding =
            Some(Outstanding { sequence: self.sequence, sent_at: now, late_at, is_late: false });
        Some(self.sequence)
    }

    /// Takes an answer; the next heartbeat follows one interval after the answered one was sent.
    pub(super) fn on_answer(&mut self, sequence: u64, interval: Duration, now: BootTime) {
        let Some(outstanding) = self.outstanding.filter(|o| o.sequence == sequence) else { return };
        self.rtt.sample(now.since(outstanding.sent_at));
        self.outstanding = None;
        self.next_at = (outstanding.sent_at + interval).max(now);
    }

    /// Asks now instead of at the next interval: something looks wrong.
    pub(super) fn hasten(&mut self, now: BootTime) {
        self.next_at = self.next_at.min(now);
    }

    /// Whether the answer became late; said once per heartbeat.
    pub(super) fn poll_late(&mut self, now: BootTime) -> bool {
        match &mut self.outstanding {
            Some(outstanding) if !outstanding.is_late && now >= outstanding.late_at => {
                outstanding.is_late = true;
                true
            }
            Some(_) | None => false,
        }
    }

    pub(super) fn is_late(&self) -> bool {
        self.outstanding.is_some_and(|outstanding| outstanding.is_late)
    }

    pub(super) fn is_dead(&self, config: &ControlConfig, now: BootTime) -> bool {
        self.outstanding.is_some_and(|outstanding| now >= outstanding.sent_at + config.peer_timeout)
    }

    pub(super) fn deadline(&self, config: &ControlConfig) -> Deadline {
        match self.outstanding {
            None => Deadline { at: self.next_at, cause: Cause::Heartbeat },
            Some(o) if !o.is_late => Deadline { at: o.late_at, cause: Cause::HeartbeatLate },
            Some(o) => Deadline { at: o.sent_at + config.peer_timeout, cause: Cause::ServerDead },
        }
    }
}
