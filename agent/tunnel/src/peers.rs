//! The table of peers, found by place, by key and by session index, with the list of those that are live.

use std::collections::HashMap;

use ipnet::IpNet;

use crate::{
    PublicKey,
    by_key::ByKey,
    foreign::ForeignPeers,
    noise::Noise,
    peer::{Former, Live, PeerId, PeerState},
    shard::Shard,
};

/// Session indices: the library adds 8 bits of its own below these.
const INDEX_BITS: u32 = 24;

#[derive(Default)]
pub(crate) struct Peers {
    /// Whose table it is.
    shard: Shard,
    slots: Vec<Option<PeerState>>,
    foreign: ForeignPeers,
    free: Vec<PeerId>,
    by_key: ByKey,
    by_index: HashMap<u32, PeerId>,
    live: Vec<PeerId>,
    /// The last index looked up: a batch is mostly of one session.
    last: Option<(u32, PeerId)>,
}

impl Peers {
    /// The table of one among several workers.
    pub(crate) fn of(shard: Shard) -> Self {
        Self { shard, ..Self::default() }
    }

    pub(crate) fn shard(&self) -> Shard {
        self.shard
    }

    /// Whether a peer is this worker's.
    pub(crate) fn owns(&self, id: PeerId) -> bool {
        !ForeignPeers::holds(id)
    }

    /// The number of a peer's worker.
    pub(crate) fn owner(&self, id: PeerId) -> Option<usize> {
        if self.owns(id) {
            return Some(self.shard.number());
        }
        self.foreign.key(id).map(|key| self.shard.owner(key))
    }

    /// The list of prefixes of any worker's peer.
    pub(crate) fn allowed_ips(&mut self, id: PeerId) -> Option<&mut Box<[IpNet]>> {
        match self.owns(id) {
            true => self.get(id).map(|state| &mut state.allowed_ips),
            false => self.foreign.allowed_ips(id),
        }
    }

    /// Of another worker's peer, no more is kept than its key and prefixes.
    pub(crate) fn insert(&mut self, state: PeerState) -> PeerId {
        if !self.shard.owns(&state.key) {
            let id = self.foreign.insert(state.key, state.allowed_ips);
            self.enter(&state.key, id);
            return id;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            // There cannot be more peers than fit in memory, far below 2^32.
            PeerId((self.slots.len() - 1) as u32)
        });
        let key = state.key;
        self.slots[id.0 as usize] = Some(state);
        self.enter(&key, id);
        id
    }

    fn enter(&mut self, key: &PublicKey, id: PeerId) {
        let Self { slots, foreign, by_key, .. } = self;
        by_key.insert(key, id, |id| key_of(slots, foreign, id));
    }

    /// `None` if it was not there, or was another worker's.
    pub(crate) fn remove(&mut self, id: PeerId) -> Option<PeerState> {
        if let Some(key) = self.foreign.remove(id) {
            self.by_key.remove(&key, id);
        }
        self.end(id);
        let state = self.slots.get_mut(id.0 as usize)?.take()?;
        self.by_key.remove(&state.key, id);
        self.free.push(id);
        Some(state)
    }

    pub(crate) fn find(&self, key: &PublicKey) -> Option<PeerId> {
        self.by_key.find(key, |id| key_of(&self.slots, &self.foreign, id))
    }

    pub(crate) fn get(&mut self, id: PeerId) -> Option<&mut PeerState> {
        self.slots.get_mut(id.0 as usize)?.as_mut()
    }

    /// This worker's own.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &PeerState> {
        self.slots.iter().flatten()
    }

    /// The live peer that a message's session index belongs to.
    pub(crate) fn find_session(&mut self, session: u32) -> Option<PeerId> {
        let index = session >> (u32::BITS - INDEX_BITS);
        match self.last {
            Some((last, id)) if last == index => Some(id),
            Some(_) | None => {
                let id = *self.by_index.get(&index)?;
                self.last = Some((index, id));
                Some(id)
            }
        }
    }

    /// An index that no live peer has, unpredictable so that it tells nothing but whose it is. `None` if the system has no
    /// randomness.
    pub(crate) fn free_index(&self) -> Option<u32> {
        loop {
            let index = getrandom::u32().ok()? >> (u32::BITS - INDEX_BITS);
            if self.shard.owns_index(index) && !self.by_index.contains_key(&index) {
                return Some(index);
            }
        }
    }

    /// Makes a peer live.
    pub(crate) fn begin(&mut self, id: PeerId, mut live: Live) {
        let index = live.index;
        live.place = self.live.len();
        if let Some(state) = self.get(id) {
            state.live = Some(Box::new(live));
            self.by_index.insert(index, id);
            self.live.push(id);
        }
    }

    /// Makes a peer idle; whether it was live.
    pub(crate) fn end(&mut self, id: PeerId) -> bool {
        let Some(live) = self.get(id).and_then(|state| state.live.take()) else { return false };
        self.by_index.remove(&live.index);
        if let Some(former) = &live.former {
            self.by_index.remove(&former.index);
        }
        self.live.swap_remove(live.place);
        let moved = self.live.get(live.place).copied().and_then(|moved| self.get(moved));
        if let Some(moved) = moved.and_then(|state| state.live.as_deref_mut()) {
            moved.place = live.place;
        }
        self.last = None;
        true
    }

    /// Puts a session by for another with the given index.
    pub(crate) fn renew(&mut self, id: PeerId, noise: Noise, index: u32) {
        let Some(live) = self.get(id).and_then(|state| state.live.as_deref_mut()) else { return };
        let old = Former {
            noise: std::mem::replace(&mut live.noise, noise),
            index: std::mem::replace(&mut live.index, index),
            seals: live.is_established,
        };
        let dropped = match live.former.as_deref() {
            // The session in use is older still; what was to replace it never came up.
            Some(former) if former.seals => Some(old.index),
            Some(_) | None => live.former.replace(Box::new(old)).map(|former| former.index),
        };
        (live.answered, live.is_initiating, live.retry_at) = (None, false, None);
        if let Some(dropped) = dropped {
            self.by_index.remove(&dropped);
        }
        self.by_index.insert(index, id);
        self.last = None;
    }

    pub(crate) fn forget_former(&mut self, id: PeerId) {
        let live = self.get(id).and_then(|state| state.live.as_deref_mut());
        if let Some(former) = live.and_then(|live| live.former.take()) {
            self.by_index.remove(&former.index);
            self.last = None;
        }
    }

    /// All workers'.
    pub(crate) fn ids(&self) -> Vec<PeerId> {
        let taken = (0..).zip(&self.slots).filter(|(_, state)| state.is_some());
        taken.map(|(number, _)| PeerId(number)).chain(self.foreign.ids()).collect()
    }

    pub(crate) fn live(&self) -> &[PeerId] {
        &self.live
    }
}

fn key_of<'a>(
    slots: &'a [Option<PeerState>],
    foreign: &'a ForeignPeers,
    id: PeerId,
) -> Option<&'a PublicKey> {
    match ForeignPeers::holds(id) {
        true => foreign.key(id),
        false => slots.get(id.0 as usize)?.as_ref().map(|state| &state.key),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{Peer, PrivateKey, noise::Identity};

    fn state(byte: u8) -> PeerState {
        let key = PublicKey([byte; 32]);
        PeerState::new(Peer { key, allowed_ips: vec![], sources: vec![], preshared_key: None })
    }

    fn live(index: u32) -> Live {
        let identity = Identity::new(&PrivateKey::from([9; 32]));
        Live::new(Noise::new(&identity, PublicKey([1; 32]), None, index), index, Instant::now())
    }

    #[test]
    fn a_session_is_found_by_any_of_its_256_indices_until_it_ends() {
        let mut peers = Peers::default();
        let (one, two) = (peers.insert(state(1)), peers.insert(state(2)));
        peers.begin(one, live(0xabcdef));
        peers.begin(two, live(7));
        for low in [0, 1, 255] {
            assert_eq!(peers.find_session(0xabcdef00 | low), Some(one));
        }
        assert_eq!(peers.find_session(0x0700), Some(two));
        assert!(peers.end(one) && !peers.end(one));
        assert_eq!(peers.find_session(0xabcdef00), None);
        assert_eq!(peers.live(), [two]);
    }

    #[test]
    fn the_list_of_the_live_is_exact_in_whatever_order_they_end() {
        let mut peers = Peers::default();
        let ids: Vec<PeerId> = (0..6).map(|byte| peers.insert(state(byte))).collect();
        let mut expected = Vec::new();
        for (index, &id) in (1..).zip(&ids) {
            peers.begin(id, live(index));
            expected.push(id);
        }
        for ended in [2, 5, 0, 3, 4, 1] {
            assert!(peers.end(ids[ended]));
            expected.retain(|&id| id != ids[ended]);
            let mut found = peers.live().to_vec();
            found.sort();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn another_workers_peer_has_a_list_and_an_owner_and_no_state() {
        let shards: Vec<Shard> = Shard::all(crate::Workers::new(3).unwrap()).collect();
        let mut peers = Peers::of(shards[1]);
        let ids: Vec<PeerId> = (0..40).map(|byte| peers.insert(state(byte))).collect();
        for (byte, &id) in (0..40).zip(&ids) {
            let key = PublicKey([byte; 32]);
            assert_eq!(peers.find(&key), Some(id));
            assert_eq!(peers.owner(id), Some(shards[0].owner(&key)));
            assert_eq!(
                (peers.get(id).is_some(), peers.owns(id)),
                (shards[1].owns(&key), shards[1].owns(&key))
            );
            *peers.allowed_ips(id).unwrap() = Box::new(["10.0.0.0/8".parse().unwrap()]);
        }
        let own = ids.iter().filter(|&&id| peers.owns(id)).count();
        assert!(own > 0 && own < 40 && peers.iter().count() == own && peers.ids().len() == 40);
        assert!((0..100).all(|_| shards[1].owns_index(peers.free_index().unwrap())));
        for (&id, byte) in ids.iter().zip(0..40) {
            assert_eq!(peers.remove(id).is_some(), shards[1].owns(&PublicKey([byte; 32])));
            assert!(peers.allowed_ips(id).is_none() && peers.find(&PublicKey([byte; 32])).is_none());
        }
        assert!(peers.ids().is_empty());
        assert!(ids.contains(&peers.insert(state(0))));
    }

    #[test]
    fn a_removed_peers_place_is_used_again_without_its_past() {
        let mut peers = Peers::default();
        let one = peers.insert(state(1));
        peers.begin(one, live(7));
        peers.remove(one);
        assert_eq!(peers.find(&PublicKey([1; 32])), None);
        assert_eq!(peers.insert(state(2)), one);
        assert_eq!(peers.find_session(0x0700), None);
        assert!(peers.get(one).unwrap().live.is_none());
        assert_eq!(peers.iter().count(), 1);
    }
}
