//! The tests of a tunnel again, for tunnels of two workers (see `support::secret`); without those that measure time on an idle
//! machine. And what is handed over when something comes to the wrong one.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, clippy::duplicate_mod)]

#[path = "capture.rs"]
mod capture;
#[path = "congestion.rs"]
mod congestion;
#[path = "counters.rs"]
mod counters;
#[path = "filter.rs"]
mod filter;
#[path = "hostile.rs"]
mod hostile;
#[path = "lifecycle.rs"]
mod lifecycle;
#[path = "offloads.rs"]
mod offloads;
#[path = "resets.rs"]
mod resets;
#[path = "session.rs"]
mod session;
mod support;

use std::{
    net::UdpSocket,
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use agent_tunnel::{Command, Device, Peer, PrivateKey, WantedWorkers, Workers};
use boringtun::noise::TunnResult;
use support::{
    Netns, Node, Pair, Wire, key, overlay, peer,
    stranger::{Stranger, node_and_stranger},
    wait_until,
};

/// Of one packet to the network, which the kernel gives to whom the first datagram is for.
fn send_together(stranger: &Stranger, datagrams: [&[u8]; 2]) {
    let [first, second] = datagrams;
    assert_eq!(first.len(), second.len());
    let size = first.len() as libc::c_int;
    // SAFETY: the kernel reads an integer, which lives through the call.
    let set = unsafe {
        libc::setsockopt(
            stranger.socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const size).cast(),
            size_of_val(&size) as libc::socklen_t,
        )
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    stranger.socket.send(&[first, second].concat()).unwrap();
}

/// Of a session that nobody has, with an index of this worker's.
fn nobodys(worker: u8, len: usize) -> Vec<u8> {
    let mut datagram = vec![0; len];
    (datagram[0], datagram[5]) = (4, worker);
    datagram
}

fn sealed(stranger: &mut Stranger) -> Vec<u8> {
    let mut packet = [0; 32];
    (packet[0], packet[3], packet[8]) = (0x45, 32, 64);
    packet[12..16].copy_from_slice(&[100, 64, 0, 7]);
    packet[16..20].copy_from_slice(&[100, 64, 0, 1]);
    let mut buffer = [0; 256];
    match stranger.noise.encapsulate(&packet, &mut buffer) {
        TunnResult::WriteToNetwork(message) => message.to_vec(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_peers_here_are_the_second_workers() {
    for number in [1, 2, 7] {
        assert_eq!(support::workers().owner(&key(number).public_key()), 1);
    }
}

#[test]
fn a_datagram_that_came_to_the_wrong_worker_is_handed_over() {
    let (_netns, node, mut stranger) = node_and_stranger();
    stranger.connect();
    node.wait_for_handshake();
    assert_eq!(node.tunnel.counters().handed_over, 0);
    let data = sealed(&mut stranger);
    send_together(&stranger, [&nobodys(0, data.len()), &data]);
    wait_until("it is opened", || node.tunnel.stats()[0].rx_packets == 1);
    assert_eq!((node.tunnel.counters().handed_over, node.tunnel.drops().unknown_index), (1, 1));
}

#[test]
fn an_initiation_that_came_to_another_worker_is_admitted_by_the_first() {
    let (_netns, node, mut stranger) = node_and_stranger();
    let initiation = stranger.initiation();
    send_together(&stranger, [&nobodys(1, initiation.len()), &initiation]);
    let keepalive = stranger.turn();
    stranger.socket.send(&keepalive).unwrap();
    node.wait_for_handshake();
    assert_eq!((node.tunnel.counters().handed_over, node.tunnel.drops().unknown_index), (1, 1));
}

#[test]
fn there_is_one_worker_where_the_kernel_takes_no_program_unless_more_are_ordered() {
    let netns = Netns::new();
    let made_for = |wanted| netns.run(move || Device::create_for(wanted, "hf0", 1420).unwrap().workers());
    let two = Workers::new(2).unwrap();
    assert_eq!(made_for(WantedWorkers::AtMost(two)), two);
    netns.run(|| support::refuse(libc::SYS_bpf, None, libc::EPERM));
    assert_eq!(made_for(WantedWorkers::AtMost(two)), Workers::ONE);
    assert_eq!(made_for(WantedWorkers::Exactly(two)), two);
}

/// As in a container that is not let load programs into the kernel: the first worker reads what the second seals.
#[test]
fn packets_of_another_worker_are_handed_over_where_the_kernel_cannot_tell_them_apart() {
    let wire = Wire::new();
    wire.left.run(|| support::refuse(libc::SYS_bpf, None, libc::EPERM));
    let (left, right) = (Node::start(&wire.left, 1, 1001), Node::start(&wire.right, 2, 1002));
    left.tunnel.command(Command::Upsert(peer(2)));
    right.tunnel.command(Command::Upsert(peer(1)));
    let pair = Pair { left, right, wire };
    pair.connect();
    for size in [0, 1392, 20_000] {
        pair.ping(&overlay(2).to_string(), 50, size);
    }
    let handed_over = |node: &Node| node.tunnel.counters().handed_over;
    assert!(handed_over(&pair.left) >= 150, "{}", handed_over(&pair.left));
    assert_eq!(handed_over(&pair.right), 0);
}

/// Without its prefix, packets of the flow come to the first worker and have no route; with it, to the second.
#[test]
fn a_flow_keeps_its_order_while_its_prefix_comes_and_goes() {
    const FLOW: &str = "100.64.0.77:7";
    let pair = Pair::connected();
    pair.wire.right.shell("ip address add 100.64.0.77/32 dev hf0");
    let (has_ended, heard) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let ended = has_ended.clone();
    let sender = pair.wire.left.run(move || {
        let socket = UdpSocket::bind("100.64.0.1:0").unwrap();
        thread::spawn(move || {
            for number in 0u64.. {
                // A full queue refuses some.
                let _ = socket.send_to(&number.to_be_bytes(), FLOW);
                if ended.load(Ordering::Relaxed) {
                    return;
                }
            }
        })
    });
    let socket = pair.wire.right.run(|| UdpSocket::bind(FLOW).unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let (ended, count) = (has_ended.clone(), heard.clone());
    let receiver = thread::spawn(move || {
        let (mut newest, mut bytes) = (0, [0; 8]);
        while !ended.load(Ordering::Relaxed) {
            if socket.recv(&mut bytes).is_ok() {
                let number = u64::from_be_bytes(bytes);
                assert!(number >= newest, "{number} after {newest}");
                newest = number;
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let with_flow = {
        let mut with_flow = peer(2);
        with_flow.allowed_ips.push("100.64.0.77/32".parse().unwrap());
        with_flow
    };
    for _ in 0..100 {
        pair.left.tunnel.command(Command::Upsert(with_flow.clone()));
        let before = heard.load(Ordering::Relaxed);
        wait_until("the flow goes on", || {
            receiver.is_finished() || heard.load(Ordering::Relaxed) > before + 10
        });
        pair.left.tunnel.command(Command::Upsert(peer(2)));
        // More than a queue holds: nothing is left in the second's.
        let before = pair.left.tunnel.drops().no_route;
        wait_until("the flow is lost", || pair.left.tunnel.drops().no_route > before + 2000);
    }
    has_ended.store(true, Ordering::Relaxed);
    sender.join().unwrap();
    receiver.join().unwrap();
}

/// In either direction: what waited at one worker goes out by the other.
#[test]
fn what_waits_for_a_prefix_that_moves_to_another_workers_peer_follows_in_order() {
    const SHARED: &str = "100.64.0.77";
    let of_first = |number: u8| {
        let mut peer = peer(number);
        let keys = (0..=u8::MAX).map(|salt| PrivateKey::from([salt; 32]).public_key());
        peer.key = keys.into_iter().find(|key| support::workers().owner(key) == 0).unwrap();
        peer
    };
    let with_shared = |mut peer: Peer| {
        peer.allowed_ips.push(format!("{SHARED}/32").parse().unwrap());
        peer
    };
    let pair = Pair::connected();
    pair.wire.right.shell(&format!("ip address add {SHARED}/32 dev hf0"));
    let hears = pair.wire.right.run(|| UdpSocket::bind((SHARED, 9)).unwrap());
    hears.set_read_timeout(Some(support::PATIENCE)).unwrap();
    let socket = pair.wire.left.run(|| UdpSocket::bind(("100.64.0.1", 0)).unwrap());
    pair.left.tunnel.command(Command::Upsert(with_shared(of_first(10))));
    pair.left.tunnel.drops();
    for number in 0..65 {
        socket.send_to(&[number], (SHARED, 9)).unwrap();
    }
    wait_until("all wait", || pair.left.tunnel.drops().queue_full == 1);
    pair.left.tunnel.command(Command::Upsert(with_shared(peer(2))));
    let mut byte = [0];
    for number in 0..64 {
        assert_eq!((hears.recv(&mut byte).unwrap(), byte), (1, [number]));
    }
    // Back again, where it waits.
    pair.left.tunnel.command(Command::Forget { peer: pair.right.key });
    pair.left.wait_for_packet_waiting();
    socket.send_to(&[7], (SHARED, 9)).unwrap();
    assert_eq!(pair.left.wait_for_packet_waiting(), pair.right.key);
    let first = of_first(10);
    pair.left.tunnel.command(Command::Initiate { peer: first.key, endpoints: Vec::new() });
    pair.left.tunnel.command(Command::Upsert(with_shared(first.clone())));
    assert_eq!(pair.left.wait_for_packet_waiting(), first.key);
}
