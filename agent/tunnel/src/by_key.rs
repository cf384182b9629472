//! Which peer has a key. The keys stay where the peers are: an entry is a place, not a second copy.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use crate::{PublicKey, peer::PeerId};

/// Whoever asks tells how the key of a place is found; every place in the table has one.
#[derive(Default)]
pub(crate) struct ByKey {
    ids: HashTable<PeerId>,
    /// Of a seed of its own: nobody can choose keys that collide.
    hasher: RandomState,
}

impl ByKey {
    pub(crate) fn find<'a>(
        &self,
        key: &PublicKey,
        key_of: impl Fn(PeerId) -> Option<&'a PublicKey>,
    ) -> Option<PeerId> {
        self.ids.find(self.hasher.hash_one(key), |&id| key_of(id) == Some(key)).copied()
    }

    /// For a key that is not there.
    pub(crate) fn insert<'a>(
        &mut self,
        key: &PublicKey,
        id: PeerId,
        key_of: impl Fn(PeerId) -> Option<&'a PublicKey>,
    ) {
        let Self { ids, hasher } = self;
        ids.insert_unique(hasher.hash_one(key), id, |&other| {
            key_of(other).map_or(0, |key| hasher.hash_one(key))
        });
    }

    /// While the place is still the key's.
    pub(crate) fn remove(&mut self, key: &PublicKey, id: PeerId) {
        if let Ok(entry) = self.ids.find_entry(self.hasher.hash_one(key), |&other| other == id) {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_found_by_their_keys_until_they_are_removed() {
        let keys: Vec<_> = (0..5000u16)
            .map(|number| {
                let mut key = [0; 32];
                key[7..9].copy_from_slice(&number.to_le_bytes());
                PublicKey(key)
            })
            .collect();
        let key_of = |id: PeerId| keys.get(id.0 as usize);
        let ids = || (0..).map(PeerId).zip(&keys);
        let mut table = ByKey::default();
        ids().for_each(|(id, key)| table.insert(key, id, key_of));
        ids().filter(|(id, _)| id.0 % 2 == 0).for_each(|(id, key)| table.remove(key, id));
        for (id, key) in ids() {
            assert_eq!(table.find(key, key_of), (id.0 % 2 == 1).then_some(id));
        }
        assert_eq!(table.find(&PublicKey([9; 32]), key_of), None);
    }
}
