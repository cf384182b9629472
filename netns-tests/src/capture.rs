//! Watching a host's interface, to show that nothing was sent, or that something was.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;

use crate::namespace::Namespace;

const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: u16 = 0x0806;
const UDP: u8 = 17;
/// Enough of each frame for its headers, and for a whole handshake message in a tunnel's.
const SNAPSHOT_BYTES: usize = 256;

/// One frame: when it was seen, and how it began.
#[derive(Clone, Debug)]
pub struct Frame {
    pub seen_at: Instant,
    pub bytes: Vec<u8>,
}

impl Frame {
    /// The ports (source, destination) if this is UDP over IPv4.
    pub fn udp_ports(&self) -> Option<(u16, u16)> {
        let packet = self.bytes.get(14..)?;
        if self.bytes.get(12..14)? != IPV4 || *packet.get(9)? != UDP {
            return None;
        }
        let header_bytes = usize::from(packet.first()? & 0x0f) * 4;
        let udp = packet.get(header_bytes..header_bytes + 4)?;
        Some((u16::from_be_bytes([udp[0], udp[1]]), u16::from_be_bytes([udp[2], udp[3]])))
    }

    /// Whether it belongs to a tunnel that listens on `port`.
    pub fn is_tunnel(&self, port: u16) -> bool {
        self.udp_ports().is_some_and(|(from, to)| from == port || to == port)
    }
}

/// A running capture of both directions of one interface.
pub struct Capture {
    frames: Arc<Mutex<Vec<Frame>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    pub fn start(namespace: &Namespace, interface: &str) -> Result<Self> {
        Self::picking(namespace, interface, |_| true)
    }

    /// Keeps only the frames that `wanted` picks, for long captures.
    pub fn picking(namespace: &Namespace, interface: &str, wanted: fn(&Frame) -> bool) -> Result<Self> {
        let socket = namespace
            .run(|| packet_socket(interface))?
            .with_context(|| format!("cannot capture on {interface}"))?;
        let frames = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (into, stopped) = (Arc::clone(&frames), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Some(frame) = next_frame(&socket).filter(wanted) {
                    into.lock().unwrap_or_else(PoisonError::into_inner).push(frame);
                }
            }
        });
        Ok(Self { frames, stop, thread: Some(thread) })
    }

    /// The frames seen since `moment` that `wanted` picks.
    pub fn since(&self, moment: Instant, wanted: impl Fn(&Frame) -> bool) -> Vec<Frame> {
        let frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames.iter().filter(|frame| frame.seen_at >= moment && wanted(frame)).cloned().collect()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Tells everybody on the segment that `address` is at `interface` now, as a machine does that takes it over.
pub fn announce_address(namespace: &Namespace, interface: &str, address: std::net::Ipv4Addr) -> Result<()> {
    let told = namespace.run(|| -> Result<()> {
        let socket = packet_socket(interface)?;
        let frame = gratuitous_arp(mac_of(interface)?, address);
        // SAFETY: the buffer lives across the call, and the length is its own.
        let sent = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        anyhow::ensure!(sent >= 0, io::Error::last_os_error());
        Ok(())
    })?;
    told.with_context(|| format!("cannot announce {address} on {interface}"))
}

/// Ethernet broadcast; then hardware Ethernet, protocol IPv4, operation "request", and the address asked for by its owner.
fn gratuitous_arp(mac: [u8; 6], address: std::net::Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    frame.extend(ARP.to_be_bytes());
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

/// Asked of `ip`, because /sys shows the namespace it was mounted in and not the caller's.
fn mac_of(interface: &str) -> Result<[u8; 6]> {
    let output = std::process::Command::new("ip").args(["-j", "link", "show", interface]).output()?;
    let links: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let text = links[0]["address"].as_str().context("an interface without an address")?;
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    bytes.try_into().ok().context("an Ethernet address has six bytes")
}

fn packet_socket(interface: &str) -> Result<OwnedFd> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: a new descriptor, owned by nobody else.
    let socket = unsafe {
        let fd =
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::c_int::from(protocol));
        anyhow::ensure!(fd >= 0, io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: all bytes zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = protocol;
    address.sll_ifindex = i32::try_from(if_nametoindex(interface)?)?;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address lives across the call, and the length is its own.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    anyhow::ensure!(bound == 0, io::Error::last_os_error());
    Ok(socket)
}

/// The next frame, if one comes within a moment.
fn next_frame(socket: &OwnedFd) -> Option<Frame> {
    let mut wanted = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let timeout = Duration::from_millis(50).as_millis() as libc::c_int;
    let mut buffer = [0u8; SNAPSHOT_BYTES];
    // SAFETY: one pollfd alive across the call; the kernel writes at most the length given.
    let got = unsafe {
        if libc::poll(&raw mut wanted, 1, timeout) <= 0 {
            return None;
        }
        libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
    };
    let length = usize::try_from(got).ok()?;
    Some(Frame { seen_at: Instant::now(), bytes: buffer[..length].to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn udp_ports_are_read_behind_a_header_with_options_and_nothing_else_is_taken_for_udp() {
        let mut bytes = vec![0; 12];
        bytes.extend(IPV4);
        bytes.extend([0x46, 0, 0, 0, 0, 0, 0, 0, 64, UDP]);
        bytes.resize(14 + 24, 0);
        bytes.extend([0xca, 0x6c, 0x1d, 0x13]);
        let frame = Frame { seen_at: Instant::now(), bytes };
        assert_eq!(frame.udp_ports(), Some((51820, 7443)));
        assert!(frame.is_tunnel(51820) && !frame.is_tunnel(51821));
        let mut tcp = frame.clone();
        tcp.bytes[14 + 9] = 6;
        assert_eq!(tcp.udp_ports(), None);
        let short = Frame { bytes: frame.bytes[..20].to_vec(), ..frame };
        assert_eq!(short.udp_ports(), None);
    }
}
