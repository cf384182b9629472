//! Changes of peers' lists of allowed IPs, kept level with the table of routes: a prefix is in exactly one list, that
//! of the peer which the table names.

use std::collections::{BTreeSet, HashSet};

use ipnet::IpNet;

use crate::{peer::PeerId, peers::Peers, routes::Routes, uapi::AllowedIpChange};

/// Carries out the changes of one peer's list, in order.
pub(crate) fn change(peers: &mut Peers, routes: &mut Routes, id: PeerId, changes: &[AllowedIpChange]) {
    let Some(state) = peers.get(id) else { return };
    let mut list = std::mem::take(&mut state.allowed_ips).into_vec();
    let mut robbed = BTreeSet::new();
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
    // What was removed is still in the list, and twice if it was added again.
    tidy(&mut list, routes, id);
    if let Some(state) = peers.get(id) {
        state.allowed_ips = list.into();
    }
    for other in robbed {
        let Some(state) = peers.get(other) else { continue };
        let mut list = std::mem::take(&mut state.allowed_ips).into_vec();
        tidy(&mut list, routes, other);
        state.allowed_ips = list.into();
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
                (0..PEERS, proptest::collection::vec(step(), 0..12)), 0..12,
            ),
        ) {
            let ((mut peers, ids), mut routes) = (table(), Routes::default());
            let mut model: Vec<(IpNet, u8)> = Vec::new();
            for (peer, changes) in &batches {
                change(&mut peers, &mut routes, ids[usize::from(*peer)], changes);
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
            }
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
