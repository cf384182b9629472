//! Time: sessions age, keepalives and reports fall due. Without live peers there are no deadlines.

use std::time::{Duration, Instant};

use super::Worker;
use crate::{
    Event,
    noise::Tick,
    peer::{Live, PeerId},
};

/// WireGuard's timers are in seconds; a quarter is early enough.
const TICK_INTERVAL: Duration = Duration::from_millis(250);
/// Data is answered within this, if only by a keepalive. The noise library does so too, but takes what came and
/// what went between the same two ticks for simultaneous, and then forgets.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// WireGuard's keepalive and rekey timeouts together: the time in which anything alive has answered.
const UNANSWERED_AFTER: Duration = Duration::from_secs(15);
/// The library's times are those of its last tick.
const TICK_SLACK: Duration = Duration::from_millis(500);
/// How long an answered initiation may stay without the packet that proves it.
const UNPROVEN_FOR: Duration = Duration::from_secs(30);
/// When a session kept up by keepalives is renewed: by its initiator as WireGuard does (REKEY_AFTER_TIME), by the
/// other side before it would end (REJECT_AFTER_TIME less the two timeouts).
const RENEW_AFTER: Duration = Duration::from_secs(120);
const RENEW_PASSIVE_AFTER: Duration = Duration::from_secs(165);

/// Live peers per turn.
const MAX_TICKS: usize = 512;

impl Worker {
    pub(super) fn deadline(&self) -> Option<Instant> {
        let tick = (!self.peers.live().is_empty()).then_some(self.next_tick_at);
        let revival = self.revivals.first().map(|&(at, _)| at);
        let is_behind = !self.to_tick.is_empty() || self.handshakes.is_waiting();
        let backlog = is_behind.then_some(self.now);
        [tick, revival, self.activity.deadline(), self.watches.deadline(), backlog]
            .into_iter()
            .flatten()
            .min()
    }

    pub(super) fn handle_timers(&mut self) {
        if !self.peers.live().is_empty() && self.next_tick_at <= self.now {
            self.next_tick_at = self.now + TICK_INTERVAL;
            self.to_tick.clear();
            self.to_tick.extend_from_slice(self.peers.live());
        }
        // Peers that woke together renew their sessions together.
        for _ in 0..MAX_TICKS {
            let Some(id) = self.handshakes.may_begin().then(|| self.to_tick.pop()).flatten() else { break };
            self.tick(id);
        }
        self.revive();
        self.report();
        self.tell_silence();
    }

    fn tell_silence(&mut self) {
        while let Some(id) = self.watches.poll(self.now) {
            let Some(state) = self.peers.get(id) else { continue };
            let (peer, Some(live)) = (state.key, state.live.as_deref_mut()) else { continue };
            if let Some(elapsed) = self.watches.judge(id, live, self.now) {
                self.emit(Event::Silent { peer, elapsed });
            }
        }
    }

    fn report(&mut self) {
        let ids = self.activity.take(self.now);
        if ids.is_empty() {
            return;
        }
        let keys: Vec<_> = ids.into_iter().filter_map(|id| self.end_activity(id)).collect();
        if !keys.is_empty() {
            self.emit(Event::Active(keys));
        }
    }

    /// `None` if the peer was removed, or its place is another's by now.
    fn end_activity(&mut self, id: PeerId) -> Option<crate::PublicKey> {
        let state = self.peers.get(id)?;
        std::mem::take(&mut state.is_active).then_some(state.key)
    }

    fn tick(&mut self, id: PeerId) {
        let Some(state) = self.peers.get(id) else { return };
        let age = state.last_handshake_at().map(|at| self.now.saturating_duration_since(at));
        let Some(live) = state.live.as_deref_mut() else { return };
        if awaits_first_answer(live, self.now) && age.is_some_and(|age| age < RENEW_PASSIVE_AFTER) {
            return self.keep_alive(id);
        }
        match live.noise.tick(&mut self.scratch) {
            Tick::Nothing => {}
            Tick::Initiation(_) if live.is_initiating => self.retry_later(id),
            // It comes again every 5 s, and goes out once somebody needs it.
            Tick::Initiation(_) if age.is_some_and(|age| is_premature(live, age, self.now)) => {}
            Tick::Initiation(len) => self.spread_initiation(id, len),
            Tick::Keepalive(len) => self.send_keepalive(id, len),
            Tick::GaveUp => return self.lose(id),
        }
        self.tick_former(id);
        if self.age(id) {
            self.check_answers(id);
            self.keep_alive(id);
            // The other side began a handshake and did not end it.
            if self.has_packets(id) {
                self.want_session(id);
            }
        }
    }

    /// Sessions of another preshared key age, too. When they would be renewed, it is with the new key.
    fn tick_former(&mut self, id: PeerId) {
        let Some(live) = self.peers.get(id).and_then(|state| state.live.as_deref_mut()) else { return };
        let is_initiating = live.is_initiating;
        let Some(former) = live.former.as_deref_mut() else { return };
        let (tick, seals) = (former.noise.tick(&mut self.scratch), former.seals);
        if !former.noise.has_session() {
            self.peers.forget_former(id);
        }
        match tick {
            Tick::Keepalive(len) if seals => self.send_keepalive(id, len),
            Tick::Initiation(_) if seals && !is_initiating => self.send_initiation(id),
            Tick::Nothing | Tick::Initiation(_) | Tick::Keepalive(_) | Tick::GaveUp => {}
        }
    }

    /// Sends the keepalive in the scratch buffer.
    fn send_keepalive(&mut self, id: PeerId, len: usize) {
        let Some(state) = self.peers.get(id) else { return };
        if let (Some(path), Some(live)) = (state.path, state.live.as_deref_mut()) {
            live.on_sent(self.now);
            state.record().tx_datagram_bytes += len as u64;
            self.outbox.send(Some(id), &self.scratch[..len], path);
        }
    }

    /// Sees whether the session is still there; `false` if the peer is idle now.
    fn age(&mut self, id: PeerId) -> bool {
        let now = self.now;
        let Some(state) = self.peers.get(id) else { return false };
        let (peer, Some(live)) = (state.key, state.live.as_deref_mut()) else { return false };
        let has_ended = live.is_established && !live.has_session();
        live.is_established &= !has_ended;
        live.answered = live.answered.filter(|(_, at)| now.saturating_duration_since(*at) < UNPROVEN_FOR);
        let is_wanted = live.is_established || live.is_initiating || live.answered.is_some();
        if !is_wanted {
            self.peers.end(id);
            self.revive_later(id);
        }
        if has_ended {
            self.emit(Event::SessionLost { peer });
        }
        is_wanted
    }

    fn check_answers(&mut self, id: PeerId) {
        let now = self.now;
        let Some(state) = self.peers.get(id) else { return };
        let peer = state.key;
        let Some(live) = state.established() else { return };
        let is_late =
            live.unanswered_since.is_some_and(|at| now.saturating_duration_since(at) >= UNANSWERED_AFTER);
        if is_late && !live.is_unanswered_told {
            live.is_unanswered_told = true;
            self.emit(Event::Unanswered { peer });
        }
    }

    /// Sends what the configured interval or data received asks for.
    fn keep_alive(&mut self, id: PeerId) {
        let now = self.now;
        let Some(state) = self.peers.get(id) else { return };
        let (Some(path), interval) = (state.path, state.keepalive) else { return };
        let Some(live) = state.live.as_deref_mut().filter(|live| live.is_established) else { return };
        let since = |at: Instant| now.saturating_duration_since(at);
        let is_owed = live.owing_since.is_some_and(|at| since(at) >= KEEPALIVE_TIMEOUT);
        if is_owed || interval.is_some_and(|interval| since(live.sent_at) >= interval) {
            live.on_sent(now);
            let sealed = self.outbox.seal(id, live.sealer(), &[], path);
            state.record().tx_datagram_bytes += sealed;
        }
        if interval.is_some() {
            self.renew(id);
        }
    }

    /// The noise library renews for data only; a session kept up by keepalives would end.
    fn renew(&mut self, id: PeerId) {
        let now = self.now;
        let Some(state) = self.peers.get(id) else { return };
        let age = state.last_handshake_at().map(|at| now.saturating_duration_since(at));
        let Some(live) = state.established() else { return };
        let renew_after = if live.is_initiator { RENEW_AFTER } else { RENEW_PASSIVE_AFTER };
        if !live.is_initiating && age.is_some_and(|age| age >= renew_after) {
            self.send_initiation(id);
        }
    }
}

/// After a silence of 15 s the library takes the first packet for unanswered at once, and begins a handshake at its next
/// tick. WireGuard gives the answer 15 s: until they are over, or it is there, no tick.
fn awaits_first_answer(live: &Live, now: Instant) -> bool {
    let since = |at: Instant| now.saturating_duration_since(at);
    let is_waiting = live.unanswered_since.is_some_and(|at| since(at) < UNANSWERED_AFTER);
    let was_silent = since(live.heard_at) + TICK_SLACK >= UNANSWERED_AFTER;
    let is_settled = live.is_established && !live.is_initiating && live.answered.is_none();
    is_waiting && was_silent && is_settled && live.former.is_none()
}

/// The library renews a session of 120 s for data that was sent at any time before. WireGuard renews it for what is sent
/// from then on (for what comes, from 165 s on), so one that nobody uses ends.
fn is_premature(live: &Live, age: Duration, now: Instant) -> bool {
    let age_at = |at: Instant| age.saturating_sub(now.saturating_duration_since(at)) + TICK_SLACK;
    let is_old = age + TICK_SLACK >= RENEW_AFTER;
    let is_used = age_at(live.sent_at) >= RENEW_AFTER || age_at(live.heard_at) >= RENEW_PASSIVE_AFTER;
    let is_unanswered = live
        .unanswered_since
        .is_some_and(|at| now.saturating_duration_since(at) + TICK_SLACK >= UNANSWERED_AFTER);
    live.is_established && is_old && !is_used && !is_unanswered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        PrivateKey, PublicKey,
        noise::{Identity, Noise},
    };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_old_session_is_renewed_for_what_is_sent_when_it_is_old_and_not_for_what_was_before() {
        let begun = Instant::now();
        let identity = Identity::new(&PrivateKey::from([9; 32]));
        let mut live = Live::new(Noise::new(&identity, PublicKey([1; 32]), None, 1), 1, begun);
        live.is_established = true;
        let is_premature_at = |live: &Live, age| is_premature(live, seconds(age), begun + seconds(age));
        live.on_data_sent(begun + seconds(100));
        live.on_heard(begun + seconds(101));
        assert!(is_premature_at(&live, 120) && is_premature_at(&live, 179));
        assert!(!is_premature_at(&live, 60), "whatever asks for it then, it is not its age");
        let mut sent = begun + seconds(120);
        live.on_data_sent(sent);
        assert!(!is_premature_at(&live, 121), "sent when it was time");
        sent = begun + seconds(110);
        live.on_heard(begun + seconds(111));
        live.on_data_sent(sent);
        assert!(is_premature_at(&live, 122));
        assert!(!is_premature_at(&live, 126), "15 s without an answer");
        live.on_heard(begun + seconds(165));
        assert!(!is_premature_at(&live, 166), "it would end before the answer's answer");
    }
}
