//! The removals that were proven, whoever told them: servers in maps and refusals, peers inside tunnels. They are kept beside the map, so that no older map
//! brings back who was removed. One is forgotten when every certificate of its key has ended; beyond a bound the oldest goes first.

use proto::{
    key::PublicKey,
    statement::{Membership, Removal, Statement},
    time::UnixTime,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// A quarter of a thousand bytes each.
const LIMIT: usize = 4096;
/// So many of the newest are compared with others.
const WINDOW: usize = 64;
/// Clocks differ: a removal is kept for longer than what it ends.
const KEPT_LONGER: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Clone)]
struct Known {
    removal: Removal,
    /// As it was told, an encoded `Signed`.
    signed: Vec<u8>,
}

/// The removals by key: the newest of each.
#[derive(Debug, Clone, Default)]
pub struct Removals {
    known: BTreeMap<PublicKey, Known>,
    /// All of them, the oldest first.
    by_age: BTreeSet<(UnixTime, PublicKey)>,
}

/// Whether every certificate of the key that this removes has ended.
fn has_ended(removal: &Removal, time: UnixTime) -> bool {
    removal.until.is_some_and(|until| until.saturating_add(KEPT_LONGER) <= time)
}

/// The same of an encoded `Signed`, which was not verified.
pub(crate) fn is_over(signed: &[u8], time: UnixTime) -> bool {
    matches!(Statement::trust(signed), Ok((_, Statement::Removal(removal))) if has_ended(&removal, time))
}

impl Removals {
    /// Takes a removal whose signature was checked; `false` if it is no news.
    pub fn add(&mut self, removal: Removal, signed: &[u8]) -> bool {
        let known = self.known.get(&removal.node_key).map(|known| known.removal);
        if known.is_some_and(|known| known.removed_at >= removal.removed_at) {
            return false;
        }
        if let Some(older) = known {
            self.by_age.remove(&(older.removed_at, older.node_key));
        } else if self.known.len() >= LIMIT {
            match self.by_age.first().copied() {
                Some((at, _)) if at >= removal.removed_at => return false,
                Some((_, key)) => {
                    self.by_age.pop_first();
                    self.known.remove(&key);
                }
                None => {}
            }
        }
        self.by_age.insert((removal.removed_at, removal.node_key));
        self.known.insert(removal.node_key, Known { removal, signed: signed.to_vec() });
        true
    }

    /// The same removal under a newer root: from now on it is told so.
    pub fn sign_anew(&mut self, removal: Removal, signed: &[u8]) {
        if let Some(known) = self.known.get_mut(&removal.node_key).filter(|known| known.removal == removal) {
            known.signed = signed.to_vec();
        }
    }

    /// Whether these very bytes are known: then nothing has to be verified.
    pub fn holds(&self, signed: &[u8]) -> bool {
        match Statement::trust(signed) {
            Ok((_, Statement::Removal(removal))) => {
                self.known.get(&removal.node_key).is_some_and(|known| known.signed == signed)
            }
            Ok(_) | Err(_) => false,
        }
    }

    /// Whether it says nothing that is not known, whoever signed it: then nobody needs to verify it.
    pub fn cover(&self, signed: &[u8]) -> bool {
        match Statement::trust(signed) {
            Ok((_, Statement::Removal(told))) => {
                let known = self.known.get(&told.node_key);
                known.is_some_and(|known| known.removal.removed_at >= told.removed_at)
            }
            Ok(_) | Err(_) => false,
        }
    }

    /// Whether a removal ends this membership.
    pub fn end(&self, membership: &Membership) -> bool {
        self.known.get(&membership.node_key).is_some_and(|known| known.removal.ends(membership))
    }

    /// Forgets those whose keys have no certificate any more at this time; whether there were any.
    pub fn forget_ended(&mut self, time: UnixTime) -> bool {
        let before = self.known.len();
        self.known.retain(|_, known| !has_ended(&known.removal, time));
        self.by_age.retain(|(_, key)| self.known.contains_key(key));
        self.known.len() < before
    }

    pub fn signed(&self, key: &PublicKey) -> Option<&[u8]> {
        self.known.get(key).map(|known| known.signed.as_slice())
    }

    pub fn all(&self) -> impl Iterator<Item = &[u8]> {
        self.known.values().map(|known| known.signed.as_slice())
    }

    /// The newest first, as many as others are told at once.
    pub fn newest(&self) -> impl Iterator<Item = (&PublicKey, &[u8])> {
        self.window().filter_map(|key| Some((key, self.signed(key)?)))
    }

    /// When the newest was signed.
    pub fn newest_at(&self) -> Option<UnixTime> {
        self.by_age.last().map(|(at, _)| *at)
    }

    /// What the newest hash to: two that know the same have the same.
    pub fn digest(&self) -> [u8; 32] {
        let each = self.by_age.iter().rev().take(WINDOW);
        let bytes: Vec<u8> = each.flat_map(|(at, key)| key.0.into_iter().chain(at.0.to_le_bytes())).collect();
        proto::checksum(&bytes)
    }

    pub fn len(&self) -> usize {
        self.known.len()
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    fn window(&self) -> impl Iterator<Item = &PublicKey> {
        self.by_age.iter().rev().take(WINDOW).map(|(_, key)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{
        root::RootSecret,
        statement::{NetworkId, NodeId},
    };

    fn removal(node: u16, at: u64, until: Option<u64>) -> Removal {
        let [high, low] = node.to_be_bytes();
        let mut key = [high; 32];
        key[0] = low;
        Removal { node_key: PublicKey(key), removed_at: UnixTime(at), until: until.map(UnixTime) }
    }

    fn membership(removal: &Removal, issued_at: u64) -> Membership {
        Membership {
            node_id: NodeId(1),
            node_key: removal.node_key,
            addresses: Vec::new(),
            claims: Vec::new(),
            issued_at: UnixTime(issued_at),
            not_after: None,
        }
    }

    #[test]
    fn a_removal_ends_what_was_issued_before_it_and_nothing_later() {
        let mut removals = Removals::default();
        let gone = removal(1, 100, None);
        assert!(removals.add(gone, b"x") && !removals.add(gone, b"x"));
        assert!(removals.end(&membership(&gone, 100)) && !removals.end(&membership(&gone, 101)));
        assert!(!removals.end(&membership(&removal(2, 0, None), 1)));
        assert!(!removals.add(removal(1, 99, None), b"older"));
        assert_eq!(removals.signed(&gone.node_key), Some(&b"x"[..]));
    }

    #[test]
    fn one_is_forgotten_when_all_certificates_of_its_key_have_ended() {
        let mut removals = Removals::default();
        removals.add(removal(1, 100, Some(1000)), b"a");
        removals.add(removal(2, 100, None), b"b");
        assert!(!removals.forget_ended(UnixTime(1000)));
        assert!(removals.forget_ended(UnixTime(1000).saturating_add(KEPT_LONGER)));
        assert_eq!((removals.len(), removals.newest().count()), (1, 1));
    }

    #[test]
    fn beyond_the_bound_the_oldest_goes_and_what_is_older_still_is_not_taken() {
        let mut removals = Removals::default();
        let count = u16::try_from(LIMIT).unwrap();
        (0..count).for_each(|node| assert!(removals.add(removal(node, 10 + u64::from(node), None), b"x")));
        assert!(!removals.add(removal(count, 5, None), b"older than all"));
        assert!(removals.add(removal(count, 1_000_000, None), b"new"));
        assert_eq!((removals.len(), removals.newest().count()), (LIMIT, WINDOW));
        assert!(removals.signed(&removal(0, 0, None).node_key).is_none());
        assert_eq!(removals.newest().next().map(|(key, _)| *key), Some(removal(count, 0, None).node_key));
    }

    #[test]
    fn a_newer_removal_of_a_key_takes_the_place_of_the_older() {
        let mut removals = Removals::default();
        for at in [5, 9, 7] {
            removals.add(removal(1, at, Some(at)), b"x");
        }
        removals.add(removal(2, 8, None), b"y");
        let newest: Vec<&[u8]> = removals.newest().map(|(_, signed)| signed).collect();
        assert_eq!((removals.len(), newest), (2, vec![&b"x"[..], b"y"]));
        assert!(removals.forget_ended(UnixTime(9).saturating_add(KEPT_LONGER)));
        assert_eq!((removals.len(), removals.newest_at()), (1, Some(UnixTime(8))));
    }

    #[test]
    fn the_same_removals_hash_to_the_same_in_whatever_order_they_came() {
        let all = [removal(1, 5, None), removal(2, 5, None), removal(3, 9, None)];
        let (mut one, mut other) = (Removals::default(), Removals::default());
        all.iter().for_each(|removal| assert!(one.add(*removal, b"x")));
        assert_ne!(one.digest(), other.digest());
        all.iter().rev().for_each(|removal| assert!(other.add(*removal, b"x")));
        assert_eq!(one.digest(), other.digest());
    }

    #[test]
    fn the_very_bytes_that_are_known_are_recognised() {
        let root = RootSecret::from_seed(&[1; 32]);
        let gone = removal(1, 100, None);
        let signed = Statement::Removal(gone).sign(NetworkId([1; 16]), &root);
        let mut removals = Removals::default();
        assert!(!removals.holds(&signed) && !removals.holds(b"nonsense"));
        removals.add(gone, &signed);
        assert!(removals.holds(&signed));
    }

    #[test]
    fn the_same_removal_under_any_root_and_an_older_one_say_nothing_new() {
        let signed = |at: u64, seed: u8| {
            let by = RootSecret::from_seed(&[seed; 32]);
            Statement::Removal(removal(1, at, None)).sign(NetworkId([1; 16]), &by)
        };
        let mut removals = Removals::default();
        assert!(!removals.cover(&signed(100, 1)) && !removals.cover(b"nonsense"));
        removals.add(removal(1, 100, None), &signed(100, 1));
        assert!(removals.cover(&signed(100, 2)) && removals.cover(&signed(99, 1)));
        assert!(!removals.cover(&signed(101, 1)));
    }
}
