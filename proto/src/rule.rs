//! What may be opened on a node: rules, and the sets of sources that they name.
//!
//! A rule is an object of its own, and so is a part of a set. So a policy that changes is one object to every node that it is about, and a
//! node whose groups change is one small part of a few sets. The rules of a node are those in its map; all of them only
//! allow. So whatever is not understood, is malformed or is missing, allows nothing: older agents are stricter than was meant, never laxer.

use crate::{Invalid, fixed, map::ObjectId, wire};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::ops::RangeInclusive;

/// What this code knows of rules. A rule that must not be read by those who know less says so by its level.
pub const RULE_LEVEL: u32 = 1;

/// Prefixes of a rule's sources, of its destinations, or of a part of a set. More sources are more parts.
pub const MAX_PREFIXES: usize = 1024;
pub const MAX_SETS: usize = 256;
pub const MAX_SERVICES: usize = 64;
pub const MAX_PORT_RANGES: usize = 256;

/// A set of sources, whose parts are objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId(pub u64);

/// Whoever is in the sources may open the services at the destinations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    pub sources: Vec<IpNet>,
    /// Besides; one that the map lacks is empty.
    pub source_sets: Vec<SetId>,
    pub services: Vec<Service>,
    /// Of the node, or behind it. Empty: all of them.
    pub destinations: Vec<IpNet>,
}

/// What is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub protocol: Protocol,
    /// Empty: all ports, and what has none. What has no ports has none of those that are named.
    pub ports: Vec<RangeInclusive<u16>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Any,
    Tcp,
    Udp,
    /// Of both families.
    Icmp,
    /// By its number at IANA.
    Number(u8),
    /// Of a later version: it is never met.
    Unknown(i32),
}

impl Rule {
    /// Everything, from wherever tunnels let somebody send: own addresses and what was granted, the hosts behind a router included.
    pub fn all() -> Self {
        Self::all_from(vec![Ipv4Net::default().into(), Ipv6Net::default().into()])
    }

    /// Everything, from these sources.
    pub fn all_from(sources: Vec<IpNet>) -> Self {
        let everything = Service { protocol: Protocol::Any, ports: Vec::new() };
        Self { sources, services: vec![everything], ..Self::default() }
    }

    pub(crate) fn to_wire(&self) -> wire::Rule {
        wire::Rule {
            level: RULE_LEVEL,
            sources: texts(&self.sources),
            source_sets: self.source_sets.iter().map(|set| set.0).collect(),
            services: self.services.iter().map(Service::to_wire).collect(),
            destinations: texts(&self.destinations),
        }
    }

    /// `None`: it is not for this version to read.
    pub(crate) fn from_wire(wire: wire::Rule) -> Result<Option<Self>, Invalid> {
        if !(1..=RULE_LEVEL).contains(&wire.level) {
            return Ok(None);
        }
        bounded("rule's source sets", wire.source_sets.len(), MAX_SETS)?;
        bounded("rule's services", wire.services.len(), MAX_SERVICES)?;
        Ok(Some(Self {
            sources: prefixes("rule's source", &wire.sources)?,
            source_sets: wire.source_sets.into_iter().map(SetId).collect(),
            services: wire.services.into_iter().map(Service::try_from).collect::<Result<_, _>>()?,
            destinations: prefixes("rule's destination", &wire.destinations)?,
        }))
    }
}

impl Service {
    fn to_wire(&self) -> wire::Service {
        let (protocol, number) = match self.protocol {
            Protocol::Any => (wire::Protocol::Any as i32, 0),
            Protocol::Tcp => (wire::Protocol::Tcp as i32, 0),
            Protocol::Udp => (wire::Protocol::Udp as i32, 0),
            Protocol::Icmp => (wire::Protocol::Icmp as i32, 0),
            Protocol::Number(number) => (wire::Protocol::Number as i32, number.into()),
            Protocol::Unknown(later) => (later, 0),
        };
        let range = |ports: &RangeInclusive<u16>| wire::PortRange {
            first: (*ports.start()).into(),
            last: (*ports.end()).into(),
        };
        wire::Service { protocol, number, ports: self.ports.iter().map(range).collect() }
    }
}

impl TryFrom<wire::Service> for Service {
    type Error = Invalid;

    fn try_from(wire: wire::Service) -> Result<Self, Invalid> {
        bounded("service's ports", wire.ports.len(), MAX_PORT_RANGES)?;
        let number = || {
            wire.number
                .try_into()
                .map_err(|_| Invalid::new("protocol", format_args!("number {}", wire.number)))
        };
        let protocol = match wire::Protocol::try_from(wire.protocol) {
            Ok(wire::Protocol::Any) => Protocol::Any,
            Ok(wire::Protocol::Tcp) => Protocol::Tcp,
            Ok(wire::Protocol::Udp) => Protocol::Udp,
            Ok(wire::Protocol::Icmp) => Protocol::Icmp,
            Ok(wire::Protocol::Number) => Protocol::Number(number()?),
            Ok(wire::Protocol::Unspecified) | Err(_) => Protocol::Unknown(wire.protocol),
        };
        Ok(Self { protocol, ports: wire.ports.iter().map(range).collect::<Result<_, _>>()? })
    }
}

fn range(wire: &wire::PortRange) -> Result<RangeInclusive<u16>, Invalid> {
    match (u16::try_from(wire.first), u16::try_from(wire.last)) {
        (Ok(first), Ok(last)) if first <= last => Ok(first..=last),
        (_, _) => Err(Invalid::new("ports", format_args!("{} to {}", wire.first, wire.last))),
    }
}

pub(crate) fn sources_to_wire(sources: &[IpNet]) -> wire::Sources {
    wire::Sources { prefixes: texts(sources) }
}

pub(crate) fn sources_from_wire(wire: &wire::Sources) -> Result<Vec<IpNet>, Invalid> {
    prefixes("source", &wire.prefixes)
}

impl ObjectId {
    /// `id` is the rule's, at most 64 bytes.
    pub fn rule(id: Vec<u8>) -> Self {
        Self { kind: wire::ObjectKind::Rule as u32, id }
    }

    /// A part of a set; `part` tells it from the others, in at most 56 bytes.
    pub fn sources(set: SetId, part: &[u8]) -> Self {
        Self { kind: wire::ObjectKind::Sources as u32, id: [&set.0.to_be_bytes(), part].concat() }
    }

    /// The set that this is a part of, if it is one.
    pub fn set(&self) -> Option<SetId> {
        let id = self.id.get(..8).filter(|_| self.kind == wire::ObjectKind::Sources as u32)?;
        fixed("set", id).ok().map(|id| SetId(u64::from_be_bytes(id)))
    }
}

fn texts(prefixes: &[IpNet]) -> Vec<String> {
    prefixes.iter().map(ToString::to_string).collect()
}

fn prefixes(field: &'static str, texts: &[String]) -> Result<Vec<IpNet>, Invalid> {
    bounded(field, texts.len(), MAX_PREFIXES)?;
    texts.iter().map(|text| text.parse().map_err(|error| Invalid::new(field, error))).collect()
}

fn bounded(field: &'static str, count: usize, limit: usize) -> Result<(), Invalid> {
    match count <= limit {
        true => Ok(()),
        false => Err(Invalid::new(field, format_args!("{count} entries, at most {limit}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::{Content, Object};
    use prost::Message;

    fn rule() -> Rule {
        Rule {
            sources: vec!["100.64.0.7/32".parse().unwrap(), "fd00::/64".parse().unwrap()],
            source_sets: vec![SetId(7), SetId(u64::MAX)],
            services: vec![
                Service { protocol: Protocol::Tcp, ports: vec![22..=22, 8000..=8999] },
                Service { protocol: Protocol::Number(47), ports: Vec::new() },
                Service { protocol: Protocol::Icmp, ports: Vec::new() },
            ],
            destinations: vec!["10.0.0.0/8".parse().unwrap()],
        }
    }

    fn decoded(wire: &wire::Rule) -> Result<Content, Invalid> {
        Content::decode(&ObjectId::rule(vec![1]), &wire.encode_to_vec())
    }

    #[test]
    fn rules_and_sets_are_read_as_they_were_written() {
        let sources: Vec<IpNet> =
            (0..=255).map(|i| IpNet::new([100, 64, 1, i].into(), 32).unwrap()).collect();
        for content in [Content::Rule(rule()), Content::Rule(Rule::default()), Content::Sources(sources)] {
            let object = Object::new(&content, vec![7; 8]).unwrap();
            assert_eq!(Content::decode(&object.id, &object.content), Ok(content));
        }
    }

    #[test]
    fn a_rule_for_later_readers_is_none() {
        for level in [0, RULE_LEVEL + 1] {
            assert_eq!(decoded(&wire::Rule { level, ..rule().to_wire() }), Ok(Content::Unknown), "{level}");
        }
    }

    #[test]
    fn a_protocol_of_later_is_kept_as_such() {
        for later in [0, 99, -1] {
            let services = vec![wire::Service { protocol: later, ..Default::default() }];
            let Ok(Content::Rule(rule)) = decoded(&wire::Rule { services, ..rule().to_wire() }) else {
                panic!("no rule");
            };
            assert_eq!(rule.services[0].protocol, Protocol::Unknown(later));
        }
    }

    #[test]
    fn what_is_malformed_or_beyond_bounds_is_refused_by_name() {
        let ports = |first, last| wire::Rule {
            services: vec![wire::Service {
                protocol: wire::Protocol::Tcp as i32,
                ports: vec![wire::PortRange { first, last }],
                ..Default::default()
            }],
            ..rule().to_wire()
        };
        let number =
            vec![wire::Service { protocol: wire::Protocol::Number as i32, number: 256, ports: vec![] }];
        let many = vec!["::/0".to_owned(); MAX_PREFIXES + 1];
        for (field, wire) in [
            ("ports", ports(2, 1)),
            ("ports", ports(1, 65_536)),
            ("protocol", wire::Rule { services: number, ..rule().to_wire() }),
            ("rule's source", wire::Rule { sources: vec!["100.64.0.0/33".into()], ..rule().to_wire() }),
            ("rule's source", wire::Rule { sources: many.clone(), ..rule().to_wire() }),
            ("rule's destination", wire::Rule { destinations: many, ..rule().to_wire() }),
            ("rule's source sets", wire::Rule { source_sets: vec![1; MAX_SETS + 1], ..rule().to_wire() }),
        ] {
            assert_eq!(decoded(&wire).unwrap_err().field, field);
        }
    }

    #[test]
    fn parts_know_their_set_and_nothing_else_has_one() {
        assert_eq!(ObjectId::sources(SetId(7), b"").set(), Some(SetId(7)));
        assert_eq!(ObjectId::sources(SetId(u64::MAX), b"part").set(), Some(SetId(u64::MAX)));
        assert_eq!(ObjectId::rule(vec![0; 8]).set(), None);
        assert_eq!(ObjectId { id: vec![0; 7], ..ObjectId::sources(SetId(7), b"") }.set(), None);
    }
}
