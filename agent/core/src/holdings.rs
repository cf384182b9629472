//! Who holds the prefixes that are claimed exclusively, as far as this agent has heard: from servers, in the map, and from holders themselves, inside tunnels. The higher fence is the later holder, whoever
//! told it, so a map that is behind takes nobody back.
//!
//! What was heard in a tunnel is for those that no server reaches. It counts for as long as servers do not know better: who has had a server with its database for `REFUTE_TIMEOUT` since, and was not told the same
//! by its map, believes it no more. So a node that may claim a prefix and lies about its fence is outbid by the map.

use crate::time::BootTime;
use ipnet::IpNet;
use proto::{
    holding::{Holding, MAX_HELD_BY_NODE, MAX_HOLDINGS},
    statement::NodeId,
};
use std::{collections::BTreeMap, time::Duration};

/// A server's map has what is true so soon. Longer than it takes to notice that a server is not reached any more.
const REFUTE_TIMEOUT: Duration = Duration::from_secs(5);

/// The last known holder of each prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holdings {
    mapped: BTreeMap<IpNet, Holding>,
    /// What the map does not know.
    heard: BTreeMap<(IpNet, NodeId), Heard>,
    /// The later of both.
    believed: BTreeMap<IpNet, Holding>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Heard {
    holding: Holding,
    /// First: who tells more of the kind wins no time.
    at: BootTime,
    is_refuted: bool,
}

impl Heard {
    fn refuted_at(&self, trusted_since: BootTime) -> BootTime {
        self.at.max(trusted_since) + REFUTE_TIMEOUT
    }
}

impl Holdings {
    /// All that a server's map tells. What it tells no more, nobody can hold any more.
    pub fn learn_all(&mut self, told: &[Holding]) {
        self.mapped.retain(|prefix, _| told.iter().any(|holding| holding.prefix == *prefix));
        for holding in told.iter().take(MAX_HOLDINGS) {
            let known = self.mapped.entry(holding.prefix).or_insert(*holding);
            if holding.fence > known.fence {
                *known = *holding;
            }
        }
        let mapped = &self.mapped;
        let is_above = |heard: &Heard| {
            mapped.get(&heard.holding.prefix).is_none_or(|known| heard.holding.fence > known.fence)
        };
        self.heard.retain(|_, heard| is_above(heard));
        self.believe();
    }

    /// What a holder tells of itself. Whether it is news that is believed.
    pub fn hear(&mut self, told: Holding, now: BootTime) -> bool {
        let is_known = |known: &Holding| told.fence <= known.fence;
        if self.mapped.get(&told.prefix).is_some_and(is_known) {
            return false;
        }
        let of_node = self.heard.keys().filter(|(_, node)| *node == told.node).count();
        let has_room = self.heard.len() < MAX_HOLDINGS && of_node < MAX_HELD_BY_NODE;
        let id = (told.prefix, told.node);
        match self.heard.get_mut(&id) {
            Some(heard) if is_known(&heard.holding) => return false,
            Some(heard) => heard.holding = told,
            None if has_room => {
                _ = self.heard.insert(id, Heard { holding: told, at: now, is_refuted: false })
            }
            None => return false,
        }
        let before = self.of(&told.prefix).copied();
        self.believe();
        self.of(&told.prefix).copied() != before
    }

    /// Forgets what was heard of those who may not hold it any more. Who is gone altogether (`None`) held it all the same: until a server knows better, it is no former holder's again.
    pub fn retain_heard(&mut self, may_hold: impl Fn(&Holding) -> Option<bool>) {
        self.heard.retain(|_, heard| may_hold(&heard.holding).unwrap_or(!heard.is_refuted));
        self.believe();
    }

    /// Since when there is a server with its database whose map is known here, if there is one. Whether somebody else is believed now.
    pub fn judge(&mut self, trusted_since: Option<BootTime>, now: BootTime) -> bool {
        for heard in self.heard.values_mut() {
            heard.is_refuted = trusted_since.is_some_and(|since| now >= heard.refuted_at(since));
        }
        let before = self.believed.clone();
        self.believe();
        self.believed != before
    }

    /// When to judge again.
    pub fn deadline(&self, trusted_since: Option<BootTime>) -> Option<BootTime> {
        let since = trusted_since?;
        self.heard.values().filter(|heard| !heard.is_refuted).map(|heard| heard.refuted_at(since)).min()
    }

    fn believe(&mut self) {
        self.believed.clone_from(&self.mapped);
        for Heard { holding, is_refuted, at: _ } in self.heard.values() {
            let later = self.believed.get(&holding.prefix).filter(|known| known.fence >= holding.fence);
            if !is_refuted && later.is_none() {
                self.believed.insert(holding.prefix, *holding);
            }
        }
    }

    /// What the map does not know, for the disk.
    pub fn heard(&self) -> impl Iterator<Item = &Holding> {
        self.heard.values().map(|heard| &heard.holding)
    }

    pub fn of(&self, prefix: &IpNet) -> Option<&Holding> {
        self.believed.get(prefix)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Holding> {
        self.believed.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::{statement::NodeId, time::UnixTime};

    const NOW: BootTime = BootTime::from_duration(Duration::from_secs(1));

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
                    false => _ = holdings.hear(one, NOW),
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
            holdings.hear(Holding { prefix, node: NodeId(3), ..holding(0, 1, 1) }, NOW);
        }
        assert_eq!(holdings.iter().count(), 1 + MAX_HELD_BY_NODE);
        for number in 0..3_000_u32 {
            let prefix = IpNet::from(std::net::IpAddr::from(number.to_be_bytes()));
            holdings.hear(Holding { prefix, node: NodeId(number.into()), ..holding(0, 1, 1) }, NOW);
        }
        assert_eq!(holdings.heard().count(), MAX_HOLDINGS);
    }

    #[test]
    fn what_a_server_with_its_database_does_not_confirm_counts_no_more_and_anew_once_there_is_none() {
        let mut holdings = Holdings::default();
        holdings.learn_all(&[holding(1, 1, 5)]);
        let prefix = holding(1, 1, 5).prefix;
        let believed = |holdings: &Holdings| holdings.of(&prefix).unwrap().fence;
        assert!(holdings.hear(holding(1, 2, u8::MAX.into()), NOW));
        assert!(!holdings.judge(None, NOW + REFUTE_TIMEOUT * 9), "there is no server");
        let since = NOW + REFUTE_TIMEOUT;
        assert_eq!(holdings.deadline(Some(since)), Some(since + REFUTE_TIMEOUT));
        assert!(holdings.judge(Some(since), since + REFUTE_TIMEOUT));
        assert_eq!((believed(&holdings), holdings.deadline(Some(since))), (5, None));
        assert!(!holdings.hear(holding(1, 2, 1_000), since + REFUTE_TIMEOUT), "more of the kind");
        assert!(holdings.judge(None, since + REFUTE_TIMEOUT));
        assert_eq!(believed(&holdings), 1_000);
    }
}
