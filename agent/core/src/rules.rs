//! What others may open on this node, as its map says: rules with their sets of sources put in. What cannot be read allows nothing, and
//! beyond what a data plane can bear nothing more is allowed.

use ipnet::IpNet;
use proto::{
    map::{Content, Map, ObjectId},
    rule::{Rule, Service, SetId},
    wire::ObjectKind,
};
use std::collections::BTreeMap;

/// Many times what policies need; a server is not believed to be sane.
const MAX_RULES: usize = 8192;
/// Of all rules together, by [`cost`]: tens of megabytes in the data plane.
const MAX_COST: usize = 262_144;

/// Whoever is in the sources may open the services at the destinations; no destinations are all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    pub sources: Vec<IpNet>,
    pub destinations: Vec<IpNet>,
    pub services: Vec<Service>,
}

/// The rules of a map.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    pub(crate) allows: Vec<Allow>,
    /// Why objects are without effect.
    pub(crate) refused: Vec<String>,
    cost: usize,
}

/// What a rule may cost where packets are judged: every prefix may be looked up for every service, and every range of ports for every packet.
fn cost(prefixes: usize, services: &[Service]) -> usize {
    let ports = services.iter().map(|service| service.ports.len()).sum::<usize>();
    prefixes.saturating_mul(services.len()).saturating_add(ports)
}

/// Whether the object has to do with rules.
pub(crate) fn is_about_rules(id: &ObjectId) -> bool {
    id.kind == ObjectKind::Rule as u32 || id.kind == ObjectKind::Sources as u32
}

/// The part of the rules that is about these places: a rule that names no destination is about all of them, one that names others about none.
pub(crate) fn confine(allows: &[Allow], places: &[IpNet]) -> Vec<Allow> {
    let narrower =
        |destination: &IpNet, place: &IpNet| match (place.contains(destination), destination.contains(place))
        {
            (true, _) => Some(*destination),
            (false, true) => Some(*place),
            (false, false) => None,
        };
    let confined = |allow: &Allow| {
        let named = allow.destinations.iter();
        let common = || {
            named
                .clone()
                .flat_map(|destination| places.iter().filter_map(|place| narrower(destination, place)))
        };
        let destinations = if allow.destinations.is_empty() { places.to_vec() } else { common().collect() };
        (!destinations.is_empty()).then(|| Allow { destinations, ..allow.clone() })
    };
    allows.iter().filter_map(confined).collect()
}

/// Whether whoever sends from these sources may open anything at this place, or in a part of it.
pub(crate) fn lets_reach(allows: &[Allow], sources: &[IpNet], place: &IpNet) -> bool {
    let meet = |one: &IpNet, other: &IpNet| one.contains(other) || other.contains(one);
    let is_from = |allow: &&Allow| allow.sources.iter().any(|from| sources.iter().any(|own| meet(from, own)));
    let is_to =
        |allow: &Allow| allow.destinations.is_empty() || allow.destinations.iter().any(|to| meet(to, place));
    allows.iter().filter(is_from).any(is_to)
}

pub(crate) fn resolve(map: &Map) -> Resolved {
    let mut resolved = Resolved::default();
    let sets = resolved.sets(map);
    for (id, content) in map.of_kind(ObjectKind::Rule) {
        match Content::decode(id, content) {
            Ok(Content::Rule(rule)) => resolved.add(rule, &sets),
            Ok(Content::Unknown) => resolved.refused.push("it is for newer agents".to_owned()),
            Ok(
                Content::Peer(_)
                | Content::Network(_)
                | Content::Removal(_)
                | Content::Sources(_)
                | Content::Holdings(_),
            ) => {}
            Err(error) => resolved.refused.push(error.to_string()),
        }
    }
    resolved
}

impl Resolved {
    fn sets(&mut self, map: &Map) -> BTreeMap<SetId, Vec<IpNet>> {
        let mut sets = BTreeMap::<SetId, Vec<IpNet>>::new();
        for (id, content) in map.of_kind(ObjectKind::Sources) {
            match (id.set(), Content::decode(id, content)) {
                (Some(set), Ok(Content::Sources(part))) => sets.entry(set).or_default().extend(part),
                (None, _) => self.refused.push("a part of no set".to_owned()),
                (Some(_), Err(error)) => self.refused.push(error.to_string()),
                (Some(_), Ok(_)) => {}
            }
        }
        sets
    }

    fn add(&mut self, rule: Rule, sets: &BTreeMap<SetId, Vec<IpNet>>) {
        let Rule { mut sources, mut source_sets, services, destinations } = rule;
        source_sets.sort_unstable();
        source_sets.dedup();
        let named = || source_sets.iter().filter_map(|set| sets.get(set));
        let count = sources.len() + named().map(Vec::len).sum::<usize>();
        // Without a source or a service it allows nothing.
        if count == 0 || services.is_empty() {
            return;
        }
        let cost = self.cost.saturating_add(cost(count + destinations.len(), &services));
        if self.allows.len() >= MAX_RULES || cost > MAX_COST {
            let reason =
                "there are more rules, or they name more addresses and services, than an agent takes";
            return self.refused.push(reason.to_owned());
        }
        self.cost = cost;
        sources.extend(named().flatten());
        self.allows.push(Allow { sources, destinations, services });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{
        map::Object,
        rule::{MAX_PORT_RANGES, MAX_PREFIXES, MAX_SERVICES, Protocol},
    };

    fn prefix(number: u16) -> IpNet {
        let [high, low] = number.to_be_bytes();
        IpNet::new([100, 64, high, low].into(), 32).unwrap()
    }

    fn put(map: &mut Map, id: ObjectId, content: &Content) {
        let object = Object::new(content, id.id).unwrap();
        assert_eq!(object.id.kind, id.kind);
        map.put(object);
    }

    fn ssh() -> Vec<Service> {
        vec![Service { protocol: Protocol::Tcp, ports: vec![22..=22] }]
    }

    fn map_with(rule: Rule) -> Map {
        let mut map = Map::default();
        put(&mut map, ObjectId::rule(vec![1]), &Content::Rule(rule));
        map
    }

    #[test]
    fn sets_are_put_together_from_their_parts_and_missing_ones_are_empty() {
        let sets = vec![SetId(1), SetId(1), SetId(3)];
        let rule = Rule { sources: vec![prefix(1)], source_sets: sets, services: ssh(), ..Rule::default() };
        let mut map = map_with(rule);
        for (set, part, source) in [(1, b"a", 2), (1, b"b", 3), (2, b"a", 4)] {
            put(&mut map, ObjectId::sources(SetId(set), part), &Content::Sources(vec![prefix(source)]));
        }
        let Resolved { allows, refused, .. } = resolve(&map);
        let sources = vec![prefix(1), prefix(2), prefix(3)];
        assert_eq!(allows, [Allow { sources, destinations: Vec::new(), services: ssh() }]);
        assert!(refused.is_empty(), "{refused:?}");
        map.drop(&ObjectId::sources(SetId(1), b"a"));
        assert_eq!(resolve(&map).allows[0].sources, [prefix(1), prefix(3)]);
    }

    #[test]
    fn rules_reach_the_places_of_the_node_and_nothing_beyond() {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>();
        let to =
            |texts: &[&str]| Allow { sources: vec![prefix(1)], destinations: nets(texts), services: ssh() };
        let places = nets(&["100.64.0.1/32", "fd00::1/128", "10.8.0.0/24"]);
        for (named, reached) in [
            (&[][..], &["100.64.0.1/32", "fd00::1/128", "10.8.0.0/24"][..]),
            (&["0.0.0.0/0"], &["100.64.0.1/32", "10.8.0.0/24"]),
            (&["10.8.0.7/32", "10.9.0.0/16"], &["10.8.0.7/32"]),
            (&["10.0.0.0/8", "::/0"], &["10.8.0.0/24", "fd00::1/128"]),
        ] {
            assert_eq!(confine(&[to(named)], &places), [to(reached)], "{named:?}");
        }
        assert_eq!(confine(&[to(&["192.0.2.0/24"])], &places), [], "what is elsewhere allows nothing here");
        assert_eq!(confine(&[to(&[])], &[]), [], "nor anything where nothing is reached");
    }

    #[test]
    fn a_rule_without_sources_or_services_is_none() {
        let nobody = Rule { source_sets: vec![SetId(9)], services: ssh(), ..Rule::default() };
        let nothing = Rule { sources: vec![prefix(1)], ..Rule::default() };
        for rule in [nobody, nothing] {
            assert!(resolve(&map_with(rule)).allows.is_empty());
        }
    }

    #[test]
    fn what_cannot_be_read_allows_nothing_and_the_rest_stays() {
        let mut map = map_with(Rule::all_from(vec![prefix(1)]));
        for (id, content) in [
            (ObjectId::rule(vec![2]), vec![8, 99]),
            (ObjectId::rule(vec![3]), vec![255]),
            (ObjectId::sources(SetId(1), b""), vec![10, 1, b'x']),
            (ObjectId { id: vec![1], ..ObjectId::sources(SetId(1), b"") }, Vec::new()),
        ] {
            map.put(Object { id, content });
        }
        let Resolved { allows, refused, .. } = resolve(&map);
        assert_eq!((allows.len(), refused.len()), (1, 4), "{refused:?}");
    }

    #[test]
    fn beyond_what_a_data_plane_bears_nothing_more_is_allowed() {
        let mut map = Map::default();
        let part: Vec<IpNet> = (0..MAX_PREFIXES as u16).map(prefix).collect();
        for number in 0..64 {
            put(&mut map, ObjectId::sources(SetId(1), &[number]), &Content::Sources(part.clone()));
        }
        for number in 0..6 {
            let rule = Rule { source_sets: vec![SetId(1)], services: ssh(), ..Rule::default() };
            put(&mut map, ObjectId::rule(vec![number]), &Content::Rule(rule));
        }
        let Resolved { allows, refused, .. } = resolve(&map);
        assert_eq!((allows.len(), refused.len()), (3, 3), "ports count, too");
    }

    /// Each is some kilobytes, and as much as megabytes where every service has its own prefixes.
    #[test]
    fn rules_of_many_addresses_and_services_are_bounded_by_what_all_of_them_cost() {
        let prefixes: Vec<IpNet> = (0..200).map(prefix).collect();
        let service = |number| Service { protocol: Protocol::Number(number), ports: vec![1..=9] };
        let services: Vec<Service> = (0..MAX_SERVICES as u8).map(service).collect();
        let rule = Rule { sources: prefixes.clone(), destinations: prefixes, services, ..Rule::default() };
        let mut map = Map::default();
        for number in 0..200 {
            put(&mut map, ObjectId::rule(vec![number]), &Content::Rule(rule.clone()));
        }
        let Resolved { allows, refused, .. } = resolve(&map);
        assert_eq!((allows.len(), refused.len()), (10, 190));
        let many_ports = Service { protocol: Protocol::Tcp, ports: vec![22..=22; MAX_PORT_RANGES] };
        let services = vec![many_ports; MAX_SERVICES];
        for number in 0..200 {
            let rule = Rule { sources: vec![prefix(1)], services: services.clone(), ..Rule::default() };
            put(&mut map, ObjectId::rule(vec![number]), &Content::Rule(rule));
        }
        assert_eq!(resolve(&map).allows.len(), 15, "ports alone are many");
    }
}
