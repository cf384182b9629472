//! What routers say of congestion passes the tunnel's walls: what an inner packet allows shows outside, and what the
//! outer one met is told inside (RFC 6040).

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

mod support;

use std::{io::IoSliceMut, net::UdpSocket, time::Instant};

use boringtun::noise::TunnResult;
use quinn_udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use support::{PATIENCE, stranger::node_and_stranger};

/// The next datagram, and what routers say.
fn receive(socket: &UdpSocket, state: &UdpSocketState) -> (Vec<u8>, Option<EcnCodepoint>) {
    let deadline = Instant::now() + PATIENCE;
    let mut bytes = vec![0; 2048];
    loop {
        let mut metas = [RecvMeta::default()];
        match state.recv(socket.into(), &mut [IoSliceMut::new(&mut bytes)], &mut metas) {
            Ok(_) => return (bytes[..metas[0].len].to_vec(), metas[0].ecn),
            Err(error) => assert!(Instant::now() < deadline, "nothing came: {error}"),
        }
        std::thread::yield_now();
    }
}

fn send(socket: &UdpSocket, state: &UdpSocketState, to: &str, contents: &[u8], ecn: EcnCodepoint) {
    let destination = to.parse().unwrap();
    let transmit = Transmit { destination, ecn: Some(ecn), contents, segment_size: None, src_ip: None };
    state.try_send(socket.into(), &transmit).unwrap();
}

#[test]
fn congestion_is_told_through_the_tunnel() {
    let (netns, node, mut stranger) = node_and_stranger();
    stranger.connect();
    node.wait_for_handshake();
    let outer = UdpSocketState::new((&stranger.socket).into()).unwrap();
    let socket = netns.run(|| UdpSocket::bind("100.64.0.1:9").unwrap());
    let inner = UdpSocketState::new((&socket).into()).unwrap();
    let mut opened = [0; 2048];
    for ecn in [EcnCodepoint::Ect0, EcnCodepoint::Ect1] {
        send(&socket, &inner, "100.64.0.7:9", b"out", ecn);
        let packet = loop {
            let (datagram, seen) = receive(&stranger.socket, &outer);
            if let TunnResult::WriteToTunnelV4(packet, _) =
                stranger.noise.decapsulate(None, &datagram, &mut opened)
            {
                assert_eq!(seen, Some(ecn), "what was allowed inside is not shown outside");
                break packet.to_vec();
            }
        };
        // The answer: the same packet with its addresses exchanged, which keeps its checksums.
        let mut answer = packet;
        let (from, to) = (answer[12..16].to_vec(), answer[16..20].to_vec());
        answer[12..16].copy_from_slice(&to);
        answer[16..20].copy_from_slice(&from);
        for (met, expected) in [(ecn, ecn), (EcnCodepoint::Ce, EcnCodepoint::Ce)] {
            let mut sealed = [0; 2048];
            let TunnResult::WriteToNetwork(datagram) = stranger.noise.encapsulate(&answer, &mut sealed)
            else {
                panic!("no session");
            };
            let port = node.tunnel.listen_port();
            send(&stranger.socket, &outer, &format!("127.0.0.1:{port}"), datagram, met);
            let (payload, told) = receive(&socket, &inner);
            assert_eq!((&payload[..], told), (&b"out"[..], Some(expected)));
        }
    }
}
