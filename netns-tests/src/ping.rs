//! The gap meter: ICMP echo requests at a steady pace, each with the time it left and the time its answer came.
//!
//! Its own sender, since `ping` neither keeps 5 ms for an unprivileged user nor tells when a reply came. A request that
//! could not be sent (no route, interface gone) counts as sent and lost: to a user it is.

use std::io;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::namespace::Namespace;
use crate::stillness;
use crate::wait::wait_until;

/// A reply later than this is a loss, unless the machine stood still meanwhile.
const REPLY_TIMEOUT: Duration = Duration::from_secs(1);
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
/// ICMP header (8 bytes) and the request's number (4 bytes).
const REQUEST_BYTES: usize = 12;

static NEXT_ID: AtomicU16 = AtomicU16::new(1);

/// One request.
#[derive(Clone, Copy, Debug)]
pub struct Echo {
    pub sent_at: Instant,
    pub replied_at: Option<Instant>,
}

impl Echo {
    fn is_lost(&self) -> bool {
        let is_late = |at: Instant| {
            let waited = at - self.sent_at;
            waited > REPLY_TIMEOUT && waited - stillness::between(self.sent_at, at) > REPLY_TIMEOUT
        };
        self.replied_at.is_none_or(is_late)
    }
}

/// A running meter from one namespace to one address.
pub struct Pinger {
    pub name: String,
    echoes: Arc<Mutex<Vec<Echo>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// What a meter saw, or a part of it.
#[derive(Clone, Debug)]
pub struct PingReport {
    pub name: String,
    pub echoes: Vec<Echo>,
}

impl Pinger {
    /// Starts to ping `target` from inside `namespace`, once per `interval`.
    pub fn start(
        name: impl Into<String>,
        namespace: &Namespace,
        target: Ipv4Addr,
        interval: Duration,
    ) -> Result<Self> {
        stillness::begin();
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let socket = namespace.run(icmp_socket)?.context("cannot open a raw ICMP socket")?;
        let echoes = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let meter =
            Meter { socket, target, id, interval, echoes: Arc::clone(&echoes), stop: Arc::clone(&stop) };
        let thread = std::thread::spawn(move || meter.run());
        Ok(Self { name: name.into(), echoes, stop, thread: Some(thread) })
    }

    /// Everything up to now; requests still waiting for their answer are left out.
    pub fn so_far(&self) -> PingReport {
        let settled = Instant::now().checked_sub(REPLY_TIMEOUT);
        let keep = |echo: &&Echo| echo.replied_at.is_some() || settled.is_some_and(|by| echo.sent_at < by);
        let echoes = lock(&self.echoes).iter().filter(keep).copied().collect();
        PingReport { name: self.name.clone(), echoes }
    }

    /// When the first answer came to a request sent after `moment`.
    pub fn first_reply_after(&self, moment: Instant, timeout: Duration) -> Result<Instant> {
        wait_until(&format!("a ping {} is answered", self.name), timeout, || {
            let echoes = lock(&self.echoes);
            let from = echoes.partition_point(|echo| echo.sent_at < moment);
            Ok(echoes[from..].iter().filter_map(|echo| echo.replied_at).min())
        })
    }

    /// The longest time without an answer, between the last one before `moment` and the newest.
    pub fn gap_since(&self, moment: Instant) -> Duration {
        let mut replies: Vec<Instant> =
            lock(&self.echoes).iter().filter_map(|echo| echo.replied_at).collect();
        replies.sort_unstable();
        let from = replies.partition_point(|at| *at < moment).saturating_sub(1);
        replies[from..].windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// When the first answer after `moment` came to a request sent after `asked`: what was asked before may have been answered by somebody who is gone, and be under way since.
    pub fn first_answer_after(&self, moment: Instant, asked: Instant, timeout: Duration) -> Result<Instant> {
        wait_until(&format!("an answer comes {}", self.name), timeout, || {
            let echoes = lock(&self.echoes);
            let from = echoes.partition_point(|echo| echo.sent_at < asked);
            Ok(echoes[from..].iter().filter_map(|echo| echo.replied_at).filter(|at| *at > moment).min())
        })
    }

    /// How many requests were sent between two moments, and how many of them are lost; waits until the last can be judged.
    pub fn lost_between(&self, from: Instant, to: Instant) -> (usize, usize) {
        std::thread::sleep((to + REPLY_TIMEOUT).saturating_duration_since(Instant::now()));
        let echoes = lock(&self.echoes);
        let sent: Vec<&Echo> = echoes.iter().filter(|echo| (from..to).contains(&echo.sent_at)).collect();
        (sent.len(), sent.iter().filter(|echo| echo.is_lost()).count())
    }

    /// Stops sending, waits for the last answers, and reports.
    pub fn finish(mut self) -> Result<PingReport> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { bail!("the meter had been stopped") };
        match thread.join() {
            Ok(result) => result.with_context(|| format!("the gap meter {} broke", self.name))?,
            Err(_) => bail!("the gap meter {} panicked", self.name),
        }
        let echoes = lock(&self.echoes).clone();
        Ok(PingReport { name: self.name.clone(), echoes })
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl PingReport {
    pub fn sent(&self) -> usize {
        self.echoes.len()
    }

    pub fn lost(&self) -> usize {
        self.echoes.iter().filter(|echo| echo.is_lost()).count()
    }

    /// The longest time without an answer, between two answers.
    pub fn longest_gap(&self) -> Duration {
        let mut replies: Vec<Instant> = self.echoes.iter().filter_map(|echo| echo.replied_at).collect();
        replies.sort_unstable();
        replies.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// The slowest answer.
    pub fn slowest(&self) -> Duration {
        let times = self.echoes.iter().filter_map(|echo| Some(echo.replied_at? - echo.sent_at));
        times.max().unwrap_or_default()
    }

    /// When the lost ones were sent, counted from `start`: tells which fault they belong to.
    pub fn losses_since(&self, start: Instant) -> Vec<Duration> {
        let lost = self.echoes.iter().filter(|echo| echo.is_lost());
        lost.map(|echo| echo.sent_at.saturating_duration_since(start)).collect()
    }
}

struct Meter {
    socket: OwnedFd,
    target: Ipv4Addr,
    id: u16,
    interval: Duration,
    echoes: Arc<Mutex<Vec<Echo>>>,
    stop: Arc<AtomicBool>,
}

impl Meter {
    fn run(&self) -> io::Result<()> {
        let mut next = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            if now >= next {
                self.send()?;
                // A machine that stood still is not made up for by a burst.
                next = (next + self.interval).max(now);
            }
            self.receive_until(next.min(Instant::now() + Duration::from_millis(100)));
        }
        let deadline = Instant::now() + REPLY_TIMEOUT;
        while Instant::now() < deadline && lock(&self.echoes).iter().rev().take(1000).any(Echo::is_lost) {
            self.receive_until(Instant::now() + Duration::from_millis(10));
        }
        Ok(())
    }

    fn send(&self) -> io::Result<()> {
        let number = {
            let mut echoes = lock(&self.echoes);
            echoes.push(Echo { sent_at: Instant::now(), replied_at: None });
            u32::try_from(echoes.len() - 1).map_err(io::Error::other)?
        };
        let packet = request(self.id, number);
        let address = socket_address(self.target);
        // SAFETY: packet and address live across the call, and their lengths are their own.
        // An error is the loss of this request, which is recorded already.
        unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                libc::MSG_DONTWAIT,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_in>() as libc::socklen_t,
            )
        };
        Ok(())
    }

    /// Takes answers until `deadline`.
    fn receive_until(&self, deadline: Instant) {
        loop {
            self.drain();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let mut wanted = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            let timeout = libc::timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
            // SAFETY: one pollfd and one timespec, both alive across the call.
            unsafe { libc::ppoll(&raw mut wanted, 1, &raw const timeout, std::ptr::null()) };
        }
    }

    fn drain(&self) {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 256];
        loop {
            let fd = self.socket.as_raw_fd();
            // SAFETY: the kernel writes at most the length given.
            let got = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
            // Nothing more, or an ICMP error of an earlier request, which is lost anyway.
            let Ok(length) = usize::try_from(got) else { return };
            let at = Instant::now();
            // SAFETY: the kernel initialised the first `length` bytes.
            let packet = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), length) };
            if let Some(number) = reply_number(packet, self.id) {
                let mut echoes = lock(&self.echoes);
                if let Some(echo) = echoes.get_mut(number as usize) {
                    echo.replied_at.get_or_insert(at);
                }
            }
        }
    }
}

fn lock(echoes: &Mutex<Vec<Echo>>) -> MutexGuard<'_, Vec<Echo>> {
    echoes.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn icmp_socket() -> io::Result<OwnedFd> {
    // SAFETY: a new descriptor, owned by nobody else.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_ICMP);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

pub(crate) fn socket_address(address: Ipv4Addr) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from(address).to_be() },
        sin_zero: [0; 8],
    }
}

/// Type, code, checksum, id, sequence (the number's low half), then the whole number.
fn request(id: u16, number: u32) -> [u8; REQUEST_BYTES] {
    let mut packet = [0; REQUEST_BYTES];
    packet[0] = ECHO_REQUEST;
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&number.to_be_bytes()[2..]);
    packet[8..].copy_from_slice(&number.to_be_bytes());
    let sum = checksum(&packet);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The number in an echo reply to `id`, in a packet that starts with its IPv4 header.
fn reply_number(packet: &[u8], id: u16) -> Option<u32> {
    let header_bytes = usize::from(packet.first()? & 0x0f) * 4;
    let icmp = packet.get(header_bytes..)?;
    let ours = icmp.first() == Some(&ECHO_REPLY) && icmp.get(4..6)? == id.to_be_bytes();
    if !ours {
        return None;
    }
    Some(u32::from_be_bytes(icmp.get(8..REQUEST_BYTES)?.try_into().ok()?))
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded + (folded >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(spans: &[(u64, Option<u64>)]) -> PingReport {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let echo =
            |&(sent, reply): &(u64, Option<u64>)| Echo { sent_at: at(sent), replied_at: reply.map(at) };
        PingReport { name: "x".into(), echoes: spans.iter().map(echo).collect() }
    }

    #[test]
    fn a_request_without_answer_and_one_answered_too_late_are_lost() {
        let report = report(&[(0, Some(1)), (5, None), (10, Some(1011)), (15, Some(16))]);
        assert_eq!((report.sent(), report.lost()), (4, 2));
    }

    #[test]
    fn the_longest_gap_is_between_two_answers() {
        let report = report(&[(0, Some(1)), (5, None), (10, None), (15, Some(40)), (20, Some(21))]);
        assert_eq!(report.longest_gap(), Duration::from_millis(20));
        assert_eq!(report.slowest(), Duration::from_millis(25));
    }

    #[test]
    fn a_request_sums_to_zero_and_its_reply_is_told_from_others() {
        let request = request(7, 70_000);
        assert_eq!(checksum(&request), 0);
        let mut reply = vec![0x45];
        reply.resize(20, 0);
        reply.extend(request);
        assert_eq!(reply_number(&reply, 7), None, "a request is no reply");
        reply[20] = ECHO_REPLY;
        assert_eq!(reply_number(&reply, 7), Some(70_000));
        assert_eq!(reply_number(&reply, 8), None, "another meter's");
        assert_eq!(reply_number(&reply[..25], 7), None, "truncated");
    }
}
