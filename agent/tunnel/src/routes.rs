//! WireGuard's allowed IPs: which peer a destination belongs to, longest prefix first.
//!
//! A hash table per address family, keyed by prefix length and network. Only lengths in use are tried, and a mesh
//! uses few (/32, /128, some subnets), so a look-up is one or two probes.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    net::IpAddr,
};

use ipnet::IpNet;

use crate::peer::PeerId;

/// Has what is withheld from everybody.
pub(crate) const NOBODY: PeerId = PeerId(u32::MAX);

#[derive(Debug, Default)]
pub(crate) struct Routes {
    v4: Table<u32>,
    v6: Table<u128>,
    /// Prefixes that may belong to another since they were asked for, where somebody asks.
    changed: Option<Vec<IpNet>>,
}

impl Routes {
    /// Gives a prefix to a peer, taking it from whoever had it: who that was.
    pub(crate) fn insert(&mut self, prefix: IpNet, peer: PeerId) -> Option<PeerId> {
        self.note(prefix);
        match prefix {
            IpNet::V4(p) => self.v4.insert(p.prefix_len(), p.network().to_bits(), peer),
            IpNet::V6(p) => self.v6.insert(p.prefix_len(), p.network().to_bits(), peer),
        }
    }

    /// Takes a prefix from a peer, unless it belongs to another by now.
    pub(crate) fn remove(&mut self, prefix: IpNet, peer: PeerId) {
        self.note(prefix);
        match prefix {
            IpNet::V4(p) => self.v4.remove(p.prefix_len(), p.network().to_bits(), peer),
            IpNet::V6(p) => self.v6.remove(p.prefix_len(), p.network().to_bits(), peer),
        }
    }

    /// From now on changes are kept for [`Routes::take_changed`].
    pub(crate) fn keep_changes(&mut self) {
        self.changed.get_or_insert_default();
    }

    pub(crate) fn take_changed(&mut self) -> Vec<IpNet> {
        self.changed.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn note(&mut self, prefix: IpNet) {
        if let Some(changed) = &mut self.changed {
            changed.push(prefix);
        }
    }

    /// Who has exactly this prefix, if it is a peer's.
    pub(crate) fn owner(&self, prefix: IpNet) -> Option<PeerId> {
        match prefix {
            IpNet::V4(p) => self.v4.prefixes.get(&(p.prefix_len(), p.network().to_bits())).copied(),
            IpNet::V6(p) => self.v6.prefixes.get(&(p.prefix_len(), p.network().to_bits())).copied(),
        }
        .filter(|peer| *peer != NOBODY)
    }

    pub(crate) fn lookup(&self, address: IpAddr) -> Option<PeerId> {
        let found = match address {
            IpAddr::V4(a) => {
                self.v4.lookup(|len| u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0) & a.to_bits())
            }
            IpAddr::V6(a) => {
                self.v6.lookup(|len| u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0) & a.to_bits())
            }
        };
        found.filter(|peer| *peer != NOBODY)
    }
}

#[derive(Debug)]
struct Table<A> {
    prefixes: HashMap<(u8, A), PeerId>,
    /// How many prefixes there are of each length, longest first.
    lengths: Vec<(u8, usize)>,
}

impl<A> Default for Table<A> {
    fn default() -> Self {
        Self { prefixes: HashMap::new(), lengths: Vec::new() }
    }
}

impl<A: Copy + Eq + Hash> Table<A> {
    fn insert(&mut self, len: u8, network: A, peer: PeerId) -> Option<PeerId> {
        let former = self.prefixes.insert((len, network), peer);
        if former.is_none() {
            match self.position(len) {
                Ok(at) => self.lengths[at].1 += 1,
                Err(at) => self.lengths.insert(at, (len, 1)),
            }
        }
        former
    }

    fn remove(&mut self, len: u8, network: A, peer: PeerId) {
        let Entry::Occupied(entry) = self.prefixes.entry((len, network)) else { return };
        if *entry.get() != peer {
            return;
        }
        entry.remove();
        if let Ok(at) = self.position(len) {
            self.lengths[at].1 -= 1;
            if self.lengths[at].1 == 0 {
                self.lengths.remove(at);
            }
        }
    }

    fn position(&self, len: u8) -> Result<usize, usize> {
        self.lengths.binary_search_by(|(other, _)| len.cmp(other))
    }

    fn lookup(&self, network: impl Fn(u8) -> A) -> Option<PeerId> {
        self.lengths.iter().find_map(|&(len, _)| self.prefixes.get(&(len, network(len))).copied())
    }
}

#[cfg(test)]
mod tests {
    use ipnet::{Ipv4Net, Ipv6Net};
    use proptest::prelude::*;

    use super::*;

    /// Few distinct bits, so that prefixes nest, collide and are hit.
    fn prefix() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (0u32..8, 0u8..=32).prop_map(|(a, l)| IpNet::from(Ipv4Net::new((a << 29).into(), l).unwrap())),
            (0u128..8, 0u8..=128).prop_map(|(a, l)| IpNet::from(Ipv6Net::new((a << 125).into(), l).unwrap())),
        ]
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(IpNet, PeerId),
        Remove(IpNet, PeerId),
    }

    fn step() -> impl Strategy<Value = Step> {
        let parts = (any::<bool>(), prefix(), 0u32..4);
        parts.prop_map(|(insert, prefix, peer)| {
            if insert { Step::Insert(prefix, PeerId(peer)) } else { Step::Remove(prefix, PeerId(peer)) }
        })
    }

    /// The list of (prefix, owner) that the table stands for.
    fn naive_step(model: &mut Vec<(IpNet, PeerId)>, step: &Step) {
        match step {
            Step::Insert(prefix, peer) => {
                model.retain(|(p, _)| *p != prefix.trunc());
                model.push((prefix.trunc(), *peer));
            }
            Step::Remove(prefix, peer) => model.retain(|entry| *entry != (prefix.trunc(), *peer)),
        }
    }

    #[test]
    fn what_is_withheld_goes_to_nobody_and_not_to_whoever_has_a_shorter_prefix() {
        let mut routes = Routes::default();
        let [long, short]: [IpNet; 2] = ["10.0.0.5/32", "10.0.0.0/24"].map(|prefix| prefix.parse().unwrap());
        routes.insert(short, PeerId(1));
        assert_eq!(routes.insert(long, PeerId(2)), None);
        assert_eq!(routes.insert(long, NOBODY), Some(PeerId(2)), "whose packets wait");
        routes.remove(long, PeerId(2));
        assert_eq!((routes.owner(long), routes.lookup(long.addr())), (None, None));
        assert_eq!(routes.lookup("10.0.0.6".parse().unwrap()), Some(PeerId(1)));
        routes.insert(long, PeerId(3));
        routes.remove(long, NOBODY);
        assert_eq!(routes.lookup(long.addr()), Some(PeerId(3)), "another has it by now");
        routes.insert(long, NOBODY);
        routes.remove(long, NOBODY);
        assert_eq!(routes.lookup(long.addr()), Some(PeerId(1)));
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_search_through_the_list(steps in proptest::collection::vec(step(), 0..60)) {
            let (mut routes, mut model) = (Routes::default(), Vec::new());
            for step in &steps {
                match step {
                    Step::Insert(prefix, peer) => {
                        let former = model.iter().find(|(p, _)| *p == prefix.trunc()).map(|(_, peer)| *peer);
                        prop_assert_eq!(routes.insert(*prefix, *peer), former);
                        prop_assert_eq!(routes.owner(*prefix), Some(*peer));
                    }
                    Step::Remove(prefix, peer) => routes.remove(*prefix, *peer),
                }
                naive_step(&mut model, step);
            }
            let v4 = (0u32..8).map(|a| IpAddr::from((a << 29).to_be_bytes()));
            let v6 = (0u128..8).map(|a| IpAddr::from((a << 125).to_be_bytes()));
            for address in v4.chain(v6) {
                let matches = model.iter().filter(|(p, _)| p.contains(&address));
                let expected = matches.max_by_key(|(p, _)| p.prefix_len()).map(|(_, peer)| *peer);
                prop_assert_eq!(routes.lookup(address), expected);
            }
            prop_assert_eq!(routes.v4.lengths.iter().map(|(_, n)| n).sum::<usize>(), routes.v4.prefixes.len());
        }
    }
}
