//! Who claims what, and so who may serve a prefix: those that claim it or one around it, and its holder alone where it is exclusive.

use super::{
    Claims, MAX_CANDIDATES, Output,
    claimant::Claimant,
    pulse::Need,
    rank::{self, Candidate},
};
use crate::time::BootTime;
use ipnet::IpNet;
use proto::{claim::Claim, key::PublicKey, statement::NodeId};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

impl Claims {
    /// What this node claims now, in place of what it claimed before; nothing, if it is gone.
    pub fn handle_claims(&mut self, peer: PublicKey, node: NodeId, claims: Vec<Claim>, now: BootTime) {
        let known = self.claimants.get(&peer);
        let is_same = known.is_none_or(|known| known.node == node);
        let before = known.map(|known| known.claims.clone()).unwrap_or_default();
        if is_same && before == claims {
            return;
        }
        // Another node with its key: nothing is known of it.
        if !is_same {
            self.forget(&peer);
        }
        for claim in &before {
            self.unclaim(&claim.prefix, &peer);
        }
        for claim in &claims {
            self.claimed.entry(claim.prefix).or_default().insert(peer);
            self.choices.entry(claim.prefix).or_default();
        }
        let changed: BTreeSet<IpNet> = before.iter().chain(&claims).map(|claim| claim.prefix).collect();
        match claims.is_empty() {
            true => self.forget(&peer),
            false => {
                let claimant = self.claimants.entry(peer).or_insert_with(|| Claimant::new(node));
                claimant.claims = claims;
            }
        }
        let is_touched = |prefix: &&IpNet| changed.iter().any(|changed| changed.contains(*prefix));
        let touched: Vec<IpNet> = self.choices.keys().filter(is_touched).copied().collect();
        for prefix in touched {
            self.settle(prefix, now);
        }
    }

    /// Who holds what is claimed exclusively, in place of all that was said before: nobody else serves it, whatever its pulse.
    pub fn handle_holders(&mut self, holders: BTreeMap<IpNet, NodeId>, now: BootTime) {
        if holders == self.holders {
            return;
        }
        let before = std::mem::replace(&mut self.holders, holders);
        let prefixes = before.keys().chain(self.holders.keys());
        let is_moved = |prefix: &&IpNet| before.get(*prefix) != self.holders.get(*prefix);
        let moved: BTreeSet<IpNet> = prefixes.filter(is_moved).copied().collect();
        let is_touched = |prefix: &&IpNet| moved.iter().any(|moved| moved.contains(*prefix));
        let touched: Vec<IpNet> = self.claimed.keys().filter(is_touched).copied().collect();
        for prefix in touched {
            self.choices.entry(prefix).or_default();
            self.settle(prefix, now);
        }
    }

    /// Whether somebody claims exactly this exclusively.
    pub fn is_exclusive(&self, prefix: &IpNet) -> bool {
        let claims = self.claimed.get(prefix).into_iter().flatten();
        let claims = claims.filter_map(|peer| self.claimants.get(peer)?.candidate(prefix));
        claims.into_iter().any(|candidate| candidate.claim.exclusive)
    }

    /// Whether it may serve exactly this.
    fn may_serve(&self, prefix: &IpNet, candidate: &Candidate) -> bool {
        candidate.claim.exclusive && self.holders.get(prefix) == Some(&candidate.node)
    }

    fn unclaim(&mut self, prefix: &IpNet, peer: &PublicKey) {
        if let Some(claimants) = self.claimed.get_mut(prefix) {
            claimants.remove(peer);
            if claimants.is_empty() {
                self.claimed.remove(prefix);
            }
        }
    }

    fn forget(&mut self, peer: &PublicKey) {
        self.engaged.remove(peer);
        let Some(claimant) = self.claimants.remove(peer) else { return };
        if claimant.pulse.need() != Need::None {
            self.outputs.push_back(Output::Keep { peer: *peer, kept: false });
        }
        if claimant.watched.is_some() {
            self.outputs.push_back(Output::Watch { peer: *peer, silence: None });
        }
    }

    /// Everybody who may serve a prefix, the best first.
    pub(super) fn ordered(&self, prefix: &IpNet) -> Vec<(PublicKey, Candidate)> {
        let mut candidates: Vec<(PublicKey, Candidate)> = Vec::new();
        let mut around = Some(*prefix);
        while let Some(prefix) = around {
            let is_exclusive = self.is_exclusive(&prefix);
            let known: BTreeSet<PublicKey> = candidates.iter().map(|(known, _)| *known).collect();
            let peers = self.claimed.get(&prefix).into_iter().flatten().filter(|peer| !known.contains(peer));
            let candidate = |peer: &PublicKey| Some((*peer, self.claimants.get(peer)?.candidate(&prefix)?));
            let possible = peers
                .filter_map(candidate)
                .filter(|(_, candidate)| !is_exclusive || self.may_serve(&prefix, candidate));
            let mut of_prefix: Vec<(PublicKey, Candidate)> = possible.collect();
            of_prefix.sort_by_key(|(_, candidate)| {
                (Reverse((candidate.claim.priority, candidate.claim.preempt)), candidate.node)
            });
            of_prefix.truncate(MAX_CANDIDATES - candidates.len());
            candidates.append(&mut of_prefix);
            // Nobody stands in for a holder.
            around = prefix.supernet().filter(|_| !is_exclusive);
        }
        let plain: Vec<Candidate> = candidates.iter().map(|(_, candidate)| *candidate).collect();
        rank::order(&plain, self.client).into_iter().map(|place| candidates[place]).collect()
    }
}
