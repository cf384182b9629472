//! Tunnels where the kernel does less: interfaces without offloads, links narrower than the tunnel, other MTUs meanwhile.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

mod support;

use std::{ffi::CString, time::Duration};

use agent_tunnel::Command;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};
use support::{Node, Pair, RIGHT, Wire, peer};

/// As in a kernel that does not know them.
fn refuse_offloads() {
    const TUNSETOFFLOAD: u32 = 0x4004_54d0;
    support::refuse(libc::SYS_ioctl, Some(TUNSETOFFLOAD), libc::EINVAL);
}

/// One by one: of several, ping calls lost what comes later than two round trips, as it does on a busy machine.
fn carries_pings(pair: &Pair, size: usize) {
    for _ in 0..5 {
        pair.wire.left.shell(&format!("ping -q -c 1 -W 20 -s {size} 100.64.0.2"));
    }
}

fn carries_tcp(pair: &Pair) {
    let mut server = pair.wire.right.spawn("iperf3 -s -1 -B 100.64.0.2");
    support::wait_until("iperf3 listens", || {
        pair.wire.right.shell("ss -Hltn sport = :5201").contains("5201")
    });
    let said = pair.wire.left.shell("iperf3 -c 100.64.0.2 -n 20M -f m");
    let _ = server.wait();
    assert!(said.contains("receiver"), "{said}");
    let drops = [pair.left.tunnel.drops(), pair.right.tunnel.drops()];
    assert!(
        drops.iter().all(|drops| drops.write_failed + drops.send_failed + drops.malformed == 0),
        "{drops:?}"
    );
}

#[test]
fn an_interface_without_offloads_carries_everything() {
    let wire = Wire::new();
    wire.left.run(refuse_offloads);
    let (left, right) = (Node::start(&wire.left, 1, 1001), Node::start(&wire.right, 2, 1002));
    left.tunnel.command(Command::Upsert(peer(2)));
    right.tunnel.command(Command::Upsert(peer(1)));
    let pair = Pair { left, right, wire };
    pair.connect();
    carries_pings(&pair, 1300);
    carries_tcp(&pair);
}

#[test]
fn a_link_that_becomes_narrower_than_the_tunnel_costs_no_packet() {
    let pair = Pair::connected();
    carries_pings(&pair, 1300);
    for mtu in [1280, 600] {
        for side in [&pair.wire.left, &pair.wire.right] {
            side.shell(&format!("ip link set wire mtu {mtu}"));
        }
        carries_pings(&pair, 1300);
        carries_tcp(&pair);
    }
    assert_eq!(pair.left.tunnel.stats()[0].endpoint, Some(RIGHT.into()));
}

#[test]
fn the_interfaces_mtu_changes_under_traffic() {
    let pair = Pair::connected();
    for mtu in [9000, 576, 65_000, 1420] {
        for side in [&pair.wire.left, &pair.wire.right] {
            side.shell(&format!("ip link set hf0 mtu {mtu}"));
        }
        carries_pings(&pair, mtu - 28);
        carries_tcp(&pair);
    }
}

/// Where packets leave and enter the system as they are.
fn packet_socket(protocol: i32) -> (Socket, SockAddr) {
    let socket =
        Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(protocol.swap_bytes() >> 16))).unwrap();
    let name = CString::new("hf0").unwrap();
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the storage is large enough for every address, and zeros are one.
    let address = unsafe {
        let address = storage.view_as::<libc::sockaddr_ll>();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (protocol as u16).to_be();
        address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
        SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as u32)
    };
    socket.bind(&address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (socket, address)
}

fn v4(protocol: u8, fragment: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header = 20 + options.len();
    let mut packet = vec![0x40 | (header / 4) as u8, 0];
    packet.extend(((header + payload.len()) as u16).to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 100, 64, 0, 1, 100, 64, 0, 2]);
    packet.extend(options);
    let sum: u32 = packet.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    for number in [1, 2] {
        packet.extend([0xfd, 0x64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, number]);
    }
    packet.extend(payload);
    packet
}

/// A TCP segment with data, with a checksum that is wrong.
fn segment(number: u32) -> Vec<u8> {
    let mut segment = vec![0, 7, 0, 9];
    segment.extend((number * 1000).to_be_bytes());
    segment.extend([0, 0, 0, 1, 0x50, 0x10, 1, 0, 0x12, 0x34, 0, 0]);
    segment.extend([number as u8; 1000]);
    segment
}

/// Header, then 8 bytes of it, then TCP.
fn extended(kind: u8, content: [u8; 6]) -> Vec<u8> {
    let mut payload = vec![6, 0];
    payload.extend(content);
    payload.extend(segment(1));
    v6(kind, &payload)
}

/// What is no plain TCP or UDP, and what is wrong with some that is.
fn strange_packets() -> Vec<Vec<u8>> {
    let datagram = |checksum: [u8; 2]| [&[0, 7, 0, 9, 0, 108], &checksum[..], &[5; 100]].concat();
    let mut packets = vec![
        v4(17, 0x2000, &[], &datagram([0; 2])),
        v4(17, 0x2001, &[], &[8; 1000]),
        v4(17, 0x0080, &[], &[9; 13]),
        v4(17, 0x4000, &[], &datagram([0; 2])),
        v4(17, 0, &[], &datagram([1, 2])),
        v4(17, 0, &[], &datagram([1, 2])),
        v4(6, 0x4000, &[1, 1, 1, 1], &segment(1)),
        v4(6, 0x4000, &[1, 1, 1, 1], &segment(2)),
        v4(1, 0, &[], &[3; 64]),
        extended(60, [1, 4, 0, 0, 0, 0]),
        extended(43, [4, 0, 0, 0, 0, 0]),
        extended(44, [0, 1, 0, 0, 0, 7]),
        extended(44, [0x12, 0, 0, 0, 0, 7]),
        extended(0, [1, 4, 0, 0, 0, 0]),
        v6(59, &[]),
        v6(59, &[1; 33]),
        v6(17, &datagram([0; 2])),
        v6(58, &[130; 24]),
    ];
    // ESP, AH, SCTP, GRE, UDP-Lite, experiments, and what is not given out.
    for protocol in [50, 51, 132, 47, 136, 253, 200] {
        packets.push(v4(protocol, 0, &[], &[protocol; 1380]));
        packets.push(v6(protocol, &[protocol; 1379]));
    }
    packets.extend((0..5).map(|number| v4(6, 0x4000, &[], &segment(number))));
    packets.extend((0..5).map(|number| v6(6, &segment(number))));
    packets
}

#[test]
fn fragments_extension_headers_and_strange_packets_pass_byte_for_byte() {
    let pair = Pair::new();
    for (node, netns, own, other) in
        [(&pair.left, &pair.wire.left, 1, 2), (&pair.right, &pair.wire.right, 2, 1)]
    {
        let mut peer = peer(other);
        let inner = format!("fd64::{other}/128").parse().unwrap();
        peer.allowed_ips.push(inner);
        peer.sources.push(inner);
        node.tunnel.command(Command::Upsert(peer));
        netns.shell(&format!("ip address add fd64::{own}/64 dev hf0 nodad"));
    }
    pair.connect();
    let (arriving, _) = pair.wire.right.run(|| packet_socket(libc::ETH_P_ALL));
    let (leaving, address) = pair.wire.left.run(|| packet_socket(libc::ETH_P_IP));
    let packets = strange_packets();
    for packet in &packets {
        leaving.send_to(packet, &address).unwrap();
    }
    let mut buffer = [0; 2000];
    for packet in packets {
        // What the systems say themselves is not meant.
        let got = loop {
            let len = std::io::Read::read(&mut &arriving, &mut buffer).unwrap();
            let is_answer = |got: &[u8]| match got[0] >> 4 {
                4 => got[12..16] == [100, 64, 0, 2],
                _ => got[8..24] != packet_source_v6(),
            };
            if !is_answer(&buffer[..len]) {
                break &buffer[..len];
            }
        };
        assert_eq!(got, packet);
    }
    let drops = pair.right.tunnel.drops();
    assert_eq!((drops.write_failed, drops.not_authentic, drops.bad_source), (0, 0, 0));
}

fn packet_source_v6() -> [u8; 16] {
    [0xfd, 0x64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
}
