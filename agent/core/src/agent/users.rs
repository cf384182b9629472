//! Who uses what this node serves. Each probe says what its sender uses of the one it asks, every few seconds; who has not repeated it for [`USE_LASTS`] uses nothing any more.
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
}

/// Those who use this node.
#[derive(Debug, Default)]
pub(super) struct Users {
    users: BTreeMap<PublicKey, User>,
    /// Nobody's word is over before this.
    look_at: Option<BootTime>,
    /// As last told; none of them zero.
    told: BTreeMap<IpNet, u64>,
}

impl Users {
    fn set(&mut self, peer: PublicKey, uses: Uses, now: BootTime) {
        match uses.is_any() {
            true => {
                self.look_at.get_or_insert(now + USE_LASTS);
                self.users.insert(peer, User { said_at: now, uses });
            }
            false => drop(self.users.remove(&peer)),
        }
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
        self.users.values().filter(|user| user.uses.includes(prefix)).count() as u64
    }

    pub(super) fn now(&self, now: BootTime) -> impl Iterator<Item = PublicKey> {
        self.users.iter().filter(move |(_, user)| now < user.said_at + USE_LASTS).map(|(peer, _)| *peer)
    }

    pub(super) fn len(&self) -> usize {
        self.users.len() + self.told.len()
    }
}

impl Agent {
    /// A peer said what it uses of what we serve.
    pub(super) fn on_use_told(&mut self, peer: PublicKey, uses: Uses) {
        let is_news = self.users.users.get(&peer).map_or(uses.is_any(), |known| known.uses != uses);
        self.users.set(peer, uses, self.now);
        if is_news {
            self.tell_users();
        }
        self.on_users_counted();
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
