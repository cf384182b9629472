//! Which peer a destination belongs to, as `agent-tunnel` has it: a prefix has one owner, whoever was given it last; the longest one decides.

use ipnet::IpNet;
use proto::key::PublicKey;
use std::{collections::BTreeMap, net::IpAddr};

#[derive(Debug, Default)]
pub(crate) struct Prefixes(BTreeMap<IpNet, Option<PublicKey>>);

impl Prefixes {
    /// Gives a peer these, in place of what it had by the list of before. Returns who else had one of them.
    pub(crate) fn replace(
        &mut self,
        peer: PublicKey,
        before: &[IpNet],
        prefixes: &[IpNet],
    ) -> Vec<PublicKey> {
        before.iter().filter(|prefix| !prefixes.contains(prefix)).for_each(|prefix| {
            // Unless it is another's by now.
            if self.0.get(prefix) == Some(&Some(peer)) {
                self.0.remove(prefix);
            }
        });
        let former = prefixes.iter().filter_map(|prefix| self.0.insert(*prefix, Some(peer)).flatten());
        former.filter(|former| *former != peer).collect()
    }

    pub(crate) fn lookup(&self, destination: IpAddr) -> Option<PublicKey> {
        let around = self.0.iter().filter(|(prefix, _)| prefix.contains(&destination));
        around.max_by_key(|(prefix, _)| prefix.prefix_len()).and_then(|(_, peer)| *peer)
    }

    /// Gives a prefix to nobody, or leaves it to a shorter one again. Returns who had it.
    pub(crate) fn withhold(&mut self, prefix: IpNet, withheld: bool) -> Option<PublicKey> {
        match withheld {
            true => self.0.insert(prefix, None).flatten(),
            false => {
                self.0.retain(|other, peer| *other != prefix || peer.is_some());
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: PublicKey = PublicKey([1; 32]);
    const OTHER: PublicKey = PublicKey([2; 32]);

    fn prefix(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_prefix_is_the_last_ones_and_what_it_lost_is_not_taken_back_by_its_former_list() {
        let mut prefixes = Prefixes::default();
        let shared = [prefix("10.9.0.1/32")];
        assert!(prefixes.replace(ONE, &[], &shared).is_empty());
        assert_eq!(prefixes.replace(OTHER, &[], &shared), [ONE]);
        assert!(prefixes.replace(ONE, &shared, &[]).is_empty());
        assert_eq!(prefixes.lookup("10.9.0.1".parse().unwrap()), Some(OTHER));
    }

    #[test]
    fn the_longest_prefix_decides() {
        let mut prefixes = Prefixes::default();
        prefixes.replace(ONE, &[], &[prefix("10.9.0.0/31")]);
        prefixes.replace(OTHER, &[], &[prefix("10.9.0.1/32")]);
        let owner = |address: &str| prefixes.lookup(address.parse().unwrap());
        assert_eq!((owner("10.9.0.0"), owner("10.9.0.1"), owner("10.9.0.2")), (Some(ONE), Some(OTHER), None));
    }
}
