//! Who uses what this node serves. Each probe says what its sender uses of the one it asks, every few seconds; who has not repeated it for [`USE_LASTS`] uses nothing any more.
//!
//! A member may say what it likes. So only who may open something counts: for claims that the rules let it reach, as far as it uses them or a part of them. Rules that changed are looked at with its next word.
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

#[derive(Debug)]
struct User {
    said_at: BootTime,
    uses: Uses,
    /// The claims of ours that it counts for.
    counts: Vec<IpNet>,
    /// By which state of rules and claims.
    judged_by: u64,
}

impl User {
    fn is_one(&self, now: BootTime) -> bool {
        !self.counts.is_empty() && now < self.said_at + USE_LASTS
    }
}

/// Those who use this node.
#[derive(Debug, Default)]
pub(super) struct Users {
    users: BTreeMap<PublicKey, User>,
    /// Nobody's word is over before this.
    look_at: Option<BootTime>,
    /// As last told; none of them zero.
    told: BTreeMap<IpNet, u64>,
    /// Counts the changes of what users are judged by.
    state: u64,
}

impl Users {
    /// Rules, our claims, or what a peer may send from, may have changed.
    pub(super) fn judge_anew(&mut self) {
        self.state += 1;
    }

    fn expire(&mut self, now: BootTime) {
        self.users.retain(|_, user| now < user.said_at + USE_LASTS);
        self.look_at = self.users.values().map(|user| user.said_at + USE_LASTS).min();
    }

    pub(super) fn deadline(&self) -> Option<BootTime> {
        self.look_at
    }

    pub(super) fn count(&self, now: BootTime) -> usize {
        self.now(now).count()
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
        users.filter(move |(_, user)| user.counts.iter().any(&is_one)).map(|(peer, _)| *peer)
    }

    pub(super) fn len(&self) -> usize {
        self.users.len() + self.told.len()
    }
}

impl Agent {
    /// A peer said what it uses of what we serve.
    pub(super) fn on_use_told(&mut self, peer: PublicKey, uses: Uses) {
        let state = self.users.state;
        let known = self.users.users.get_mut(&peer);
        if !uses.is_any() {
            self.forget_user(&peer);
        } else if let Some(user) = known.filter(|user| user.uses == uses && user.judged_by == state) {
            user.said_at = self.now;
        } else {
            let counts = self.counts(&peer, &uses);
            self.users.users.insert(peer, User { said_at: self.now, uses, counts, judged_by: state });
            self.users.look_at.get_or_insert(self.now + USE_LASTS);
            self.tell_users();
        }
        self.on_users_counted();
    }

    /// What is used counts for the longest claim around it.
    fn counts(&self, peer: &PublicKey, uses: &Uses) -> Vec<IpNet> {
        let claims = || self.config.facts.claims.iter().map(|claim| claim.prefix);
        let claim_of =
            |used: &IpNet| claims().filter(|claim| claim.contains(used)).max_by_key(IpNet::prefix_len);
        let mut used: Vec<IpNet> = match uses {
            Uses::None => Vec::new(),
            Uses::These(these) => these.iter().filter_map(claim_of).collect(),
            Uses::Some => claims().collect(),
        };
        used.sort_unstable();
        used.dedup();
        let sources = self.sources_of(peer);
        used.retain(|claim| self.rules_let_reach(&sources, claim));
        used
    }

    pub(super) fn forget_user(&mut self, peer: &PublicKey) {
        if self.users.users.remove(peer).is_some() {
            self.tell_users();
        }
    }

    pub(super) fn look_at_users(&mut self) {
        if self.users.look_at.is_some_and(|at| self.now >= at) {
            self.users.expire(self.now);
            self.tell_users();
        }
    }

    /// Tells where the number of users is another than before. What is not served has none.
    pub(super) fn tell_users(&mut self) {
        let served = self.served();
        let counts = served.iter().map(|prefix| (*prefix, self.users.count_of(prefix)));
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
