//! Where a peer may be reached: endpoints that worked, that its map entry publishes, that it signalled; and, while its tunnel is up, which of them is the best.
//!
//! The first endpoint that answers a handshake carries the tunnel. Then one probe goes to each of the others inside the tunnel; an endpoint that answers clearly faster is promoted. The
//! machine decides nothing about handshakes: that is `peer`.

use crate::time::{BootTime, Cause, Deadline};
use std::{collections::VecDeque, net::SocketAddr, time::Duration};

/// An initiation goes to at most this many endpoints.
pub const MAX_TRIED: usize = 8;
/// Endpoints that worked are kept, newest first.
pub const MAX_WORKED: usize = 3;
/// A signalled endpoint is a NAT mapping at best; those live 30 s at least.
const SIGNALLED_LIFE: Duration = Duration::from_secs(60);
/// A path is promoted if it is faster by this and by a quarter: less is noise.
const PROMOTION_MARGIN: Duration = Duration::from_millis(2);

/// A round of probes under way.
#[derive(Debug, Clone)]
struct Round {
    ends_at: BootTime,
    probes: Vec<Probe>,
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    id: u64,
    endpoint: SocketAddr,
    sent_at: BootTime,
    rtt: Option<Duration>,
}

/// The paths to one peer.
#[derive(Debug, Clone, Default)]
pub struct Paths {
    worked: VecDeque<SocketAddr>,
    published: Vec<SocketAddr>,
    signalled: Vec<(SocketAddr, BootTime)>,
    /// Where an initiation came from that counts no more.
    suspected: Option<(SocketAddr, BootTime)>,
    current: Option<SocketAddr>,
    round: Option<Box<Round>>,
    rtt: Option<Duration>,
}

impl Paths {
    /// `worked` from an earlier start, newest first.
    pub fn restored(worked: &[SocketAddr]) -> Self {
        Self { worked: worked.iter().copied().take(MAX_WORKED).collect(), ..Self::default() }
    }

    /// The endpoints of the peer's map entry. Returns whether they changed.
    pub fn set_published(&mut self, endpoints: &[SocketAddr]) -> bool {
        let changed = self.published != endpoints;
        self.published = endpoints.to_vec();
        changed
    }

    /// Whether the endpoint in use is one that the peer publishes.
    pub fn is_published(&self) -> bool {
        self.current.is_some_and(|current| self.published.contains(&current))
    }

    /// The peer asks for our initiation at these.
    pub fn on_signal(&mut self, endpoints: &[SocketAddr], now: BootTime) {
        self.signalled.retain(|(endpoint, until)| *until > now && !endpoints.contains(endpoint));
        let fresh = endpoints.iter().take(MAX_TRIED).map(|endpoint| (*endpoint, now + SIGNALLED_LIFE));
        self.signalled.splice(0..0, fresh);
        self.signalled.truncate(2 * MAX_TRIED);
    }

    /// An initiation of the peer that is older than its last came from there. Anybody may have repeated it: one such place is tried, after all others.
    pub fn on_stale_initiation(&mut self, from: SocketAddr, now: BootTime) {
        self.suspected = Some((from, now + SIGNALLED_LIFE));
    }

    /// A handshake or an authenticated packet came over this endpoint.
    pub fn on_works(&mut self, endpoint: SocketAddr) {
        if self.current != Some(endpoint) {
            self.rtt = None;
        }
        self.current = Some(endpoint);
        self.worked.retain(|worked| *worked != endpoint);
        self.worked.push_front(endpoint);
        self.worked.truncate(MAX_WORKED);
    }

    /// The tunnel is down: no endpoint is in use, all stay known.
    pub fn on_down(&mut self) {
        self.current = None;
        self.round = None;
        self.rtt = None;
    }

    pub fn current(&self) -> Option<SocketAddr> {
        self.current
    }

    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// Endpoints that worked, newest first, to be kept on disk.
    pub fn worked(&self) -> impl Iterator<Item = SocketAddr> {
        self.worked.iter().copied()
    }

    /// Whether this endpoint is known to be the peer's.
    pub fn knows(&self, endpoint: SocketAddr) -> bool {
        self.worked.contains(&endpoint) || self.published.contains(&endpoint)
    }

    /// Where an initiation goes: what worked last, what the peer signalled, what it published; and one place that somebody spoke from in its name.
    pub fn candidates(&self, now: BootTime, is_usable: impl Fn(SocketAddr) -> bool) -> Vec<SocketAddr> {
        let signalled =
            self.signalled.iter().filter(|(_, until)| *until > now).map(|(endpoint, _)| *endpoint);
        let all = self.worked.iter().copied().take(1).chain(signalled);
        let all = all.chain(self.published.iter().copied()).chain(self.worked.iter().copied());
        let mut candidates = Vec::new();
        for endpoint in all {
            if !candidates.contains(&endpoint) && is_routable(endpoint) && is_usable(endpoint) {
                candidates.push(endpoint);
            }
        }
        let suspected = self.suspected.filter(|(_, until)| *until > now).map(|(endpoint, _)| endpoint);
        let suspected = suspected.filter(|endpoint| is_routable(*endpoint) && is_usable(*endpoint));
        candidates.truncate(MAX_TRIED - usize::from(suspected.is_some_and(|s| !candidates.contains(&s))));
        candidates.extend(suspected.filter(|endpoint| !candidates.contains(endpoint)));
        candidates
    }

    /// Starts a round: one probe by each candidate. Returns (id, endpoint) to send; ids count from `first_id`.
    pub fn start_round(
        &mut self,
        candidates: &[SocketAddr],
        first_id: u64,
        timeout: Duration,
        now: BootTime,
    ) -> Vec<(u64, SocketAddr)> {
        let ids = first_id..;
        let probe =
            |(id, endpoint): (u64, &SocketAddr)| Probe { id, endpoint: *endpoint, sent_at: now, rtt: None };
        let probes: Vec<Probe> = ids.zip(candidates).map(probe).collect();
        let sent = probes.iter().map(|probe| (probe.id, probe.endpoint)).collect();
        self.round = Some(Box::new(Round { ends_at: now + timeout, probes }));
        sent
    }

    /// The answer to a probe, by whichever path it came back.
    pub fn on_probe_reply(&mut self, id: u64, now: BootTime) {
        let Some(round) = &mut self.round else { return };
        if let Some(probe) = round.probes.iter_mut().find(|probe| probe.id == id && probe.rtt.is_none()) {
            let rtt = now.since(probe.sent_at);
            probe.rtt = Some(rtt);
            if Some(probe.endpoint) == self.current {
                self.rtt = Some(rtt);
            }
        }
    }

    /// At the end of the round: the endpoint to move to, if one is clearly better.
    pub fn poll_promotion(&mut self, now: BootTime) -> Option<SocketAddr> {
        let round = self.round.take_if(|round| now >= round.ends_at)?;
        let answered = round.probes.iter().filter_map(|probe| Some((probe.rtt?, probe.endpoint)));
        let (rtt, best) = answered.min()?;
        let current = round.probes.iter().find(|probe| Some(probe.endpoint) == self.current)?;
        let is_better = current.rtt.is_some_and(|now| rtt + PROMOTION_MARGIN + rtt / 4 < now);
        if !is_better || self.current == Some(best) {
            return None;
        }
        self.on_works(best);
        self.rtt = Some(rtt);
        Some(best)
    }

    pub fn deadline(&self) -> Option<Deadline> {
        self.round.as_ref().map(|round| Deadline { at: round.ends_at, cause: Cause::Probe })
    }
}

/// Whether a datagram can be sent there at all: published endpoints are foreign input.
fn is_routable(endpoint: SocketAddr) -> bool {
    let ip = endpoint.ip();
    let broadcast = matches!(ip, std::net::IpAddr::V4(v4) if v4.is_broadcast());
    endpoint.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: BootTime = BootTime::from_duration(Duration::from_secs(10));

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn what_worked_last_is_tried_first_and_signals_go_before_publications() {
        let mut paths = Paths::restored(&[at(1), at(2)]);
        paths.set_published(&[at(3), at(1), SocketAddr::from(([224, 0, 0, 1], 1)), at(0)]);
        paths.on_signal(&[at(4)], START);
        assert_eq!(paths.candidates(START, |_| true), [at(1), at(4), at(3), at(2)]);
        assert_eq!(paths.candidates(START + SIGNALLED_LIFE, |_| true), [at(1), at(3), at(2)]);
        assert_eq!(paths.candidates(START, |endpoint| endpoint != at(1)), [at(4), at(3), at(2)]);
    }

    #[test]
    fn never_more_than_eight_are_tried_however_many_are_published() {
        let mut paths = Paths::default();
        paths.set_published(&(1..=16).map(at).collect::<Vec<_>>());
        paths.on_signal(&(100..200).map(at).collect::<Vec<_>>(), START);
        assert_eq!(paths.candidates(START, |_| true).len(), MAX_TRIED);
    }

    #[test]
    fn the_sender_of_a_stale_initiation_is_tried_after_all_others_and_only_the_last_such() {
        let mut paths = Paths::default();
        paths.set_published(&[at(1), at(2)]);
        (100..200).for_each(|port| paths.on_stale_initiation(at(port), START));
        assert_eq!(paths.candidates(START, |_| true), [at(1), at(2), at(199)]);
        assert_eq!(paths.candidates(START + SIGNALLED_LIFE, |_| true), [at(1), at(2)]);
        paths.set_published(&(1..=16).map(at).collect::<Vec<_>>());
        let tried = paths.candidates(START, |_| true);
        assert_eq!((tried.len(), tried.last()), (MAX_TRIED, Some(&at(199))));
        paths.on_stale_initiation(at(3), START);
        assert_eq!(paths.candidates(START, |_| true), (1..=8).map(at).collect::<Vec<_>>());
    }

    #[test]
    fn a_clearly_faster_path_is_promoted_and_a_slightly_faster_one_is_not() {
        for (other, promoted) in [(ms(5), Some(at(2))), (ms(19), None)] {
            let mut paths = Paths::default();
            paths.on_works(at(1));
            let sent = paths.start_round(&[at(1), at(2)], 7, ms(1000), START);
            assert_eq!(sent, [(7, at(1)), (8, at(2))]);
            paths.on_probe_reply(8, START + other);
            paths.on_probe_reply(7, START + ms(20));
            assert_eq!(paths.poll_promotion(START + ms(999)), None);
            assert_eq!(paths.poll_promotion(START + ms(1000)), promoted);
            assert_eq!(paths.current(), Some(promoted.unwrap_or(at(1))));
            assert_eq!(paths.deadline(), None);
        }
    }

    #[test]
    fn a_path_whose_own_probe_was_lost_is_not_left() {
        let mut paths = Paths::default();
        paths.on_works(at(1));
        paths.start_round(&[at(1), at(2)], 1, ms(1000), START);
        paths.on_probe_reply(2, START + ms(5));
        assert_eq!(paths.poll_promotion(START + ms(1000)), None);
    }
}
