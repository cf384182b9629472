//! Shared addresses: who claims what, what may be routed where, and that clients get there and agree.
//!
//! 1. Nobody has packets for a prefix go to a node that was not granted it, or that it knows to be removed.
//! 2. A client whose link works reaches the address while one that claims it is there for [`REACH_BOUND`], through nothing but its own view: see [`World::check_caller`].
//! 3. After everything is healed, all clients that use a prefix have the same active node within [`AGREEMENT_BOUND`], whatever each of them saw fail before. Not among those who started
//!    within about the tolerance of each other's starts: there delays decide what each client takes for the longer uptime. Nor where they spread.
//! 4. Then nobody serves while one is preferred to it by configuration: a longer prefix, a higher priority, preempting.
//! 5. Nobody is served by one that has withdrawn what it claims: see `withdrawn`.

use crate::{callers::Caller, members, network::Host, world::World};
use agent_core::{BootTime, io::TunnelCommand};
use ipnet::IpNet;
use proto::{claim::Claim, key::PublicKey};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// The tunnel is repaired by then (35 s, see `check`), and the standby is moved to.
pub(crate) const REACH_BOUND: Duration = Duration::from_secs(42);
/// Whoever failed for one client is asked again after 25 s at most, and has to be there for 60 s.
const AGREEMENT_BOUND: Duration = Duration::from_secs(100);
/// Starts count as one within 2 s; told after any delay of the network, they may be taken for it or not.
const ABOUT_ALIKE: std::ops::Range<Duration> = Duration::from_millis(500)..Duration::from_millis(3500);

/// A node's claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimed {
    pub agent: usize,
    pub claim: Claim,
    /// Its certificate says so.
    pub is_granted: bool,
}

impl Claimed {
    /// Granted, among equals.
    ///
    /// # Panics
    /// It is no prefix.
    pub fn new(agent: usize, prefix: &str) -> Self {
        let prefix = prefix.parse().unwrap_or_else(|_| panic!("{prefix} is no prefix"));
        let claim = Claim::new(prefix);
        Self { agent, claim, is_granted: true }
    }
}

impl World {
    /// Who serves exactly this prefix for an agent, as it said.
    pub fn serving(&self, client: usize, prefix: &str) -> Option<usize> {
        let prefix: IpNet = prefix.parse().ok()?;
        self.nodes[client].told.active.get(&prefix).map(members::agent_of)
    }

    /// How often an agent moved a prefix from one node to another, over all prefixes, since it started or this was asked last.
    pub fn switches(&mut self, client: usize) -> u64 {
        std::mem::take(&mut self.nodes[client].told.switches)
    }

    /// Handshakes that an agent began, and signals that it sent for one, since it started.
    pub fn wakings(&self, agent: usize) -> (u64, u64) {
        (self.nodes[agent].told.initiations, self.nodes[agent].told.signals)
    }

    /// Probes and other messages to agents that an agent sent since it started.
    pub fn messages(&self, agent: usize) -> u64 {
        self.nodes[agent].told.messages
    }

    /// Packets on the network between an agent and others, both ways, keepalives and handshakes among them, since it started.
    pub fn datagrams(&self, agent: usize) -> u64 {
        self.nodes[agent].told.datagrams
    }

    pub(crate) fn on_claim(
        &mut self,
        at: usize,
        prefix: IpNet,
        active: Option<PublicKey>,
        before: Option<PublicKey>,
    ) {
        let told = &mut self.nodes[at].told;
        told.switches += u64::from(active.is_some() && before.is_some());
        match active {
            Some(active) => drop(told.active.insert(prefix, active)),
            None => drop(told.active.remove(&prefix)),
        }
    }

    /// Whether a node has an address, as its own or by a claim that it was granted.
    pub(crate) fn has_address(&self, agent: usize, address: IpAddr) -> bool {
        members::of(agent).address == address || self.claims_of(agent).any(|prefix| prefix.contains(&address))
    }

    pub(crate) fn claims_of(&self, agent: usize) -> impl Iterator<Item = IpNet> {
        let of = self.claims.iter().filter(move |claimed| claimed.agent == agent && claimed.is_granted);
        of.map(|claimed| claimed.claim.prefix)
    }

    /// What a data plane is told to route and to take (1).
    pub(crate) fn check_prefixes(&self, at: usize, command: &TunnelCommand) {
        let TunnelCommand::Upsert { peer, allowed_ips, sources } = command else { return };
        let owner = members::agent_of(peer);
        let is_its = |prefix: &IpNet| {
            *prefix == IpNet::from(members::of(owner).address)
                || self.claims_of(owner).any(|claimed| claimed.contains(prefix))
        };
        if let Some(prefix) = allowed_ips.iter().chain(sources).find(|prefix| !is_its(prefix)) {
            self.fail(&format!("agent {at} gives {prefix} to agent {owner}, which was not granted it"));
        }
        let is_back = self.database.head.is_member(peer);
        if !is_back && self.nodes[at].agent.as_ref().is_some_and(|agent| agent.knows_removal(peer)) {
            self.fail(&format!(
                "agent {at} gives {allowed_ips:?} to agent {owner}, which it knows to be removed"
            ));
        }
    }

    /// Those that could answer this caller, and since when. Nobody while the rules of one keep it out: that one may be chosen, and lives.
    fn watch_claimers(&mut self, at: usize) {
        let (now, caller) = (self.now, &self.callers[at]);
        let claimers = self.claimers(caller);
        let removed = |at: &usize| self.database.head.removal(&members::of(*at).key).is_some();
        let mut present =
            claimers.iter().filter(|claimer| self.nodes[**claimer].is_awake() && !removed(claimer));
        let are_open = present.all(|claimer| self.is_let_in(*claimer, caller.from));
        let good: BTreeMap<usize, BootTime> = claimers
            .into_iter()
            .filter(|claimer| are_open && self.could_answer(caller.from, *claimer, caller.to))
            .filter(|claimer| self.is_holder(*claimer, caller.to))
            .map(|claimer| (claimer, caller.good_since.get(&claimer).copied().unwrap_or(now)))
            .collect();
        self.callers[at].good_since = good;
    }

    pub(crate) fn claimers(&self, caller: &Caller) -> Vec<usize> {
        let has = |agent: &usize| *agent != caller.from && self.has_address(*agent, caller.to);
        (0..self.nodes.len()).filter(has).collect()
    }

    /// .. of what is claimed exclusively; of all else it may be anybody.
    fn is_holder(&self, claimer: usize, address: IpAddr) -> bool {
        let mut exclusive = self.exclusive_prefixes().into_iter().filter(|prefix| prefix.contains(&address));
        let node = members::of(claimer).node;
        exclusive.all(|prefix| self.database.head.holder(&prefix).is_some_and(|holding| holding.node == node))
    }

    fn could_answer(&self, client: usize, claimer: usize, address: IpAddr) -> bool {
        let removed = |at: usize| self.database.head.removal(&members::of(at).key).is_some();
        let is_there = |at: usize| {
            let node = &self.nodes[at];
            node.is_awake() && node.watch.synced_since.is_some() && !node.is_leaving && !removed(at)
        };
        let serves = !self.nodes[claimer].is_failing && !self.is_unserved(claimer, address);
        let clean = self.network.is_clean(Host::Agent(client), Host::Agent(claimer));
        let knows = self.knows(client, claimer) && self.knows(claimer, client);
        let claims = !self.database.head.is_withdrawn(claimer);
        clean
            && knows
            && claims
            && serves
            && is_there(client)
            && is_there(claimer)
            && self.are_certified(client, claimer)
    }

    /// Somebody who could answer for long, and nobody does (2).
    fn check_caller(&self, at: usize) {
        let caller = &self.callers[at];
        let steady = |claimer: usize| {
            let (one, other) = (&self.nodes[caller.from].watch, &self.nodes[claimer].watch);
            one.steady_since.max(other.steady_since)
        };
        let since = caller.good_since.iter().map(|(claimer, since)| (*since).max(steady(*claimer))).min();
        let silent_since = since.map(|since| since.max(caller.started_at).max(caller.answered_at));
        if let Some(since) = silent_since.filter(|since| self.now.since(*since) > REACH_BOUND && caller.is_on)
        {
            let (from, to, span) = (caller.from, caller.to, self.now.since(since));
            self.fail(&format!("agent {from} had no answer from {to} for {span:?}, though one claims it"));
        }
    }

    pub(crate) fn check_claims(&mut self) {
        for caller in 0..self.callers.len() {
            self.watch_claimers(caller);
            self.check_caller(caller);
            self.watch_withdrawn(caller);
            self.check_withdrawn(caller);
        }
        self.check_holders();
        for at in 0..self.nodes.len() {
            for claimed in &self.claims {
                let owner = self.nodes[at].tunnel.owner(claimed.claim.prefix.addr());
                let agent = self.nodes[at].agent.as_ref();
                if let Some(owner) = owner.filter(|key| agent.is_some_and(|agent| agent.knows_removal(key))) {
                    let (prefix, owner) = (claimed.claim.prefix, members::agent_of(&owner));
                    self.fail(&format!("agent {at} sends {prefix} to agent {owner}, which is removed"));
                }
            }
        }
    }

    /// All is healed: clients agree (3).
    ///
    /// # Panics
    /// They do not.
    pub fn settle_claims(&mut self) {
        if self.callers.is_empty() {
            return;
        }
        self.run_for(AGREEMENT_BOUND);
        self.settle_holders();
        let shared = |at: &usize| {
            !self.exclusive_prefixes().iter().any(|prefix| prefix.contains(&self.callers[*at].to))
        };
        let shared: Vec<usize> = (0..self.callers.len()).filter(shared).collect();
        for at in shared {
            self.check_preference(at);
            for other in 0..at {
                let (one, other) = (&self.callers[at], &self.callers[other]);
                if one.to == other.to && self.is_order_certain(&self.claimers(one), one.to) {
                    self.check_agreement_on(one.to, one.from, other.from);
                }
            }
        }
    }

    fn check_agreement_on(&self, address: IpAddr, one: usize, other: usize) {
        let owner = |at: usize| self.nodes[at].tunnel.owner(address).map(|key| members::agent_of(&key));
        let is_removed = |at: usize| self.database.head.removal(&members::of(at).key).is_some();
        if !is_removed(one) && !is_removed(other) && owner(one) != owner(other) {
            let (of_one, of_other) = (owner(one), owner(other));
            self.fail(&format!(
                "for {address}, agent {one} uses {of_one:?} and agent {other} uses {of_other:?}"
            ));
        }
    }

    /// Everybody who claims it is there for long (4).
    fn check_preference(&self, at: usize) {
        let Caller { from, to, .. } = self.callers[at];
        let is_removed = |at: &usize| self.database.head.removal(&members::of(*at).key).is_some();
        let claimers: Vec<usize> =
            self.claimers(&self.callers[at]).into_iter().filter(|at| !is_removed(at)).collect();
        let best = claimers.iter().map(|claimer| self.class(*claimer, to)).max();
        let owner = self.nodes[from].tunnel.owner(to).map(|key| members::agent_of(&key));
        if !is_removed(&from) && owner.map(|owner| self.class(owner, to)) != best {
            self.fail(&format!(
                "agent {from} uses {owner:?} for {to}, though another of {claimers:?} is preferred"
            ));
        }
    }

    /// What somebody configured of a node's rank for an address.
    fn class(&self, agent: usize, address: IpAddr) -> Option<(u8, u16, bool)> {
        let of = self.claims.iter().filter(|claimed| claimed.agent == agent && claimed.is_granted);
        let claims = of.map(|claimed| claimed.claim).filter(|claim| claim.prefix.contains(&address));
        claims.map(|claim| (claim.prefix.prefix_len(), claim.priority, claim.preempt)).max()
    }

    fn is_order_certain(&self, claimers: &[usize], address: IpAddr) -> bool {
        let spreads =
            |at: &usize| self.claims.iter().any(|claimed| claimed.agent == *at && claimed.claim.spread);
        if claimers.iter().any(spreads) {
            return false;
        }
        let started_at = |at: &usize| self.serving_since(*at, address);
        let apart = |one: &usize, other: &usize| {
            let (one, other) = (started_at(one), started_at(other));
            one.since(other).max(other.since(one))
        };
        !claimers.iter().any(|one| claimers.iter().any(|other| ABOUT_ALIKE.contains(&apart(one, other))))
    }
}
