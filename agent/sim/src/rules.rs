//! What may be opened on agents: one policy for all of them, which changes, told by a rule alone or by a set of sources that comes in parts; and what must come of it.

use crate::{members, world::World};
use agent_core::BootTime;
use ipnet::IpNet;
use proto::{
    map::Content,
    rule::{Rule, SetId},
};
use std::time::Duration;

/// Followed, published, sent and told to the data plane, with messages that are repeated.
const TOLD_BOUND: Duration = Duration::from_secs(20);
const SET: SetId = SetId(1);

/// Who may open something on every agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Policy {
    /// Whoever is in the network, as at the start.
    #[default]
    Network,
    /// These agents, a bit for each: the rule names their addresses.
    Named(u16),
    /// .. the rule names a set, of which each is a part.
    InSet(u16),
}

impl Policy {
    pub(crate) fn allows(self, agent: usize) -> bool {
        match self {
            Self::Network => true,
            Self::Named(agents) | Self::InSet(agents) => agents >> agent & 1 == 1,
        }
    }

    /// What of it is in every map, by kind and then by these ids.
    pub(crate) fn objects(self) -> Vec<(Content, Vec<u8>)> {
        let rule = |rule| (Content::Rule(rule), b"default".to_vec());
        let address = |agent| IpNet::from(members::of(agent).address);
        let allowed = (0..members::MAX_AGENTS).filter(|agent| self.allows(*agent));
        match self {
            Self::Network => vec![rule(Rule::all())],
            Self::Named(_) => vec![rule(Rule::all_from(allowed.map(address).collect()))],
            Self::InSet(_) => {
                let part = |agent: usize| {
                    let id = [&SET.0.to_be_bytes()[..], &[agent as u8]].concat();
                    (Content::Sources(vec![address(agent)]), id)
                };
                let of_set = Rule { source_sets: vec![SET], ..Rule::all_from(Vec::new()) };
                allowed.map(part).chain([rule(of_set)]).collect()
            }
        }
    }
}

impl World {
    /// The cluster's policy was `before`: a flow that one of the two denies waits for a server that says what holds.
    pub(crate) fn on_policy_changed(&mut self, before: Policy) {
        let after = self.database.head.policy;
        if before == after {
            return;
        }
        let now = self.now;
        self.policy_changed_at = now;
        let is_denied = |agent: usize| !before.allows(agent) || !after.allows(agent);
        for flow in self.flows.iter_mut().filter(|flow| is_denied(flow.from)) {
            flow.disturb(now);
            flow.needs_server = true;
        }
    }

    /// What the data plane of an agent was told lets the other open something.
    pub(crate) fn is_let_in(&self, at: usize, from: usize) -> bool {
        self.nodes[at].tunnel.allows(members::of(from).address)
    }

    /// Whether an agent has had the time to learn the policy.
    fn must_know_policy(&self, at: usize) -> bool {
        let node = &self.nodes[at];
        let is_member = self.database.head.is_member(&members::of(at).key);
        let synced =
            node.watch.synced_since.filter(|_| node.is_awake() && is_member && !self.network.was_lossy);
        let entitled =
            synced.map(|since: BootTime| since.max(self.policy_changed_at).max(node.watch.steady_since));
        entitled.is_some_and(|since| self.now.since(since) > TOLD_BOUND)
    }

    /// Who is served by a server that is level goes by the newest policy.
    pub(crate) fn check_policy(&self, at: usize) {
        if self.must_know_policy(at) {
            self.require_policy(at);
        }
    }

    /// The data plane lets in whom the newest map does, and nobody else.
    pub(crate) fn require_policy(&self, at: usize) {
        let policy = self.database.head.policy;
        let differs = |from: &usize| self.is_let_in(at, *from) != policy.allows(*from);
        if let Some(from) = (0..self.nodes.len()).filter(|from| *from != at).find(differs) {
            let is = self.is_let_in(at, from);
            self.fail(&format!("agent {at} lets agent {from} in: {is}; the newest policy is {policy:?}"));
        }
    }

    /// A request came through: the newest rules allow it, or are not known yet.
    pub(crate) fn check_let_in(&self, at: usize, from: usize) {
        if self.must_know_policy(at) && !self.database.head.policy.allows(from) {
            self.fail(&format!(
                "agent {at} took a request of agent {from}, which the newest rules do not allow"
            ));
        }
    }
}
