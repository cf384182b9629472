//! Two tunnels in two namespaces (see `support`): sessions come up, carry packets, rest and recover.

#![allow(clippy::wildcard_enum_match_arm)]

mod support;

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use agent_tunnel::{Command, Event, Peer, PublicKey};
use support::{MESSAGE_PORT, Node, Pair, RIGHT, Wire, overlay, peer, wait_until};

#[test]
fn the_first_packet_is_kept_until_the_handshake_and_delivered() {
    let pair = Pair::new();
    // One packet only: if it were lost, ping would fail.
    let ping = pair.wire.left.spawn("ping -q -c 1 -W 15 100.64.0.2");
    assert_eq!(pair.left.wait_for_packet_waiting(), pair.right.key);
    pair.connect();
    let output = ping.wait_with_output().unwrap();
    assert!(output.status.success(), "{:?}", pair.left.tunnel.drops());
    let [stats] = &pair.left.tunnel.stats()[..] else { panic!("one peer") };
    assert!(stats.live && stats.rx_bytes == 84 && stats.tx_bytes == 84, "{stats:?}");
}

#[test]
fn pings_of_all_sizes_cross_and_none_is_lost() {
    let pair = Pair::connected();
    for size in [0, 1, 56, 1391, 1392, 1393, 5000, 20_000] {
        pair.ping("100.64.0.2", 50, size);
    }
    assert_eq!(pair.right.tunnel.drops().bad_source, 0);
}

/// The kernel refuses to split there what it would have to fragment as well: the batch goes one by one.
#[test]
fn a_link_narrower_than_the_tunnel_is_crossed() {
    let pair = Pair::connected();
    for netns in [&pair.wire.left, &pair.wire.right] {
        netns.shell("ip link set wire mtu 1300");
    }
    pair.ping("100.64.0.2", 20, 20_000);
    assert_eq!(pair.left.tunnel.drops().send_failed, 0);
}

#[test]
fn ipv6_crosses_inside_and_outside() {
    let wire = Wire::new();
    for (netns, number) in [(&wire.left, 1), (&wire.right, 2)] {
        netns.shell(&format!("ip address add fd09::{number}/64 dev wire nodad"));
    }
    let (left, right) = (Node::start(&wire.left, 1, 0), Node::start(&wire.right, 2, 0));
    for (node, other) in [(&left, 2), (&right, 1)] {
        let mut peer = peer(other);
        let inner = format!("fd64::{other}/128").parse().unwrap();
        peer.allowed_ips.push(inner);
        peer.sources.push(inner);
        node.tunnel.command(Command::Upsert(peer));
    }
    for (netns, number) in [(&wire.left, 1), (&wire.right, 2)] {
        netns.shell(&format!("ip address add fd64::{number}/64 dev hf0 nodad"));
        // The kernel takes an IPv6 address for its own some time after the command.
        let route = || netns.shell(&format!("ip -6 route get fd64::{number}"));
        wait_until("the address is local", || route().contains("local"));
    }
    let endpoint = format!("[fd09::2]:{}", right.tunnel.listen_port()).parse().unwrap();
    left.tunnel.command(Command::Initiate { peer: right.key, endpoints: vec![endpoint] });
    assert_eq!(left.wait_for_handshake(), (right.key, endpoint, true));
    Pair { left, right, wire }.ping("fd64::2", 20, 56);
}

#[test]
fn one_of_several_endpoints_answers_and_carries() {
    let pair = Pair::new();
    let dead = |port| ([10, 9, 0, 77], port).into();
    let endpoints = vec![dead(1), RIGHT.into(), dead(2)];
    pair.left.tunnel.command(Command::Initiate { peer: pair.right.key, endpoints });
    assert_eq!(pair.left.wait_for_handshake().1, RIGHT.into());
}

#[test]
fn a_restarted_side_notices_data_for_its_old_session() {
    let Pair { left, right, wire } = Pair::connected();
    drop(right);
    let right = Node::start(&wire.right, 2, 1002);
    right.tunnel.command(Command::Upsert(peer(1)));
    let mut ping = wire.left.spawn("ping -q -c 400 -i 0.05 100.64.0.2");
    let from = right.wait_for("UnknownIndex", |event| match event {
        Event::UnknownIndex { from } => Some(*from),
        _ => None,
    });
    assert_eq!(from, ([10, 9, 0, 1], 1001).into());
    right.tunnel.command(Command::Initiate { peer: left.key, endpoints: vec![from] });
    right.wait_for_handshake();
    wait_until("packets arrive again", || right.tunnel.stats()[0].rx_bytes > 84);
    ping.kill().unwrap();
    ping.wait().unwrap();
}

#[test]
fn an_endpoint_follows_its_peer_and_a_rebind_keeps_the_port() {
    let pair = Pair::connected();
    pair.wire.right.shell("ip address add 10.9.0.3/24 dev wire");
    pair.wire.right.shell("ip address delete 10.9.0.2/24 dev wire");
    pair.wire.right.shell("ip address add 10.9.0.3/24 dev wire");
    pair.right.tunnel.command(Command::Rebind);
    pair.wire.right.spawn("ping -q -c 1 -W 15 100.64.0.1").wait().unwrap();
    let endpoint = pair.left.wait_for("EndpointChanged", |event| match event {
        Event::EndpointChanged { endpoint, .. } => Some(*endpoint),
        _ => None,
    });
    assert_eq!(endpoint, ([10, 9, 0, 3], 1002).into());
    assert_eq!(pair.right.tunnel.listen_port(), 1002);
}

#[test]
fn keepalives_go_out_at_the_interval_that_was_set() {
    let pair = Pair::connected();
    let before = pair.wire.left.datagrams_sent();
    let interval = Some(Duration::from_secs(1));
    let start = Instant::now();
    pair.left.tunnel.command(Command::SetKeepalive { peer: pair.right.key, interval });
    wait_until("three keepalives", || pair.wire.left.datagrams_sent() >= before + 3);
    assert!(start.elapsed() > Duration::from_secs(2));
    // They are no traffic.
    assert_eq!(pair.right.tunnel.stats()[0].rx_bytes, 0);
}

#[test]
fn messages_pass_between_agents_and_no_local_program_can_send_or_get_one() {
    let pair = Pair::connected();
    let local = pair.wire.left.run(|| UdpSocket::bind(("100.64.0.1", 0)).unwrap());
    local.send_to(b"forged", (overlay(2), MESSAGE_PORT)).unwrap();
    wait_until("the forged one is dropped", || pair.left.tunnel.drops().message_port == 1);
    let listener = pair.wire.right.run(|| UdpSocket::bind(("100.64.0.2", MESSAGE_PORT)).unwrap());
    listener.set_nonblocking(true).unwrap();
    let payload = b"true".to_vec();
    pair.left.tunnel.command(Command::SendMessage { peer: pair.right.key, payload, via: None });
    let (peer, payload) = pair.right.wait_for("Message", |event| match event {
        Event::Message { peer, payload, .. } => Some((*peer, payload.clone())),
        _ => None,
    });
    assert_eq!((peer, &payload[..]), (pair.left.key, &b"true"[..]));
    assert!(listener.recv(&mut [0; 16]).is_err());
    assert_eq!(pair.right.tunnel.stats()[0].rx_bytes, 0);
}

#[test]
fn a_message_needs_a_session_and_a_peer_may_use_its_own_addresses_only() {
    let pair = Pair::new();
    pair.left.tunnel.command(Command::SendMessage { peer: pair.right.key, payload: vec![1], via: None });
    assert_eq!(pair.left.tunnel.drops().message_unsent, 1);
    pair.connect();
    pair.wire.left.shell("ip address add 100.64.0.9/32 dev hf0");
    let forged = pair.wire.left.output("ping -q -c 1 -W 1 -I 100.64.0.9 100.64.0.2");
    assert!(!forged.status.success());
    assert_eq!(pair.right.tunnel.drops().bad_source, 1);
}

#[test]
fn what_several_may_send_from_excludes_the_own_address_of_another() {
    let pair = Pair::connected();
    let upsert = |key, own: &str, served: &[&str], sources: &[&str]| {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let allowed_ips = parse(&[&[own], served].concat());
        let sources = parse(&[&[own], sources].concat());
        Command::Upsert(Peer { key, allowed_ips, sources, preshared_key: None })
    };
    let right = &pair.right.tunnel;
    // Both may serve 100.64.0.8, the third one does; 100.64.0.9 is its own.
    right.command(upsert(pair.left.key, "100.64.0.1/32", &[], &["100.64.0.8/31"]));
    right.command(upsert(PublicKey([3; 32]), "100.64.0.9/32", &["100.64.0.8/31"], &["100.64.0.8/31"]));
    pair.wire.left.shell("ip address add 100.64.0.8/32 dev hf0");
    pair.wire.left.shell("ip address add 100.64.0.9/32 dev hf0");
    pair.wire.left.output("ping -q -c 1 -W 1 -I 100.64.0.9 100.64.0.2");
    assert_eq!(right.drops().bad_source, 1);
    let received = || {
        right.stats().iter().filter(|peer| peer.key == pair.left.key).map(|peer| peer.rx_packets).sum::<u64>()
    };
    let before = received();
    pair.wire.left.output("ping -q -c 1 -W 1 -I 100.64.0.8 100.64.0.2");
    wait_until("what is shared comes through", || received() == before + 1);
    assert_eq!(right.drops().bad_source, 1);
}

#[test]
fn active_peers_are_reported_and_idle_ones_are_not() {
    let pair = Pair::connected();
    pair.wire.left.shell("ping -q -c 1 100.64.0.2");
    for (node, other) in [(&pair.left, pair.right.key), (&pair.right, pair.left.key)] {
        let active = node.wait_for("Active", |event| match event {
            Event::Active(peers) => Some(peers.clone()),
            _ => None,
        });
        assert_eq!(active, [other]);
    }
}

#[test]
fn a_removed_peer_gets_nothing_and_its_handshakes_are_refused() {
    let pair = Pair::connected();
    pair.right.tunnel.command(Command::Remove(pair.left.key));
    assert!(pair.right.tunnel.stats().is_empty());
    let endpoints = vec![RIGHT.into()];
    pair.left.tunnel.command(Command::Initiate { peer: pair.right.key, endpoints });
    wait_until("it is refused", || pair.right.tunnel.drops().unknown_key == 1);
    assert!(!pair.wire.right.output("ping -q -c 1 -W 1 100.64.0.1").status.success());
    assert_eq!(pair.right.tunnel.drops().no_route, 1);
}

#[test]
fn answers_come_from_the_address_that_was_asked_and_a_chosen_path_stays() {
    let pair = Pair::connected();
    pair.wire.right.shell("ip address add 10.9.0.3/24 dev wire");
    let second = ([10, 9, 0, 3], 1002).into();
    let probe = Command::SendMessage { peer: pair.right.key, payload: vec![1], via: Some(second) };
    pair.left.tunnel.command(probe);
    let from = wait_for_message(&pair.right);
    pair.right.tunnel.command(Command::SendMessage {
        peer: pair.left.key,
        payload: vec![2],
        via: Some(from),
    });
    assert_eq!(wait_for_message(&pair.left), second);
    pair.left.tunnel.command(Command::SetEndpoint { peer: pair.right.key, endpoint: second });
    pair.ping("100.64.0.2", 300, 56);
    assert_eq!(pair.left.tunnel.stats()[0].endpoint, Some(second));
    let moved = |event| matches!(event, Event::EndpointChanged { .. });
    assert!(!pair.left.events.try_iter().chain(pair.right.events.try_iter()).any(moved));
}

fn wait_for_message(node: &Node) -> std::net::SocketAddr {
    node.wait_for("Message", |event| match event {
        Event::Message { from, .. } => Some(*from),
        _ => None,
    })
}

#[test]
fn data_that_was_answered_is_not_called_unanswered_when_silence_follows() {
    let pair = Pair::connected();
    pair.wire.left.shell("ping -q -c 1 100.64.0.2");
    // The right sent last: within 10 s the left owes it a sign of life, and at 15 s it would complain.
    let deadline = Instant::now() + Duration::from_secs(17);
    while let Ok(event) = pair.right.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        assert!(!matches!(event, Event::Unanswered { .. }), "{event:?}");
    }
}

/// After 15 s of silence an answer that is not there at once is no reason for a handshake.
#[test]
fn the_first_packet_after_a_silence_begins_no_handshake() {
    let pair = Pair::connected();
    pair.ping("100.64.0.2", 1, 56);
    let events_within = |span| {
        let deadline = Instant::now() + span;
        let next = || pair.left.events.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok();
        std::iter::from_fn(next).collect::<Vec<_>>()
    };
    events_within(Duration::from_secs(16));
    // Nothing is answered from now on: what is sent beside the ping is sent without cause.
    pair.right.tunnel.command(Command::Remove(pair.left.key));
    assert!(pair.right.tunnel.stats().is_empty());
    let before = pair.wire.left.datagrams_sent();
    pair.wire.left.output("ping -q -c 1 -W 1 100.64.0.2");
    events_within(Duration::from_secs(2));
    assert_eq!(pair.wire.left.datagrams_sent(), before + 1);
}
