//! Who holds the prefixes that are claimed exclusively, as far as this agent has heard: from servers, in the map, and from holders themselves, inside tunnels. The higher fence is the later holder, whoever
//! told it, so a map that is behind takes nobody back.

use ipnet::IpNet;
use proto::holding::{Holding, MAX_HOLDINGS};
use std::collections::BTreeMap;

/// The last known holder of each prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holdings(BTreeMap<IpNet, Holding>);

impl Holdings {
    /// All that a server's map tells. What it tells no more, nobody can hold any more.
    pub fn learn_all(&mut self, told: &[Holding]) {
        self.0.retain(|prefix, _| told.iter().any(|holding| holding.prefix == *prefix));
        told.iter().for_each(|holding| _ = self.learn(*holding));
    }

    /// Whether it is news.
    pub fn learn(&mut self, told: Holding) -> bool {
        let is_news = match self.0.get(&told.prefix) {
            Some(known) => told.fence > known.fence,
            None => self.0.len() < MAX_HOLDINGS,
        };
        if is_news {
            self.0.insert(told.prefix, told);
        }
        is_news
    }

    pub fn of(&self, prefix: &IpNet) -> Option<&Holding> {
        self.0.get(prefix)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Holding> {
        self.0.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::{statement::NodeId, time::UnixTime};

    fn holding(prefix: u8, node: u8, fence: u64) -> Holding {
        let prefix = IpNet::from(std::net::IpAddr::from([10, 0, 0, prefix]));
        Holding { prefix, node: NodeId(node.into()), fence, since: UnixTime(0) }
    }

    proptest! {
        #[test]
        fn nobody_goes_back_to_a_lower_fence_in_whatever_order_it_hears(
            told in prop::collection::vec((any::<bool>(), 0u8..3, 0u64..20), 0..60)
        ) {
            let mut holdings = Holdings::default();
            let mut highest = BTreeMap::new();
            for (is_map, prefix, fence) in told {
                // Servers give a fence to one node.
                let one = holding(prefix, fence as u8, fence);
                match is_map {
                    true => {
                        let others = holdings.iter().filter(|other| other.prefix != one.prefix).copied();
                        let all: Vec<Holding> = others.chain([one]).collect();
                        holdings.learn_all(&all);
                    }
                    false => _ = holdings.learn(one),
                }
                let known = highest.entry(one.prefix).or_insert(one);
                if one.fence > known.fence {
                    *known = one;
                }
                prop_assert_eq!(holdings.of(&one.prefix), Some(&*known));
            }
        }
    }

    #[test]
    fn what_the_map_tells_no_more_is_forgotten_and_peers_fill_no_memory() {
        let mut holdings = Holdings::default();
        holdings.learn_all(&[holding(1, 1, 1), holding(2, 1, 2)]);
        holdings.learn_all(&[holding(2, 1, 2)]);
        assert_eq!(holdings.iter().count(), 1);
        for number in 0..3_000_u32 {
            let prefix = IpNet::from(std::net::IpAddr::from(number.to_be_bytes()));
            holdings.learn(Holding { prefix, ..holding(0, 1, 1) });
        }
        assert_eq!(holdings.iter().count(), MAX_HOLDINGS);
    }
}
