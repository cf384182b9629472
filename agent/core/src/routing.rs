//! Which shared prefixes are routed into the tunnel. The tunnel's routes come before the machine's own, so a prefix must not swallow what the machine reaches by itself. The ways to
//! servers and peers need no care here: those sockets are marked, and marked packets do not see the tunnel's routes.

use ipnet::IpNet;

/// What a prefix must get along with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Surroundings<'a> {
    pub(crate) overlay: &'a [IpNet],
    /// What this node serves itself.
    pub(crate) served: &'a [IpNet],
    /// The machine's addresses, each with the length of its network.
    pub(crate) connected: &'a [IpNet],
    pub(crate) accept_routes: bool,
}

/// Why a shared prefix is not routed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// The overlay is routed already.
    WithinOverlay,
    CoversOverlay,
    /// It is served here, wholly or in part.
    Served,
    /// A network of the machine.
    Connected(IpNet),
    /// A subnet, and subnets are not asked for.
    NotAccepted,
}

pub(crate) fn is_host(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

impl Surroundings<'_> {
    pub(crate) fn obstacle(&self, prefix: &IpNet) -> Option<Obstacle> {
        if self.overlay.iter().any(|overlay| overlay != prefix && overlay.contains(prefix)) {
            return Some(Obstacle::WithinOverlay);
        }
        if self.overlay.iter().any(|overlay| prefix.contains(overlay)) {
            return Some(Obstacle::CoversOverlay);
        }
        // A host address of ours is found before any route.
        let is_in_the_way =
            |served: &&IpNet| *served == prefix || (prefix.contains(*served) && !is_host(served));
        if self.served.iter().any(|served| is_in_the_way(&served)) {
            return Some(Obstacle::Served);
        }
        if let Some(own) = self.connected.iter().find(|own| is_ours(prefix, own)) {
            return Some(Obstacle::Connected(own.trunc()));
        }
        (!is_host(prefix) && !self.accept_routes).then_some(Obstacle::NotAccepted)
    }
}

/// An address within a network of the machine is no exception: it may be that of the gateway, or of whoever resolves names there.
fn is_ours(prefix: &IpNet, own: &IpNet) -> bool {
    prefix.contains(&own.trunc()) || own.contains(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn obstacle(prefix: &str, accept_routes: bool) -> Option<Obstacle> {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>();
        let overlay = nets(&["100.64.0.0/10", "fd00:1::/48"]);
        let served = nets(&["10.99.0.1/32", "10.8.1.0/24"]);
        let connected = nets(&["192.168.1.7/24", "172.17.0.1/16", "fd05::7/64"]);
        let surroundings =
            Surroundings { overlay: &overlay, served: &served, connected: &connected, accept_routes };
        surroundings.obstacle(&prefix.parse().unwrap())
    }

    #[test]
    fn host_addresses_are_routed_and_subnets_where_they_are_accepted() {
        for prefix in ["10.77.0.1/32", "fd07::1/128"] {
            assert_eq!(obstacle(prefix, false), None);
        }
        for prefix in ["10.77.0.0/24", "fd07::/64"] {
            assert_eq!(obstacle(prefix, false), Some(Obstacle::NotAccepted));
            assert_eq!(obstacle(prefix, true), None);
        }
    }

    #[test]
    fn a_subnet_that_equals_contains_or_lies_in_a_network_of_the_machine_is_left_out() {
        for (prefix, own) in [
            ("192.168.1.0/24", "192.168.1.0/24"),
            ("192.168.0.0/16", "192.168.1.0/24"),
            ("172.17.3.0/24", "172.17.0.0/16"),
            ("fd05::/16", "fd05::/64"),
        ] {
            assert_eq!(obstacle(prefix, true), Some(Obstacle::Connected(own.parse().unwrap())), "{prefix}");
        }
        assert_eq!(obstacle("192.168.2.0/24", true), None);
    }

    #[test]
    fn an_address_within_a_network_of_the_machine_stays_there() {
        for (prefix, own) in [
            ("192.168.1.1/32", "192.168.1.0/24"),
            ("192.168.1.7/32", "192.168.1.0/24"),
            ("fd05::1/128", "fd05::/64"),
        ] {
            assert_eq!(obstacle(prefix, false), Some(Obstacle::Connected(own.parse().unwrap())), "{prefix}");
        }
        assert_eq!(obstacle("192.168.2.1/32", false), None);
    }

    #[test]
    fn what_this_node_serves_itself_is_not_routed_away() {
        assert_eq!(obstacle("10.99.0.1/32", true), Some(Obstacle::Served));
        assert_eq!(obstacle("10.8.1.0/24", true), Some(Obstacle::Served));
        assert_eq!(obstacle("10.8.0.0/16", true), Some(Obstacle::Served));
        assert_eq!(obstacle("10.99.0.0/31", true), None);
        assert_eq!(obstacle("10.8.1.5/32", true), None);
    }

    #[test]
    fn nothing_covers_the_overlay_and_what_lies_in_it_needs_no_route() {
        for prefix in ["0.0.0.0/0", "::/0", "100.64.0.0/10", "100.0.0.0/8"] {
            assert_eq!(obstacle(prefix, true), Some(Obstacle::CoversOverlay), "{prefix}");
        }
        assert_eq!(obstacle("100.64.0.200/32", true), Some(Obstacle::WithinOverlay));
    }
}
