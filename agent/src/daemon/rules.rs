//! The core's rules in the data plane's words: a rule per service.

use agent_core::rules::Allow;
use agent_tunnel::Rule;
use proto::rule::{Protocol, Service};

/// Services of protocols that this version does not know are left out: they allow nothing.
pub(super) fn translate(allows: Vec<Allow>) -> Vec<Rule> {
    let mut rules = Vec::with_capacity(allows.len());
    for Allow { sources, destinations, services } in allows {
        rules.extend(services.into_iter().filter_map(|Service { protocol, ports }| {
            let protocol = known(protocol)?;
            Some(Rule { sources: sources.clone(), destinations: destinations.clone(), protocol, ports })
        }));
    }
    rules
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

    #[test]
    fn a_rule_is_one_per_service_and_none_for_protocols_that_are_not_known() {
        let service = |protocol, port: u16| Service { protocol, ports: vec![port..=port] };
        let services = vec![
            service(Protocol::Tcp, 22),
            service(Protocol::Unknown(9), 23),
            service(Protocol::Number(47), 24),
        ];
        let sources = vec!["100.64.0.0/10".parse().unwrap()];
        let destinations = vec!["10.0.0.0/8".parse().unwrap()];
        let rules = translate(vec![Allow { sources: sources.clone(), destinations, services }]);
        let [ssh, gre] = &rules[..] else { panic!("{rules:?}") };
        assert_eq!((ssh.protocol, &ssh.ports[..]), (agent_tunnel::Protocol::Tcp, &[22..=22][..]));
        assert_eq!((gre.protocol, &gre.ports[..]), (agent_tunnel::Protocol::Number(47), &[24..=24][..]));
        assert!(rules.iter().all(|rule| rule.sources == sources && rule.destinations.len() == 1));
    }
}
