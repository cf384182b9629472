//! The network: each machine has one link to a core that joins all. A link delays, loses at random, drops one direction in silence, or is cut.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;
use std::{collections::BTreeSet, time::Duration};

/// TCP's least retransmission time-out on Linux.
pub(crate) const RETRANSMISSION: Duration = Duration::from_millis(200);
const RETRANSMISSION_CAP: Duration = Duration::from_secs(5);

/// A machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    Agent(usize),
    Server(usize),
}

/// A machine's link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Link {
    pub(crate) cut: bool,
    pub(crate) drops_in: bool,
    pub(crate) drops_out: bool,
    /// Probability that a packet is lost.
    pub(crate) loss: f64,
    /// From the machine to the core, or from there to the machine.
    pub(crate) latency: Duration,
    /// From the machine to the core, that much more.
    pub(crate) latency_out: Duration,
}

impl Link {
    pub(crate) fn heal(&mut self) {
        let Self { latency, latency_out, .. } = *self;
        *self = Self { cut: false, drops_in: false, drops_out: false, loss: 0.0, latency, latency_out };
    }

    fn is_clean(&self) -> bool {
        !self.cut && !self.drops_in && !self.drops_out && self.loss == 0.0
    }
}

/// All links, and the pairs of machines that are kept apart.
#[derive(Debug)]
pub(crate) struct Network {
    agents: Vec<Link>,
    servers: Vec<Link>,
    pub(crate) partitions: BTreeSet<(Host, Host)>,
    /// What one sends to the other is lost.
    pub(crate) blocked: BTreeSet<(Host, Host)>,
    /// Some link lost packets at random at some time.
    pub(crate) was_lossy: bool,
    rng: Pcg32,
}

impl Network {
    pub(crate) fn new(agents: usize, servers: usize, latency: Duration, seed: u64) -> Self {
        let mut rng = Pcg32::seed_from_u64(seed);
        let mut link = |_| Link {
            cut: false,
            drops_in: false,
            drops_out: false,
            loss: 0.0,
            latency: latency.mul_f64(rng.random_range(0.5..=1.5)),
            latency_out: Duration::ZERO,
        };
        let (agents, servers) = ((0..agents).map(&mut link).collect(), (0..servers).map(&mut link).collect());
        Self { agents, servers, partitions: BTreeSet::new(), blocked: BTreeSet::new(), was_lossy: false, rng }
    }

    pub(crate) fn link(&self, host: Host) -> &Link {
        match host {
            Host::Agent(at) => &self.agents[at],
            Host::Server(at) => &self.servers[at],
        }
    }

    pub(crate) fn link_mut(&mut self, host: Host) -> &mut Link {
        match host {
            Host::Agent(at) => &mut self.agents[at],
            Host::Server(at) => &mut self.servers[at],
        }
    }

    pub(crate) fn lose(&mut self, host: Host, loss: f64) {
        self.link_mut(host).loss = loss;
        self.was_lossy = true;
    }

    /// Whether a packet that is not lost by chance arrives.
    pub(crate) fn passes(&self, from: Host, to: Host) -> bool {
        let (out, into) = (self.link(from), self.link(to));
        let open =
            !out.cut && !out.drops_out && !into.cut && !into.drops_in && !self.blocked.contains(&(from, to));
        open && !self.partitions.contains(&(from, to)) && !self.partitions.contains(&(to, from))
    }

    /// Nothing is lost between the two, in either direction.
    pub(crate) fn is_clean(&self, one: Host, other: Host) -> bool {
        self.link(one).is_clean()
            && self.link(other).is_clean()
            && self.passes(one, other)
            && self.passes(other, one)
    }

    /// When a datagram arrives, if it does.
    pub(crate) fn datagram(&mut self, from: Host, to: Host) -> Option<Duration> {
        let kept = self.passes(from, to) && !self.is_lost(from, to);
        kept.then(|| self.delay(from, to))
    }

    /// When a segment of a TCP stream arrives, repeated as often as it is lost by chance; `None` while nothing passes.
    pub(crate) fn segment(&mut self, from: Host, to: Host) -> Option<Duration> {
        if !self.passes(from, to) {
            return None;
        }
        let mut delay = self.delay(from, to);
        let mut again = RETRANSMISSION;
        while self.is_lost(from, to) {
            delay += again;
            again = (again * 2).min(RETRANSMISSION_CAP);
        }
        Some(delay)
    }

    fn is_lost(&mut self, from: Host, to: Host) -> bool {
        let kept = (1.0 - self.link(from).loss) * (1.0 - self.link(to).loss);
        kept < 1.0 && !self.rng.random_bool(kept)
    }

    fn delay(&mut self, from: Host, to: Host) -> Duration {
        let base = self.link(from).latency + self.link(from).latency_out + self.link(to).latency;
        base.mul_f64(self.rng.random_range(1.0..=1.2))
    }
}
