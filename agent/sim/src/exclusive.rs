//! What is claimed exclusively: who holds it by the servers, by the nodes, and by clients.
//!
//! 1. No agent believes in a holder that it was never, or goes back to a lower fence than it has followed; what it sends goes to the holder that it believes in. Also after a restart, but for what the disk did not have yet.
//! 2. Of nodes that reach a server with its database, and had the time to be told, only the one holder serves.
//! 3. The holder goes on whatever becomes of servers and of their database, its own restart among them.
//! 4. After everything is healed all know the holder with the highest fence, and nobody else serves.
//! 5. A holder that withdraws is succeeded, where another is there and servers can tell.

use crate::{members, world::World};
use agent_core::{Agent, BootTime};
use ipnet::IpNet;
use proto::holding::Holding;
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// Followed, published, sent; with messages that are repeated.
const TOLD_BOUND: Duration = Duration::from_secs(6);
/// The disk's word is believed after 5 s.
const BELIEVED_BOUND: Duration = Duration::from_secs(6);
/// What was learnt is on disk by then.
const SAVED_BOUND: Duration = Duration::from_secs(3);
/// Told to a server, looked at by it for 5 s, with a turn for everybody.
const SUCCEEDED_BOUND: Duration = Duration::from_secs(20);

/// What one agent is known to have learnt of a prefix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Learnt {
    fence: u64,
    at: BootTime,
}

impl World {
    fn holding(&self, at: usize, prefix: &IpNet) -> Option<Holding> {
        self.nodes[at].agent.as_ref().and_then(|agent| agent.holding(prefix)).copied()
    }

    fn serves_exclusively(&self, at: usize, prefix: &IpNet) -> Option<u64> {
        let agent = self.nodes[at].agent.as_ref().filter(|_| self.nodes[at].is_awake())?;
        agent.held().get(prefix).copied()
    }

    /// Who of those that were granted an address would answer there.
    pub(crate) fn serves_address(&self, at: usize, address: IpAddr) -> bool {
        let mut exclusive = self.exclusive_prefixes().into_iter().filter(|prefix| prefix.contains(&address));
        match exclusive.next() {
            Some(prefix) => {
                members::of(at).address == address || self.serves_exclusively(at, &prefix).is_some()
            }
            None => true,
        }
    }

    /// The process ends: what the disk may not have yet is as if it was never learnt.
    pub(crate) fn forget_unsaved(&mut self, at: usize) {
        let now = self.now;
        let is_saved = |learnt: &Learnt| now.since(learnt.at) > SAVED_BOUND;
        let watch = &mut self.nodes[at].watch;
        watch.followed.retain(|_, learnt| is_saved(learnt));
        watch.held.retain(|_, learnt| is_saved(learnt));
    }

    /// After everything that an agent does.
    pub(crate) fn check_exclusive(&mut self, at: usize) {
        // Who was removed knows nothing more.
        if self.nodes[at].is_refused || !self.nodes[at].agent.as_ref().is_some_and(Agent::is_enrolled) {
            return;
        }
        for prefix in self.exclusive_prefixes() {
            self.check_belief(at, &prefix);
            self.check_way(at, &prefix);
        }
    }

    /// (1)
    fn check_belief(&mut self, at: usize, prefix: &IpNet) {
        let (now, believed) = (self.now, self.holding(at, prefix));
        let fence = believed.map_or(0, |holding| holding.fence);
        if let Some(followed) = self.nodes[at].watch.followed.get(prefix)
            && followed.fence > fence
        {
            let followed = followed.fence;
            self.fail(&format!("agent {at} goes back from fence {followed} of {prefix} to {believed:?}"));
        }
        let Some(believed) = believed else { return };
        let holder = members::agent_of_node(believed.node);
        if !self.database.granted.contains(&(*prefix, holder, fence)) {
            self.fail(&format!("agent {at} believes in {believed:?}, which nobody was granted"));
        }
        let learn = |known: &mut BTreeMap<IpNet, Learnt>| {
            let learnt = known.entry(*prefix).or_insert(Learnt { fence, at: now });
            if learnt.fence < fence {
                *learnt = Learnt { fence, at: now };
            }
        };
        learn(&mut self.nodes[at].watch.followed);
        let held = self.serves_exclusively(at, prefix);
        if held.is_some_and(|held| held != fence || holder != at) {
            self.fail(&format!("agent {at} serves {prefix} by {held:?}, and believes in {believed:?}"));
        }
        if held.is_some() {
            learn(&mut self.nodes[at].watch.held);
        }
    }

    fn check_way(&self, at: usize, prefix: &IpNet) {
        let owner = self.nodes[at].tunnel.owner(prefix.addr()).map(|key| members::agent_of(&key));
        let holder = self.holding(at, prefix).map(|holding| members::agent_of_node(holding.node));
        if owner.is_some() && owner != holder {
            self.fail(&format!(
                "agent {at} sends {prefix} to {owner:?}, and believes that {holder:?} holds it"
            ));
        }
    }

    pub(crate) fn check_holders(&mut self) {
        for prefix in self.exclusive_prefixes() {
            let Some(holding) = self.database.head.holder(&prefix) else { continue };
            for at in 0..self.nodes.len() {
                self.check_exclusive(at);
                self.check_rival(at, &holding);
            }
            self.check_holder(&holding);
            self.check_succession(&holding);
        }
    }

    /// Since when an agent can be told what the database knows.
    fn told_since(&self, at: usize) -> Option<BootTime> {
        let watch = &self.nodes[at].watch;
        let is_member = self.database.head.is_member_for_good(at) && !self.network.was_lossy;
        watch.synced_since.filter(|_| is_member).map(|since| since.max(watch.steady_since))
    }

    /// (2)
    fn check_rival(&self, at: usize, holding: &Holding) {
        let told_since = self.told_since(at).map(|since| since.max(self.database.granted_at));
        let must_know = told_since.is_some_and(|since| self.now.since(since) > TOLD_BOUND);
        let is_rival = members::agent_of_node(holding.node) != at;
        if is_rival && must_know && self.serves_exclusively(at, &holding.prefix).is_some() {
            self.fail(&format!("agent {at} serves {} though it could know {holding:?}", holding.prefix));
        }
    }

    /// (3)
    fn check_holder(&self, holding: &Holding) {
        let at = members::agent_of_node(holding.node);
        let (node, prefix) = (&self.nodes[at], &holding.prefix);
        let has_learnt = node.watch.held.get(prefix).is_some_and(|held| held.fence == holding.fence);
        let is_up = node.is_awake() && self.now.since(node.watch.steady_since) > BELIEVED_BOUND;
        if has_learnt && is_up && self.serves_exclusively(at, prefix) != Some(holding.fence) {
            self.fail(&format!("agent {at} does not serve {prefix}, which it knew to hold by {holding:?}"));
        }
    }

    /// (5)
    fn check_succession(&self, holding: &Holding) {
        let holder = members::agent_of_node(holding.node);
        let Some(since) = self.nodes[holder].watch.withdrawn_since.zip(self.told_since(holder)) else {
            return;
        };
        let claimers = self.database.head.exclusive_claimers(&holding.prefix);
        let others = claimers.iter().map(|(agent, _)| *agent).filter(|agent| *agent != holder);
        let is_ready = |agent: usize| {
            let watch = &self.nodes[agent].watch;
            let is_well = watch.withdrawn_since.is_none() && !self.nodes[agent].is_leaving;
            Some(self.told_since(agent).filter(|_| is_well)?.max(watch.serving_since))
        };
        let Some(ready) = others.filter_map(is_ready).min() else { return };
        let since = since.0.max(since.1).max(ready).max(self.database.granted_at);
        if self.now.since(since) > SUCCEEDED_BOUND {
            self.fail(&format!("{holding:?} is not succeeded, though it has withdrawn"));
        }
    }

    /// All is healed (4).
    pub(crate) fn settle_holders(&self) {
        for prefix in self.exclusive_prefixes() {
            let claimers = self.database.head.exclusive_claimers(&prefix);
            let Some(holding) = self.database.head.holder(&prefix) else {
                if claimers.is_empty() {
                    continue;
                }
                self.fail(&format!("nobody holds {prefix}, which {claimers:?} claim"));
            };
            let members = (0..self.nodes.len()).filter(|at| self.database.head.is_member_for_good(*at));
            for at in members {
                let (believed, holder) = (self.holding(at, &prefix), members::agent_of_node(holding.node));
                let serves = self.serves_exclusively(at, &prefix).is_some();
                if believed != Some(holding) || serves != (at == holder) {
                    self.fail(&format!(
                        "agent {at} serves {prefix}: {serves}, by {believed:?}; it is {holding:?}"
                    ));
                }
            }
            self.check_callers_of(&holding);
        }
    }

    fn check_callers_of(&self, holding: &Holding) {
        let holder = members::agent_of_node(holding.node);
        for caller in &self.callers {
            let is_member = self.database.head.is_member_for_good(caller.from);
            let is_its = holding.prefix.contains(&caller.to) && is_member && caller.from != holder;
            let owner = self.nodes[caller.from].tunnel.owner(caller.to).map(|key| members::agent_of(&key));
            if is_its && owner != Some(holder) {
                self.fail(&format!(
                    "agent {} uses {owner:?} for {}; the holder is {holder}",
                    caller.from, caller.to
                ));
            }
        }
    }
}
