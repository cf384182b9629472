//! The UDP sockets, one per address family on the same port, with the kernel's offloads (quinn-udp).

#[cfg(not(target_os = "linux"))]
mod alone;
#[cfg(target_os = "linux")]
mod group;
mod path;
mod ports;
#[cfg(test)]
mod tests;

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket as RawSocket, Type};

pub(crate) use self::path::{Path, leads_somewhere};
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

/// Own addresses that are remembered as gone; more than a node has at a time.
const MAX_GONE: usize = 64;

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
                    if self.gone.len() >= MAX_GONE {
                        self.gone.clear();
                    }
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
        let Err(error) = self.transmit(&whole) else {
            self.gso.on_taken();
            return Ok(0);
        };
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

/// What a receive call brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    Nothing,
    /// All that had arrived by then.
    Last,
    /// As much as there is room for: there may be more.
    Full,
}

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

    /// Replaces the contents with what has arrived.
    pub(crate) fn receive(&mut self, socket: &Socket) -> Received {
        let mut chunks = self.bytes.chunks_mut(MESSAGE_BYTES);
        let mut buffers: [IoSliceMut<'_>; MESSAGES] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        let received = socket.state.recv(UdpSockRef::from(&socket.socket), &mut buffers, &mut self.metas);
        // Errors tell of earlier sends (an ICMP message); the next call goes on.
        self.filled = received.unwrap_or(0);
        match self.filled {
            0 => Received::Nothing,
            MESSAGES => Received::Full,
            _ => Received::Last,
        }
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
