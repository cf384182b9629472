//! Who uses what this node serves. Each probe says what its sender uses of the one it asks, every few seconds; who has not repeated it for [`USE_LASTS`] uses nothing any more.
//!
//! Whoever says so is waited for when this node goes, and told again what it withdraws: what it answers to hosts behind this node comes here, too. But a member may say what it likes, and programs start and stop by the
//! number of users. So only who may open something counts: for claims that the rules let it reach, as far as it uses them or a part of them. Rules that changed are looked at with its next word, and however often a
//! peer says something else, it is judged once in [`JUDGED_FOR`].
//!
//! The number of users of each claim is told when it changes: programs may wait for the first and the last.

use super::Agent;
use crate::{
    io::{Notice, Output},
    time::BootTime,
};
use ipnet::IpNet;
use proto::{key::PublicKey, peer_message::Uses};
use std::{collections::BTreeMap, time::Duration};

/// Three checks, and a little.
const USE_LASTS: Duration = Duration::from_secs(7);
/// To look through thousands of rules takes its time.
const JUDGED_FOR: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct User {
    said_at: BootTime,
    uses: Uses,
    /// What it uses is of these claims of ours.
    claims: Vec<IpNet>,
    /// And counts for these.
    counts: Vec<IpNet>,
    judged: Judged,
    /// It said something else since, too soon to be judged again.
    is_behind: bool,
}

/// What a user was judged by, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Judged {
    at: BootTime,
    state: u64,
    sources: Vec<IpNet>,
}

impl User {
    fn is_one(&self, now: BootTime) -> bool {
        self.uses.is_any() && now < self.said_at + USE_LASTS
    }

    fn look_at(&self) -> BootTime {
        let over = self.said_at + USE_LASTS;
        if self.is_behind { over.min(self.judged.at + JUDGED_FOR) } else { over }
    }
}

/// Those who use this node.
#[derive(Debug, Default)]
pub(super) struct Users {
    users: BTreeMap<PublicKey, User>,
    /// There is nothing to do before this.
    look_at: Option<BootTime>,
    /// As last told; none of them zero.
    told: BTreeMap<IpNet, u64>,
    /// Counts the changes of rules and own claims.
    state: u64,
}

impl Users {
    /// Rules or our claims may have changed.
    pub(super) fn judge_anew(&mut self) {
        self.state += 1;
    }

    fn expire(&mut self, now: BootTime) {
        self.users.retain(|_, user| now < user.said_at + USE_LASTS);
        self.look_at = self.users.values().map(User::look_at).min();
    }

    fn look_no_later(&mut self, at: BootTime) {
        self.look_at = Some(self.look_at.map_or(at, |look_at| look_at.min(at)));
    }

    pub(super) fn deadline(&self) -> Option<BootTime> {
        self.look_at
    }

    /// Those who say that they are, whether they count or not.
    pub(super) fn count(&self, now: BootTime) -> usize {
        self.now(now).count()
    }

    /// Those who count.
    pub(super) fn counted(&self, now: BootTime) -> usize {
        self.users.values().filter(|user| user.is_one(now) && !user.counts.is_empty()).count()
    }

    /// Of this claim.
    pub(super) fn count_of(&self, prefix: &IpNet) -> u64 {
        self.users.values().filter(|user| user.counts.contains(prefix)).count() as u64
    }

    pub(super) fn now(&self, now: BootTime) -> impl Iterator<Item = PublicKey> {
        self.users.iter().filter(move |(_, user)| user.is_one(now)).map(|(peer, _)| *peer)
    }

    /// Those who use one of these claims.
    pub(super) fn of(
        &self,
        is_one: impl Fn(&IpNet) -> bool,
        now: BootTime,
    ) -> impl Iterator<Item = PublicKey> {
        let users = self.users.iter().filter(move |(_, user)| user.is_one(now));
        users.filter(move |(_, user)| user.claims.iter().any(&is_one)).map(|(peer, _)| *peer)
    }

    /// Those who say that they use one of these prefixes, claimed or not, or do not say what they use.
    pub(super) fn naming(
        &self,
        is_one: impl Fn(&IpNet) -> bool,
        now: BootTime,
    ) -> impl Iterator<Item = PublicKey> {
        let names = move |uses: &Uses| match uses {
            Uses::None => false,
            Uses::These(these) => these.iter().any(&is_one),
            Uses::Some => true,
        };
        let users = self.users.iter().filter(move |(_, user)| user.is_one(now) && names(&user.uses));
        users.map(|(peer, _)| *peer)
    }

    pub(super) fn len(&self) -> usize {
        self.users.len() + self.told.len()
    }
}

impl Agent {
    /// A peer said what it uses of what we serve.
    pub(super) fn on_use_told(&mut self, peer: PublicKey, uses: Uses) {
        let (now, state, sources) = (self.now, self.users.state, self.sources_of(&peer));
        match self.users.users.get_mut(&peer) {
            None if !uses.is_any() => {}
            None => {
                let judged = Judged { at: now, state, sources };
                let (claims, counts) = (Vec::new(), Vec::new());
                let user = User { said_at: now, uses, claims, counts, judged, is_behind: true };
                self.users.users.insert(peer, user);
                self.users.look_no_later(now + USE_LASTS);
                self.judge(&peer);
            }
            Some(user)
                if user.uses == uses && user.judged.state == state && user.judged.sources == sources =>
            {
                user.said_at = now;
            }
            Some(user) => {
                let is_outdated = user.judged.state != state || user.judged.sources != sources;
                (user.said_at, user.uses) = (now, uses);
                self.on_use_changed(&peer, is_outdated);
            }
        }
        self.on_users_counted();
    }

    /// It uses something else, or what it was judged by is outdated.
    fn on_use_changed(&mut self, peer: &PublicKey, is_outdated: bool) {
        let claims = self.claims_used(peer);
        let Some(user) = self.users.users.get_mut(peer) else { return };
        let counted = user.counts.len();
        user.counts.retain(|claim| claims.contains(claim));
        let counts_less = user.counts.len() < counted;
        user.is_behind = is_outdated || user.counts != claims;
        user.claims = claims;
        let again_at = user.judged.at + JUDGED_FOR;
        match (user.is_behind, self.now < again_at) {
            (true, false) => self.judge(peer),
            (true, true) => self.users.look_no_later(again_at),
            (false, _) => {}
        }
        if counts_less {
            self.tell_users();
        }
    }

    /// What a peer uses is of the longest served claim around it.
    fn claims_used(&self, peer: &PublicKey) -> Vec<IpNet> {
        let Some(user) = self.users.users.get(peer) else { return Vec::new() };
        let served = &self.serving;
        let claim_of = |used: &IpNet| {
            served.iter().filter(|claim| claim.contains(used)).max_by_key(|claim| claim.prefix_len())
        };
        let mut used: Vec<IpNet> = match &user.uses {
            Uses::None => Vec::new(),
            Uses::These(these) => these.iter().filter_map(claim_of).copied().collect(),
            Uses::Some => served.clone(),
        };
        used.sort_unstable();
        used.dedup();
        used
    }

    fn judge(&mut self, peer: &PublicKey) {
        let (state, sources, claims) = (self.users.state, self.sources_of(peer), self.claims_used(peer));
        let reached = claims.iter().filter(|claim| self.rules_let_reach(&sources, claim));
        let counts = reached.copied().collect();
        if let Some(user) = self.users.users.get_mut(peer) {
            (user.claims, user.counts, user.is_behind) = (claims, counts, false);
            user.judged = Judged { at: self.now, state, sources };
        }
        self.tell_users();
    }

    pub(super) fn forget_user(&mut self, peer: &PublicKey) {
        if self.users.users.remove(peer).is_some() {
            self.tell_users();
        }
    }

    pub(super) fn look_at_users(&mut self) {
        if self.users.look_at.is_none_or(|at| self.now < at) {
            return;
        }
        let is_due = |user: &User| user.is_behind && self.now >= user.judged.at + JUDGED_FOR;
        let due = self.users.users.iter().filter(|(_, user)| is_due(user)).map(|(peer, _)| *peer);
        for peer in due.collect::<Vec<_>>() {
            self.judge(&peer);
        }
        self.users.expire(self.now);
        self.tell_users();
    }

    /// Tells where the number of users is another than before. What is not served has none.
    pub(super) fn tell_users(&mut self) {
        let counts = self.serving.iter().map(|prefix| (*prefix, self.users.count_of(prefix)));
        let counts: BTreeMap<IpNet, u64> = counts.filter(|(_, users)| *users > 0).collect();
        let before = std::mem::replace(&mut self.users.told, counts);
        let told = &self.users.told;
        let gone = before.keys().filter(|prefix| !told.contains_key(*prefix)).map(|prefix| (*prefix, 0));
        let changed = told.iter().filter(|(prefix, users)| before.get(*prefix) != Some(*users));
        let changed = gone.chain(changed.map(|(prefix, users)| (*prefix, *users)));
        let notices = changed.map(|(prefix, users)| Output::Notice(Notice::Users { prefix, users }));
        self.outputs.extend(notices);
    }
}
