//! Thousands of WireGuard peers in one thread: an identity each, with an address of its own outside and inside, on one socket.
//! What one of them is sent at [`ECHO_PORT`] comes back.

use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt, sockopt,
};

use crate::namespace::Namespace;
use crate::topology::Host;

pub(crate) const PORT: u16 = 51820;
/// Inside the tunnels.
pub(crate) const ECHO_PORT: u16 = 9000;
/// The first has the next one.
const OUTER: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
const INNER: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 0);
/// Of both.
const PREFIX: u8 = 16;
const TICK_INTERVAL: Duration = Duration::from_millis(250);
const POLL_MS: u16 = 5;
/// Room for whatever thousands send in one moment.
const BUFFER_BYTES: usize = 64 << 20;
const PACKET_BYTES: usize = 2048;
/// IPv4's and UDP's.
pub(crate) const HEADERS_BYTES: usize = 28;
/// The crowd stands for other machines: it gives way to what is measured on this one.
const NICENESS: i32 = 10;

pub(crate) fn inner(number: usize) -> Ipv4Addr {
    nth(INNER, number)
}

/// Who has an inner address.
pub(crate) fn number_of(inner: Ipv4Addr) -> Option<usize> {
    (u32::from(inner).checked_sub(u32::from(INNER))? as usize).checked_sub(1)
}

fn nth(base: Ipv4Addr, number: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(base) + number as u32 + 1)
}

/// The network that the crowd is behind, or in.
pub(crate) fn networks() -> [String; 2] {
    [format!("{OUTER}/{PREFIX}"), format!("{INNER}/{PREFIX}")]
}

fn secret(number: usize) -> StaticSecret {
    let mut bytes = [0x5a; 32];
    // Not in the first byte, some bits of which mean nothing.
    bytes[8..16].copy_from_slice(&(number as u64).to_le_bytes());
    StaticSecret::from(bytes)
}

/// All of them as peers, in the format of `wg setconf`.
pub(crate) fn configuration(count: usize) -> String {
    let peer = |number| {
        let key = BASE64_STANDARD.encode(PublicKey::from(&secret(number)).as_bytes());
        let (inner, outer) = (inner(number), nth(OUTER, number));
        format!("[Peer]\nPublicKey = {key}\nAllowedIPs = {inner}/32\nEndpoint = {outer}:{PORT}\n")
    };
    (0..count).map(peer).collect()
}

/// Whom the crowd speaks with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hub {
    pub key: [u8; 32],
    pub endpoint: SocketAddrV4,
    /// Where it listens inside.
    pub desk: SocketAddrV4,
}

/// A running crowd. Dropped, it falls silent.
pub(crate) struct Crowd {
    orders: Arc<Orders>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Orders {
    stop: AtomicBool,
    /// Bytes of the packet that all send; 0 is no order.
    speak: AtomicUsize,
}

impl Crowd {
    /// Without any session. `host` gets the crowd's outer addresses.
    pub(crate) fn start(host: &Host, hub: Hub, count: usize) -> Result<Self> {
        let orders = Arc::new(Orders::default());
        let machine = Machine::new(&host.namespace, hub, count)?;
        let orders_of_thread = Arc::clone(&orders);
        let thread = std::thread::spawn(move || {
            // SAFETY: one system call without pointers; on Linux it is the calling thread's niceness.
            unsafe { libc::nice(NICENESS) };
            machine.run(&orders_of_thread)
        });
        Ok(Self { orders, thread: Some(thread) })
    }

    /// All of them send one packet to the hub's desk, now.
    pub(crate) fn speak(&self, packet_bytes: usize) {
        self.orders.speak.store(packet_bytes, Ordering::Relaxed);
    }

    /// Fails if the crowd had.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.orders.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("a crowd ends once")?;
        thread.join().map_err(|_| anyhow!("the crowd panicked"))?
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.orders.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

struct Member {
    tunn: Tunn,
    outer: Ipv4Addr,
}

struct Machine {
    socket: UdpSocket,
    hub: Hub,
    members: Vec<Member>,
}

impl Machine {
    fn new(namespace: &Namespace, hub: Hub, count: usize) -> Result<Self> {
        let socket = namespace.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)))??;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        // Without the right to force it, the system's limit has to do.
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &BUFFER_BYTES)?;
        }
        let member = |number| Member {
            tunn: Tunn::new(secret(number), hub.key.into(), None, None, number as u32, None),
            outer: nth(OUTER, number),
        };
        Ok(Self { socket, hub, members: (0..count).map(member).collect() })
    }

    fn run(mut self, orders: &Orders) -> Result<()> {
        let mut tick_at = Instant::now();
        while !orders.stop.load(Ordering::Relaxed) {
            match orders.speak.swap(0, Ordering::Relaxed) {
                0 => {}
                packet_bytes => self.speak(packet_bytes)?,
            }
            if Instant::now() >= tick_at {
                tick_at = Instant::now() + TICK_INTERVAL;
                self.tick()?;
            }
            if !self.receive()? {
                let mut readable = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
                poll(&mut readable, PollTimeout::from(POLL_MS))?;
            }
        }
        Ok(())
    }

    fn speak(&mut self, packet_bytes: usize) -> Result<()> {
        let mut out = [0; PACKET_BYTES];
        let mut messages = Vec::new();
        // All are ready before the first leaves: it is the hub that is to be hurried.
        for (number, member) in self.members.iter_mut().enumerate() {
            let from = SocketAddrV4::new(inner(number), ECHO_PORT);
            let packet = udp_packet(from, self.hub.desk, packet_bytes);
            if let TunnResult::WriteToNetwork(message) = member.tunn.encapsulate(&packet, &mut out) {
                messages.push((member.outer, message.to_vec()));
            }
        }
        messages.iter().try_for_each(|(from, message)| send(&self.socket, *from, self.hub.endpoint, message))
    }

    fn tick(&mut self) -> Result<()> {
        let mut out = [0; PACKET_BYTES];
        for member in &mut self.members {
            if let TunnResult::WriteToNetwork(message) = member.tunn.update_timers(&mut out) {
                send(&self.socket, member.outer, self.hub.endpoint, message)?;
            }
        }
        Ok(())
    }

    /// Takes what has arrived, some of it; whether anything had.
    fn receive(&mut self) -> Result<bool> {
        let mut buffer = [0; PACKET_BYTES];
        for taken in 0..64 {
            let Some((to, len)) = receive_one(&self.socket, &mut buffer)? else { return Ok(taken > 0) };
            let number = u32::from(to).wrapping_sub(u32::from(OUTER)).wrapping_sub(1) as usize;
            if let Some(member) = self.members.get_mut(number) {
                hear(&self.socket, self.hub.endpoint, member, &buffer[..len])?;
            }
        }
        Ok(true)
    }
}

fn hear(socket: &UdpSocket, hub: SocketAddrV4, member: &mut Member, datagram: &[u8]) -> Result<()> {
    let mut out = [0; PACKET_BYTES];
    let mut datagram = datagram;
    loop {
        match member.tunn.decapsulate(Some((*hub.ip()).into()), datagram, &mut out) {
            TunnResult::WriteToNetwork(message) => {
                send(socket, member.outer, hub, message)?;
                // Asks for the packets that waited.
                datagram = &[];
            }
            TunnResult::WriteToTunnelV4(packet, _) => {
                let answer = echo(packet).map(<[u8]>::to_vec);
                let answer = answer.map(|answer| member.tunn.encapsulate(&answer, &mut out));
                return match answer {
                    Some(TunnResult::WriteToNetwork(message)) => send(socket, member.outer, hub, message),
                    Some(_) | None => Ok(()),
                };
            }
            TunnResult::WriteToTunnelV6(..) | TunnResult::Done | TunnResult::Err(_) => return Ok(()),
        }
    }
}

/// The packet with its ends swapped, which leaves its checksums right. `None` if it is not for the echo.
fn echo(packet: &mut [u8]) -> Option<&[u8]> {
    let is_udp = packet.len() >= HEADERS_BYTES && packet[0] == 0x45 && packet[9] == 17;
    if !is_udp || packet[22..24] != ECHO_PORT.to_be_bytes() {
        return None;
    }
    let (source, destination) = packet[12..20].split_at_mut(4);
    source.swap_with_slice(destination);
    let (from, to) = packet[20..24].split_at_mut(2);
    from.swap_with_slice(to);
    Some(packet)
}

/// A datagram of zeros, without a checksum of its own, in its packet.
fn udp_packet(from: SocketAddrV4, to: SocketAddrV4, packet_bytes: usize) -> Vec<u8> {
    let mut packet = vec![0; packet_bytes.max(HEADERS_BYTES)];
    let len = packet.len() as u16;
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet[8] = 64;
    packet[9] = 17;
    packet[12..16].copy_from_slice(&from.ip().octets());
    packet[16..20].copy_from_slice(&to.ip().octets());
    let words = packet[..20].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet[20..22].copy_from_slice(&from.port().to_be_bytes());
    packet[22..24].copy_from_slice(&to.port().to_be_bytes());
    packet[24..26].copy_from_slice(&(len - 20).to_be_bytes());
    packet
}

fn send(socket: &UdpSocket, from: Ipv4Addr, to: SocketAddrV4, message: &[u8]) -> Result<()> {
    let source = libc::in_addr { s_addr: u32::from(from).to_be() };
    let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: source };
    let control = [ControlMessage::Ipv4PacketInfo(&info)];
    let to = SockaddrIn::from(to);
    loop {
        let sent =
            sendmsg(socket.as_raw_fd(), &[IoSlice::new(message)], &control, MsgFlags::empty(), Some(&to));
        match sent {
            Ok(_) => return Ok(()),
            Err(Errno::EAGAIN | Errno::ENOBUFS) => {
                let mut writable = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
                poll(&mut writable, PollTimeout::from(POLL_MS))?;
            }
            // What an earlier datagram met.
            Err(Errno::ECONNREFUSED) => {}
            Err(error) => return Err(error).context("one of the crowd cannot send"),
        }
    }
}

/// Whom it was for, and its length.
fn receive_one(socket: &UdpSocket, buffer: &mut [u8]) -> Result<Option<(Ipv4Addr, usize)>> {
    let mut space = cmsg_space!(libc::in_pktinfo);
    let mut slices = [IoSliceMut::new(buffer)];
    let received =
        recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::empty());
    let message = match received {
        Ok(message) => message,
        Err(Errno::EAGAIN | Errno::ECONNREFUSED) => return Ok(None),
        Err(error) => return Err(error).context("the crowd cannot receive"),
    };
    let to = message.cmsgs()?.find_map(|control| {
        if let ControlMessageOwned::Ipv4PacketInfo(info) = control {
            Some(u32::from_be(info.ipi_addr.s_addr).into())
        } else {
            None
        }
    });
    Ok(Some((to.context("a datagram without its destination")?, message.bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_swaps_the_ends_and_nothing_else() {
        let (one, other) =
            (SocketAddrV4::new(inner(7), 1234), SocketAddrV4::new([198, 18, 0, 1].into(), ECHO_PORT));
        let mut packet = udp_packet(one, other, 1400);
        let words = packet[..20].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
        let sum: u32 = words.sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        assert_eq!(echo(&mut packet), Some(&udp_packet(other, one, 1400)[..]));
        assert_eq!(echo(&mut packet), None, "what comes back is not sent again");
    }

    #[test]
    fn members_are_told_apart_by_their_addresses() {
        for number in [0, 1, 255, 9999] {
            assert_eq!(number_of(inner(number)), Some(number));
        }
        assert_eq!(number_of(INNER), None);
        assert_eq!(configuration(3).matches("PublicKey").count(), 3);
    }
}
