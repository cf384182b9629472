//! Packets that wait: to many peers that answer nothing, beside one that would, and for a prefix that moves to another peer.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    net::{IpAddr, UdpSocket},
    str::FromStr,
};

use agent_tunnel::{Command, Peer};
use support::{PATIENCE, Pair, overlay, peer, wait_until};

const SILENT: std::ops::Range<u8> = 10..110;
/// With 28 bytes of headers, as large as the interface takes.
const PAYLOAD: [u8; 1392] = [7; 1392];

#[test]
fn peers_that_answer_nothing_do_not_take_the_room_of_anothers_first_packet() {
    let pair = Pair::new();
    SILENT.for_each(|number| pair.left.tunnel.command(Command::Upsert(peer(number))));
    // Answered in order, so all are there.
    pair.left.tunnel.drops();
    let socket = pair.wire.left.run(|| UdpSocket::bind((overlay(1), 0)).unwrap());
    wait_until("no more may wait", || {
        for number in SILENT {
            socket.send_to(&PAYLOAD, (overlay(number), 9)).unwrap();
        }
        pair.left.tunnel.drops().queue_full > 1000
    });
    socket.send_to(&PAYLOAD, (overlay(2), 9)).unwrap();
    // One announcement for each peer with packets.
    while pair.left.wait_for_packet_waiting() != pair.right.key {}
    let of_right = || {
        let stats = pair.left.tunnel.stats();
        stats.into_iter().find(|stats| stats.key == pair.right.key).unwrap()
    };
    assert_eq!(of_right().drops.queue_full, 0);
    pair.connect();
    wait_until("it is delivered", || pair.right.tunnel.stats()[0].rx_packets == 1);
    assert_eq!(of_right().tx_packets, 1);
}

const SHARED: &str = "100.64.0.77";

/// With the shared address beside its own.
fn claimer(number: u8) -> Peer {
    let mut claimer = peer(number);
    claimer.allowed_ips.push(IpAddr::from_str(SHARED).unwrap().into());
    claimer
}

/// What waits on the left for the shared address, which number 10 has and never answers for; and who hears it on the right.
fn waiting_for_another(pair: &Pair) -> UdpSocket {
    pair.wire.right.shell(&format!("ip address add {SHARED}/32 dev hf0"));
    let hears = pair.wire.right.run(|| UdpSocket::bind((SHARED, 9)).unwrap());
    hears.set_read_timeout(Some(PATIENCE)).unwrap();
    pair.left.tunnel.command(Command::Upsert(claimer(10)));
    // Answered in order, so the peer is there.
    pair.left.tunnel.drops();
    let socket = pair.wire.left.run(|| UdpSocket::bind((overlay(1), 0)).unwrap());
    for number in 0..WAITING {
        socket.send_to(&[number], (SHARED, 9)).unwrap();
    }
    // One more than may wait: all the others do.
    wait_until("all wait", || pair.left.tunnel.drops().queue_full == 1);
    hears
}

const WAITING: u8 = 65;

fn all_come_in_order(hears: &UdpSocket) {
    let mut byte = [0];
    for number in 0..WAITING - 1 {
        assert_eq!((hears.recv(&mut byte).unwrap(), byte), (1, [number]));
    }
}

#[test]
fn what_waits_for_a_prefix_that_moves_goes_to_its_new_owner_at_once_and_in_order() {
    let pair = Pair::connected();
    let hears = waiting_for_another(&pair);
    pair.left.tunnel.command(Command::Upsert(claimer(2)));
    all_come_in_order(&hears);
    let stats = pair.left.tunnel.stats();
    assert_eq!(stats.iter().map(|stats| stats.tx_packets).sum::<u64>(), u64::from(WAITING) - 1);
}

#[test]
fn what_waits_for_a_prefix_that_moves_waits_for_its_new_owner_who_is_announced() {
    let pair = Pair::new();
    let hears = waiting_for_another(&pair);
    assert_ne!(pair.left.wait_for_packet_waiting(), pair.right.key);
    pair.left.tunnel.command(Command::Upsert(claimer(2)));
    assert_eq!(pair.left.wait_for_packet_waiting(), pair.right.key);
    pair.connect();
    all_come_in_order(&hears);
}

#[test]
fn what_waits_for_a_peers_own_address_stays_and_what_nobody_has_any_more_is_counted() {
    let pair = Pair::new();
    waiting_for_another(&pair);
    let socket = pair.wire.left.run(|| UdpSocket::bind((overlay(1), 0)).unwrap());
    pair.left.tunnel.command(Command::Upsert(peer(10)));
    wait_until("nobody has the prefix", || pair.left.tunnel.drops().no_route == u64::from(WAITING) - 1);
    socket.send_to(&[7], (overlay(10), 9)).unwrap();
    pair.left.tunnel.command(Command::Upsert(claimer(10)));
    socket.send_to(&[7], (SHARED, 9)).unwrap();
    pair.left.tunnel.command(Command::Upsert(peer(10)));
    wait_until("one more is lost", || pair.left.tunnel.drops().no_route == u64::from(WAITING));
    let full = pair.left.tunnel.drops().queue_full;
    for _ in 1..WAITING {
        socket.send_to(&[7], (overlay(10), 9)).unwrap();
    }
    wait_until("the first one waits still", || pair.left.tunnel.drops().queue_full == full + 1);
}
