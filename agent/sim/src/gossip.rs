//! The invariant of removals: whoever has had a steady tunnel for a while to one that knows a removal knows it, too. So all of a connected group do, with servers or without.

use crate::{members, network::Host, world::World};
use agent_core::{Agent, BootTime};
use std::{collections::BTreeMap, time::Duration};

/// A message and its answer, one repetition, and the time between two summaries that are answered.
const TOLD_BOUND: Duration = Duration::from_secs(15);

/// Since when it is so.
#[derive(Debug, Default)]
pub(crate) struct Gossip {
    /// Both have a session with each other, and nothing disturbs it.
    joined: BTreeMap<(usize, usize), BootTime>,
    /// An agent knows the removal of another.
    known: BTreeMap<(usize, usize), BootTime>,
}

impl World {
    pub(crate) fn check_gossip(&mut self) {
        let (now, count) = (self.now, self.nodes.len());
        let pairs: Vec<(usize, usize)> =
            (0..count).flat_map(|one| (0..count).map(move |other| (one, other))).collect();
        let mut gossip = std::mem::take(&mut self.gossip);
        for (one, other) in &pairs {
            note(&mut gossip.joined, (*one, *other), now, self.is_joined(*one, *other));
            note(&mut gossip.known, (*one, *other), now, self.knows_removal(*one, *other));
        }
        let lasts = |since: Option<&BootTime>| since.is_some_and(|since| now.since(*since) >= TOLD_BOUND);
        for ((from, removed), _) in gossip.known.iter().filter(|(_, since)| lasts(Some(since))) {
            let ignorant = (0..count).find(|to| {
                let is_told = ![*from, *to].contains(removed) && lasts(gossip.joined.get(&(*from, *to)));
                is_told && !gossip.known.contains_key(&(*to, *removed))
            });
            if let Some(to) = ignorant {
                self.fail(&format!(
                    "agent {to} does not know the removal of {removed} that agent {from} does"
                ));
            }
        }
        self.gossip = gossip;
    }

    fn is_joined(&self, one: usize, other: usize) -> bool {
        let is_steady = |at: usize| {
            let node = &self.nodes[at];
            node.is_awake() && self.now.since(node.watch.steady_since) >= TOLD_BOUND
        };
        let clean = self.network.is_clean(Host::Agent(one), Host::Agent(other));
        let sessions = self.has_tunnel(one, other) && self.has_tunnel(other, one);
        one != other && sessions && clean && is_steady(one) && is_steady(other)
    }

    fn knows_removal(&self, one: usize, other: usize) -> bool {
        let agent = self.nodes[one].agent.as_ref().filter(|agent| agent.is_enrolled());
        agent.is_some_and(|agent: &Agent| agent.knows_removal(&members::of(other).key))
    }
}

fn note(since: &mut BTreeMap<(usize, usize), BootTime>, pair: (usize, usize), now: BootTime, holds: bool) {
    match holds {
        true => drop(since.entry(pair).or_insert(now)),
        false => drop(since.remove(&pair)),
    }
}
