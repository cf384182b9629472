//! What is counted, of peers and of the node.

#![allow(clippy::unwrap_used)]

mod support;

use agent_tunnel::{Command, PeerDrops, PeerStats};
use support::{Node, Pair, stranger::node_and_stranger, wait_until};

fn of_peer(node: &Node) -> PeerStats {
    node.tunnel.stats()[0].clone()
}

#[test]
fn packets_bytes_and_handshakes_are_counted_at_both_ends() {
    let pair = Pair::connected();
    pair.wire.left.shell("ping -q -c 3 -i 0.01 -W 15 100.64.0.2");
    for node in [&pair.left, &pair.right] {
        let stats = of_peer(node);
        assert_eq!((stats.rx_packets, stats.tx_packets, stats.handshakes), (3, 3, 1));
        assert_eq!((stats.rx_bytes, stats.tx_bytes, stats.drops), (252, 252, PeerDrops::default()));
        let counters = node.tunnel.counters();
        assert_eq!((counters.sessions, counters.workers), (1, support::workers().count() as u64));
        assert_eq!((counters.traffic.rx_packets, counters.traffic.tx_bytes), (3, 252));
    }
}

#[test]
fn the_nodes_totals_keep_what_a_removed_peer_carried() {
    let pair = Pair::connected();
    pair.wire.left.shell("ping -q -c 2 -i 0.01 -W 15 100.64.0.2");
    let before = pair.left.tunnel.counters().traffic;
    assert_eq!((before.tx_packets, before.handshakes), (2, 1));
    pair.left.tunnel.command(Command::Remove(pair.right.key));
    let after = pair.left.tunnel.counters();
    assert_eq!((after.traffic, after.sessions), (before, 0));
}

#[test]
fn packets_that_waited_are_counted_once_and_those_too_many_as_dropped() {
    let pair = Pair::new();
    let output = pair.wire.left.output("ping -q -c 70 -i 0.002 -W 0.1 100.64.0.2");
    assert!(!output.status.success());
    assert_eq!((of_peer(&pair.left).drops.queue_full, pair.left.tunnel.drops().queue_full), (6, 6));
    pair.connect();
    wait_until("what waited has crossed", || of_peer(&pair.right).rx_packets == 64);
    assert_eq!(of_peer(&pair.left).tx_packets, 64);
}

#[test]
fn a_wrong_source_is_laid_to_the_peer_that_used_it() {
    let pair = Pair::connected();
    pair.wire.left.shell("ip address add 100.64.0.9/32 dev hf0");
    pair.wire.left.output("ping -q -c 1 -W 0.2 -I 100.64.0.9 100.64.0.2");
    wait_until("it is dropped", || pair.right.tunnel.drops().bad_source == 1);
    let stats = of_peer(&pair.right);
    assert_eq!((stats.drops, stats.rx_packets), (PeerDrops { bad_source: 1, ..PeerDrops::default() }, 0));
}

#[test]
fn replays_and_forgeries_are_told_apart_and_laid_to_the_peer() {
    let (_netns, node, mut stranger) = node_and_stranger();
    stranger.connect();
    node.wait_for_handshake();
    let mut keepalive = [0; 64];
    let boringtun::noise::TunnResult::WriteToNetwork(keepalive) =
        stranger.noise.encapsulate(&[], &mut keepalive)
    else {
        panic!("no session");
    };
    let mut forged = keepalive.to_vec();
    *forged.last_mut().unwrap() ^= 1;
    for datagram in [&forged[..], keepalive, keepalive] {
        stranger.socket.send(datagram).unwrap();
    }
    let expected = PeerDrops { not_authentic: 1, replayed: 1, ..PeerDrops::default() };
    wait_until("both are counted", || of_peer(&node).drops == expected);
    let drops = node.tunnel.drops();
    assert_eq!((drops.not_authentic, drops.replayed), (1, 1));
}

#[test]
fn what_a_socket_refuses_is_laid_to_the_peer_it_was_for() {
    let pair = Pair::connected();
    pair.wire.left.shell("ip route add unreachable 10.9.0.2/32");
    pair.wire.left.output("ping -q -c 2 -i 0.01 -W 0.1 100.64.0.2");
    wait_until("it is counted", || of_peer(&pair.left).drops.send_failed >= 2);
    assert_eq!(pair.left.tunnel.drops().send_failed, of_peer(&pair.left).drops.send_failed);
}
