//! Whether one peer is there, by round trips inside its tunnel.
//!
//! ```text
//!            data unanswered, or a check missed            5 misses, and silent for dead-after (or 10 misses:
//!   Calm ------------------------------------> Doubted ---- what we send does not arrive) ----> Dead
//!    ^                  an answer                 |                                               |
//!    +--------------------------------------------+                                               |
//!    +--------------------------------------------------------------------------------------------+
//!                                            an answer
//! ```
//!
//! How often it is asked follows from what it is needed for ([`Need`]). Death is only a verdict about this peer: whether anything moves is decided in `choice`, with proof that another one is there.

use super::ClaimsConfig;
use crate::{
    control::Rtt,
    time::{BootTime, Cause, Deadline, earliest},
};
use std::{collections::VecDeque, time::Duration};

/// So many answers in a row came late, each another patience after the one before: the path is longer now.
const LATE_ANSWERS: u32 = 3;
/// Answers that come later than this are no news.
const REMEMBERED: Duration = Duration::from_secs(5);
const MAX_OUTSTANDING: usize = 128;

/// What a peer is needed for: how often it is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Need {
    #[default]
    None,
    /// It would serve next.
    Standby,
    /// It might rank first, once it is known to be there.
    Return,
    /// It serves, and nobody else could: it hears that it is used, and its silence moves nothing.
    Sole,
    /// It serves.
    Active,
    /// The one that serves is in doubt.
    Proof,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    id: u64,
    at: BootTime,
    is_missed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Calm,
    /// Nothing is known of it since then.
    Doubted(BootTime),
    Dead(BootTime),
}

/// One peer's pulse.
#[derive(Debug, Clone)]
pub(super) struct Pulse {
    state: State,
    need: Need,
    rtt: Rtt,
    /// Answers in a row that came too late, as far as they did not come at once, and when the last of them did.
    late: u32,
    late_at: Option<BootTime>,
    sent: VecDeque<Sent>,
    /// One after the other, without an answer.
    missed: u32,
    /// Data went out then, and nothing came back.
    silent_since: Option<BootTime>,
    /// When the newest probe that was answered had been sent.
    proven_at: Option<BootTime>,
    /// When the first was sent that it answered since it last missed one.
    answers_from: Option<BootTime>,
    /// When the newest was sent that it missed.
    missed_at: Option<BootTime>,
    /// It answers ever since.
    healthy_since: Option<BootTime>,
    next_at: Option<BootTime>,
    /// It carries data up to then, as far as is known.
    busy_until: Option<BootTime>,
    /// Probes since it was asked for again.
    asked: u32,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            state: State::Calm,
            need: Need::None,
            rtt: Rtt::default(),
            late: 0,
            late_at: None,
            sent: VecDeque::new(),
            missed: 0,
            silent_since: None,
            proven_at: None,
            answers_from: None,
            missed_at: None,
            healthy_since: None,
            next_at: None,
            busy_until: None,
            asked: 0,
        }
    }
}

impl Pulse {
    pub(super) fn need(&self) -> Need {
        self.need
    }

    /// What it is needed for now.
    pub(super) fn set_need(&mut self, need: Need, config: &ClaimsConfig, now: BootTime) {
        if self.need == need {
            return;
        }
        let is_less = need < self.need;
        self.need = need;
        self.asked = 0;
        if need == Need::None {
            self.rest();
        }
        let serves = matches!(need, Need::Sole | Need::Active);
        // It is there only if it says so; but who carries data shows it.
        self.next_at = match self.interval(config) {
            Some(interval) if is_less || (serves && self.healthy_since.is_some()) => Some(now + interval),
            Some(_) => Some(now),
            None => None,
        };
    }

    /// Nobody asks any more, so nothing is known after a while.
    fn rest(&mut self) {
        self.sent.clear();
        (self.missed, self.silent_since, self.healthy_since) = (0, None, None);
        self.state = State::Calm;
    }

    /// It carries data, as is told about once a second.
    pub(super) fn on_data(&mut self, config: &ClaimsConfig, now: BootTime) {
        self.busy_until = Some(now + BUSY);
        if let Some(interval) = self.interval(config) {
            self.next_at = self.next_at.map(|at| at.min(now + interval));
        }
    }

    /// Data went out at `since`, or waits since then for a tunnel, and nothing came back.
    pub(super) fn on_silent(&mut self, since: BootTime) {
        self.silent_since.get_or_insert(since);
    }

    /// Something authentic came, be it data.
    pub(super) fn on_heard(&mut self) {
        self.silent_since = None;
        if self.is_doubted() && self.missed < MISSES {
            self.state = State::Calm;
        }
    }

    /// Takes the answer to one of our probes, if it is one.
    pub(super) fn on_reply(&mut self, id: u64, config: &ClaimsConfig, now: BootTime) -> bool {
        let Some(place) = self.sent.iter().position(|sent| sent.id == id) else { return false };
        let Some(answered) = self.sent.remove(place) else { return false };
        self.measure(answered, config, now);
        self.proven_at = self.proven_at.max(Some(answered.at));
        self.answers_from.get_or_insert(answered.at);
        self.healthy_since.get_or_insert(now);
        (self.missed, self.silent_since) = (0, None);
        // What was asked before it is as good as answered.
        self.sent.retain(|sent| sent.at > answered.at);
        let was_calm = std::mem::replace(&mut self.state, State::Calm) == State::Calm;
        // No more of the burst.
        if !was_calm && self.need == Need::Active {
            self.next_at = self.interval(config).map(|interval| now + interval);
        }
        true
    }

    /// A path that became longer is followed step by step. Who stood still answers all at once, which says nothing of its path: believed, its next silence would be waited out
    /// for as long.
    fn measure(&mut self, answered: Sent, config: &ClaimsConfig, now: BootTime) {
        let (took, patience) = (now.since(answered.at), self.patience(config));
        if !answered.is_missed {
            self.late = 0;
            // It waited with those that were late.
            if self.late_at.is_none_or(|late_at| answered.at >= late_at) {
                self.rtt.sample(took);
            }
        } else if self.late_at.is_none_or(|late_at| now >= late_at + patience) {
            (self.late, self.late_at) = (self.late.saturating_add(1), Some(now));
            if self.late >= LATE_ANSWERS {
                self.rtt.sample(took.min(patience * 2));
            }
        }
    }

    /// Whether it is a probe's time; the caller sends it under this id.
    pub(super) fn poll_probe(&mut self, id: u64, config: &ClaimsConfig, now: BootTime) -> bool {
        if self.next_at.is_none_or(|at| now < at) {
            return false;
        }
        if self.sent.len() >= MAX_OUTSTANDING {
            self.sent.pop_front();
        }
        self.sent.push_back(Sent { id, at: now, is_missed: false });
        self.asked = self.asked.saturating_add(1);
        self.next_at = self.interval(config).map(|interval| now + interval);
        true
    }

    fn interval(&self, config: &ClaimsConfig) -> Option<Duration> {
        match (self.need, self.state) {
            (Need::None, _) => None,
            // Slower as it lasts: there may be nobody at all.
            (Need::Proof, _) | (Need::Active, State::Doubted(_) | State::Dead(_)) => {
                Some(self.backed_off(config.probe_interval, config.return_interval))
            }
            (Need::Active, State::Calm) if self.busy_until.is_some() => {
                Some(config.check_interval.min(config.dead_after * 3 / 4))
            }
            (Need::Sole, _) | (Need::Active, State::Calm) => Some(config.check_interval),
            (Need::Standby | Need::Return, State::Doubted(_)) => Some(config.return_interval),
            (Need::Standby, State::Calm) => Some(config.warm_interval),
            (Need::Return, State::Calm) if self.healthy_since.is_some() => Some(config.return_interval),
            (Need::Standby | Need::Return, State::Dead(_)) | (Need::Return, State::Calm) => {
                Some(self.backed_off(config.return_interval, config.warm_interval))
            }
        }
    }

    fn backed_off(&self, first: Duration, last: Duration) -> Duration {
        (first * 2u32.saturating_pow((self.asked / 32).min(16))).min(last)
    }

    /// Lets time pass: counts misses, and judges.
    pub(super) fn handle_timeout(&mut self, config: &ClaimsConfig, now: BootTime) {
        self.busy_until = self.busy_until.filter(|until| now < *until);
        if let Some(since) = self.silent_since.filter(|since| now >= *since + self.silence(config)) {
            self.doubt(since, now);
        }
        let patience = self.patience(config);
        self.sent.retain(|sent| now < sent.at + REMEMBERED.max(patience * 2));
        let mut missed_since = None;
        for sent in self.sent.iter_mut().filter(|sent| !sent.is_missed && now >= sent.at + patience) {
            sent.is_missed = true;
            self.missed = self.missed.saturating_add(1);
            self.missed_at = self.missed_at.max(Some(sent.at));
            self.answers_from = None;
            missed_since.get_or_insert(sent.at);
        }
        if let Some(since) = missed_since.filter(|_| self.need != Need::None) {
            self.doubt(since, now);
        }
        if let State::Doubted(since) = self.state
            && self.is_gone(config, now)
        {
            self.state = State::Dead(since);
            self.healthy_since = None;
        }
    }

    fn doubt(&mut self, since: BootTime, now: BootTime) {
        if self.state == State::Calm {
            self.state = State::Doubted(since);
            self.asked = 0;
            if self.next_at.is_some() {
                self.next_at = Some(now);
            }
        }
    }

    fn is_gone(&self, config: &ClaimsConfig, now: BootTime) -> bool {
        let is_silent = self.silent_since.is_some_and(|since| now >= since + config.dead_after);
        let is_used = self.need == Need::Active;
        let is_deaf = self.missed >= DEAF_MISSES
            && self.doubted_since().is_some_and(|since| now >= since + config.dead_after);
        self.missed >= MISSES && (is_silent || !is_used || is_deaf)
    }

    /// For how long an answer is waited for.
    fn patience(&self, config: &ClaimsConfig) -> Duration {
        self.rtt.patience().unwrap_or(config.first_patience).max(config.probe_interval)
    }

    /// The same, where waiting for too long leaves one that restarted without a session.
    pub(super) fn repair_patience(&self, config: &ClaimsConfig) -> Duration {
        let round_trip = self.rtt.smoothed().unwrap_or_default();
        self.patience(config).min(REPAIR_PATIENCE.max(round_trip * 2))
    }

    /// How long unanswered data is no reason to doubt.
    pub(super) fn silence(&self, config: &ClaimsConfig) -> Duration {
        config.silence_floor.min(config.dead_after / 2).max(self.rtt.smoothed().unwrap_or_default() * 2)
    }

    pub(super) fn is_dead(&self) -> bool {
        matches!(self.state, State::Dead(_))
    }

    fn is_doubted(&self) -> bool {
        matches!(self.state, State::Doubted(_))
    }

    /// Since when nothing is known of it.
    pub(super) fn doubted_since(&self) -> Option<BootTime> {
        match self.state {
            State::Calm => None,
            State::Doubted(since) | State::Dead(since) => Some(since),
        }
    }

    /// It answers since the other one is in doubt, and the other one missed something that was sent when this one was there already: so it is not our own link.
    pub(super) fn answers_where_silent(&self, other: &Self) -> bool {
        let (Some(since), Some(from)) = (other.doubted_since(), self.answers_from) else { return false };
        self.proven_at.is_some_and(|at| at >= since) && other.missed_at.is_some_and(|at| at >= from)
    }

    pub(super) fn proven_at(&self) -> Option<BootTime> {
        self.proven_at
    }

    pub(super) fn healthy_since(&self) -> Option<BootTime> {
        self.healthy_since.filter(|_| self.state == State::Calm)
    }

    pub(super) fn deadline(&self, config: &ClaimsConfig) -> Option<Deadline> {
        let probe = self.next_at.map(|at| Deadline { at, cause: Cause::Probe });
        let patience = self.patience(config);
        let miss = self.sent.iter().find(|sent| !sent.is_missed).map(|sent| sent.at + patience);
        let verdict = match self.state {
            State::Calm => self.silent_since.map(|since| since + self.silence(config)),
            State::Doubted(_) if self.missed >= MISSES => {
                self.silent_since.map(|since| since + config.dead_after)
            }
            State::Doubted(_) | State::Dead(_) => None,
        };
        let judged = [miss, verdict].into_iter().flatten().min();
        earliest([probe, judged.map(|at| Deadline { at, cause: Cause::PeerDead })])
    }
}

/// One that has carried data may be asked for something that takes so long to answer.
const BUSY: Duration = Duration::from_secs(10);
/// One after the other: two lost answers in ten are no death.
const MISSES: u32 = 5;
/// One that restarted is to be answered again within 300 ms, and 150 are over when it is silent. A path may take longer.
const REPAIR_PATIENCE: Duration = Duration::from_millis(100);
/// So many while it is heard: what we send does not arrive.
const DEAF_MISSES: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// One that is asked every 50 ms, with each answer `delay(sent)` after its probe.
    fn asked(pulse: &mut Pulse, from: u64, to: u64, delay: impl Fn(u64) -> u64) {
        let (config, start) = (ClaimsConfig::default(), BootTime::from_duration(Duration::from_secs(100)));
        let mut waiting: Vec<(u64, u64)> = Vec::new();
        for at in from..to {
            let now = start + MS * u32::try_from(at).unwrap();
            pulse.set_need(Need::Proof, &config, now);
            pulse.handle_timeout(&config, now);
            if pulse.poll_probe(at, &config, now) {
                waiting.push((at + delay(at), at));
            }
            for (_, id) in waiting.extract_if(.., |(due, _)| *due <= at) {
                pulse.on_reply(id, &config, now);
            }
        }
    }

    #[test]
    fn however_often_somebody_stands_still_it_is_waited_for_no_longer_than_before() {
        for way in [1, 40, 200] {
            let (mut pulse, config) = (Pulse::default(), ClaimsConfig::default());
            asked(&mut pulse, 0, 2000, |at| way + at / 50 % 2);
            let before = pulse.patience(&config);
            for round in 0..20 {
                // All that was asked in a second of standstill is answered at its end.
                let (from, thawed) = (2000 + round * 1500, 3000 + round * 1500);
                asked(&mut pulse, from, from + 1500, |at| way + thawed.saturating_sub(at));
                let patience = pulse.patience(&config);
                assert!(patience <= before + MS * 5, "round {round}, way {way}: {patience:?}, {before:?}");
            }
        }
    }

    #[test]
    fn a_path_that_became_longer_is_followed_within_some_answers() {
        for (before, after) in [(1, 60), (20, 400), (40, 200), (200, 1000)] {
            let (mut pulse, config) = (Pulse::default(), ClaimsConfig::default());
            asked(&mut pulse, 0, 2000, |_| before);
            asked(&mut pulse, 2000, 2000 + after * 12, |_| after);
            let patience = pulse.patience(&config);
            let after = MS * u32::try_from(after).unwrap();
            assert!(patience > after && !pulse.is_dead(), "{patience:?}, {after:?}");
        }
    }

    #[test]
    fn a_path_whose_first_answers_are_late_is_known_after_some() {
        let (mut pulse, config) = (Pulse::default(), ClaimsConfig::default());
        asked(&mut pulse, 0, 3000, |_| 700);
        assert!(pulse.patience(&config) > MS * 700 && !pulse.is_dead());
    }
}
