//! Changes of peers' lists of allowed IPs, kept level with the table of routes: a prefix is in exactly one list, that
//! of the peer which the table names.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use ipnet::IpNet;

use crate::{peer::PeerId, peers::Peers, routes::Routes, uapi::AllowedIpChange};

/// The lists that a request touches, taken from their peers until its end. Then each is tidied once, however many peers
/// are changed and however many prefixes one of them loses.
#[derive(Default)]
pub(crate) struct Edit(BTreeMap<PeerId, Vec<IpNet>>);

impl Edit {
    /// Carries out the changes of one peer's list, in order.
    pub(crate) fn change(
        &mut self,
        peers: &mut Peers,
        routes: &mut Routes,
        id: PeerId,
        changes: &[AllowedIpChange],
    ) {
        let mut robbed = BTreeSet::new();
        let list = self.take(peers, id);
        for change in changes {
            match *change {
                AllowedIpChange::Clear => list.drain(..).for_each(|prefix| routes.remove(prefix, id)),
                AllowedIpChange::Add(prefix) => match routes.insert(prefix, id) {
                    Some(former) if former == id => {}
                    former => {
                        list.push(prefix);
                        robbed.extend(former);
                    }
                },
                AllowedIpChange::Remove(prefix) => routes.remove(prefix, id),
            }
        }
        for other in robbed {
            self.take(peers, other);
        }
    }

    /// Gives one list back, whose peer is about to be removed.
    pub(crate) fn give_back(&mut self, peers: &mut Peers, id: PeerId) {
        if let Some((list, place)) = self.0.remove(&id).zip(peers.allowed_ips(id)) {
            *place = list.into();
        }
    }

    /// Gives all lists back.
    pub(crate) fn finish(self, peers: &mut Peers, routes: &Routes) {
        for (id, mut list) in self.0 {
            // What was removed or lost is still in the list, and twice if it was added again.
            tidy(&mut list, routes, id);
            if let Some(place) = peers.allowed_ips(id) {
                *place = list.into();
            }
        }
    }

    fn take(&mut self, peers: &mut Peers, id: PeerId) -> &mut Vec<IpNet> {
        self.0.entry(id).or_insert_with(|| {
            let list = peers.allowed_ips(id).map(std::mem::take);
            list.unwrap_or_default().into_vec()
        })
    }
}

fn tidy(list: &mut Vec<IpNet>, routes: &Routes, id: PeerId) {
    let mut seen = HashSet::new();
    list.retain(|prefix| routes.owner(*prefix) == Some(id) && seen.insert(*prefix));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Peer, PublicKey, peer::PeerState};

    const PEERS: u8 = 4;

    #[test]
    fn one_peer_loses_thousands_of_prefixes_to_as_many_peers_at_once() {
        const COUNT: u16 = 10_000;
        let (mut peers, mut routes) = (Peers::default(), Routes::default());
        let prefix = |number: u16| {
            let [high, low] = number.to_be_bytes();
            IpNet::from(std::net::IpAddr::from([10, high, low, 0]))
        };
        let ids: Vec<PeerId> = (0..=COUNT)
            .map(|number| {
                let mut key = [0; 32];
                key[..2].copy_from_slice(&number.to_be_bytes());
                let key = PublicKey(key);
                peers.insert(PeerState::new(Peer {
                    key,
                    allowed_ips: vec![],
                    sources: vec![],
                    preshared_key: None,
                }))
            })
            .collect();
        let mut edit = Edit::default();
        let all: Vec<_> = (0..COUNT).map(|number| AllowedIpChange::Add(prefix(number))).collect();
        edit.change(&mut peers, &mut routes, ids[usize::from(COUNT)], &all);
        let begun_at = std::time::Instant::now();
        for number in 0..COUNT {
            let change = [AllowedIpChange::Add(prefix(number))];
            edit.change(&mut peers, &mut routes, ids[usize::from(number)], &change);
        }
        edit.finish(&mut peers, &routes);
        // Tidied for each of them, the list costs half a minute.
        assert!(begun_at.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun_at.elapsed());
        assert!(peers.get(ids[usize::from(COUNT)]).unwrap().allowed_ips.is_empty());
        assert_eq!(*peers.get(ids[7]).unwrap().allowed_ips, [prefix(7)]);
    }

    fn table() -> (Peers, Vec<PeerId>) {
        let mut peers = Peers::default();
        let state = |byte| {
            let key = PublicKey([byte; 32]);
            PeerState::new(Peer { key, allowed_ips: vec![], sources: vec![], preshared_key: None })
        };
        let ids = (0..PEERS).map(|byte| peers.insert(state(byte))).collect();
        (peers, ids)
    }

    fn step() -> impl Strategy<Value = AllowedIpChange> {
        let prefix = prop_oneof![
            (0u8..3, 8u8..11).prop_map(|(a, len)| format!("10.{}.0.0/{len}", a << 5)),
            (0u8..3, 14u8..17).prop_map(|(a, len)| format!("fd{a:02x}::/{len}")),
        ];
        let prefix = prefix.prop_map(|text| text.parse::<IpNet>().unwrap().trunc());
        prop_oneof![
            1 => Just(AllowedIpChange::Clear),
            6 => prefix.clone().prop_map(AllowedIpChange::Add),
            3 => prefix.prop_map(AllowedIpChange::Remove),
        ]
    }

    proptest! {
        #[test]
        fn every_prefix_is_in_the_list_of_its_owner_and_in_no_other(
            batches in proptest::collection::vec(
                (0..PEERS, proptest::collection::vec(step(), 0..12), proptest::bool::ANY), 0..12,
            ),
        ) {
            let ((mut peers, ids), mut routes) = (table(), Routes::default());
            let mut model: Vec<(IpNet, u8)> = Vec::new();
            let mut edit = Edit::default();
            for (peer, changes, is_last_of_request) in &batches {
                edit.change(&mut peers, &mut routes, ids[usize::from(*peer)], changes);
                for step in changes {
                    match step {
                        AllowedIpChange::Clear => model.retain(|(_, owner)| owner != peer),
                        AllowedIpChange::Add(prefix) => {
                            model.retain(|(other, _)| other != prefix);
                            model.push((*prefix, *peer));
                        }
                        AllowedIpChange::Remove(prefix) => model.retain(|entry| entry != &(*prefix, *peer)),
                    }
                }
                if *is_last_of_request {
                    std::mem::take(&mut edit).finish(&mut peers, &routes);
                }
            }
            edit.finish(&mut peers, &routes);
            for number in 0..PEERS {
                let mut expected: Vec<IpNet> =
                    model.iter().filter(|(_, owner)| *owner == number).map(|(prefix, _)| *prefix).collect();
                let mut list = peers.get(ids[usize::from(number)]).unwrap().allowed_ips.to_vec();
                expected.sort();
                list.sort();
                prop_assert_eq!(&list, &expected);
                prop_assert!(list.iter().all(|prefix| routes.owner(*prefix) == Some(ids[usize::from(number)])));
            }
        }
    }
}
