//! Interfaces and sockets come, collide and go.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::mpsc,
};

use agent_tunnel::{
    Config, ConfigureError, Device, DeviceError, Event, Policy, Tunnel, WantedWorkers, start,
    uapi::{Decoder, Request},
};
use support::{Netns, Node, PATIENCE};

#[test]
fn dropping_a_tunnel_removes_its_interface_and_frees_its_port() {
    let netns = Netns::new();
    for _ in 0..2 {
        let node = Node::start(&netns, 1, 1001);
        assert_eq!((node.tunnel.interface(), node.tunnel.listen_port()), ("hf0", 1001));
        assert!(netns.shell("ip -o address show dev hf0").contains("100.64.0.1/10"));
        drop(node);
        assert!(!netns.output("ip link show dev hf0").status.success());
    }
}

#[test]
fn a_name_in_use_is_refused_whatever_kind_of_interface_has_it() {
    let netns = Netns::new();
    netns.shell("ip link add taken type veth peer name other");
    netns.shell("ip tuntap add dev left mode tun");
    for name in ["taken", "left", "lo"] {
        let error = netns.run(move || Device::create(name, 1420).map(drop)).unwrap_err();
        assert!(matches!(&error, DeviceError::NameInUse(n) if n == name), "{error}");
    }
    for name in ["", "sixteen-letters-", "a/b", "a b", "hf%d"] {
        let error = netns.run(move || Device::create(name, 1420).map(drop)).unwrap_err();
        assert!(matches!(error, DeviceError::BadName(_)), "{error}");
    }
}

#[test]
fn a_taken_port_is_replaced_and_told() {
    let netns = Netns::new();
    let _other = netns.run(|| std::net::UdpSocket::bind("[::]:1001").unwrap());
    let node = Node::start(&netns, 1, 1001);
    assert_ne!(node.tunnel.listen_port(), 1001);
}

#[test]
fn a_system_without_ipv6_works_with_ipv4() {
    let netns = Netns::new();
    for interface in ["all", "default", "lo"] {
        let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
        netns.run(move || std::fs::write(path, "1")).unwrap();
    }
    let node = Node::start(&netns, 1, 1001);
    assert_eq!(node.tunnel.listen_port(), 1001);
}

#[test]
fn a_deleted_interface_is_told_as_gone_and_the_handle_survives_it() {
    let netns = Netns::new();
    let node = Node::start(&netns, 1, 0);
    netns.shell("ip link delete hf0");
    node.wait_for("Gone", |event| matches!(event, Event::Gone { .. }).then_some(()));
    drop(node.tunnel.stats());
    assert!(netns.run(|| Device::create("hf0", 1420)).is_ok());
}

#[test]
fn a_defect_is_a_fault_and_not_a_deletion() {
    let netns = Netns::new();
    let (sender, events) = mpsc::channel();
    let mut is_first = true;
    let tunnel = plain(&netns, move |event| {
        assert!(!std::mem::take(&mut is_first), "this defect is part of a test");
        drop(sender.send(event));
    });
    // What is to be told first meets the defect.
    netns.shell("ip link delete hf0");
    let told = events.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(&told, Event::Fault { what } if what.contains("defect")), "{told:?}");
    assert!(tunnel.describe().is_none());
}

#[test]
fn a_port_that_was_chosen_for_any_may_be_asked_for_together_with_a_mark() {
    let netns = Netns::new();
    let tunnel = plain(&netns, |_| ());
    let port = tunnel.listen_port();
    configure(&tunnel, format!("listen_port={port}\nfwmark=7")).unwrap();
    let described = tunnel.describe().unwrap();
    assert_eq!((described.listen_port, described.fwmark), (port, Some(7)));
}

#[test]
fn an_opened_interface_is_adopted_unless_its_packets_come_with_something_before_them() {
    let netns = Netns::new();
    let opened = |flags| netns.run(move || Device::adopt(open("given0", flags)));
    for (flags, reason) in [
        (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR, "IFF_VNET_HDR"),
        (libc::IFF_TAP | libc::IFF_NO_PI, "IFF_TAP"),
    ] {
        let error = opened(flags).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    let null = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(Device::adopt(null.into()), Err(DeviceError::Descriptor(_))));
    let device = opened(libc::IFF_TUN | libc::IFF_NO_PI).unwrap();
    assert_eq!((device.name(), device.mtu()), ("given0", 1500));
}

/// A new interface as others make them.
fn open(name: &str, flags: libc::c_int) -> OwnedFd {
    // _IOW('T', 202, int)
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    let file = std::fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: all-zero bytes are a valid ifreq, which lives through the call.
    let done = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed() as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request)
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    file.into()
}

/// As `agent wg` has it.
fn plain(netns: &Netns, events: impl FnMut(Event) + Send + 'static) -> Tunnel {
    netns.run(move || {
        let config = Config {
            private_key: None,
            policy: Policy::WireGuard,
            device: Device::create_down_for(WantedWorkers::Exactly(support::workers()), "hf0", 1420).unwrap(),
            listen_port: 0,
            fwmark: None,
            addresses: Vec::new(),
            message_port: None,
            filter: None,
        };
        start(config, events).unwrap()
    })
}

fn configure(tunnel: &Tunnel, lines: String) -> Result<(), ConfigureError> {
    let text = format!("set=1\n{lines}\n\n");
    match Decoder::new(|_| None).next(&mut text.as_bytes()) {
        Some(Ok(Request::Set(changes))) => tunnel.configure(*changes),
        other => panic!("{text:?} is {other:?}"),
    }
}
