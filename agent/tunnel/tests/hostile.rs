//! A peer whose datagrams are kept, repeated and bent.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

mod support;

use std::{net::UdpSocket, time::Duration};

use agent_tunnel::{Command, Event};
use support::{key, stranger::node_and_stranger, wait_until};

#[test]
fn a_handshake_from_a_configured_key_is_answered_without_being_asked() {
    let (_netns, node, mut stranger) = node_and_stranger();
    stranger.connect();
    let from = stranger.socket.local_addr().unwrap();
    assert_eq!(node.wait_for_handshake(), (key(7).public_key(), from, false));
}

#[test]
fn an_initiation_is_not_accepted_twice_even_after_the_session_was_forgotten() {
    let (_netns, node, mut stranger) = node_and_stranger();
    let old = stranger.connect();
    node.wait_for_handshake();
    node.tunnel.command(Command::Forget { peer: key(7).public_key() });
    stranger.socket.send(&old).unwrap();
    wait_until("it is refused", || node.tunnel.drops().replayed_handshake == 1);
    assert!(!stranger.is_answered() && !node.tunnel.stats()[0].live);
    // Its sender may be a node whose clock was set back: then we must begin.
    let (from, is_stale) = (stranger.socket.local_addr().unwrap(), |event: &Event| match event {
        Event::StaleInitiation { peer, from } => Some((*peer, *from)),
        _ => None,
    });
    stranger.socket.set_read_timeout(Some(support::PATIENCE)).unwrap();
    stranger.connect();
    node.wait_for_handshake();
    stranger.socket.send(&old).unwrap();
    assert_eq!(node.wait_for("StaleInitiation", is_stale), (key(7).public_key(), from));
    // A fresh one is welcome.
    stranger.socket.set_read_timeout(Some(support::PATIENCE)).unwrap();
    stranger.connect();
    node.wait_for_handshake();
}

#[test]
fn every_copy_of_an_initiation_is_answered_alike_until_one_answer_is_used() {
    let (netns, node, mut stranger) = node_and_stranger();
    let other = netns.run(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    other.connect(("127.0.0.1", node.tunnel.listen_port())).unwrap();
    other.set_read_timeout(Some(support::PATIENCE)).unwrap();
    let initiation = stranger.initiation();
    // The first copy's way back is broken: nobody reads that answer.
    other.send(&initiation).unwrap();
    other.recv(&mut [0; 256]).unwrap();
    stranger.socket.send(&initiation).unwrap();
    let keepalive = stranger.turn();
    stranger.socket.send(&keepalive).unwrap();
    let from = stranger.socket.local_addr().unwrap();
    assert_eq!(node.wait_for_handshake(), (key(7).public_key(), from, false));
    other.send(&initiation).unwrap();
    wait_until("no more answers", || node.tunnel.drops().replayed_handshake == 1);
}

#[test]
fn rubbish_is_counted_and_changes_nothing() {
    let (_netns, node, mut stranger) = node_and_stranger();
    stranger.connect();
    node.wait_for_handshake();
    let mut bent = stranger.initiation();
    bent[50] ^= 1;
    let mut data = vec![4, 0, 0, 0];
    data.resize(64, 9);
    // A response to nobody costs no look at its MAC.
    let mut response = vec![2, 0, 0, 0];
    response.resize(92, 9);
    for datagram in [&[][..], &[1], &[1; 148], &bent, &data, &response, &[4, 0, 0, 0]] {
        stranger.socket.send(datagram).unwrap();
    }
    wait_until("all is counted", || {
        let drops = node.tunnel.drops();
        (drops.not_wireguard, drops.bad_mac, drops.unknown_index) == (3, 1, 2)
    });
    let from = node.wait_for("UnknownIndex", |event| match event {
        Event::UnknownIndex { from } => Some(*from),
        _ => None,
    });
    assert_eq!(from, stranger.socket.local_addr().unwrap());
    assert!(node.tunnel.stats()[0].live && !stranger.is_answered());
}

#[test]
fn an_unanswered_path_is_reported_and_a_forgotten_peer_is_not_tried_again() {
    let (netns, node, mut stranger) = node_and_stranger();
    stranger.connect();
    let (peer, ..) = node.wait_for_handshake();
    netns.output("ping -q -c 1 -W 1 100.64.0.7");
    let unanswered = node.wait_for("Unanswered", |event| match event {
        Event::Unanswered { peer } => Some(*peer),
        _ => None,
    });
    assert_eq!(unanswered, peer);
    node.tunnel.command(Command::Forget { peer });
    // The library repeats a handshake after 5 s, and it has begun one by now.
    let sent = netns.datagrams_sent();
    let quiet = node.events.recv_timeout(Duration::from_secs(6));
    assert!(quiet.is_err() || matches!(quiet, Ok(Event::Active(_))), "{quiet:?}");
    assert_eq!(netns.datagrams_sent(), sent);
}
