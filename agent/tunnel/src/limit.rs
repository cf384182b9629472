//! Reports that must not come too often: who is active, and who sends to sessions that are gone.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::peer::PeerId;

/// Between two reports of active peers, and for which a stranger is not reported again.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Strangers reported per interval: after a restart, every peer with a live session is one.
const MAX_STRANGERS: usize = 64;

/// The peers with data since the last report.
pub(crate) struct Activity {
    peers: Vec<PeerId>,
    next_at: Instant,
}

impl Activity {
    pub(crate) fn new(now: Instant) -> Self {
        Self { peers: Vec::new(), next_at: now }
    }

    /// The caller adds a peer once per report.
    pub(crate) fn add(&mut self, peer: PeerId) {
        self.peers.push(peer);
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        (!self.peers.is_empty()).then_some(self.next_at)
    }

    /// The report, when it is due.
    pub(crate) fn take(&mut self, now: Instant) -> Vec<PeerId> {
        match self.deadline() {
            Some(at) if at <= now => {
                self.next_at = now + REPORT_INTERVAL;
                std::mem::take(&mut self.peers)
            }
            Some(_) | None => Vec::new(),
        }
    }
}

/// Addresses that sent to an unknown session lately.
pub(crate) struct Strangers {
    addresses: Vec<SocketAddr>,
    since: Instant,
}

impl Strangers {
    pub(crate) fn new(now: Instant) -> Self {
        Self { addresses: Vec::new(), since: now }
    }

    /// Whether this one is to be reported.
    pub(crate) fn admit(&mut self, address: SocketAddr, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= REPORT_INTERVAL {
            self.addresses.clear();
            self.since = now;
        }
        let admitted = self.addresses.len() < MAX_STRANGERS && !self.addresses.contains(&address);
        if admitted {
            self.addresses.push(address);
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activity_is_told_at_once_and_then_once_a_second() {
        let start = Instant::now();
        let mut activity = Activity::new(start);
        assert_eq!(activity.deadline(), None);
        activity.add(PeerId(1));
        assert_eq!(activity.take(start), [PeerId(1)]);
        activity.add(PeerId(2));
        assert_eq!(activity.deadline(), Some(start + REPORT_INTERVAL));
        assert_eq!(activity.take(start + REPORT_INTERVAL / 2), []);
        assert_eq!(activity.take(start + REPORT_INTERVAL), [PeerId(2)]);
    }

    #[test]
    fn strangers_are_told_once_a_second_each_and_bounded() {
        let start = Instant::now();
        let mut strangers = Strangers::new(start);
        let address = |port| SocketAddr::from(([192, 0, 2, 1], port));
        assert!(strangers.admit(address(1), start) && !strangers.admit(address(1), start));
        let admitted = (2..1000).filter(|&port| strangers.admit(address(port), start)).count();
        assert_eq!(admitted, MAX_STRANGERS - 1);
        assert!(strangers.admit(address(1), start + REPORT_INTERVAL));
    }
}
