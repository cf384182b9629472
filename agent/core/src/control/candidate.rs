//! The addresses at which servers may be reached: what is known of each, and when it may be tried again.

use super::heartbeat::Rtt;
use crate::{config::ControlConfig, time::BootTime};
use proto::{server_url::ServerUrl, session::ServerId};
use rand::RngExt;
use rand_pcg::Pcg32;
use std::{net::SocketAddr, time::Duration};

/// At most this many addresses of a name are tried.
const MAX_ADDRESSES: usize = 16;

/// A server's URL and the addresses that its host has.
#[derive(Debug, Clone)]
pub(super) struct Name {
    pub(super) url: ServerUrl,
    /// Given by the person, not told by servers.
    pub(super) configured: bool,
    pub(super) candidates: Vec<Candidate>,
    pub(super) resolution: Resolution,
    /// Not dialled before this while a server serves us.
    pub(super) turn_at: BootTime,
    /// Why the name did not resolve, if it did not.
    pub(super) error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resolution {
    /// The host is an address.
    Literal,
    Wanted {
        at: BootTime,
        /// However urgent it is.
        not_before: BootTime,
    },
    UnderWay,
}

/// One address.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) addr: SocketAddr,
    /// Who answered there last.
    pub(super) server: Option<ServerId>,
    pub(super) rtt: Rtt,
    pub(super) last_error: Option<String>,
    /// Until then it is taken for another address of a server that we have a session with.
    twin_until: Option<BootTime>,
    failures: u32,
    failing_since: Option<BootTime>,
    retry_at: Option<BootTime>,
}

impl Name {
    pub(super) fn new(url: ServerUrl, now: BootTime) -> Self {
        let candidates = url.literal().map(Candidate::new).into_iter().collect();
        let resolution = match url.literal() {
            Some(_) => Resolution::Literal,
            None => Resolution::Wanted { at: now, not_before: now },
        };
        Self { url, configured: false, candidates, resolution, turn_at: now, error: None }
    }

    /// Takes the addresses of the host. What is known of those that stay is kept, and so are others that answered: names may lie.
    pub(super) fn set_addresses(&mut self, addrs: &[SocketAddr]) {
        let good = |c: &Candidate| c.server.is_some() && !c.is_failing();
        self.candidates.retain(|c| addrs.contains(&c.addr) || good(c));
        if self.candidates.len() + addrs.len() > MAX_ADDRESSES {
            self.candidates.retain(|c| addrs.contains(&c.addr));
        }
        addrs.iter().for_each(|addr| self.add(*addr));
    }

    /// Nothing of it answers, or it does not resolve.
    pub(super) fn is_failing(&self) -> bool {
        match self.candidates.is_empty() {
            true => self.error.is_some(),
            false => self.candidates.iter().all(Candidate::is_failing),
        }
    }

    /// A connection to one of its addresses failed: perhaps it has others by now.
    pub(super) fn look_up_soon(&mut self, now: BootTime) {
        if let Resolution::Wanted { at, not_before } = &mut self.resolution {
            *at = (*at).min(now.max(*not_before));
        }
    }

    pub(super) fn add(&mut self, addr: SocketAddr) {
        if self.candidates.len() < MAX_ADDRESSES && !self.candidates.iter().any(|c| c.addr == addr) {
            self.candidates.push(Candidate::new(addr));
        }
    }
}

impl Candidate {
    fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            server: None,
            rtt: Rtt::default(),
            last_error: None,
            twin_until: None,
            failures: 0,
            failing_since: None,
            retry_at: None,
        }
    }

    pub(super) fn is_failing(&self) -> bool {
        self.failing_since.is_some()
    }

    pub(super) fn failing_since(&self) -> Option<BootTime> {
        self.failing_since
    }

    /// When it may be dialled; `None`: at once.
    pub(super) fn retry_at(&self) -> Option<BootTime> {
        self.retry_at
    }

    /// It led to a server that we have a session with. Another machine may answer there later.
    pub(super) fn on_twin(&mut self, server: ServerId, until: BootTime) {
        self.on_success(server);
        self.twin_until = Some(until);
    }

    pub(super) fn twin_until(&self) -> Option<BootTime> {
        self.twin_until
    }

    /// Exponential back-off with full jitter, its cap growing with the outage.
    pub(super) fn on_failure(
        &mut self,
        error: String,
        at_least: Duration,
        config: &ControlConfig,
        rng: &mut Pcg32,
        now: BootTime,
    ) {
        let since = *self.failing_since.get_or_insert(now);
        self.failures = self.failures.saturating_add(1);
        let outage = now.since(since);
        let cap = match outage < Duration::from_secs(60) {
            true => config.backoff_early_cap,
            false => {
                (outage / config.backoff_outage_divisor).clamp(config.backoff_early_cap, config.backoff_cap)
            }
        };
        let ceiling = cap.min(config.backoff_base * 2u32.saturating_pow(self.failures.min(16)));
        let jittered = ceiling.mul_f64(rng.random_range(0.05..=1.0));
        self.retry_at = Some(now + jittered.max(at_least));
        self.last_error = Some(error);
    }

    pub(super) fn on_success(&mut self, server: ServerId) {
        self.server = Some(server);
        self.twin_until = None;
        self.failures = 0;
        self.failing_since = None;
        self.retry_at = None;
        self.last_error = None;
    }

    /// The network changed: what failed may work now.
    pub(super) fn retry_now(&mut self) {
        self.retry_at = None;
        self.twin_until = None;
        self.failures = 0;
    }

    /// For TCP. Short, since a lost SYN is repeated after 1 s only, and longer every other time, for slow links.
    pub(super) fn connect_timeout(&self) -> Duration {
        Duration::from_secs(u64::from(1 + self.failures % 3))
    }
}
