//! Ten thousand idle peers. Alone in its process, as it measures memory.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::{net::Ipv4Addr, time::Instant};

use agent_tunnel::{Command, Peer, PublicKey};
use support::{Netns, Node};

const PEERS: u32 = 10_000;
/// The peer, its two boxed prefixes, its route and its entry by key, and the growth of tables by doubling.
const MAX_BYTES_EACH: u64 = 700;

fn peer(number: u32) -> Peer {
    let mut key = [0; 32];
    key[..4].copy_from_slice(&number.to_le_bytes());
    let own = Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(100, 65, 0, 0)) + number);
    let own = std::net::IpAddr::from(own).into();
    Peer { key: PublicKey(key), allowed_ips: vec![own], sources: vec![own], preshared_key: None }
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn ten_thousand_idle_peers_cost_a_few_hundred_bytes_each_and_are_listed_at_once() {
    let netns = Netns::new();
    let node = Node::start(&netns, 1, 0);
    assert!(node.tunnel.stats().is_empty());
    let before = resident_bytes();
    let start = Instant::now();
    (0..PEERS).for_each(|number| node.tunnel.command(Command::Upsert(peer(number))));
    // Answered in order, so all peers are there. Its own result is not counted.
    node.tunnel.drops();
    let (configured, each) = (start.elapsed(), (resident_bytes() - before) / u64::from(PEERS));
    let start = Instant::now();
    let stats = node.tunnel.stats();
    let listed = start.elapsed();
    println!("{each} bytes each; configured in {configured:?}, listed in {listed:?}");
    assert_eq!(stats.len(), PEERS as usize);
    assert!(each <= MAX_BYTES_EACH, "{each} bytes each");
    assert!(listed.as_millis() < 100, "{listed:?}");
    (0..PEERS).for_each(|number| node.tunnel.command(Command::Remove(peer(number).key)));
    assert!(node.tunnel.stats().is_empty());
}
