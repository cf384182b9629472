//! Own claims while their checks fail: the node stays, keeps its addresses and answers who still comes, but says that it does not serve.
//!
//! It is told inside the tunnels, with no server: to everybody at once, to those who use us until they have moved, and with each answer to a probe. So who missed a word hears the next. Once it is
//! restored, the node counts as one that just started: nobody comes back for that alone. Servers are told where claims are exclusive, as only they can let another hold them.

use super::Agent;
use crate::time::BootTime;
use proto::key::PublicKey;
use std::time::Duration;

/// A datagram may be lost.
const REPEAT_INTERVAL: Duration = Duration::from_millis(300);
/// After that they hear it with the answers to their probes only.
const REPEAT_TIME: Duration = Duration::from_secs(3);

/// Why, and whom it is still told.
#[derive(Debug)]
pub(super) struct Withdrawn {
    pub(super) reason: String,
    /// Next, and for the last time.
    repeat: Option<(BootTime, BootTime)>,
}

impl Agent {
    /// Own claims are withdrawn for a reason that people understand, or restored (`None`). The driver says so again to a new agent.
    pub fn set_withdrawn(&mut self, reason: Option<String>, now: BootTime) {
        self.advance(now);
        let was_withdrawn = self.withdrawn.is_some();
        self.withdrawn = match (reason, self.withdrawn.take()) {
            (None, _) => None,
            (Some(reason), Some(before)) => Some(Withdrawn { reason, ..before }),
            (Some(reason), None) => {
                let repeat = (self.now + REPEAT_INTERVAL, self.now + REPEAT_TIME);
                Some(Withdrawn { reason, repeat: Some(repeat) })
            }
        };
        if was_withdrawn == self.withdrawn.is_some() {
            return;
        }
        if was_withdrawn {
            self.serving_since = self.now;
        }
        if self.config.facts.claims.iter().any(|claim| claim.exclusive) {
            self.tell_facts();
        }
        let connected: Vec<PublicKey> =
            self.peers.iter().filter(|(_, peer)| peer.is_connected()).map(|(key, _)| *key).collect();
        for peer in connected {
            self.tell_standing(peer);
        }
    }

    pub fn is_withdrawn(&self) -> bool {
        self.withdrawn.is_some()
    }

    pub(super) fn withdrawing_deadline(&self) -> Option<BootTime> {
        self.withdrawn.as_ref()?.repeat.map(|(next, _)| next)
    }

    pub(super) fn repeat_withdrawal(&mut self) {
        let Some((next, last)) = self.withdrawn.as_ref().and_then(|withdrawn| withdrawn.repeat) else {
            return;
        };
        if self.now < next {
            return;
        }
        let users: Vec<PublicKey> = self.users.now(self.now).collect();
        let repeat = (!users.is_empty() && self.now < last).then(|| (self.now + REPEAT_INTERVAL, last));
        if let Some(withdrawn) = &mut self.withdrawn {
            withdrawn.repeat = repeat;
        }
        for peer in users {
            self.tell_standing(peer);
        }
    }
}
