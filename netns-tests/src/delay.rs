//! A line that takes its time: frames between two switches are delivered after a fixed delay, in order, by a relay in user space.
//!
//! ```text
//!   near ── eth0 [relay] eth1 ── far
//! ```
//!
//! Frames keep the header in which the kernel says what is still to be done to them (checksums, segmentation), so that offloads work across the line as
//! they do across a switch. What waits is bounded as in a router: beyond it frames are dropped.

use std::collections::VecDeque;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;

use crate::topology::{Host, Switch};

/// The kernel's constant; it has no name in libc.
const PACKET_VNET_HDR: libc::c_int = 15;
/// A segment of the largest size with its headers.
const FRAME_BYTES: usize = (64 << 10) + 256;
/// One way.
const MAX_WAITING_BYTES: usize = 8 << 20;
const SOCKET_BUFFER_BYTES: libc::c_int = 4 << 20;

/// A running line. Dropped, it is cut.
pub struct Line {
    stop: Arc<AtomicBool>,
    relays: Vec<JoinHandle<()>>,
    _host: Host,
}

impl Line {
    /// Joins two switches; each frame takes `one_way`.
    pub fn between(near: &Switch, far: &Switch, one_way: Duration) -> Result<Self> {
        let host = Host::new("line")?;
        near.plug(&host)?;
        far.plug(&host)?;
        host.namespace.ip("link set eth0 up")?;
        host.namespace.ip("link set eth1 up")?;
        let ends = ["eth0", "eth1"].map(|interface| host.namespace.run(|| open(interface)));
        let [eth0, eth1] = ends.map(|end| end?.context("cannot open a packet socket"));
        let (eth0, eth1) = (Arc::new(eth0?), Arc::new(eth1?));
        let stop = Arc::new(AtomicBool::new(false));
        let ways = [(Arc::clone(&eth0), Arc::clone(&eth1)), (eth1, eth0)];
        let relays = ways.map(|(from, to)| {
            let mut relay =
                Relay { from, to, one_way, waiting: VecDeque::new(), bytes: 0, stop: Arc::clone(&stop) };
            std::thread::spawn(move || relay.run())
        });
        Ok(Self { stop, relays: relays.into(), _host: host })
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for relay in self.relays.drain(..) {
            relay.join().ok();
        }
    }
}

struct Relay {
    from: Arc<OwnedFd>,
    to: Arc<OwnedFd>,
    one_way: Duration,
    /// Each with when it is due.
    waiting: VecDeque<(Instant, Box<[u8]>)>,
    bytes: usize,
    stop: Arc<AtomicBool>,
}

impl Relay {
    fn run(&mut self) {
        let mut buffer = vec![0; FRAME_BYTES];
        while !self.stop.load(Ordering::Relaxed) {
            self.take_in(&mut buffer);
            self.deliver();
            let patience = self.waiting.front().map_or(Duration::MAX, |(due, _)| *due - Instant::now());
            self.wait(patience.min(Duration::from_millis(100)));
        }
    }

    fn take_in(&mut self, buffer: &mut [u8]) {
        loop {
            let fd = self.from.as_raw_fd();
            // SAFETY: the kernel writes at most the buffer's length.
            let got = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
            // Nothing more.
            let Ok(length) = usize::try_from(got) else { return };
            if self.bytes + length <= MAX_WAITING_BYTES {
                self.bytes += length;
                self.waiting.push_back((Instant::now() + self.one_way, buffer[..length].into()));
            }
        }
    }

    fn deliver(&mut self) {
        while let Some((_, frame)) = self.waiting.pop_front_if(|(due, _)| *due <= Instant::now()) {
            self.bytes -= frame.len();
            // SAFETY: the frame lives across the call. An error is the loss of this frame, as on any line.
            unsafe {
                libc::send(self.to.as_raw_fd(), frame.as_ptr().cast(), frame.len(), libc::MSG_DONTWAIT)
            };
        }
    }

    fn wait(&self, patience: Duration) {
        let mut wanted = libc::pollfd { fd: self.from.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let timeout = libc::timespec { tv_sec: 0, tv_nsec: i64::from(patience.subsec_nanos()) };
        // SAFETY: one pollfd and one timespec, both alive across the call.
        unsafe { libc::ppoll(&raw mut wanted, 1, &raw const timeout, std::ptr::null()) };
    }
}

/// All that arrives at an interface of the calling thread's namespace, and nothing that leaves it.
fn open(interface: &str) -> io::Result<OwnedFd> {
    let index = libc::c_int::try_from(if_nametoindex(interface)?).map_err(io::Error::other)?;
    // SAFETY: a new descriptor, owned by nobody else.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    set(&socket, libc::SOL_PACKET, PACKET_VNET_HDR, &1)?;
    set(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, &SOCKET_BUFFER_BYTES)?;
    let everything = libc::packet_mreq {
        mr_ifindex: index,
        mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set(&socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &everything)?;
    bind(&socket, index)?;
    Ok(socket)
}

fn set<T>(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the value lives across the call, and the length is its own.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), length)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn bind(socket: &OwnedFd, index: libc::c_int) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as libc::c_ushort,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address lives across the call, and the length is its own.
    let done = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
