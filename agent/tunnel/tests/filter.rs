//! What a guarded tunnel lets in: the left asks the right, which has a filter (see `support`).

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

mod support;

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, TcpStream, UdpSocket},
    time::Duration,
};

use agent_tunnel::{Command, Event, Protocol, Rule, Service};
use boringtun::noise::TunnResult;
use support::{
    Netns, Node, PATIENCE, Pair, carries, dial, listen, overlay, stranger::guarded_node_and_stranger,
    wait_until,
};

fn udp(netns: &Netns, ip: IpAddr, port: u16) -> UdpSocket {
    let socket = netns.run(move || UdpSocket::bind((ip, port)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn from_left(protocol: Protocol, port: u16) -> Rule {
    let services = vec![Service { protocol, ports: vec![port..=port] }];
    Rule { sources: vec![overlay(1).into()], destinations: Vec::new(), services }
}

fn connected(rules: Vec<Rule>) -> Pair {
    let pair = Pair::guarded(Some(rules));
    pair.connect();
    pair
}

fn wait_for_denied(node: &Node, count: u64) {
    wait_until(&format!("{count} denied"), || node.tunnel.drops().denied == count);
}

fn hear(socket: &UdpSocket) -> Vec<u8> {
    let mut bytes = [0; 64];
    let len = socket.recv(&mut bytes).unwrap();
    bytes[..len].to_vec()
}

#[test]
fn a_rule_lets_in_what_it_names_and_nothing_else() {
    let pair = connected(vec![from_left(Protocol::Udp, 53)]);
    let asks = udp(&pair.wire.left, overlay(1), 0);
    let (open, closed) = (udp(&pair.wire.right, overlay(2), 53), udp(&pair.wire.right, overlay(2), 54));
    asks.send_to(b"no", (overlay(2), 54)).unwrap();
    wait_for_denied(&pair.right, 1);
    asks.send_to(b"yes", (overlay(2), 53)).unwrap();
    assert_eq!(hear(&open), b"yes");
    closed.set_nonblocking(true).unwrap();
    assert_eq!(closed.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    // 28 bytes of headers; what was denied is not counted as brought.
    assert_eq!((pair.right.tunnel.stats()[0].rx_bytes, pair.right.tunnel.drops().denied), (31, 1));
}

#[test]
fn without_rules_own_connections_and_pings_go_both_ways_and_others_not() {
    let pair = connected(Vec::new());
    assert!(!pair.wire.left.output("ping -q -c 1 -W 1 100.64.0.2").status.success());
    wait_for_denied(&pair.right, 1);
    pair.wire.right.shell("ping -q -c 3 -i 0.05 -W 15 100.64.0.1");
    let (near, far) = dial(&pair.wire.right, &listen(&pair.wire.left, overlay(1), 80));
    carries(&near, &far);
    carries(&far, &near);
    let refused = listen(&pair.wire.right, overlay(2), 80);
    let to = refused.local_addr().unwrap();
    let late = Duration::from_millis(300);
    let error = pair.wire.left.run(move || TcpStream::connect_timeout(&to, late).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    wait_for_denied(&pair.right, 2);
}

#[test]
fn an_error_about_an_own_packet_comes_in() {
    let pair = connected(Vec::new());
    let asks = udp(&pair.wire.right, overlay(2), 0);
    asks.connect((overlay(1), 4)).unwrap();
    asks.send(b"nobody listens").unwrap();
    assert_eq!(asks.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(pair.right.tunnel.drops().denied, 0);
}

#[test]
fn packets_that_waited_for_a_session_open_the_way_for_their_answers() {
    let pair = Pair::guarded(Some(Vec::new()));
    let answers = udp(&pair.wire.left, overlay(1), 53);
    let asks = udp(&pair.wire.right, overlay(2), 0);
    asks.send_to(b"question", (overlay(1), 53)).unwrap();
    assert_eq!(pair.right.wait_for_packet_waiting(), pair.left.key);
    pair.connect();
    let mut bytes = [0; 64];
    let (len, from) = answers.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes[..len], b"question");
    answers.send_to(b"answer", from).unwrap();
    assert_eq!(hear(&asks), b"answer");
    assert_eq!(pair.right.tunnel.drops().denied, 0);
}

#[test]
fn rules_that_are_replaced_count_at_once_and_own_connections_stay() {
    let pair = connected(vec![Rule::all()]);
    let (theirs, accepted) = dial(&pair.wire.left, &listen(&pair.wire.right, overlay(2), 80));
    let (own, answering) = dial(&pair.wire.right, &listen(&pair.wire.left, overlay(1), 81));
    carries(&theirs, &accepted);
    pair.right.tunnel.command(Command::SetRules(Vec::new()));
    carries(&own, &answering);
    carries(&answering, &own);
    assert_eq!(pair.right.tunnel.drops().denied, 0);
    (&theirs).write_all(b"word").unwrap();
    wait_until("the revoked connection is silent", || pair.right.tunnel.drops().denied > 0);
    accepted.set_nonblocking(true).unwrap();
    assert_eq!((&accepted).read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    pair.right.tunnel.command(Command::SetRules(vec![from_left(Protocol::Tcp, 80)]));
    accepted.set_nonblocking(false).unwrap();
    let mut bytes = [0; 4];
    (&accepted).read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"word", "what TCP repeats comes in when it may again");
}

#[test]
fn agents_talk_whatever_the_rules() {
    let pair = connected(Vec::new());
    let message = Command::SendMessage { peer: pair.right.key, payload: b"news".to_vec(), via: None };
    pair.left.tunnel.command(message);
    let payload = pair.right.wait_for("Message", |event| match event {
        Event::Message { payload, .. } => Some(payload.clone()),
        _ => None,
    });
    assert_eq!((&payload[..], pair.right.tunnel.drops().denied), (&b"news"[..], 0));
}

#[test]
fn a_tunnel_without_a_filter_gets_none_by_rules() {
    let pair = Pair::connected();
    pair.right.tunnel.command(Command::SetRules(Vec::new()));
    pair.ping("100.64.0.2", 5, 56);
}

/// The sender sees a path that works: its data is answered by a keepalive, and its endpoint is followed.
#[test]
fn who_is_denied_is_heard() {
    let pair = connected(Vec::new());
    let before = pair.wire.right.datagrams_sent();
    udp(&pair.wire.left, overlay(1), 0).send_to(b"no", (overlay(2), 54)).unwrap();
    wait_for_denied(&pair.right, 1);
    wait_until("a keepalive", || pair.wire.right.datagrams_sent() > before);
}

#[test]
fn a_packet_that_is_cut_short_is_counted_apart_and_moves_the_endpoint() {
    let (netns, node, mut stranger) = guarded_node_and_stranger(Some(vec![Rule::all()]));
    stranger.connect();
    node.wait_for_handshake();
    // TCP, and not even its ports.
    let packet =
        [&[0x45, 0, 0, 22, 0, 0, 0, 0, 64, 6, 0, 0], &[100, 64, 0, 7, 100, 64, 0, 1][..], &[0, 1]].concat();
    let mut sealed = [0; 256];
    let TunnResult::WriteToNetwork(datagram) = stranger.noise.encapsulate(&packet, &mut sealed) else {
        panic!("no session");
    };
    let elsewhere = netns.run(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    elsewhere.send_to(datagram, ("127.0.0.1", node.tunnel.listen_port())).unwrap();
    wait_until("it is dropped", || node.tunnel.drops().malformed_inside == 1);
    let stats = &node.tunnel.stats()[0];
    assert_eq!((stats.rx_bytes, stats.endpoint), (0, Some(elsewhere.local_addr().unwrap())));
}
