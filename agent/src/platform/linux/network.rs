//! How the machine is connected, and notice when that changes: rtnetlink says that something changed, and a look at addresses and the way out says what.

use crate::platform::Network;
use futures_util::StreamExt;
use ipnet::IpNet;
use nix::{
    ifaddrs::{InterfaceAddress, getifaddrs},
    net::if_::InterfaceFlags,
    sys::socket::SockaddrStorage,
};
use rtnetlink::MulticastGroup;
use socket2::Socket;
use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};
use tokio::{sync::mpsc, task::AbortHandle};

/// Changes come in flocks: one look after the last of them.
const SETTLE_TIME: Duration = Duration::from_millis(50);
/// A control connection whose data is not acknowledged for this long is broken.
const USER_TIMEOUT: Duration = Duration::from_secs(10);
/// Any public addresses; nothing is sent to them.
const OUTSIDE: [&str; 2] = ["1.1.1.1:53", "[2606:4700:4700::1111]:53"];

/// Tells how the machine is connected: once at the start, then at every change.
#[derive(Debug)]
pub(crate) struct NetworkWatch {
    networks: mpsc::Receiver<Network>,
    tasks: [AbortHandle; 2],
}

impl NetworkWatch {
    /// `own` is the agent's interface, which is left out; `mark` that of its sockets.
    pub(crate) fn start(own: &str, mark: u32) -> io::Result<Self> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, _, mut messages) = rtnetlink::new_multicast_connection(&groups)?;
        let (sender, networks) = mpsc::channel(4);
        let own = own.to_owned();
        let connection = tokio::spawn(connection).abort_handle();
        let watch = tokio::spawn(async move {
            let mut last = None;
            loop {
                let now = look(&own, mark);
                if last.as_ref() != Some(&now) && sender.send(now.clone()).await.is_err() {
                    return;
                }
                last = Some(now);
                if messages.next().await.is_none() {
                    return;
                }
                tokio::time::sleep(SETTLE_TIME).await;
                while messages.try_recv().is_ok() {}
            }
        });
        Ok(Self { networks, tasks: [connection, watch.abort_handle()] })
    }

    /// Cancel-safe. Never ends where the system tells no changes any more.
    pub(crate) async fn changed(&mut self) -> Network {
        match self.networks.recv().await {
            Some(network) => network,
            None => std::future::pending().await,
        }
    }
}

impl Drop for NetworkWatch {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

fn look(own: &str, mark: u32) -> Network {
    let mut networks: Vec<IpNet> = match getifaddrs() {
        Ok(interfaces) => interfaces.filter_map(|interface| usable(&interface, own)).collect(),
        Err(error) => {
            tracing::debug!(%error, "interface addresses cannot be listed");
            Vec::new()
        }
    };
    networks.sort_unstable();
    networks.dedup();
    let mut addresses: Vec<IpAddr> = networks.iter().map(IpNet::addr).collect();
    addresses.dedup();
    Network { addresses, networks, preferred: OUTSIDE.map(|outside| way_out(outside, mark).ok()) }
}

fn usable(interface: &InterfaceAddress, own: &str) -> Option<IpNet> {
    let is_up = interface.flags.contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING);
    if !is_up || interface.flags.contains(InterfaceFlags::IFF_LOOPBACK) || interface.interface_name == own {
        return None;
    }
    let address = interface.address.as_ref().and_then(ip).filter(is_reachable)?;
    let mask = interface.netmask.as_ref().and_then(ip);
    // Where the system tells no mask, it is the address alone.
    Some(mask.and_then(|mask| IpNet::with_netmask(address, mask).ok()).unwrap_or_else(|| address.into()))
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
    v4.or_else(|| Some(address.as_sockaddr_in6()?.ip().into()))
}

fn is_reachable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_loopback() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && !v6.is_loopback() && !v6.is_unspecified(),
    }
}

/// The address that the kernel would send from. Connecting a UDP socket sends nothing.
fn way_out(outside: &str, mark: u32) -> io::Result<IpAddr> {
    let outside: SocketAddr = outside.parse().map_err(io::Error::other)?;
    let any: SocketAddr = if outside.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket2::SockRef::from(&socket).set_mark(mark)?;
    socket.connect(outside)?;
    Ok(socket.local_addr()?.ip())
}

/// Sets what a control connection needs before it connects: `mark` keeps it out of the tunnel.
pub(crate) fn prepare_control_socket(socket: &Socket, mark: u32) -> io::Result<()> {
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_mark(mark)
}
