//! One that claims prefixes, as this client knows it: what it claims, what it tells of itself, and whether it failed.

use super::{ClaimsConfig, choice::Standing, pulse::Pulse, rank::Candidate, since::Since};
use crate::time::BootTime;
use ipnet::IpNet;
use proto::{claim::Claim, peer_message::Apart, statement::NodeId};
use std::{collections::BTreeMap, time::Duration};

/// An uptime that is shorter by so much than what was told before is another one, and no answer that took long.
const RESTORED: Duration = Duration::from_secs(10);

/// What a claimant says of itself in its answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// Its start number: another one means that it restarted.
    pub boot: u64,
    pub uptime: Duration,
    /// It is about to go.
    pub is_leaving: bool,
    /// It does not serve what it claims now; its uptime begins anew when it does again.
    pub is_withdrawn: bool,
    /// Claims that stand otherwise than that.
    pub apart: Vec<Apart>,
    /// All that it claims, if it says so.
    pub claims: Option<Vec<IpNet>>,
}

#[derive(Debug, Clone)]
pub(super) struct Claimant {
    pub(super) node: NodeId,
    pub(super) claims: Vec<Claim>,
    pub(super) boot: Option<u64>,
    pub(super) up_since: Option<Since>,
    pub(super) is_leaving: bool,
    pub(super) is_withdrawn: bool,
    /// Claims that stand otherwise: since when they are served again; `None`: they are withdrawn.
    apart: BTreeMap<IpNet, Option<Since>>,
    pub(super) has_failed: bool,
    pub(super) pulse: Pulse,
    /// As last asked of the data plane.
    pub(super) watched: Option<Duration>,
}

impl Claimant {
    pub(super) fn new(node: NodeId) -> Self {
        Self {
            node,
            claims: Vec::new(),
            boot: None,
            up_since: None,
            is_leaving: false,
            is_withdrawn: false,
            apart: BTreeMap::new(),
            has_failed: false,
            pulse: Pulse::default(),
            watched: None,
        }
    }

    pub(super) fn on_told(&mut self, told: &Told, now: BootTime) {
        if self.boot.is_some_and(|boot| boot != told.boot) {
            self.has_failed = true;
            self.up_since = None;
            self.apart.clear();
        }
        self.boot = Some(told.boot);
        // The first word counts: the delay of later ones differs. But one that was withdrawn and restored is up since then, also for those who missed it.
        let up_since = Since::told(told.uptime, now);
        let is_restored = self.is_withdrawn && !told.is_withdrawn;
        if is_restored || self.up_since.is_some_and(|known| up_since.is_later_than(known, RESTORED)) {
            (self.up_since, self.has_failed) = (None, true);
        }
        self.up_since.get_or_insert(up_since);
        self.is_withdrawn = told.is_withdrawn;
        let apart = told.apart.iter().map(|apart| (apart.prefix, self.restored_at(apart, now)));
        self.apart = apart.collect();
        if let Some(listed) = &told.claims {
            // The map may be older than its word.
            let gone = self.claims.iter().map(|claim| claim.prefix).filter(|claim| !listed.contains(claim));
            self.apart.extend(gone.map(|claim| (claim, None)));
        }
        self.has_failed |= told.is_withdrawn;
        match told.is_leaving {
            true => self.leave(),
            false => self.is_leaving = false,
        }
    }

    /// Here, too, the first word counts.
    fn restored_at(&self, apart: &Apart, now: BootTime) -> Option<Since> {
        let since = Since::told(apart.uptime?, now);
        let known = self.apart.get(&apart.prefix).copied().flatten();
        Some(known.filter(|known| !since.is_later_than(*known, RESTORED)).unwrap_or(since))
    }

    /// What it says that it does not serve: everything, or these claims.
    pub(super) fn withdrawn(&self) -> (bool, Vec<IpNet>) {
        let apart = self.apart.iter().filter(|(_, since)| since.is_none());
        (self.is_withdrawn, apart.map(|(prefix, _)| *prefix).collect())
    }

    fn has_withdrawn(&self, claim: &IpNet) -> bool {
        self.is_withdrawn || self.apart.get(claim).is_some_and(Option::is_none)
    }

    /// It serves this, or would: by the longest of its claims that cover it.
    pub(super) fn stays_for(&self, prefix: &IpNet) -> bool {
        let around = self.claims.iter().map(|claim| claim.prefix).filter(|claim| claim.contains(prefix));
        let claim = around.max_by_key(IpNet::prefix_len);
        self.stays() && claim.is_none_or(|claim| !self.has_withdrawn(&claim))
    }

    /// It serves, or would, if not every claim of its.
    pub(super) fn stays(&self) -> bool {
        !self.is_leaving && !self.is_withdrawn
    }

    pub(super) fn leave(&mut self) {
        (self.is_leaving, self.has_failed) = (true, true);
    }

    pub(super) fn on_time(&mut self, config: &ClaimsConfig, now: BootTime) {
        self.has_failed |= self.pulse.is_dead();
        let healthy_since = self.pulse.healthy_since();
        let up_at = |since: Since| since.after(Duration::ZERO);
        let there_since = healthy_since.map(|since| since.max(self.up_since.map_or(since, up_at)));
        if self.stays() && there_since.is_some_and(|since| now >= since + config.return_hold) {
            self.has_failed = false;
        }
    }

    /// All that a decision depends on.
    pub(super) fn standing(&self) -> impl PartialEq + use<> {
        let pulse = &self.pulse;
        let health = (pulse.is_dead(), pulse.doubted_since(), pulse.healthy_since(), pulse.proven_at());
        (health, self.up_since, self.is_leaving, self.is_withdrawn, self.apart.clone(), self.has_failed)
    }

    pub(super) fn standing_as(
        &self,
        candidate: Candidate,
        config: &ClaimsConfig,
        now: BootTime,
    ) -> Standing<'_> {
        let prefix = &candidate.claim.prefix;
        let is_withdrawn = self.has_withdrawn(prefix);
        let restored_at = self.apart.get(prefix).copied().flatten();
        let is_newcomer = restored_at.is_some_and(|since| now < since.after(config.return_hold));
        Standing {
            candidate,
            pulse: &self.pulse,
            is_leaving: self.is_leaving,
            is_withdrawn,
            has_failed: self.has_failed || is_withdrawn || is_newcomer,
        }
    }

    pub(super) fn candidate(&self, prefix: &IpNet) -> Option<Candidate> {
        let claim = *self.claims.iter().find(|claim| claim.prefix == *prefix)?;
        // What was restored apart is up since then.
        let restored_at = self.apart.get(prefix).copied().flatten();
        Some(Candidate { node: self.node, claim, up_since: self.up_since.max(restored_at) })
    }
}
