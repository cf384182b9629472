//! Sockets on loopback: ports, marks, batches, refusals.

use std::time::{Duration, Instant};

use super::*;

/// Longer than anything takes here.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

impl Arena {
    /// Waits for what is on its way.
    pub(super) fn await_from(&mut self, sockets: &Sockets, family: Family) {
        let (socket, deadline) = (sockets.socket(family).unwrap(), Instant::now() + PATIENCE);
        while self.receive(socket) == Received::Nothing {
            assert!(Instant::now() < deadline, "nothing came within {PATIENCE:?}");
            std::thread::yield_now();
        }
    }
}

fn both(sockets: &Sockets) -> impl Iterator<Item = &Socket> {
    [Family::V4, Family::V6].into_iter().filter_map(|family| sockets.socket(family))
}

#[cfg(target_os = "linux")]
#[test]
fn both_sockets_carry_the_mark_also_after_they_are_renewed() {
    let mut sockets = Sockets::open(0, Some(51_820)).expect("marks need CAP_NET_ADMIN");
    let port = sockets.port();
    for _ in 0..2 {
        assert!(both(&sockets).all(|socket| socket2::SockRef::from(socket.udp()).mark().unwrap() == 51_820));
        sockets.renew(Some(51_820)).unwrap();
        assert_eq!(sockets.port(), port);
    }
}

#[test]
fn a_taken_port_gives_way_to_another_that_both_families_share() {
    let first = Sockets::open(0, None).unwrap();
    let second = Sockets::open(first.port(), None).unwrap();
    assert_ne!(first.port(), second.port());
    let ports: Vec<_> = both(&second).map(|socket| socket.port().unwrap()).collect();
    assert!(ports.iter().all(|&port| port == second.port()));
}

#[test]
fn a_receive_call_tells_whether_more_may_have_arrived() {
    let (sender, to) = (UdpSocket::bind("127.0.0.1:0").unwrap(), Sockets::open(0, None).unwrap());
    let mut arena = Arena::new();
    let socket = to.socket(Family::V4).unwrap();
    let (mut full, deadline) = (false, Instant::now() + PATIENCE);
    // A busy machine may deliver them one by one.
    while !full {
        for number in 0..=MESSAGES {
            // Of other sizes each: the kernel joins none of them.
            sender.send_to(&vec![0; number + 1], ("127.0.0.1", to.port())).unwrap();
        }
        let mut missing = MESSAGES + 1;
        while missing > 0 {
            assert!(
                Instant::now() < deadline,
                "{missing} of {MESSAGES} and one did not come, or never at once"
            );
            let received = arena.receive(socket);
            let count = arena.datagrams().count();
            match received {
                // The rest is on its way.
                Received::Nothing => assert_eq!(count, 0),
                Received::Last => assert!((1..MESSAGES).contains(&count), "{count} datagrams"),
                Received::Full => assert_eq!(count, MESSAGES),
            }
            full |= received == Received::Full;
            missing = missing.checked_sub(count).expect("what was sent arrives once");
        }
        assert_eq!(arena.receive(socket), Received::Nothing);
    }
}

#[test]
fn a_batch_arrives_as_its_datagrams() {
    let (mut from, to) = (Sockets::open(0, None).unwrap(), Sockets::open(0, None).unwrap());
    let address = SocketAddr::from(([127, 0, 0, 1], to.port()));
    let bytes: Vec<u8> = (0..1000).map(|i| (i / 100) as u8).collect();
    let mut arena = Arena::new();
    for segment in [300, 1000] {
        let datagrams = Datagrams { bytes: &bytes, segment, ecn: Some(Ecn::Ect0) };
        assert_eq!(from.send(Path::to(address), datagrams), 0);
        let mut got = Vec::new();
        while got.len() < 1000usize.div_ceil(segment) {
            arena.await_from(&to, Family::V4);
            got.extend(arena.datagrams().map(|(_, ecn, datagram)| {
                assert_eq!(ecn, Some(Ecn::Ect0));
                datagram.to_vec()
            }));
        }
        assert_eq!(got, bytes.chunks(segment).map(<[u8]>::to_vec).collect::<Vec<_>>());
    }
}

/// Sends a batch of ten datagrams to ourselves; what arrives.
fn crossing(from: &mut Sockets, to: &Sockets, ip: IpAddr, size: usize) -> Vec<Vec<u8>> {
    let bytes: Vec<u8> = (0..10 * size - 7).map(|i| (i / 100) as u8).collect();
    let datagrams = Datagrams { bytes: &bytes, segment: size, ecn: Some(Ecn::Ect0) };
    assert_eq!(from.send(Path::to((ip, to.port()).into()), datagrams), 0);
    let (mut arena, mut got) = (Arena::new(), Vec::new());
    let family = if ip.is_ipv4() { Family::V4 } else { Family::V6 };
    while got.len() < 10 {
        arena.await_from(to, family);
        got.extend(arena.datagrams().map(|(_, ecn, datagram)| {
            assert_eq!(ecn, Some(Ecn::Ect0), "marks of congestion were given up");
            datagram.to_vec()
        }));
    }
    assert_eq!(got.concat(), bytes);
    got
}

#[cfg(unix)]
#[test]
fn a_batch_that_is_refused_as_a_whole_arrives_all_the_same() {
    for error in [libc::EIO, libc::EINVAL, libc::EOPNOTSUPP, libc::EMSGSIZE, libc::ENOBUFS, libc::ENOMEM] {
        let (mut from, to) = (Sockets::open(0, None).unwrap(), Sockets::open(0, None).unwrap());
        thread_local!(static ERROR: std::cell::Cell<i32> = const { std::cell::Cell::new(0) });
        ERROR.set(error);
        from.v4.as_mut().unwrap().fault =
            Some(|transmit| transmit.segment_size.is_some().then(|| ERROR.get()));
        assert_eq!(crossing(&mut from, &to, [127, 0, 0, 1].into(), 500).len(), 10);
        // Until it is tried again, nobody asks.
        from.v4.as_mut().unwrap().fault = None;
        crossing(&mut from, &to, [127, 0, 0, 1].into(), 500);
        let gso = &mut from.v4.as_mut().unwrap().gso;
        let is_off = !gso.is_due(([127, 0, 0, 1], to.port()).into(), 500);
        assert_eq!(is_off, ![libc::ENOBUFS, libc::ENOMEM].contains(&error));
        assert!(gso.is_due(([127, 0, 0, 1], 9).into(), 500), "it is nobody else's");
        assert!(from.v4.as_ref().unwrap().state.max_gso_segments() > 1);
    }
}

#[cfg(unix)]
#[test]
fn a_full_buffer_is_waited_for_once_and_what_it_did_not_take_is_counted() {
    let mut from = Sockets::open(0, None).unwrap();
    from.v4.as_mut().unwrap().fault = Some(|_| Some(libc::EAGAIN));
    let datagrams = Datagrams { bytes: &[7; 1000], segment: 100, ecn: None };
    assert_eq!(from.send(Path::to(([127, 0, 0, 1], 9).into()), datagrams), 10);
    assert!(from.v4.as_mut().unwrap().gso.is_due(([127, 0, 0, 1], 9).into(), 100));
}

#[cfg(unix)]
#[test]
fn a_destination_that_takes_nothing_is_no_reason_to_do_without_offloads() {
    let mut from = Sockets::open(0, None).unwrap();
    from.v4.as_mut().unwrap().fault = Some(|_| Some(libc::EINVAL));
    let datagrams = Datagrams { bytes: &[7; 1000], segment: 100, ecn: None };
    assert_eq!(from.send(Path::to(([127, 0, 0, 1], 9).into()), datagrams), 10);
    let socket = from.v4.as_mut().unwrap();
    assert!(socket.gso.is_due(([127, 0, 0, 1], 9).into(), 100) && socket.state.max_gso_segments() > 1);
    // The kernel's own refusal of port 0, as well.
    from.v4.as_mut().unwrap().fault = None;
    assert_eq!(from.send(Path::to(([127, 0, 0, 1], 0).into()), datagrams), 10);
    let socket = from.v4.as_mut().unwrap();
    assert!(socket.gso.is_due(([127, 0, 0, 1], 0).into(), 100) && socket.state.max_gso_segments() > 1);
}

/// In a namespace of the calling thread.
#[cfg(target_os = "linux")]
fn narrow_loopback(mtu: &str) {
    // SAFETY: takes and returns integers; only this thread moves.
    let alone = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(alone, 0, "a network namespace of its own needs root");
    let ip = std::process::Command::new("ip").args(["link", "set", "lo", "up", "mtu", mtu]).status();
    assert!(ip.unwrap().success());
}

#[cfg(target_os = "linux")]
#[test]
fn datagrams_wider_than_the_way_are_fragmented_over_both_families() {
    narrow_loopback("1280");
    for ip in ["127.0.0.1", "::1"].map(|ip| ip.parse::<IpAddr>().unwrap()) {
        for size in [1452, 6000] {
            let (mut from, to) = (Sockets::open(0, None).unwrap(), Sockets::open(0, None).unwrap());
            crossing(&mut from, &to, ip, size);
            let socket = if ip.is_ipv4() { &mut from.v4 } else { &mut from.v6 }.as_mut().unwrap();
            let address = (ip, to.port()).into();
            assert!(!socket.gso.is_due(address, size), "the next one is tried as a whole, too");
            assert!(socket.gso.is_due(address, 1200) && socket.state.max_gso_segments() > 1);
        }
    }
}

#[test]
fn an_address_that_is_gone_is_given_up_as_source_and_offloads_stay_on() {
    let (mut from, to) = (Sockets::open(0, None).unwrap(), Sockets::open(0, None).unwrap());
    let path = |source: [u8; 4]| Path { to: ([127, 0, 0, 1], to.port()).into(), from: Some(source.into()) };
    let mut arena = Arena::new();
    for (source, seen) in [([127, 0, 0, 9], [127, 0, 0, 9]), ([192, 0, 2, 1], [127, 0, 0, 1])] {
        let datagrams = Datagrams { bytes: &[7; 1000], segment: 500, ecn: None };
        assert_eq!(from.send(path(source), datagrams), 0);
        arena.await_from(&to, Family::V4);
        let (back, ..) = arena.datagrams().next().unwrap();
        assert_eq!((back.to.ip(), back.from), (seen.into(), Some([127, 0, 0, 1].into())));
    }
    assert_eq!(from.gone, [IpAddr::from([192, 0, 2, 1])]);
    assert!(from.socket(Family::V4).unwrap().state.max_gso_segments() > 1);
    // It may come back.
    from.on_arrival(Some([192, 0, 2, 1].into()));
    assert!(from.gone.is_empty());
}
