//! The UDP sockets, one per address family on the same port, with the kernel's offloads (quinn-udp).

#[cfg(not(target_os = "linux"))]
mod alone;
#[cfg(target_os = "linux")]
mod group;
mod ports;

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket as RawSocket, Type};

use self::ports::{any_port, same_port};
use crate::{
    StartError,
    gso::{Gso, Refusal},
    wait,
};

/// Both directions: what arrives while a batch is worked on must fit.
const BUFFER_BYTES: usize = 7 << 20;
/// UDP messages per receive call.
pub(crate) const MESSAGES: usize = 4;
/// The largest received message: up to 64 datagrams.
const MESSAGE_BYTES: usize = 65_535;

/// A bound socket and what quinn-udp knows about it.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
    /// Whether the kernel offers to split batches.
    splits: bool,
    gso: Gso,
    #[cfg(test)]
    fault: Option<Fault>,
}

/// An error number in place of the kernel's answer.
#[cfg(test)]
type Fault = fn(&Transmit<'_>) -> Option<i32>;

/// The two protocols beneath a tunnel.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Family {
    V4,
    V6,
}

/// Where packets go, and which of our addresses they come from: the one the other side sends to, as a firewall or
/// translator on the way expects. `None` leaves it to the system's routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) to: SocketAddr,
    pub(crate) from: Option<IpAddr>,
}

impl Path {
    pub(crate) fn to(to: SocketAddr) -> Self {
        Self { to, from: None }
    }
}

/// What routers say of congestion, and are allowed to (RFC 3168).
pub(crate) type Ecn = quinn_udp::EcnCodepoint;

/// Datagrams of `segment` bytes each; the last may be shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Datagrams<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) segment: usize,
    pub(crate) ecn: Option<Ecn>,
}

impl<'a> Datagrams<'a> {
    pub(crate) fn one(bytes: &'a [u8]) -> Self {
        Self { bytes, segment: bytes.len(), ecn: None }
    }

    fn count(&self) -> usize {
        self.bytes.len().div_ceil(self.segment)
    }
}

/// The source address is not ours any more, or there is no way there at all.
struct SourceRefused;

/// At least one socket; a system may lack either family.
#[derive(Debug)]
pub(crate) struct Sockets {
    v4: Option<Socket>,
    v6: Option<Socket>,
    port: u16,
    /// Own addresses that were refused as sources, until the sockets are renewed or something arrives there.
    gone: Vec<IpAddr>,
}

impl Sockets {
    /// Binds `port`, or another if it is taken or 0.
    pub(crate) fn open(port: u16, fwmark: Option<u32>) -> Result<Self, StartError> {
        any_port(port, |port| Self::bind(port, fwmark))
    }

    /// Closes the sockets and opens new ones, on the same port where possible.
    pub(crate) fn renew(&mut self, fwmark: Option<u32>) -> Result<(), StartError> {
        // The port is free only once the old sockets are closed.
        (self.v4, self.v6) = (None, None);
        *self = match same_port(self.port, |port| Self::bind(port, fwmark))? {
            Some(renewed) => renewed,
            None => Self::open(0, fwmark)?,
        };
        Ok(())
    }

    /// Goes to another port, or stays if that cannot be; 0 is any.
    pub(crate) fn rebind(&mut self, port: u16, fwmark: Option<u32>) -> Result<(), StartError> {
        *self = if port == 0 { Self::open(0, fwmark)? } else { Self::bind(port, fwmark)? };
        Ok(())
    }

    pub(crate) fn set_mark(&self, fwmark: Option<u32>) -> Result<(), StartError> {
        [&self.v4, &self.v6].into_iter().flatten().try_for_each(|socket| {
            set_mark(&socket2::SockRef::from(&socket.socket), Some(fwmark.unwrap_or(0)))
                .map_err(StartError::Mark)
        })
    }

    fn bind(port: u16, fwmark: Option<u32>) -> Result<Self, StartError> {
        let v4 = optional(Socket::bind((Ipv4Addr::UNSPECIFIED, port).into(), fwmark))?;
        let port = match &v4 {
            Some(v4) => v4.port().map_err(StartError::Socket)?,
            None => port,
        };
        let v6 = optional(Socket::bind((Ipv6Addr::UNSPECIFIED, port).into(), fwmark))?;
        let port = match &v6 {
            Some(v6) => v6.port().map_err(StartError::Socket)?,
            None => port,
        };
        if v4.is_none() && v6.is_none() {
            return Err(StartError::Socket(io::ErrorKind::AddrNotAvailable.into()));
        }
        Ok(Self { v4, v6, port, gone: Vec::new() })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn socket(&self, family: Family) -> Option<&Socket> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// A datagram came to this address of ours: it is one.
    pub(crate) fn on_arrival(&mut self, at: Option<IpAddr>) {
        if !self.gone.is_empty() {
            self.gone.retain(|gone| Some(*gone) != at);
        }
    }

    /// Returns how many datagrams were refused.
    pub(crate) fn send(&mut self, path: Path, datagrams: Datagrams<'_>) -> usize {
        let socket = if path.to.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        let Some(socket) = socket else { return datagrams.count() };
        let source = path.from.filter(|source| !self.gone.contains(source));
        match (socket.send(path.to, source, datagrams), source) {
            (Ok(refused), _) => refused,
            (Err(SourceRefused), source) => {
                socket.forget_failures();
                let refused = socket.send(path.to, None, datagrams).unwrap_or_default();
                if refused == 0 {
                    self.gone.extend(source);
                }
                refused
            }
        }
    }
}

/// A family that the system lacks is no error.
fn optional(result: Result<Socket, StartError>) -> Result<Option<Socket>, StartError> {
    match result {
        Ok(socket) => Ok(Some(socket)),
        Err(StartError::Socket(error)) if is_family_missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_family_missing(error: &io::Error) -> bool {
    #[cfg(unix)]
    let missing = error.raw_os_error() == Some(libc::EAFNOSUPPORT);
    #[cfg(not(unix))]
    let missing = error.kind() == io::ErrorKind::Unsupported;
    missing || error.kind() == io::ErrorKind::AddrNotAvailable
}

impl Socket {
    fn bind(address: SocketAddr, fwmark: Option<u32>) -> Result<Self, StartError> {
        let socket = Self::open(address).map_err(StartError::Socket)?;
        Self::bind_opened(socket, address, fwmark)
    }

    fn bind_opened(socket: RawSocket, address: SocketAddr, fwmark: Option<u32>) -> Result<Self, StartError> {
        set_mark(&socket, fwmark).map_err(StartError::Mark)?;
        socket.bind(&address.into()).map_err(StartError::Socket)?;
        let socket = UdpSocket::from(socket);
        let state = UdpSocketState::new((&socket).into()).map_err(StartError::Socket)?;
        adjust(&socket, address);
        Ok(Self {
            splits: state.max_gso_segments() > 1,
            socket,
            state,
            gso: Gso::default(),
            #[cfg(test)]
            fault: None,
        })
    }

    fn open(address: SocketAddr) -> io::Result<RawSocket> {
        let socket = RawSocket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        enlarge_buffers(&socket);
        Ok(socket)
    }

    #[cfg(unix)]
    pub(crate) fn udp(&self) -> &UdpSocket {
        &self.socket
    }

    fn port(&self) -> io::Result<u16> {
        self.socket.local_addr().map(|address| address.port())
    }

    /// How many datagrams were refused.
    fn send(
        &mut self,
        to: SocketAddr,
        source: Option<IpAddr>,
        datagrams: Datagrams<'_>,
    ) -> Result<usize, SourceRefused> {
        let Datagrams { bytes, segment, ecn } = datagrams;
        if bytes.len() <= segment || !self.splits || !self.gso.is_due(to, segment) {
            let refused = self.send_singly(to, source, datagrams)?;
            if self.splits && self.state.max_gso_segments() == 1 {
                self.forget_failures();
            }
            return Ok(refused);
        }
        let whole =
            Transmit { destination: to, ecn, contents: bytes, segment_size: Some(segment), src_ip: source };
        let Err(error) = self.transmit(&whole) else { return Ok(0) };
        match Refusal::of(&error) {
            Refusal::Final if is_source_refused(&error, source) => Err(SourceRefused),
            Refusal::Final => Ok(datagrams.count()),
            why @ (Refusal::Unsupported | Refusal::TooWide | Refusal::TooMuch) => {
                // The datagrams are still here. Whether the source was meant is seen by the first of them.
                let refused = self.send_singly(to, source, datagrams)?;
                // Where none was taken, it is the destination.
                if refused < datagrams.count() {
                    self.gso.on_refusal(why, to, segment);
                }
                if why == Refusal::Unsupported {
                    self.forget_failures();
                }
                Ok(refused)
            }
        }
    }

    fn send_singly(
        &self,
        to: SocketAddr,
        source: Option<IpAddr>,
        datagrams: Datagrams<'_>,
    ) -> Result<usize, SourceRefused> {
        let Datagrams { bytes, segment, ecn } = datagrams;
        let mut refused = 0;
        for (number, datagram) in bytes.chunks(segment).enumerate() {
            let single =
                Transmit { destination: to, ecn, contents: datagram, segment_size: None, src_ip: source };
            match self.transmit(&single) {
                Ok(()) => {}
                Err(error) if is_source_refused(&error, source) => return Err(SourceRefused),
                // It was waited for once: the others would wait as long, each.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(refused + datagrams.count() - number);
                }
                Err(_) => refused += 1,
            }
        }
        Ok(refused)
    }

    /// quinn-udp takes a refused source, or one batch that was refused, for missing offloads, and would do without them,
    /// and without marks of congestion, from then on.
    fn forget_failures(&mut self) {
        if let (Ok(state), Ok(address)) =
            (UdpSocketState::new((&self.socket).into()), self.socket.local_addr())
        {
            self.state = state;
            adjust(&self.socket, address);
        }
    }

    fn transmit(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        #[cfg(test)]
        if let Some(error) = self.fault.and_then(|fault| fault(transmit)) {
            return Err(io::Error::from_raw_os_error(error));
        }
        match self.state.try_send(UdpSockRef::from(&self.socket), transmit) {
            // The buffer is full: the batch waits, as dropping it would cost a retransmission.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait::until_writable(&self.socket)?;
                self.state.try_send(UdpSockRef::from(&self.socket), transmit)
            }
            result => result,
        }
    }
}

fn is_source_refused(error: &io::Error, source: Option<IpAddr>) -> bool {
    use io::ErrorKind::{AddrNotAvailable, InvalidInput, NetworkUnreachable};
    source.is_some() && matches!(error.kind(), InvalidInput | AddrNotAvailable | NetworkUnreachable)
}

/// Buffers beyond the system's limit need CAP_NET_ADMIN; without it the limit must do.
fn enlarge_buffers(socket: &RawSocket) {
    let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    #[cfg(target_os = "linux")]
    force_buffers(socket);
}

#[cfg(target_os = "linux")]
fn force_buffers(socket: &RawSocket) {
    use std::os::fd::AsRawFd;
    let bytes = BUFFER_BYTES as libc::c_int;
    for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        // SAFETY: the value is a c_int that lives through the call, of the size given.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const bytes).cast(),
                size_of_val(&bytes) as libc::socklen_t,
            );
        }
    }
}

#[cfg(target_os = "linux")]
fn set_mark(socket: &RawSocket, fwmark: Option<u32>) -> io::Result<()> {
    fwmark.map_or(Ok(()), |mark| socket.set_mark(mark))
}

#[cfg(not(target_os = "linux"))]
fn set_mark(_socket: &RawSocket, _fwmark: Option<u32>) -> io::Result<()> {
    Ok(())
}

/// quinn-udp forbids fragments; a tunnel's packets must pass links narrower than its MTU, if slowly. And it asks for the
/// times of arrival, which fill the room in which marks of congestion would come.
#[cfg(target_os = "linux")]
fn adjust(socket: &UdpSocket, address: SocketAddr) {
    let (level, option) = match address {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    };
    set_option(socket, level, option, libc::IP_PMTUDISC_DONT);
    if address.is_ipv6() {
        set_option(socket, level, libc::IPV6_DONTFRAG, 0);
    }
    set_option(socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 0);
}

/// Without it there is less comfort, and nothing fails.
#[cfg(target_os = "linux")]
fn set_option(socket: &UdpSocket, level: libc::c_int, option: libc::c_int, value: libc::c_int) {
    use std::os::fd::AsRawFd;
    // SAFETY: the value is a c_int that lives through the call, of the size given.
    unsafe {
        let len = size_of_val(&value) as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), len);
    }
}

#[cfg(not(target_os = "linux"))]
fn adjust(_socket: &UdpSocket, _address: SocketAddr) {}

/// The buffers that messages are received into.
pub(crate) struct Arena {
    bytes: Box<[u8]>,
    metas: [RecvMeta; MESSAGES],
    filled: usize,
}

impl Arena {
    pub(crate) fn new() -> Self {
        let bytes = vec![0; MESSAGES * MESSAGE_BYTES].into_boxed_slice();
        Self { bytes, metas: [RecvMeta::default(); MESSAGES], filled: 0 }
    }

    /// Replaces the contents with what has arrived; `false` if nothing has.
    pub(crate) fn receive(&mut self, socket: &Socket) -> bool {
        let mut chunks = self.bytes.chunks_mut(MESSAGE_BYTES);
        let mut buffers: [IoSliceMut<'_>; MESSAGES] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        let received = socket.state.recv(UdpSockRef::from(&socket.socket), &mut buffers, &mut self.metas);
        // Errors tell of earlier sends (an ICMP message); the next call goes on.
        self.filled = received.unwrap_or(0);
        self.filled > 0
    }

    /// Each datagram with the path back, and what routers say.
    pub(crate) fn datagrams(&self) -> impl Iterator<Item = (Path, Option<Ecn>, &[u8])> {
        let messages = self.metas[..self.filled].iter().zip(self.bytes.chunks(MESSAGE_BYTES));
        messages.flat_map(|(meta, bytes)| {
            bytes[..meta.len]
                .chunks(meta.stride.max(1))
                .map(move |datagram| (Path { to: meta.addr, from: meta.dst_ip }, meta.ecn, datagram))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(sockets: &Sockets) -> impl Iterator<Item = &Socket> {
        [Family::V4, Family::V6].into_iter().filter_map(|family| sockets.socket(family))
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn both_sockets_carry_the_mark_also_after_they_are_renewed() {
        let mut sockets = Sockets::open(0, Some(51_820)).expect("marks need CAP_NET_ADMIN");
        let port = sockets.port();
        for _ in 0..2 {
            assert!(
                both(&sockets).all(|socket| socket2::SockRef::from(socket.udp()).mark().unwrap() == 51_820)
            );
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
                both(&to).for_each(|socket| {
                    if arena.receive(socket) {
                        got.extend(arena.datagrams().map(|(_, ecn, datagram)| {
                            assert_eq!(ecn, Some(Ecn::Ect0));
                            datagram.to_vec()
                        }));
                    }
                });
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
            if arena.receive(to.socket(family).unwrap()) {
                got.extend(arena.datagrams().map(|(_, ecn, datagram)| {
                    assert_eq!(ecn, Some(Ecn::Ect0), "marks of congestion were given up");
                    datagram.to_vec()
                }));
            }
        }
        assert_eq!(got.concat(), bytes);
        got
    }

    #[cfg(unix)]
    #[test]
    fn a_batch_that_is_refused_as_a_whole_arrives_all_the_same() {
        for error in [libc::EIO, libc::EINVAL, libc::EOPNOTSUPP, libc::EMSGSIZE, libc::ENOBUFS, libc::ENOMEM]
        {
            let (mut from, to) = (Sockets::open(0, None).unwrap(), Sockets::open(0, None).unwrap());
            thread_local!(static ERROR: std::cell::Cell<i32> = const { std::cell::Cell::new(0) });
            ERROR.set(error);
            from.v4.as_mut().unwrap().fault =
                Some(|transmit| transmit.segment_size.is_some().then(|| ERROR.get()));
            assert_eq!(crossing(&mut from, &to, [127, 0, 0, 1].into(), 500).len(), 10);
            // Until it is tried again, nobody asks.
            from.v4.as_mut().unwrap().fault = None;
            crossing(&mut from, &to, [127, 0, 0, 1].into(), 500);
            let is_off = from.v4.as_mut().unwrap().gso.is_paused();
            assert_eq!(is_off, [libc::EIO, libc::EINVAL, libc::EOPNOTSUPP].contains(&error));
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
        assert!(!from.v4.as_ref().unwrap().gso.is_paused());
    }

    #[cfg(unix)]
    #[test]
    fn a_destination_that_takes_nothing_is_no_reason_to_do_without_offloads() {
        let mut from = Sockets::open(0, None).unwrap();
        from.v4.as_mut().unwrap().fault = Some(|_| Some(libc::EINVAL));
        let datagrams = Datagrams { bytes: &[7; 1000], segment: 100, ecn: None };
        assert_eq!(from.send(Path::to(([127, 0, 0, 1], 9).into()), datagrams), 10);
        let socket = from.v4.as_ref().unwrap();
        assert!(!socket.gso.is_paused() && socket.state.max_gso_segments() > 1);
        // The kernel's own refusal of port 0, as well.
        from.v4.as_mut().unwrap().fault = None;
        assert_eq!(from.send(Path::to(([127, 0, 0, 1], 0).into()), datagrams), 10);
        let socket = from.v4.as_ref().unwrap();
        assert!(!socket.gso.is_paused() && socket.state.max_gso_segments() > 1);
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
        let path =
            |source: [u8; 4]| Path { to: ([127, 0, 0, 1], to.port()).into(), from: Some(source.into()) };
        let mut arena = Arena::new();
        for (source, seen) in [([127, 0, 0, 9], [127, 0, 0, 9]), ([192, 0, 2, 1], [127, 0, 0, 1])] {
            let datagrams = Datagrams { bytes: &[7; 1000], segment: 500, ecn: None };
            assert_eq!(from.send(path(source), datagrams), 0);
            while !arena.receive(to.socket(Family::V4).unwrap()) {}
            let (back, ..) = arena.datagrams().next().unwrap();
            assert_eq!((back.to.ip(), back.from), (seen.into(), Some([127, 0, 0, 1].into())));
        }
        assert_eq!(from.gone, [IpAddr::from([192, 0, 2, 1])]);
        assert!(from.socket(Family::V4).unwrap().state.max_gso_segments() > 1);
        // It may come back.
        from.on_arrival(Some([192, 0, 2, 1].into()));
        assert!(from.gone.is_empty());
    }
}
