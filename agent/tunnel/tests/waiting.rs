//! Packets to many peers that answer nothing, beside one that would.

#![allow(clippy::unwrap_used)]

mod support;

use std::net::UdpSocket;

use agent_tunnel::Command;
use support::{Pair, overlay, peer, wait_until};

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
