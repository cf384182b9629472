//! TCP connections to a prefix that moves to another peer: both ends hear of it, at once and by our own packets.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

mod support;

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use agent_tunnel::{Command, Event, Peer, Rule};
use ipnet::IpNet;
use support::{PATIENCE, Pair, carries, dial, listen, peer, wait_until};

const SHARED: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(100, 64, 0, 77)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 77))];
const OWN_V6: &str = "fd00::1";

/// With the shared addresses beside its own.
fn claimer(number: u8) -> Peer {
    let mut claimer = peer(number);
    claimer.allowed_ips.extend(SHARED.map(IpNet::from));
    claimer.sources.extend(SHARED.map(IpNet::from));
    claimer
}

/// The left is guarded and uses the shared addresses, which the right has.
fn using_shared() -> Pair {
    let pair = Pair::guarded_left(vec![Rule::all()]);
    pair.wire.left.shell(&format!("ip address add {OWN_V6}/128 dev hf0 nodad"));
    pair.wire.left.shell(&format!("ip route add {} dev hf0 src {OWN_V6}", SHARED[1]));
    pair.wire.right.shell(&format!("ip route add {OWN_V6} dev hf0"));
    for address in SHARED {
        let len = if address.is_ipv4() { 32 } else { 128 };
        pair.wire.right.shell(&format!(
            "ip address add {address}/{len} dev hf0 {}",
            if len == 128 { "nodad" } else { "" }
        ));
    }
    pair.left.tunnel.command(Command::Upsert(claimer(2)));
    let mut left = peer(1);
    let own: IpNet = format!("{OWN_V6}/128").parse().unwrap();
    left.allowed_ips.push(own);
    left.sources.push(own);
    pair.right.tunnel.command(Command::Upsert(left));
    pair.connect();
    pair
}

/// To another, who never answers.
fn switch(pair: &Pair) {
    pair.left.tunnel.command(Command::Upsert(claimer(10)));
    pair.left.tunnel.command(Command::Upsert(peer(2)));
    for prefix in SHARED.map(IpNet::from) {
        pair.left.tunnel.command(Command::Reset { prefix, from: pair.right.key });
    }
}

fn resets(pair: &Pair) -> u64 {
    pair.left.wait_for("Reset", |event| match event {
        Event::Reset { from, connections, .. } if *from == pair.right.key => Some(*connections),
        _ => None,
    })
}

/// It is told, though it sends nothing.
fn is_reset(mut stream: &TcpStream) {
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => panic!("an end in good order"),
            Ok(_) => {}
            Err(error) => return assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
}

#[test]
fn both_ends_of_idle_connections_hear_of_it_whoever_opened_them() {
    let pair = using_shared();
    let mut ends = Vec::new();
    for (number, shared) in SHARED.into_iter().enumerate() {
        let (ours, theirs) = dial(&pair.wire.left, &listen(&pair.wire.right, shared, 80));
        carries(&ours, &theirs);
        carries(&theirs, &ours);
        let own: IpAddr = if number == 0 { support::overlay(1) } else { OWN_V6.parse().unwrap() };
        let server = listen(&pair.wire.left, own, 81);
        let to: SocketAddr = server.local_addr().unwrap();
        let opened = pair.wire.right.run(move || {
            let kind = if to.is_ipv4() { socket2::Domain::IPV4 } else { socket2::Domain::IPV6 };
            let socket = socket2::Socket::new(kind, socket2::Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::new(shared, 0).into()).unwrap();
            socket.connect_timeout(&to.into(), PATIENCE).unwrap();
            TcpStream::from(socket)
        });
        opened.set_read_timeout(Some(PATIENCE)).unwrap();
        let accepted = server.accept().unwrap().0;
        accepted.set_read_timeout(Some(PATIENCE)).unwrap();
        carries(&opened, &accepted);
        ends.extend([ours, theirs, opened, accepted]);
    }
    switch(&pair);
    ends.iter().for_each(is_reset);
    assert_eq!((resets(&pair), resets(&pair)), (2, 2));
    assert_eq!(pair.left.tunnel.counters().reset_connections, 4);
}

#[test]
fn one_that_carries_as_much_as_it_can_is_reset_both_ways() {
    for is_sender in [true, false] {
        let pair = using_shared();
        let (ours, theirs) = dial(&pair.wire.left, &listen(&pair.wire.right, SHARED[0], 80));
        let (sender, receiver) = if is_sender { (&ours, &theirs) } else { (&theirs, &ours) };
        std::thread::scope(|scope| {
            let sent = scope.spawn(|| {
                let mut sender = sender;
                loop {
                    if let Err(error) = sender.write_all(&[7; 65_536]) {
                        return error.kind();
                    }
                }
            });
            let mut bytes = vec![0; 1 << 20];
            let (mut receiver, mut read) = (receiver, 0);
            while read < 4 << 20 {
                read += receiver.read(&mut bytes).unwrap();
            }
            switch(&pair);
            is_reset(receiver);
            assert_eq!(sent.join().unwrap(), ErrorKind::ConnectionReset);
        });
        assert_eq!(resets(&pair), 1);
    }
}

#[test]
fn what_is_not_routed_away_stays_and_so_does_what_goes_elsewhere() {
    let pair = using_shared();
    let (shared, theirs) = dial(&pair.wire.left, &listen(&pair.wire.right, SHARED[0], 80));
    let (own, own_theirs) = dial(&pair.wire.left, &listen(&pair.wire.right, support::overlay(2), 80));
    let prefix = IpNet::from(SHARED[0]);
    pair.left.tunnel.command(Command::Reset { prefix, from: pair.right.key });
    pair.left
        .tunnel
        .command(Command::Reset { prefix: "100.64.0.0/10".parse().unwrap(), from: pair.right.key });
    carries(&shared, &theirs);
    carries(&theirs, &shared);
    switch(&pair);
    is_reset(&shared);
    carries(&own, &own_theirs);
    carries(&own_theirs, &own);
    assert_eq!(pair.left.tunnel.counters().reset_connections, 1);
}

#[test]
fn one_that_went_on_by_another_peer_is_reset_when_it_cannot_go_on_by_the_third() {
    let pair = using_shared();
    let (shared, _theirs) = dial(&pair.wire.left, &listen(&pair.wire.right, SHARED[0], 80));
    let (own, own_theirs) = dial(&pair.wire.left, &listen(&pair.wire.right, support::overlay(2), 80));
    let (second, third) = (claimer(10), claimer(11));
    let from = second.key;
    for command in [Command::Upsert(second), Command::Upsert(peer(2)), Command::Upsert(third)] {
        pair.left.tunnel.command(command);
    }
    // Around the shared addresses is another network, whose connections are not concerned.
    pair.left.tunnel.command(Command::Reset { prefix: "100.64.0.0/24".parse().unwrap(), from });
    carries(&own, &own_theirs);
    pair.left.tunnel.command(Command::Reset { prefix: SHARED[0].into(), from });
    is_reset(&shared);
    carries(&own_theirs, &own);
    assert_eq!(pair.left.tunnel.counters().reset_connections, 1);
}

#[test]
fn who_missed_the_reset_gets_another_when_it_sends_again() {
    let pair = using_shared();
    let (ours, mut theirs) = dial(&pair.wire.left, &listen(&pair.wire.right, SHARED[0], 80));
    carries(&ours, &theirs);
    // Without a session nothing can be told to the former.
    pair.left.tunnel.command(Command::Forget { peer: pair.right.key });
    switch(&pair);
    let mut former = peer(2);
    former.sources.extend(SHARED.map(IpNet::from));
    pair.left.tunnel.command(Command::Upsert(former));
    is_reset(&ours);
    pair.connect();
    theirs.write_all(b"late").unwrap();
    is_reset(&theirs);
}

#[test]
fn a_syn_that_nobody_answered_finds_the_next() {
    let pair = using_shared();
    let listener = listen(&pair.wire.right, SHARED[0], 80);
    pair.left.tunnel.command(Command::Upsert(claimer(10)));
    let to = listener.local_addr().unwrap();
    let dialling = std::thread::scope(|scope| {
        let dialling = scope.spawn(|| pair.wire.left.run(move || TcpStream::connect_timeout(&to, PATIENCE)));
        pair.left.wait_for_packet_waiting();
        // Back again: what waits follows, and is answered.
        pair.left.tunnel.command(Command::Upsert(claimer(2)));
        pair.left
            .tunnel
            .command(Command::Reset { prefix: SHARED[0].into(), from: support::key(10).public_key() });
        dialling.join().unwrap()
    });
    let accepted = listener.accept().unwrap().0;
    carries(&dialling.unwrap(), &accepted);
    assert_eq!(pair.left.tunnel.counters().reset_connections, 0);
}

#[test]
fn thousands_of_connections_hold_no_packets_up() {
    const CONNECTIONS: usize = 2000;
    let pair = using_shared();
    let listener = listen(&pair.wire.right, SHARED[0], 80);
    let ends: Vec<_> = (0..CONNECTIONS).map(|_| dial(&pair.wire.left, &listener)).collect();
    let (mut own, mut answers) = dial(&pair.wire.left, &listen(&pair.wire.right, support::overlay(2), 80));
    own.set_nodelay(true).unwrap();
    let mut byte = [0];
    switch(&pair);
    let (begun, mut longest) = (std::time::Instant::now(), Duration::ZERO);
    while pair.left.tunnel.counters().reset_connections < CONNECTIONS as u64 {
        let sent = std::time::Instant::now();
        own.write_all(&[1]).unwrap();
        answers.read_exact(&mut byte).unwrap();
        longest = longest.max(sent.elapsed());
    }
    eprintln!(
        "{CONNECTIONS} connections reset in {:?}; meanwhile a byte took {longest:?} at most",
        begun.elapsed()
    );
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    ends.iter().for_each(|(ours, theirs)| {
        is_reset(ours);
        is_reset(theirs);
    });
    wait_until("it is told", || resets(&pair) == CONNECTIONS as u64);
}
