//! Where packets go, and from which of our addresses. What a peer or an owner names as an endpoint may be nonsense, which is
//! told here before it is one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Where packets go, and which of our addresses they come from: the one the other side sends to, as a firewall or
/// translator on the way expects. `None` leaves it to the system's routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) to: SocketAddr,
    pub(crate) from: Option<IpAddr>,
}

impl Path {
    pub(crate) fn to(to: SocketAddr) -> Self {
        Self { to, from: None }
    }
}

/// Whether one node may be there. Nothing can be sent to port 0, and not to one node by multicast or broadcast.
pub(crate) fn leads_somewhere(to: SocketAddr) -> bool {
    let ip = to.ip().to_canonical();
    to.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::V4(Ipv4Addr::BROADCAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_node_with_a_port_is_somewhere_and_nothing_else() {
        for good in
            ["192.0.2.1:1", "127.0.0.1:65535", "[2001:db8::1]:51820", "[fe80::1%2]:9", "192.0.2.255:7"]
        {
            assert!(leads_somewhere(good.parse().unwrap()), "{good}");
        }
        let bad =
            ["192.0.2.1:0", "[2001:db8::1]:0", "0.0.0.0:9", "[::]:9", "224.0.0.251:5353", "[ff02::1]:9"];
        for bad in
            bad.into_iter().chain(["255.255.255.255:9", "[::ffff:255.255.255.255]:9", "[::ffff:0.0.0.0]:9"])
        {
            assert!(!leads_somewhere(bad.parse().unwrap()), "{bad}");
        }
    }
}
