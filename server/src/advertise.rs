//! Which addresses agents are told to reach a server at, where nobody said it: that which it listens on if it is one, else the host's.

use ipnet::IpNet;
use proto::{map::Network, server_url::ServerUrl};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// More would only be tried in vain.
const MAX_ADDRESSES: usize = 8;

/// What to advertise for a server that listens on `addr`.
pub(crate) fn advertised(told: &[ServerUrl], addr: SocketAddr, network: &Network) -> Vec<ServerUrl> {
    if !told.is_empty() {
        return told.to_vec();
    }
    let ips = match addr.ip().is_unspecified() {
        true => usable(&host_addresses(), addr.is_ipv4(), &[network.overlay_v4, network.overlay_v6]),
        false => vec![addr.ip()],
    };
    ips.into_iter().map(|ip| SocketAddr::new(ip, addr.port()).into()).collect()
}

/// Those that others may reach and that are not the network's own; on a host without any, loopback: better than nothing to paste.
fn usable(found: &[IpAddr], v4_only: bool, overlay: &[IpNet]) -> Vec<IpAddr> {
    let is_usable = |ip: &&IpAddr| {
        let is_link_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        let is_foreign = !overlay.iter().any(|prefix| prefix.contains(*ip));
        is_foreign
            && !is_link_local
            && !ip.is_loopback()
            && !ip.is_unspecified()
            && (ip.is_ipv4() || !v4_only)
    };
    let mut ips: Vec<_> = found.iter().filter(is_usable).copied().collect();
    ips.sort_by_key(IpAddr::is_ipv6);
    ips.dedup();
    ips.truncate(MAX_ADDRESSES);
    match ips.is_empty() {
        true => vec![Ipv4Addr::LOCALHOST.into()],
        false => ips,
    }
}

#[cfg(unix)]
fn host_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|addr| IpAddr::from(addr.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|addr| addr.ip().into()))
    };
    interfaces.filter_map(address).collect()
}

/// The addresses that packets to the world would leave from. Connecting a UDP socket sends nothing.
#[cfg(not(unix))]
fn host_addresses() -> Vec<IpAddr> {
    let leaving = |bind: &str, towards: &str| {
        let socket = std::net::UdpSocket::bind(bind).ok()?;
        socket.connect(towards).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    [leaving("0.0.0.0:0", "192.0.2.1:9"), leaving("[::]:0", "[2001:db8::1]:9")]
        .into_iter()
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn what_others_cannot_reach_is_not_advertised() {
        let overlay = ["100.64.0.0/10".parse().unwrap()];
        let found =
            ips(&["127.0.0.1", "::1", "2001:db8::5", "192.0.2.5", "169.254.3.4", "fe80::1", "100.64.0.9"]);
        assert_eq!(usable(&found, false, &overlay), ips(&["192.0.2.5", "2001:db8::5"]));
        assert_eq!(usable(&found, true, &overlay), ips(&["192.0.2.5"]));
        assert_eq!(usable(&ips(&["127.0.0.1"]), false, &overlay), ips(&["127.0.0.1"]));
    }

    #[test]
    fn an_address_that_is_listened_on_is_the_one_advertised_unless_told_otherwise() {
        let network = crate::cluster::testing::state().network;
        let addr = "192.0.2.5:7443".parse().unwrap();
        assert_eq!(advertised(&[], addr, &network), [ServerUrl::from(addr)]);
        let told: ServerUrl = "vpn.example.com".parse().unwrap();
        assert_eq!(advertised(std::slice::from_ref(&told), addr, &network), [told]);
    }
}
