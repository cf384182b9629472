//! Going without a loss: how long a node waits for those who use it before it goes. One that drains tells everybody, and is told by its users when they have moved, after the last packet that they
//! sent here.

use super::Agent;
use crate::time::BootTime;
use proto::{
    key::PublicKey,
    peer_message::{Body, Probe, Uses},
};
use std::time::Duration;

/// Users have so long to move.
const PATIENCE: Duration = Duration::from_secs(3);
/// What is being answered when the last of them has moved still goes out. Nor is everybody known who uses us for less than a second.
const GRACE: Duration = Duration::from_millis(300);
/// A datagram may be lost.
const REPEAT_INTERVAL: Duration = Duration::from_millis(300);

/// On the way out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leaving {
    give_up_at: BootTime,
    /// Nobody uses us since so long before.
    quiet_at: Option<BootTime>,
    repeat_at: BootTime,
}

impl Agent {
    /// Tells peers that we go, and servers once those who use what we serve have moved, or after 3 s. Asked again, it goes at once. The driver ends when
    /// [`has_left`](Self::has_left) and the outputs are done.
    pub fn drain(&mut self, now: BootTime) {
        self.advance(now);
        let connected: Vec<PublicKey> =
            self.peers.iter().filter(|(_, p)| p.is_connected()).map(|(k, _)| *k).collect();
        for peer in &connected {
            self.send_to_peer(*peer, Body::Leaving, None);
        }
        let serves = !self.served().is_empty() && !connected.is_empty();
        if std::mem::replace(&mut self.draining, true) || !serves {
            return self.go();
        }
        if !self.held().is_empty() {
            self.tell_facts();
        }
        self.leaving = Some(Leaving {
            give_up_at: self.now + PATIENCE,
            quiet_at: (self.users.count(self.now) == 0).then_some(self.now + GRACE),
            repeat_at: self.now + REPEAT_INTERVAL,
        });
    }

    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Whether a drain has come to its end.
    pub fn has_left(&self) -> bool {
        self.draining && self.leaving.is_none()
    }

    fn go(&mut self) {
        self.leaving = None;
        self.leave(false);
    }

    pub(super) fn leaving_deadline(&self) -> Option<BootTime> {
        let leaving = self.leaving?;
        [Some(leaving.give_up_at), leaving.quiet_at, Some(leaving.repeat_at)].into_iter().flatten().min()
    }

    pub(super) fn look_at_leaving(&mut self) {
        let Some(leaving) = &mut self.leaving else { return };
        if leaving.quiet_at.is_some_and(|at| self.now >= at) || self.now >= leaving.give_up_at {
            return self.go();
        }
        if self.now >= leaving.repeat_at {
            leaving.repeat_at = self.now + REPEAT_INTERVAL;
            let users: Vec<PublicKey> = self.users.now(self.now).collect();
            for peer in users {
                self.send_to_peer(peer, Body::Leaving, None);
            }
        }
    }

    /// Somebody said whether it uses what we serve.
    pub(super) fn on_users_counted(&mut self) {
        let Some(leaving) = &mut self.leaving else { return };
        match self.users.count(self.now) {
            0 => _ = leaving.quiet_at.get_or_insert(self.now + GRACE),
            1.. => leaving.quiet_at = None,
        }
    }

    /// Every probe says what we use of the one that we ask.
    pub(super) fn probe(&self, peer: &PublicKey, id: u64) -> Body {
        Body::Probe(Probe { id, uses: Uses::of(self.claims.used(peer)) })
    }

    /// Tells a peer at once whether we use it.
    pub(super) fn tell_use(&mut self, peer: PublicKey) {
        if self.peers.get(&peer).is_some_and(|peer| peer.is_connected()) {
            self.next_probe = self.next_probe.wrapping_add(1);
            let probe = self.probe(&peer, self.next_probe);
            self.send_to_peer(peer, probe, None);
        }
    }

    /// A peer goes: who else serves what it served is found, and it is told that it need not wait for us.
    pub(super) fn on_leaving_told(&mut self, peer: PublicKey) {
        self.claims.handle_leaving(&peer, self.now);
        self.forget_user(&peer);
        self.on_users_counted();
        self.drain_claims();
        self.tell_use(peer);
    }
}
