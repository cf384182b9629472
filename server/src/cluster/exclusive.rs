//! Who holds what is claimed exclusively: one node at a time, for all clients.
//!
//! That a node holds a prefix is part of the log, so it is in everybody's map, in backups, and in one order with all other changes. Whether the holder still lives is not: its lease
//! in the database says so (`store`), by the database's clock. A holding counts only while its node claims the prefix and may; when it does not, the prefix is free at once.
//!
//! Every grant takes the next fence of one counter. In a new epoch, which knows less of the past than others may, the counter goes on above everything that the former ones can have given, and
//! what was granted before is granted anew.

use crate::cluster::{Entity, Node, Op, State, claims};
use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;
use proto::{
    claim::Claim,
    holding::{Holding, MAX_HELD_BY_NODE, MAX_HOLDINGS},
    map::MapVersion,
    statement::NodeId,
    time::UnixTime,
};
use serde::{Deserialize, Serialize};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

/// Fences that an epoch has, as bits. Epochs after the first are times in seconds, so fences stay below 2^53, which every program can read.
const FENCE_BITS: u32 = 20;

/// All that is held, and how far fences were counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holdings {
    last_fence: u64,
    /// By prefix.
    held: Vec<Holding>,
}

/// A prefix was not granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// What was decided on is no longer so.
    #[error("somebody else was first")]
    Overtaken,
    #[error(
        "{MAX_HOLDINGS} prefixes are held exclusively, and a cluster has no more: let some be claimed without --exclusive"
    )]
    Full,
    #[error("the node holds {MAX_HELD_BY_NODE} prefixes exclusively, and may hold no more")]
    NodeFull,
    #[error("the fences are used up")]
    Exhausted,
}

impl Holdings {
    /// # Errors
    /// What no cluster writes.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut seen = HashSet::new();
        for holding in &self.held {
            if !seen.insert(holding.prefix) || holding.prefix != holding.prefix.trunc() {
                return Err(format!("{} is held twice, or has host bits", holding.prefix));
            }
            if holding.fence > self.last_fence {
                return Err(format!("the fence of {} was never given out", holding.prefix));
            }
        }
        match self.held.len() > MAX_HOLDINGS || self.last_fence >= i64::MAX as u64 {
            true => Err("its fences, or what is held, are out of range".to_owned()),
            false => Ok(()),
        }
    }

    pub(crate) fn held(&self) -> &[Holding] {
        &self.held
    }

    fn of(&self, prefix: &IpNet) -> Option<&Holding> {
        self.held.iter().find(|holding| holding.prefix == *prefix)
    }
}

/// Below it, fences were given out by an epoch of before.
fn first_fence(version: MapVersion) -> u64 {
    version.epoch.saturating_sub(1).saturating_mul(1 << FENCE_BITS)
}

/// Which nodes claim a prefix exclusively, whether they may or not.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claimers(OrdMap<IpNet, OrdSet<NodeId>>);

impl Claimers {
    pub(crate) fn add(&mut self, node: &Node) {
        for claim in node.facts.claims.iter().filter(|claim| claim.exclusive) {
            self.0.entry(claim.prefix).or_default().insert(node.id);
        }
    }

    pub(crate) fn remove(&mut self, node: &Node) {
        for claim in &node.facts.claims {
            if let Some(nodes) = self.0.get_mut(&claim.prefix) {
                nodes.remove(&node.id);
                if nodes.is_empty() {
                    self.0.remove(&claim.prefix);
                }
            }
        }
    }
}

impl State {
    pub fn holdings(&self) -> &Arc<Holdings> {
        &self.holdings
    }

    /// The prefixes that are claimed exclusively.
    pub fn exclusive_prefixes(&self) -> impl Iterator<Item = IpNet> {
        self.claimers.0.keys().copied()
    }

    pub fn is_exclusive(&self, prefix: &IpNet) -> bool {
        self.claimers.0.contains_key(prefix)
    }

    /// Who may have it, the best first: who does not yield, then the higher priority, then the lower number.
    pub fn exclusive_claimers(&self, prefix: &IpNet, now: UnixTime) -> Vec<(NodeId, Claim)> {
        let nodes = self.claimers.0.get(prefix).into_iter().flatten();
        let claims = nodes.filter_map(|id| Some((*id, self.exclusive_claim(*id, prefix, now)?)));
        let mut claimers: Vec<(NodeId, Claim)> = claims.collect();
        claimers.sort_by_key(|(id, claim)| (claim.yields, Reverse(claim.priority), *id));
        claimers
    }

    fn exclusive_claim(&self, id: NodeId, prefix: &IpNet, now: UnixTime) -> Option<Claim> {
        let node = self.node(id).filter(|node| !node.is_expired(now) && !node.is_lapsed(now))?;
        let claim = node.facts.claims.iter().find(|claim| claim.exclusive && claim.prefix == *prefix)?;
        claims::is_granted(self, &node.claims, claim).then_some(*claim)
    }

    /// Who holds the prefix, if whoever was given it may still have it.
    pub fn holder(&self, prefix: &IpNet, now: UnixTime) -> Option<&Holding> {
        self.holdings.of(prefix).filter(|holding| self.exclusive_claim(holding.node, prefix, now).is_some())
    }

    /// All that this node holds.
    pub fn held_by(&self, node: NodeId, now: UnixTime) -> impl Iterator<Item = &Holding> {
        let held = self.holdings.held.iter().filter(move |holding| holding.node == node);
        held.filter(move |holding| self.exclusive_claim(node, &holding.prefix, now).is_some())
    }

    /// Who may be given nothing more.
    pub(crate) fn full_holders(&self, now: UnixTime) -> BTreeSet<NodeId> {
        let mut counts = BTreeMap::new();
        for holding in &self.holdings.held {
            *counts.entry(holding.node).or_insert(0) += 1;
        }
        let full = counts.into_iter().filter(|(_, count)| *count >= MAX_HELD_BY_NODE);
        full.map(|(node, _)| node).filter(|node| self.holds_enough(*node, now)).collect()
    }

    fn holds_enough(&self, node: NodeId, now: UnixTime) -> bool {
        self.held_by(node, now).count() >= MAX_HELD_BY_NODE
    }

    /// Whether it was granted by an epoch whose end may be forgotten.
    pub(crate) fn is_of_former_epoch(&self, holding: &Holding) -> bool {
        holding.fence <= first_fence(self.version())
    }
}

/// Gives the prefix to a node, in place of whoever `from` says holds it. The caller knows that the lease of that one is over, or that it must give way.
///
/// # Errors
/// [`GrantError`]
pub(crate) fn grant(
    state: &State,
    prefix: IpNet,
    (from, to): (Option<Holding>, NodeId),
    now: UnixTime,
) -> Result<(Vec<Op>, Holding), GrantError> {
    if state.holder(&prefix, now).copied() != from || state.exclusive_claim(to, &prefix, now).is_none() {
        return Err(GrantError::Overtaken);
    }
    let last = state.holdings.last_fence.max(first_fence(state.version()));
    let fence = last.checked_add(1).filter(|fence| *fence < i64::MAX as u64).ok_or(GrantError::Exhausted)?;
    let holding = Holding { prefix, node: to, fence, since: now };
    let stays = |held: &&Holding| held.prefix != prefix && state.is_exclusive(&held.prefix);
    let mut held: Vec<Holding> = state.holdings.held.iter().filter(stays).copied().collect();
    if held.len() >= MAX_HOLDINGS {
        return Err(GrantError::Full);
    }
    let holds_it = from.is_some_and(|holding| holding.node == to);
    if !holds_it && state.holds_enough(to, now) {
        return Err(GrantError::NodeFull);
    }
    held.push(holding);
    held.sort_unstable();
    let holdings = Holdings { last_fence: fence, held };
    Ok((vec![Op::Put(Entity::Holdings(Box::new(holdings)))], holding))
}

/// What `memory` knows of fences that `state` lost.
pub(crate) fn holdings_back(state: &State, memory: &State) -> Option<Op> {
    let is_newer = memory.holdings.last_fence > state.holdings.last_fence;
    is_newer.then(|| Op::Put(Entity::Holdings(Box::new(Holdings::clone(&memory.holdings)))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{
        ChangeId, remove, restored,
        testing::{self, claimers as cluster, claims, exclusive, vip},
    };

    const NOW: UnixTime = testing::NOW;

    fn granted(state: &mut State, to: NodeId) -> Holding {
        let from = state.holder(&vip(), NOW).copied();
        let (ops, holding) = grant(state, vip(), (from, to), NOW).unwrap();
        testing::apply(state, ops);
        holding
    }

    #[test]
    fn every_holder_has_a_higher_fence_than_all_before_it() {
        let (mut state, nodes) = cluster(&[0, 0]);
        let fences: Vec<u64> =
            [0, 1, 0, 0].into_iter().map(|node| granted(&mut state, nodes[node]).fence).collect();
        assert_eq!(fences, [1, 2, 3, 4]);
        assert_eq!(state.holder(&vip(), NOW).unwrap().node, nodes[0]);
    }

    #[test]
    fn who_decided_on_what_is_no_longer_so_is_refused() {
        let (mut state, nodes) = cluster(&[0, 0]);
        let first = granted(&mut state, nodes[0]);
        let overtaken = |state: &State, from| grant(state, vip(), (from, nodes[1]), NOW);
        assert_eq!(overtaken(&state, None), Err(GrantError::Overtaken));
        granted(&mut state, nodes[0]);
        assert_eq!(overtaken(&state, Some(first)), Err(GrantError::Overtaken));
    }

    #[test]
    fn a_node_holds_so_many_and_leaves_the_rest_to_others() {
        let (mut state, nodes) = cluster(&[0, 0]);
        let all: IpNet = "10.50.0.0/16".parse().unwrap();
        let prefixes: Vec<IpNet> = (0..=MAX_HELD_BY_NODE as u8)
            .map(|last| IpNet::from(std::net::IpAddr::from([10, 50, 0, last])))
            .collect();
        for node in &nodes {
            let ops = crate::cluster::allow_claim(&state, state.node(*node).unwrap(), all, NOW).unwrap();
            testing::apply(&mut state, ops);
            let node = state.node(*node).unwrap();
            let claims = prefixes.iter().map(|prefix| Claim { prefix: *prefix, ..exclusive(0) }).collect();
            let facts = proto::session::Facts { claims, ..node.facts.clone() };
            let ops = crate::cluster::observe(node, NOW, Some(&facts), None).into_iter().collect();
            testing::apply(&mut state, ops);
        }
        let (last, others) = prefixes.split_last().unwrap();
        for prefix in others {
            let (ops, _) = grant(&state, *prefix, (None, nodes[0]), NOW).unwrap();
            testing::apply(&mut state, ops);
        }
        assert_eq!(grant(&state, *last, (None, nodes[0]), NOW), Err(GrantError::NodeFull));
        assert!(grant(&state, *last, (None, nodes[1]), NOW).is_ok());
        let held = *state.holder(&others[0], NOW).unwrap();
        assert!(grant(&state, others[0], (Some(held), nodes[0]), NOW).is_ok(), "anew");
    }

    #[test]
    fn the_higher_priority_comes_first_and_then_the_lower_number() {
        let (state, nodes) = cluster(&[1, 5, 5]);
        let order: Vec<NodeId> =
            state.exclusive_claimers(&vip(), NOW).into_iter().map(|(id, _)| id).collect();
        assert_eq!(order, [nodes[1], nodes[2], nodes[0]]);
    }

    #[test]
    fn what_is_claimed_no_more_or_may_not_be_is_free_at_once() {
        let (mut state, nodes) = cluster(&[0, 0]);
        granted(&mut state, nodes[0]);
        let mut withdrawn = state.clone();
        claims(&mut withdrawn, nodes[0], None);
        assert_eq!(withdrawn.holder(&vip(), NOW), None);
        let mut shared = state.clone();
        claims(&mut shared, nodes[0], Some(Claim { exclusive: false, ..exclusive(0) }));
        assert_eq!(shared.holder(&vip(), NOW), None);
        let node = state.node(nodes[0]).unwrap().clone();
        let ops = remove(&state, &node, NOW);
        testing::apply(&mut state, ops);
        assert_eq!(state.holder(&vip(), NOW), None);
        assert_eq!(granted(&mut state, nodes[1]).fence, 2);
    }

    #[test]
    fn a_restored_copy_gives_no_fence_again_that_its_lost_future_gave() {
        let (mut state, nodes) = cluster(&[0, 0]);
        granted(&mut state, nodes[0]);
        let copy = testing::snapshot(&state);
        let lost: Vec<u64> = (0..100).map(|_| granted(&mut state, nodes[1]).fence).collect();
        let mut again = State::from_snapshot(restored(copy, ChangeId([9; 16]), NOW).unwrap());
        let kept = *again.holder(&vip(), NOW).unwrap();
        assert!(again.is_of_former_epoch(&kept));
        let anew = granted(&mut again, nodes[0]);
        assert!(lost.iter().all(|fence| *fence < anew.fence) && anew.fence < 1 << 53, "{anew:?}");
        assert!(!again.is_of_former_epoch(&anew));
    }

    #[test]
    fn what_no_cluster_writes_is_refused() {
        let held = Holding { prefix: vip(), node: NodeId(1), fence: 3, since: NOW };
        let host_bits = Holding { prefix: "10.0.0.1/8".parse().unwrap(), ..held };
        for (last_fence, held) in
            [(2, vec![held]), (3, vec![held, held]), (3, vec![host_bits]), (u64::MAX, vec![])]
        {
            assert!(Holdings { last_fence, held }.check().is_err());
        }
        assert_eq!(Holdings { last_fence: 3, held: vec![held] }.check(), Ok(()));
    }
}
