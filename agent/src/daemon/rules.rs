//! The core's rules in the data plane's words.

use agent_core::rules::Allow;
use agent_tunnel::Rule;
use proto::rule::{Protocol, Service};

/// Services of protocols that this version does not know are left out: they allow nothing.
pub(super) fn translate(allows: Vec<Allow>) -> Vec<Rule> {
    let rules = allows.into_iter().map(|Allow { sources, destinations, services }| {
        let services = services.into_iter().filter_map(|Service { protocol, ports }| {
            Some(agent_tunnel::Service { protocol: known(protocol)?, ports })
        });
        Rule { sources, destinations, services: services.collect() }
    });
    rules.filter(|rule| !rule.services.is_empty()).collect()
}

fn known(protocol: Protocol) -> Option<agent_tunnel::Protocol> {
    match protocol {
        Protocol::Any => Some(agent_tunnel::Protocol::Any),
        Protocol::Tcp => Some(agent_tunnel::Protocol::Tcp),
        Protocol::Udp => Some(agent_tunnel::Protocol::Udp),
        Protocol::Icmp => Some(agent_tunnel::Protocol::Icmp),
        Protocol::Number(number) => Some(agent_tunnel::Protocol::Number(number)),
        Protocol::Unknown(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(protocol: Protocol, port: u16) -> Service {
        Service { protocol, ports: vec![port..=port] }
    }

    #[test]
    fn services_of_protocols_that_are_not_known_are_left_out_and_rules_that_have_no_others() {
        let allow = |services| Allow {
            sources: vec!["100.64.0.0/10".parse().unwrap()],
            destinations: vec!["10.0.0.0/8".parse().unwrap()],
            services,
        };
        let services = [Protocol::Tcp, Protocol::Unknown(9), Protocol::Number(47)];
        let some = allow(services.map(|protocol| service(protocol, 22)).to_vec());
        let rules = translate(vec![some.clone(), allow(vec![service(Protocol::Unknown(9), 22)])]);
        let [Rule { sources, destinations, services }] = &rules[..] else { panic!("{rules:?}") };
        assert_eq!((sources, destinations), (&some.sources, &some.destinations));
        let ssh = |protocol| agent_tunnel::Service { protocol, ports: vec![22..=22] };
        assert_eq!(services[..], [agent_tunnel::Protocol::Tcp, agent_tunnel::Protocol::Number(47)].map(ssh));
    }

    #[test]
    fn a_rule_of_many_services_has_its_prefixes_once() {
        let prefixes: Vec<ipnet::IpNet> = (0..=255).map(|at| ([10, 0, 0, at], 32)).map(net).collect();
        let services = (0..64).map(|number| service(Protocol::Number(number), 22)).collect();
        let allow = Allow { sources: prefixes.clone(), destinations: prefixes, services };
        let kept = (allow.sources.as_ptr(), allow.destinations.as_ptr());
        let rules = translate(vec![allow]);
        let [rule] = &rules[..] else { panic!("{}", rules.len()) };
        assert_eq!((rule.sources.as_ptr(), rule.destinations.as_ptr()), kept, "they are not even copied");
        assert_eq!(rule.services.len(), 64);
    }

    fn net((address, len): ([u8; 4], u8)) -> ipnet::IpNet {
        ipnet::IpNet::new(address.into(), len).unwrap()
    }
}
