//! Where no owner decides ([`Policy::WireGuard`]): who needs a session gets one by WireGuard's own rules, and keepalives
//! keep trying for as long as they are configured. What becomes due one by one is here for both policies.

use std::time::{Duration, Instant};

use super::Worker;
use crate::{Policy, device::Link, peer::PeerId};

/// WireGuard's REKEY_TIMEOUT: the least time between two handshakes with a peer.
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// WireGuard's jitter: repeated initiations of two peers that started together must not keep meeting.
const MAX_JITTER_MS: u32 = 333;
/// Per turn, keepalives among them.
const MAX_REVIVALS: usize = 16;

impl Worker {
    /// Begins a handshake, unless there is a session or one is being made.
    pub(super) fn want_session(&mut self, id: PeerId) {
        let now = self.now;
        let Some(state) = self.peers.get(id).filter(|state| state.path.is_some()) else { return };
        let is_recent = |at: Instant| now.saturating_duration_since(at) < REKEY_TIMEOUT;
        let is_busy = state.live.as_deref().is_some_and(|live| {
            live.is_established || live.is_initiating || live.answered.is_some_and(|(_, at)| is_recent(at))
        });
        if self.is_up && !is_busy && self.wake(id).is_some() {
            self.send_initiation(id);
        }
    }

    /// An initiation was not answered: another follows after a while of random length.
    pub(super) fn retry_later(&mut self, id: PeerId) {
        let jitter = getrandom::u32().unwrap_or_default() % (MAX_JITTER_MS + 1);
        let at = self.now + Duration::from_millis(jitter.into());
        if let Some(live) = self.peers.get(id).and_then(|state| state.live.as_deref_mut()) {
            live.retry_at = Some(at);
            self.revivals.insert((at, id));
        }
    }

    /// The session is gone. Waiting packets ask for another, and a persistent keepalive does so for ever.
    pub(super) fn revive_later(&mut self, id: PeerId) {
        if self.has_packets(id) {
            self.revivals.insert((self.now, id));
        }
        if let Some(interval) = self.persistent_interval(id) {
            self.revivals.insert((self.now + interval.max(REKEY_TIMEOUT), id));
        }
    }

    pub(super) fn revive_all(&mut self) {
        for id in self.peers.ids() {
            if self.has_packets(id) || self.persistent_interval(id).is_some() {
                self.revivals.insert((self.now, id));
            }
        }
    }

    /// Whether packets wait, and it is for us to make a session.
    pub(super) fn has_packets(&mut self, id: PeerId) -> bool {
        self.policy == Policy::WireGuard && self.peers.get(id).is_some_and(|state| !state.waiting.is_empty())
    }

    fn persistent_interval(&mut self, id: PeerId) -> Option<Duration> {
        match self.policy {
            Policy::Owner => None,
            Policy::WireGuard => self.peers.get(id)?.keepalive,
        }
    }

    /// Does what is due, some of it at a time.
    pub(super) fn revive(&mut self) {
        for _ in 0..MAX_REVIVALS {
            if !self.handshakes.may_begin() {
                return;
            }
            let Some(&(at, id)) = self.revivals.first().filter(|(at, _)| *at <= self.now) else { return };
            self.revivals.remove(&(at, id));
            self.handle_revival(id);
        }
    }

    fn handle_revival(&mut self, id: PeerId) {
        let now = self.now;
        let is_wanted = self.has_packets(id) || self.persistent_interval(id).is_some();
        let Some(state) = self.peers.get(id) else { return };
        let path = state.path;
        let keeps_alive = state.keepalive.is_some();
        match state.live.as_deref_mut() {
            Some(live) if live.retry_at.is_some_and(|at| at <= now) => self.send_initiation(id),
            _ if self.policy == Policy::Owner => {}
            Some(live) if live.is_established => {
                if let Some(path) = path.filter(|_| keeps_alive) {
                    live.on_sent(now);
                    let sealed = self.outbox.seal(id, live.sealer(), &[], path);
                    state.record().tx_datagram_bytes += sealed;
                }
            }
            // What asked for it may be gone since.
            Some(_) | None if is_wanted => self.want_session(id),
            Some(_) | None => {}
        }
    }

    /// The interface went up or down, or has another MTU. While it is down nothing is sent, and nobody is answered.
    pub(super) fn handle_link(&mut self, link: Link) {
        self.device.set_mtu(link.mtu);
        match (self.is_up, link.is_up) {
            (true, false) => {
                for id in self.peers.live().to_vec() {
                    self.put_to_rest(id);
                }
                self.revivals.clear();
            }
            (false, true) => {
                self.is_up = true;
                self.revive_all();
            }
            (true, true) | (false, false) => {}
        }
        self.is_up = link.is_up;
    }
}
