//! Nodes whose own checks fail, or whose machine cannot serve one of their claims: nobody is served by one that has withdrawn what it claims, for want of another neither.
//!
//! 1. While an agent can hear that a node has withdrawn, it does not send there for longer than [`MOVED_BOUND`], whether another claims the same or not.
//! 2. .. and where the tunnel carries, no answer comes from it after [`TOLD_BOUND`].
//!
//! That the prefix is served again once somebody is restored is in `claims` (2).

use crate::{claims::REACH_BOUND, members, network::Host, world::World};
use agent_core::BootTime;
use ipnet::IpNet;
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// The tunnel is repaired, and the first probe in it answered.
const MOVED_BOUND: Duration = REACH_BOUND;
/// Said three times a second for 3 s, and then with answers to probes.
const TOLD_BOUND: Duration = Duration::from_secs(5);

impl World {
    pub(crate) fn set_check(&mut self, agent: usize, is_failing: bool) {
        self.nodes[agent].is_failing = is_failing;
        self.tell_check(agent);
    }

    pub(crate) fn set_unserved(&mut self, agent: usize, address: IpAddr, is_unserved: bool) {
        let Some(claim) = self.claim_of(agent, address) else { return };
        let unserved = &mut self.nodes[agent].unserved;
        match is_unserved {
            true => drop(unserved.insert(claim)),
            false => drop(unserved.remove(&claim)),
        }
        self.tell_check(agent);
    }

    pub(crate) fn serve_all(&mut self, agent: usize) {
        self.nodes[agent].unserved.clear();
        self.tell_check(agent);
    }

    /// By which an agent has an address.
    fn claim_of(&self, agent: usize, address: IpAddr) -> Option<IpNet> {
        self.claims_of(agent).filter(|claim| claim.contains(&address)).max_by_key(IpNet::prefix_len)
    }

    pub(crate) fn is_unserved(&self, agent: usize, address: IpAddr) -> bool {
        self.claim_of(agent, address).is_some_and(|claim| self.nodes[agent].unserved.contains(&claim))
    }

    /// Since when an agent serves an address, as it says.
    pub(crate) fn serving_since(&self, agent: usize, address: IpAddr) -> BootTime {
        let watch = &self.nodes[agent].watch;
        let restored_at = self.claim_of(agent, address).and_then(|claim| watch.restored_at.get(&claim));
        restored_at.map_or(watch.serving_since, |restored_at| watch.serving_since.max(*restored_at))
    }

    /// Since when an agent knows that it must not serve an address.
    fn withdrawn_since(&self, agent: usize, address: IpAddr) -> Option<BootTime> {
        let watch = &self.nodes[agent].watch;
        let alone = self.claim_of(agent, address).and_then(|claim| watch.unserved_since.get(&claim));
        alone.into_iter().chain(&watch.withdrawn_since).min().copied()
    }

    /// As the driver does it: also to a process that has just started, or stood still.
    pub(crate) fn tell_check(&mut self, at: usize) {
        self.tell_unserved(at);
        self.tell_failing(at);
    }

    fn tell_unserved(&mut self, at: usize) {
        let (now, node) = (self.now, &mut self.nodes[at]);
        if !node.is_awake() || node.watch.unserved_since.keys().eq(&node.unserved) {
            return;
        }
        let (unserved, watch) = (&node.unserved, &mut node.watch);
        let again = watch.unserved_since.keys().filter(|claim| !unserved.contains(*claim));
        watch.restored_at.extend(again.map(|claim| (*claim, now)));
        watch.unserved_since.retain(|claim, _| unserved.contains(claim));
        unserved.iter().for_each(|claim| _ = watch.unserved_since.entry(*claim).or_insert(now));
        let reasons = unserved.iter().map(|claim| (*claim, "the machine cannot".to_owned())).collect();
        self.input(at, |agent, now| agent.set_unserved(reasons, now));
    }

    fn tell_failing(&mut self, at: usize) {
        let node = &self.nodes[at];
        let (is_failing, now) = (node.is_failing, self.now);
        let Some(agent) = node.agent.as_ref().filter(|_| node.is_awake()) else { return };
        if agent.is_withdrawn() == is_failing {
            return;
        }
        let watch = &mut self.nodes[at].watch;
        watch.withdrawn_since = is_failing.then_some(now);
        if !is_failing {
            watch.serving_since = now;
        }
        let reason = is_failing.then(|| "its check fails".to_owned());
        self.input(at, |agent, now| agent.set_withdrawn(reason, now));
    }

    /// Who has withdrawn, and since when this caller's node can hear it.
    pub(crate) fn watch_withdrawn(&mut self, at: usize) {
        let (now, caller) = (self.now, &self.callers[at]);
        let is_told = |claimer: &usize| {
            let (one, other) = (&self.nodes[caller.from], &self.nodes[*claimer]);
            let knows = self.knows(caller.from, *claimer) && self.knows(*claimer, caller.from);
            let is_clean = self.network.is_clean(Host::Agent(caller.from), Host::Agent(*claimer));
            let is_certified = self.are_certified(caller.from, *claimer);
            one.is_awake()
                && other.is_awake()
                && self.withdrawn_since(*claimer, caller.to).is_some()
                && knows
                && is_clean
                && is_certified
        };
        let since = |claimer: usize| (claimer, caller.withdrawn_since.get(&claimer).copied().unwrap_or(now));
        let withdrawn: BTreeMap<usize, BootTime> =
            self.claimers(caller).into_iter().filter(is_told).map(since).collect();
        let owner = self.nodes[caller.from].tunnel.owner(caller.to).map(|key| members::agent_of(&key));
        let goes_to = match (owner, caller.goes_to) {
            (Some(owner), Some((before, since))) if owner == before => Some((owner, since)),
            (owner, _) => owner.map(|owner| (owner, now)),
        };
        self.callers[at].goes_to = goes_to;
        self.callers[at].withdrawn_since = withdrawn;
    }

    /// For how long an agent could hear that a node has withdrawn, while it used the prefix.
    fn withdrawn_for(&self, at: usize, claimer: usize) -> Option<Duration> {
        let caller = &self.callers[at];
        let (one, other) = (&self.nodes[caller.from].watch, &self.nodes[claimer].watch);
        let said_at = self.withdrawn_since(claimer, caller.to)?;
        let heard_at = *caller.withdrawn_since.get(&claimer)?;
        let (_, used_since) = caller.goes_to.filter(|(owner, _)| *owner == claimer)?;
        let steady = one.steady_since.max(other.steady_since).max(caller.started_at);
        Some(self.now.since(said_at.max(heard_at).max(used_since).max(steady)))
    }

    /// (1)
    pub(crate) fn check_withdrawn(&self, at: usize) {
        let caller = &self.callers[at];
        let Some((owner, _)) = caller.goes_to else { return };
        let Some(span) = self.withdrawn_for(at, owner) else { return };
        if caller.is_on && span > MOVED_BOUND {
            let (from, to) = (caller.from, caller.to);
            self.fail(&format!("agent {from} sends {to} to agent {owner}, which withdrew it {span:?} ago"));
        }
    }

    /// (2)
    pub(crate) fn check_answerer(&self, at: usize, by: usize) {
        let caller = &self.callers[at];
        let told = self.withdrawn_for(at, by).filter(|span| *span > TOLD_BOUND && !self.network.was_lossy);
        if let Some(span) = told {
            let (from, to) = (caller.from, caller.to);
            self.fail(&format!(
                "agent {from} is answered from {to} by agent {by}, which withdrew it {span:?} ago"
            ));
        }
    }
}
