//! Own claims that are not served for now: all of them while a check fails, single ones that the machine cannot serve or that were taken back. The node stays, keeps its addresses and answers who
//! still comes, but says that it does not serve.
//!
//! It is told inside the tunnels, with no server: to everybody at once, to those who use what is withdrawn until they have moved, and with each answer to a probe. So who missed a word hears the
//! next. What is restored counts as if it had just started: nobody comes back for that alone. Servers are told where claims are exclusive, as only they can let another hold them.

use super::Agent;
use crate::time::BootTime;
use ipnet::IpNet;
use proto::{
    claim::{Claim, MAX_CLAIMS},
    key::PublicKey,
    peer_message::{Apart, Body, MAX_APART, ProbeReply},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// A datagram may be lost.
const REPEAT_INTERVAL: Duration = Duration::from_millis(300);
/// After that they hear it with the answers to their probes only.
const REPEAT_TIME: Duration = Duration::from_secs(3);

/// What is not served, why, and until when it is repeated.
#[derive(Debug, Default)]
pub(super) struct Withdrawn {
    /// Why nothing is.
    all: Option<String>,
    /// What the machine cannot serve, and why: claims, or addresses within them.
    unserved: BTreeMap<IpNet, String>,
    /// Own claims that follow from that.
    claims: BTreeSet<IpNet>,
    /// Single claims that are served again, or claimed since this node serves, and since when.
    restored: BTreeMap<IpNet, BootTime>,
    /// Claimed by this process before, and perhaps still for those whom servers have not told.
    taken_back: BTreeSet<IpNet>,
    /// Next, and for the last time.
    repeat: Option<(BootTime, BootTime)>,
}

impl Withdrawn {
    fn has(&self, prefix: &IpNet) -> bool {
        self.all.is_some() || self.claims.contains(prefix)
    }

    fn on_taken_back(&mut self, former: Vec<IpNet>) {
        self.taken_back.extend(former);
        while self.taken_back.len() > MAX_CLAIMS {
            self.taken_back.pop_first();
        }
    }
}

impl Agent {
    /// All own claims are withdrawn for a reason that people understand, or no longer (`None`). The driver says so again to a new agent.
    pub fn set_withdrawn(&mut self, reason: Option<String>, now: BootTime) {
        self.advance(now);
        self.change_withdrawn(|withdrawn| withdrawn.all = reason);
    }

    /// What the machine cannot serve, with the reasons, in place of what was said before: these claims are withdrawn, and those around an address that is no claim. The driver says so again to a
    /// new agent.
    pub fn set_unserved(&mut self, unserved: BTreeMap<IpNet, String>, now: BootTime) {
        self.advance(now);
        self.change_withdrawn(|withdrawn| withdrawn.unserved = unserved);
    }

    /// Whether all are.
    pub fn is_withdrawn(&self) -> bool {
        self.withdrawn.all.is_some()
    }

    /// Whether this claim is.
    pub(super) fn has_withdrawn(&self, claim: &Claim) -> bool {
        self.withdrawn.has(&claim.prefix)
    }

    /// Why a claim is withdrawn, for people.
    pub(super) fn withdrawal(&self, claim: &Claim) -> Option<String> {
        let reasons: Vec<&str> =
            self.unserved(&claim.prefix).into_iter().chain(self.withdrawn.all.as_deref()).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    fn unserved(&self, claim: &IpNet) -> Option<&str> {
        let unserved = &self.withdrawn.unserved;
        let is_claim = |prefix: &IpNet| self.config.facts.claims.iter().any(|claim| claim.prefix == *prefix);
        // Somebody else's, in whose place this claim has the node stand.
        let mut within = unserved.iter().filter(|(prefix, _)| claim.contains(*prefix) && !is_claim(prefix));
        unserved.get(claim).or_else(|| within.next().map(|(_, reason)| reason)).map(String::as_str)
    }

    /// Own claims are others than before. What is claimed only now counts as if this node had just started: nobody who is served by another moves for it.
    pub(super) fn on_claims_changed(&mut self, before: &[Claim]) {
        let now = self.now;
        let prefixes =
            |claims: &[Claim]| claims.iter().map(|claim| claim.prefix).collect::<BTreeSet<IpNet>>();
        let (before, claims) = (prefixes(before), prefixes(&self.config.facts.claims));
        let former: Vec<IpNet> = before.difference(&claims).copied().collect();
        let new: Vec<IpNet> = claims.difference(&before).copied().collect();
        if before.is_empty() && !new.is_empty() {
            self.serving_since = now;
        }
        let is_taken_back = !former.is_empty();
        let withdrawn = &mut self.withdrawn;
        withdrawn.on_taken_back(former);
        withdrawn.taken_back.retain(|prefix| !claims.contains(prefix));
        withdrawn.restored.retain(|prefix, _| claims.contains(prefix));
        if !before.is_empty() {
            withdrawn.restored.extend(new.iter().map(|prefix| (*prefix, now)));
        }
        self.change_withdrawn(|_| {});
        if is_taken_back {
            self.withdrawn.repeat = Some((now + REPEAT_INTERVAL, now + REPEAT_TIME));
        }
        if is_taken_back || !new.is_empty() {
            self.tell_connected();
        }
    }

    fn change_withdrawn(&mut self, change: impl FnOnce(&mut Withdrawn)) {
        let was_all = self.withdrawn.all.is_some();
        change(&mut self.withdrawn);
        let own: BTreeSet<IpNet> = self.config.facts.claims.iter().map(|claim| claim.prefix).collect();
        let claims: BTreeSet<IpNet> =
            own.iter().filter(|prefix| self.unserved(prefix).is_some()).copied().collect();
        let withdrawn = &mut self.withdrawn;
        let before = std::mem::replace(&mut withdrawn.claims, claims);
        let is_all = withdrawn.all.is_some();
        if (was_all, &before) == (is_all, &withdrawn.claims) {
            return;
        }
        let again = before.difference(&withdrawn.claims).filter(|prefix| own.contains(*prefix));
        let again = again.map(|prefix| (*prefix, self.now));
        withdrawn.restored.extend(again);
        withdrawn.restored.retain(|prefix, _| !withdrawn.claims.contains(prefix));
        if was_all && !is_all {
            self.serving_since = self.now;
            withdrawn.restored.clear();
        }
        let is_more = (is_all && !was_all) || !withdrawn.claims.is_subset(&before);
        if is_more {
            withdrawn.repeat = Some((self.now + REPEAT_INTERVAL, self.now + REPEAT_TIME));
        } else if !is_all && withdrawn.claims.is_empty() {
            withdrawn.repeat = None;
        }
        if self.config.facts.claims.iter().any(|claim| claim.exclusive) {
            self.tell_facts();
        }
        self.tell_connected();
    }

    fn tell_connected(&mut self) {
        self.restore_all_where_crowded();
        let connected: Vec<PublicKey> =
            self.peers.iter().filter(|(_, peer)| peer.is_connected()).map(|(key, _)| *key).collect();
        for peer in connected {
            self.tell_standing(peer);
        }
    }

    /// How we stand, as every answer says.
    pub(super) fn reply(&self, id: u64) -> Body {
        let Withdrawn { all, claims, restored, taken_back, .. } = &self.withdrawn;
        let own = &self.config.facts.claims;
        let is_gone = own.is_empty() && !taken_back.is_empty();
        let is_withdrawn = all.is_some() || is_gone || claims.len() > MAX_APART;
        let uptime = self.now.since(self.serving_since);
        let mut apart = Vec::new();
        if !is_withdrawn {
            apart.extend(claims.iter().map(|prefix| Apart { prefix: *prefix, uptime: None }));
            let restored = restored.iter().map(|(prefix, since)| (*prefix, Some(self.now.since(*since))));
            apart.extend(restored.map(|(prefix, uptime)| Apart { prefix, uptime }));
            let former = taken_back.iter().map(|prefix| Apart { prefix: *prefix, uptime: None });
            apart.extend(former.take(MAX_APART.saturating_sub(apart.len())));
        }
        // A process that knows of no former claims, and a client whose map does, are told so.
        let is_listed = ProbeReply::can_list(own.len(), apart.len());
        let claims = is_listed.then(|| own.iter().map(|claim| claim.prefix).collect());
        Body::ProbeReply(ProbeReply { id, uptime, is_leaving: self.draining, is_withdrawn, apart, claims })
    }

    /// Where answers have no room for all that was restored apart, the whole node counts as new as the newest, from then on and for every client.
    fn restore_all_where_crowded(&mut self) {
        let Withdrawn { claims, restored, .. } = &mut self.withdrawn;
        if claims.len() <= MAX_APART && claims.len() + restored.len() > MAX_APART {
            let newest = restored.values().max().copied();
            restored.clear();
            self.serving_since = self.serving_since.max(newest.unwrap_or_default());
        }
    }

    /// A peer with a new tunnel hears how one that serves stands: it may know us as gone, or not yet as going.
    pub(super) fn tell_standing(&mut self, peer: PublicKey) {
        if !self.serving.is_empty() || !self.withdrawn.taken_back.is_empty() {
            // As the answer to no question.
            self.send_to_peer(peer, self.reply(0), None);
            self.tell_held(peer);
        }
    }

    pub(super) fn withdrawing_deadline(&self) -> Option<BootTime> {
        self.withdrawn.repeat.map(|(next, _)| next)
    }

    pub(super) fn repeat_withdrawal(&mut self) {
        let Some((next, last)) = self.withdrawn.repeat else { return };
        if self.now < next {
            return;
        }
        let (has, had) = (
            |claim: &IpNet| self.withdrawn.has(claim),
            |used: &IpNet| self.withdrawn.taken_back.iter().any(|former| former.contains(used)),
        );
        let users: BTreeSet<PublicKey> =
            self.users.of(has, self.now).chain(self.users.naming(had, self.now)).collect();
        let is_due = !users.is_empty() && self.now < last;
        self.withdrawn.repeat = is_due.then(|| (self.now + REPEAT_INTERVAL, last));
        for peer in users {
            self.tell_standing(peer);
        }
    }
}
