//! Who may open what: the rules as people and policies state them, and as they are looked up.
//!
//! A hash table by the source's prefix, as in [`crate::routes`]; only lengths in use are tried. Behind a prefix stand the
//! services that its addresses may reach. Nothing is allowed that no rule allows.

use std::{collections::HashMap, net::IpAddr, ops::RangeInclusive};

use ipnet::IpNet;

use super::header::{Ends, ICMP_V4, ICMP_V6, TCP, UDP};

/// What may be opened from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub sources: Vec<IpNet>,
    /// Of this system, or behind it. Empty: all of them.
    pub destinations: Vec<IpNet>,
    pub protocol: Protocol,
    /// Of TCP, UDP and their kin. Empty: all of them, and what has no ports.
    pub ports: Vec<RangeInclusive<u16>>,
}

impl Rule {
    /// Everything from everybody.
    pub fn all() -> Self {
        let sources = vec![IpNet::V4(Default::default()), IpNet::V6(Default::default())];
        Self { sources, destinations: Vec::new(), protocol: Protocol::Any, ports: Vec::new() }
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

/// A rule without its sources.
#[derive(Debug)]
struct Service {
    destinations: Vec<IpNet>,
    protocol: Protocol,
    ports: Vec<RangeInclusive<u16>>,
}

impl Service {
    fn is(&self, to: &Ends) -> bool {
        self.protocol.is(to.protocol)
            && (self.ports.is_empty()
                || (to.has_ports() && self.ports.iter().any(|ports| ports.contains(&to.destination_port))))
            && (self.destinations.is_empty()
                || self.destinations.iter().any(|prefix| prefix.contains(&to.destination)))
    }
}

/// The rules, ready to be asked.
#[derive(Debug, Default)]
pub(super) struct Rules {
    services: Vec<Service>,
    /// What the addresses of a prefix may reach, as places in `services`.
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
                let services = compiled.by_source.entry(source.trunc()).or_default();
                // A prefix that one rule names twice.
                if services.last() != Some(&place) {
                    services.push(place);
                }
                let lengths = match source {
                    IpNet::V4(_) => &mut compiled.lengths_v4,
                    IpNet::V6(_) => &mut compiled.lengths_v6,
                };
                if !lengths.contains(&source.prefix_len()) {
                    lengths.push(source.prefix_len());
                }
            }
            let Rule { destinations, protocol, ports, sources: _ } = rule;
            compiled.services.push(Service { destinations, protocol, ports });
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
        let mut services = prefixes.filter_map(|prefix| self.by_source.get(&prefix.trunc())).flatten();
        services.any(|place| self.services[*place as usize].is(ends))
    }
}
