//! Handshakes that nobody answers: they are repeated after WireGuard's 5 s and a little, a different little for each.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

mod support;

use std::{
    collections::HashMap,
    net::UdpSocket,
    time::{Duration, Instant},
};

use agent_tunnel::Command;
use support::{Node, Wire, key, peer};

const PEERS: u8 = 8;
/// WireGuard's: 5 s and up to 333 ms, told at ticks of 250 ms; the rest is a busy machine's, which may read the first ones late.
const EARLIEST: Duration = Duration::from_millis(4500);
const LATEST: Duration = Duration::from_secs(8);

#[test]
fn peers_that_were_asked_together_are_not_asked_together_again() {
    let wire = Wire::new();
    let silent = wire.right.run(|| UdpSocket::bind(("10.9.0.2", 9)).unwrap());
    silent.set_read_timeout(Some(LATEST)).unwrap();
    let left = Node::start(&wire.left, 1, 1001);
    for number in 10..10 + PEERS {
        left.tunnel.command(Command::Upsert(peer(number)));
        let endpoints = vec![silent.local_addr().unwrap()];
        left.tunnel.command(Command::Initiate { peer: key(number).public_key(), endpoints });
    }
    let mut first: HashMap<u32, Instant> = HashMap::new();
    let mut repeated = Vec::new();
    while repeated.len() < usize::from(PEERS) {
        let mut datagram = [0; 256];
        assert_eq!(silent.recv(&mut datagram).expect("another initiation"), 148);
        // The upper 24 bits of the sender's index stay the same.
        let session = u32::from_le_bytes(datagram[4..8].try_into().unwrap()) >> 8;
        let now = Instant::now();
        match first.get(&session) {
            None => drop(first.insert(session, now)),
            Some(at) => {
                assert!(now - *at >= EARLIEST && now - *at < LATEST, "repeated after {:?}", now - *at);
                repeated.push(now);
            }
        }
    }
    let spread = repeated[repeated.len() - 1] - repeated[0];
    // Without randomness they leave within one tick, microseconds apart.
    assert!(spread > Duration::from_millis(30), "all within {spread:?}");
}
