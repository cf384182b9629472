//! What a capture sees of a tunnel.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        mpsc::{self, Receiver},
    },
    thread,
};

use agent_tunnel::{
    Command, PublicKey,
    capture::{Capture, Direction, Fate, Seen, Wanted},
};
use support::{Node, PATIENCE, Pair, wait_until};

const ICMP: u8 = 1;

fn capture(node: &Node, peer: Option<PublicKey>) -> (Capture, Receiver<(Seen, Vec<u8>)>) {
    let (sender, receiver) = mpsc::channel();
    let sender = Arc::new(Mutex::new(sender));
    let capture = node.tunnel.capture(Wanted { peer, snaplen: 65_535 }, move |packets| {
        for (seen, bytes) in packets.iter() {
            let _ = sender.lock().unwrap().send((*seen, bytes.to_vec()));
        }
    });
    (capture.unwrap(), receiver)
}

/// The next ICMP echo: its direction, fate, type and sequence number.
fn echo(receiver: &Receiver<(Seen, Vec<u8>)>) -> (Direction, Fate, u8, u16) {
    loop {
        let (seen, bytes) = receiver.recv_timeout(PATIENCE).unwrap();
        assert_eq!(seen.len, bytes.len());
        if bytes[9] == ICMP {
            return (seen.direction, seen.fate, bytes[20], u16::from_be_bytes([bytes[26], bytes[27]]));
        }
    }
}

#[test]
fn both_directions_are_seen_once_each_with_those_that_waited_for_a_session() {
    let pair = Pair::new();
    let (_left, at_left) = capture(&pair.left, None);
    let (_right, at_right) = capture(&pair.right, None);
    let ping = pair.wire.left.spawn("ping -q -c 3 -i 0.01 -W 15 100.64.0.2");
    pair.left.wait_for_packet_waiting();
    pair.connect();
    assert!(ping.wait_with_output().unwrap().status.success());
    use Direction::{Inbound, Outbound};
    for (receiver, asked, answered) in [(&at_left, Outbound, Inbound), (&at_right, Inbound, Outbound)] {
        let mut seen: Vec<_> = (0..6).map(|_| echo(receiver)).collect();
        seen.sort_by_key(|&(_, _, kind, sequence)| (sequence, std::cmp::Reverse(kind)));
        let expected = (1..=3).flat_map(|n| [(asked, Fate::Passed, 8, n), (answered, Fate::Passed, 0, n)]);
        assert_eq!(seen, expected.collect::<Vec<_>>());
    }
}

#[test]
fn a_packet_that_was_dropped_is_seen_with_the_reason() {
    let pair = Pair::connected();
    let (_capture, seen) = capture(&pair.right, Some(pair.left.key));
    let (_other, nothing) = capture(&pair.right, Some(pair.right.key));
    pair.wire.left.shell("ip address add 100.64.0.9/32 dev hf0");
    pair.wire.left.output("ping -q -c 1 -W 0.2 -I 100.64.0.9 100.64.0.2");
    assert_eq!(echo(&seen), (Direction::Inbound, Fate::BadSource, 8, 1));
    assert!(nothing.try_recv().is_err());
}

#[test]
fn of_bulk_traffic_every_byte_is_seen() {
    const BYTES: usize = 4_000_000;
    let pair = Pair::connected();
    let (_capture, seen) = capture(&pair.left, None);
    let listener = pair.wire.right.run(|| TcpListener::bind("100.64.0.2:5000").unwrap());
    let reader = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
    });
    pair.wire.left.run(|| {
        let mut stream = TcpStream::connect("100.64.0.2:5000").unwrap();
        stream.write_all(&vec![7; BYTES]).unwrap();
    });
    assert_eq!(reader.join().unwrap(), BYTES as u64);
    let (mut rx, mut tx) = (0, 0);
    wait_until("all of it is seen", || {
        for (seen, _) in seen.try_iter() {
            match seen.direction {
                Direction::Inbound => rx += seen.len as u64,
                Direction::Outbound => tx += seen.len as u64,
            }
        }
        let stats = &pair.left.tunnel.stats()[0];
        tx > BYTES as u64 && (stats.rx_bytes, stats.tx_bytes) == (rx, tx)
    });
}

#[test]
fn a_capture_that_was_dropped_takes_nothing_more() {
    let pair = Pair::connected();
    let (capture, seen) = capture(&pair.left, None);
    pair.ping("100.64.0.2", 1, 56);
    assert_eq!(echo(&seen).3, 1);
    drop(capture);
    pair.left.tunnel.drops();
    while seen.try_recv().is_ok() {}
    pair.ping("100.64.0.2", 3, 56);
    pair.left.tunnel.command(Command::Forget { peer: pair.right.key });
    pair.left.tunnel.drops();
    // The worker has let go of its end.
    assert_eq!(seen.try_recv(), Err(mpsc::TryRecvError::Disconnected));
}
