//! Who may open what: the rules as people and policies state them, and as they are looked up.
//!
//! A hash table by the source's prefix, as in [`crate::routes`]; only lengths in use are tried. Behind a prefix stand the
//! rules that its addresses may use, each with its destinations in order. Nothing is allowed that no rule allows.

use std::{collections::HashMap, net::IpAddr, ops::RangeInclusive};

use ipnet::IpNet;

use super::header::{Ends, ICMP_V4, ICMP_V6, TCP, UDP};

/// What may be opened from outside: every service at every destination, by every source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub sources: Vec<IpNet>,
    /// Of this system, or behind it. Empty: all of them.
    pub destinations: Vec<IpNet>,
    pub services: Vec<Service>,
}

/// What is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub protocol: Protocol,
    /// Of TCP, UDP and their kin. Empty: all of them, and what has no ports.
    pub ports: Vec<RangeInclusive<u16>>,
}

impl Rule {
    /// Everything from everybody.
    pub fn all() -> Self {
        let sources = vec![IpNet::V4(Default::default()), IpNet::V6(Default::default())];
        Self { sources, destinations: Vec::new(), services: vec![Service::any()] }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Any,
    Tcp,
    Udp,
    /// Of the family that the packet is of.
    Icmp,
    /// By its number at IANA.
    Number(u8),
}

impl Protocol {
    fn is(self, number: u8) -> bool {
        match self {
            Self::Any => true,
            Self::Tcp => number == TCP,
            Self::Udp => number == UDP,
            Self::Icmp => number == ICMP_V4 || number == ICMP_V6,
            Self::Number(own) => number == own,
        }
    }
}

impl Service {
    /// Whatever is asked for.
    pub fn any() -> Self {
        Self { protocol: Protocol::Any, ports: Vec::new() }
    }

    fn is(&self, to: &Ends) -> bool {
        self.protocol.is(to.protocol)
            && (self.ports.is_empty()
                || (to.has_ports() && self.ports.iter().any(|ports| ports.contains(&to.destination_port))))
    }
}

/// A rule without its sources.
#[derive(Debug)]
struct Target {
    /// In order, and none inside another. `None`: all of them.
    destinations: Option<Vec<IpNet>>,
    services: Vec<Service>,
}

impl Target {
    fn new(mut destinations: Vec<IpNet>, services: Vec<Service>) -> Self {
        destinations.iter_mut().for_each(|prefix| *prefix = prefix.trunc());
        destinations.sort_unstable_by_key(|prefix| (prefix.addr(), prefix.prefix_len()));
        // Of two prefixes that overlap one holds the other, and comes before it.
        destinations.dedup_by(|later, kept| kept.contains(&*later));
        Self { destinations: Some(destinations).filter(|prefixes| !prefixes.is_empty()), services }
    }

    fn is(&self, to: &Ends) -> bool {
        self.services.iter().any(|service| service.is(to)) && self.holds(to.destination)
    }

    fn holds(&self, address: IpAddr) -> bool {
        let Some(destinations) = &self.destinations else { return true };
        let after = destinations.partition_point(|prefix| prefix.addr() <= address);
        after.checked_sub(1).is_some_and(|at| destinations[at].contains(&address))
    }
}

/// The rules, ready to be asked.
#[derive(Debug, Default)]
pub(super) struct Rules {
    targets: Vec<Target>,
    /// What the addresses of a prefix may reach, as places in `targets`.
    by_source: HashMap<IpNet, Vec<u32>>,
    /// The prefix lengths in use.
    lengths_v4: Vec<u8>,
    lengths_v6: Vec<u8>,
}

impl Rules {
    pub(super) fn new(rules: Vec<Rule>) -> Self {
        let mut compiled = Self::default();
        for (place, rule) in (0..).zip(rules) {
            for source in &rule.sources {
                let targets = compiled.by_source.entry(source.trunc()).or_default();
                // A prefix that one rule names twice.
                if targets.last() != Some(&place) {
                    targets.push(place);
                }
                let lengths = match source {
                    IpNet::V4(_) => &mut compiled.lengths_v4,
                    IpNet::V6(_) => &mut compiled.lengths_v6,
                };
                if !lengths.contains(&source.prefix_len()) {
                    lengths.push(source.prefix_len());
                }
            }
            compiled.targets.push(Target::new(rule.destinations, rule.services));
        }
        compiled
    }

    /// Whether the source may open this.
    pub(super) fn permit(&self, ends: &Ends) -> bool {
        let lengths = match ends.source {
            IpAddr::V4(_) => &self.lengths_v4,
            IpAddr::V6(_) => &self.lengths_v6,
        };
        let prefixes = lengths.iter().filter_map(|len| IpNet::new(ends.source, *len).ok());
        let mut targets = prefixes.filter_map(|prefix| self.by_source.get(&prefix.trunc())).flatten();
        targets.any(|place| self.targets[*place as usize].is(ends))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_found_among_many_whatever_their_order_and_overlaps() {
        let texts = ["10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "10.9.0.7/24", "10.9.0.0/25", "0.0.0.0/32"];
        let texts =
            texts.into_iter().chain(["fd00::/64", "fd00::1/128", "255.255.255.255/32", "10.1.0.0/16"]);
        let mut prefixes: Vec<IpNet> = texts.map(|text| text.parse().unwrap()).collect();
        let ends = ["0.0.0.1", "9.255.255.255", "10.0.255.255", "10.2.0.0", "10.9.1.0", "::", "fd00:0:0:1::"];
        let ends = ends.map(|text| text.parse::<IpAddr>().unwrap());
        for _ in 0..prefixes.len() {
            prefixes.rotate_left(1);
            let target = Target::new(prefixes.clone(), Vec::new());
            assert_eq!(target.destinations.as_ref().map(Vec::len), Some(5));
            for address in prefixes.iter().flat_map(|net| [net.network(), net.broadcast()]).chain(ends) {
                let is_in = prefixes.iter().any(|prefix| prefix.contains(&address));
                assert_eq!(target.holds(address), is_in, "{address}");
            }
        }
        let all = Target::new(vec!["0.0.0.0/0".parse().unwrap()], Vec::new());
        assert!(all.holds(ends[0]) && !all.holds(ends[6]));
    }
}
