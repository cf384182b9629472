//! Which overlay address a new node gets: the one after the highest in use, so that a freed one rests as long as possible; after the end of
//! the prefix, the lowest free one. The IPv6 address carries the IPv4 one in its last 32 bits: unique where that is.

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    pub first: Ipv4Addr,
    pub last: Ipv4Addr,
}

impl Range {
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address)
    }
}

/// The addresses that nodes hold, and those that removed nodes held until lately.
pub(crate) trait Used {
    fn highest(&self) -> Option<Ipv4Addr>;
    fn is_owned(&self, address: Ipv4Addr) -> bool;
    fn is_resting(&self, address: Ipv4Addr) -> bool;
}

/// `None`: the prefix is full. An address that rests is given only when there is no other.
pub(crate) fn next_free(prefix: Ipv4Net, used: &impl Used) -> Option<Ipv4Addr> {
    let free = |address: &Ipv4Addr| !used.is_owned(*address);
    let rested = in_order(prefix, used).find(|a| free(a) && !used.is_resting(*a));
    rested.or_else(|| in_order(prefix, used).find(free))
}

/// Every address of a host, in the order in which they are given out; those behind the highest come twice.
pub(crate) fn in_order<U: Used>(prefix: Ipv4Net, used: &U) -> impl Iterator<Item = Ipv4Addr> + use<U> {
    let (first, last) = (u32::from(prefix.network()), u32::from(prefix.broadcast()));
    let start = used.highest().map_or(first, |highest| u32::from(highest).saturating_add(1).max(first));
    let order = (start..=last).chain(first..=last);
    order.map(Ipv4Addr::from).filter(move |address| is_host(prefix, *address))
}

/// The node's IPv6 address beside `v4`.
pub(crate) fn in_ula(prefix: IpNet, v4: Ipv4Addr) -> Ipv6Addr {
    let network = match prefix.network() {
        IpAddr::V6(network) => u128::from(network),
        IpAddr::V4(_) => 0xfd << 120,
    };
    Ipv6Addr::from(network | u128::from(u32::from(v4)))
}

/// Not .0 and .255 of any /24: some systems still take them for networks and broadcasts.
fn is_host(prefix: Ipv4Net, address: Ipv4Addr) -> bool {
    let last = address.octets()[3];
    last != 0 && last != 255 && address != prefix.network() && address != prefix.broadcast()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Default)]
    struct Naive {
        owned: BTreeSet<Ipv4Addr>,
        resting: BTreeSet<Ipv4Addr>,
    }

    impl Used for Naive {
        fn highest(&self) -> Option<Ipv4Addr> {
            self.owned.last().max(self.resting.last()).copied()
        }
        fn is_owned(&self, address: Ipv4Addr) -> bool {
            self.owned.contains(&address)
        }
        fn is_resting(&self, address: Ipv4Addr) -> bool {
            self.resting.contains(&address)
        }
    }

    fn prefix(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn the_first_addresses_are_the_first_hosts_and_edges_are_skipped() {
        let mut used = Naive::default();
        assert_eq!(next_free(prefix("100.64.0.0/10"), &used), Some(Ipv4Addr::new(100, 64, 0, 1)));
        used.owned.insert(Ipv4Addr::new(100, 64, 0, 254));
        assert_eq!(next_free(prefix("100.64.0.0/10"), &used), Some(Ipv4Addr::new(100, 64, 1, 1)));
        assert_eq!(
            in_ula("fd01:2:3::/48".parse().unwrap(), Ipv4Addr::new(100, 64, 0, 5)).to_string(),
            "fd01:2:3::6440:5"
        );
    }

    #[test]
    fn resting_addresses_are_the_last_resort_and_then_it_is_full() {
        let mut used = Naive::default();
        for host in 1..=5 {
            used.owned.insert(Ipv4Addr::new(10, 0, 0, host));
        }
        used.resting.insert(Ipv4Addr::new(10, 0, 0, 6));
        assert_eq!(next_free(prefix("10.0.0.0/29"), &used), Some(Ipv4Addr::new(10, 0, 0, 6)));
        used.owned.insert(Ipv4Addr::new(10, 0, 0, 6));
        assert_eq!(next_free(prefix("10.0.0.0/29"), &used), None);
    }

    proptest! {
        #[test]
        fn an_address_has_one_owner_and_rests_after_it(steps in prop::collection::vec(prop::option::of(0usize..40), 0..200)) {
            let prefix = prefix("10.9.0.0/23");
            let mut used = Naive::default();
            for step in steps {
                match step {
                    None => {
                        let address = next_free(prefix, &used);
                        let address = address.expect("200 steps do not fill 508 hosts");
                        prop_assert!(prefix.contains(&address) && is_host(prefix, address));
                        prop_assert!(!used.resting.contains(&address));
                        prop_assert!(used.owned.insert(address));
                    }
                    Some(victim) => {
                        if let Some(address) = used.owned.iter().nth(victim).copied() {
                            used.owned.remove(&address);
                            used.resting.insert(address);
                        }
                    }
                }
            }
        }
    }
}
