//! A standby by an address that serves us already. Behind a balancer that alone is advertised every server has the same address; whom a connection reaches is seen in its
//! certificate, and one that reaches a server that we have is closed before it says anything.
//!
//! It is tried while servers say that another one lives and no address of its own is known: a few times in a row, then ever more rarely, at last once in minutes: each try is a TLS handshake, and a
//! balancer that routes by source leads thousands of agents to where they are, for ever. A server that joins, another network, another list or a session that is lost begins the count anew, so
//! that what can be found is found within about the time for which it can be. What befalls all agents of a server at once is answered by each after a delay of its own, and a server that only
//! stutters is no reason to begin anew: it is the one that would have to answer them all.

use super::{
    Control,
    candidate::{Candidate, Name},
    connection::Connection,
    dial::Place,
};
use crate::time::BootTime;
use proto::session::ServerId;
use rand::RngExt;
use std::{collections::BTreeSet, time::Duration};

/// Tries in a row: of two servers, a balancer that turns or draws leads to the other almost surely.
const BURST: u32 = 4;
const BASE: Duration = Duration::from_secs(1);
/// Of 10,000 agents that are led to where they are, 45 a second ask; a doubt makes one try so often at most.
const CAP: Duration = Duration::from_secs(300);
/// While they are served, agents that hear of a new server come over so many times the span that servers spread a failover over: 5,000 a second come to one that dies, 100 to one that joins ..
const JOIN_SPREADS: u32 = 50;
/// .. where they are few, and where they are thousands.
const JOIN_SPREAD: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// An address of its own that fails for so long may be no way to a server that lives.
const OWN_ADDRESS_LOST: Duration = Duration::from_secs(60);

/// The servers that live, and when one of them is sought again.
#[derive(Debug, Default)]
pub(super) struct Redial {
    live: BTreeSet<ServerId>,
    tries: u32,
    not_before: BootTime,
    /// Until then doubts hasten nothing.
    next_doubt_at: BootTime,
}

impl Redial {
    /// Whether there is, as far as servers tell, one server at most.
    pub(super) fn is_single(&self) -> bool {
        self.live.len() <= 1
    }

    /// Another server was found. One that ends what it welcomed is not asked again at once.
    pub(super) fn on_found(&mut self, now: BootTime) {
        self.tries = 0;
        self.not_before = self.not_before.max(now + BASE);
    }

    /// What failed may work now.
    pub(super) fn retry_now(&mut self, now: BootTime) {
        self.tries = 0;
        self.not_before = now;
    }

    /// A server that was reached so asked for time.
    pub(super) fn wait_until(&mut self, at: BootTime) {
        self.not_before = self.not_before.max(at);
    }

    /// Whoever serves us is in doubt, but not lost yet: one try, no new count.
    fn on_doubt(&mut self, delay: Duration, now: BootTime) {
        if now >= self.next_doubt_at {
            self.next_doubt_at = now + CAP;
            self.hasten(now + delay);
        }
    }

    /// A session ended against our will.
    fn on_lost(&mut self, delay: Duration, now: BootTime) {
        self.hasten(now + delay);
        self.tries = 0;
    }

    /// What a server asked for stands.
    fn hasten(&mut self, at: BootTime) {
        self.not_before = if self.tries > BURST { self.not_before.min(at) } else { self.not_before.max(at) };
    }

    pub(super) fn load(&self) -> usize {
        self.live.len()
    }
}

impl Control {
    /// Servers say who lives.
    pub(super) fn take_live(&mut self, ids: &[ServerId], now: BootTime) {
        let live: BTreeSet<ServerId> = ids.iter().copied().take(super::MAX_SERVERS).collect();
        let joined = !live.is_subset(&self.redial.live);
        self.redial.live = live;
        if joined {
            self.redial.tries = 0;
            self.redial.not_before = now + self.join_delay();
        }
    }

    /// Seeks what may stand by, where whoever serves us is late.
    pub(super) fn redial_on_doubt(&mut self, now: BootTime) {
        let delay = self.join_delay();
        self.redial.on_doubt(delay, now);
    }

    /// .. and where a session is lost.
    pub(super) fn redial_on_lost(&mut self, now: BootTime) {
        let delay = self.join_delay();
        self.redial.on_lost(delay, now);
    }

    /// How long after its siblings an agent seeks another server, for a reason that all of them have.
    pub(super) fn join_delay(&mut self) -> Duration {
        let spread = (self.spread * JOIN_SPREADS).clamp(JOIN_SPREAD.0, JOIN_SPREAD.1);
        spread.mul_f64(self.rng.random_range(0.0..=1.0))
    }

    /// Where another server is sought, if one is.
    pub(super) fn redial_place(&self) -> Option<Place> {
        if !self.is_served() {
            return None;
        }
        let lacking = self.redial.live.iter().filter(|server| !self.has_session_with(**server, None));
        let hidden_at = lacking.filter_map(|server| self.hidden_at(*server)).min()?;
        let names = self.names.iter();
        let all = names.flat_map(|name| name.candidates.iter().map(move |candidate| (name, candidate)));
        let shared: Vec<_> = all.filter(|(name, candidate)| self.is_shared(name, candidate)).collect();
        let turn = self.redial.tries as usize % shared.len().max(1);
        shared.get(turn).map(|(name, candidate)| Place {
            url: name.url.clone(),
            addr: candidate.addr,
            retry_at: Some(self.redial.not_before.max(hidden_at)),
            connect_timeout: candidate.connect_timeout(),
            is_redial: true,
        })
    }

    /// The next try follows this one, however it ends.
    pub(super) fn on_redial(&mut self, now: BootTime) {
        self.redial.tries = self.redial.tries.saturating_add(1);
        let delay = match self.redial.tries.checked_sub(BURST) {
            None => self.config.dial_stagger,
            Some(more) => CAP.min(BASE * 2u32.saturating_pow(more.min(16))),
        };
        self.redial.not_before = now + delay.mul_f64(self.rng.random_range(0.5..=1.0));
    }

    /// From when on a server has no address of its own that we know. `None`: it has one.
    fn hidden_at(&self, server: ServerId) -> Option<BootTime> {
        let names = self.names.iter();
        let all = names.flat_map(|name| name.candidates.iter().map(move |candidate| (name, candidate)));
        let mut own = all.filter(|(name, c)| c.server == Some(server) && !self.is_shared(name, c));
        own.try_fold(BootTime::default(), |latest, (_, c)| {
            Some(latest.max(c.failing_since()? + OWN_ADDRESS_LOST))
        })
    }

    /// An address that led to a server which we have a session with.
    fn is_shared(&self, name: &Name, candidate: &Candidate) -> bool {
        let is_there = |c: &Connection| c.is_at(&name.url, candidate.addr) && c.has_session();
        let by_session = self.connections.values().any(|c| is_there(c) && c.is_worth_keeping());
        let is_known = candidate.server.is_some_and(|server| self.has_session_with(server, None));
        by_session || (candidate.twin_until().is_some() && is_known)
    }
}
