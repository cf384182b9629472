//! Flows of numbered datagrams: what came too late, twice, or not at all.
//!
//! They leave in bursts, so that a tunnel works on many at once, and something that overtakes something else is seen;
//! but no faster than they arrive, so that a slow machine is not the reason for what is lost.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::namespace::Namespace;
use crate::wait::retry;

const BURST: u64 = 16;
/// After the last datagram was sent, so long is waited for what is on its way.
const QUIET: Duration = Duration::from_millis(500);
/// So many may be on their way; a tunnel's and a socket's queues take them from all flows at once.
const WINDOW: u64 = 4 * BURST;
/// What has not arrived by then is lost, and waited for no more.
const LOST_AFTER: Duration = Duration::from_millis(50);
const PAYLOAD_BYTES: usize = 200;
const BIND_TIMEOUT: Duration = Duration::from_secs(10);

/// One end of a flow.
#[derive(Clone, Copy)]
pub struct End<'a> {
    pub namespace: &'a Namespace,
    pub address: Ipv4Addr,
}

/// A running flow.
pub struct Flow {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<Tally>>,
}

/// What became of one flow, or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub sent: u64,
    pub received: u64,
    /// After one with a higher number.
    pub reordered: u64,
    /// By how many numbers at most.
    pub worst: u64,
}

impl Tally {
    /// Of a thousand sent.
    pub fn lost_per_mille(&self) -> u64 {
        self.sent.saturating_sub(self.received) * 1000 / self.sent.max(1)
    }

    fn note(&mut self, number: u64, next: &mut u64) {
        self.received += 1;
        if number < *next {
            self.reordered += 1;
            self.worst = self.worst.max(*next - number);
        }
        *next = (*next).max(number + 1);
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.sent += other.sent;
        self.received += other.received;
        self.reordered += other.reordered;
        self.worst = self.worst.max(other.worst);
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { sent, received, reordered, worst } = self;
        write!(f, "{sent} sent, {received} received, {reordered} out of order (by {worst} at most)")
    }
}

impl Flow {
    /// Begins to send from one end to a port of the other, a burst after each pause.
    pub fn start(from: End<'_>, to: End<'_>, port: u16, pause: Duration) -> Result<Self> {
        // An earlier flow's port is free once no program that is just being started holds a copy of its socket any more.
        let receiver = retry("a flow's port is free", BIND_TIMEOUT, || {
            let receiver = to.namespace.run(|| UdpSocket::bind((to.address, port)))?;
            receiver.with_context(|| format!("cannot listen at {}:{port}", to.address))
        })?;
        let sender = from.namespace.run(|| UdpSocket::bind((from.address, 0)))?;
        let sender = sender.with_context(|| format!("cannot send from {}", from.address))?;
        receiver.set_read_timeout(Some(QUIET))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (until, listens_until) = (Arc::clone(&stop), Arc::clone(&stop));
        let seen = Arc::new(AtomicU64::new(0));
        let sees = Arc::clone(&seen);
        let to = (to.address, port);
        Ok(Self {
            stop,
            sender: std::thread::spawn(move || send(&sender, to, pause, &until, &seen)),
            receiver: std::thread::spawn(move || receive(&receiver, &listens_until, &sees)),
        })
    }

    /// Ends it, when all that was sent has had time to come.
    pub fn finish(self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = |_| anyhow!("a thread of a flow panicked");
        let sent = self.sender.join().map_err(ended)??;
        let tally = self.receiver.join().map_err(ended)??;
        Ok(Tally { sent, ..tally })
    }
}

/// `seen` is one more than the highest number that has arrived.
fn send(
    socket: &UdpSocket,
    to: (Ipv4Addr, u16),
    pause: Duration,
    until: &AtomicBool,
    seen: &AtomicU64,
) -> Result<u64> {
    let mut datagram = [0; PAYLOAD_BYTES];
    let mut number = 0u64;
    while !until.load(Ordering::Relaxed) {
        for _ in 0..BURST {
            datagram[..8].copy_from_slice(&number.to_be_bytes());
            number += 1;
            // Without a way there it is lost, as any other.
            let _ = socket.send_to(&datagram, to);
        }
        let sent_at = Instant::now();
        loop {
            std::thread::sleep(pause);
            let on_their_way = number.saturating_sub(seen.load(Ordering::Relaxed));
            if on_their_way <= WINDOW || sent_at.elapsed() >= LOST_AFTER || until.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    Ok(number)
}

fn receive(socket: &UdpSocket, until: &AtomicBool, seen: &AtomicU64) -> Result<Tally> {
    let (mut tally, mut next, mut datagram) = (Tally::default(), 0, [0; PAYLOAD_BYTES]);
    loop {
        match socket.recv(&mut datagram) {
            Ok(_) => {
                let mut number = [0; 8];
                number.copy_from_slice(&datagram[..8]);
                tally.note(u64::from_be_bytes(number), &mut next);
                seen.store(next, Ordering::Relaxed);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if until.load(Ordering::Relaxed) {
                    return Ok(tally);
                }
            }
            Err(error) => return Err(error).context("a flow's socket fails"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_after_a_higher_number_is_out_of_order_and_what_is_missing_is_not() {
        let (mut tally, mut next) = (Tally::default(), 0);
        for number in [0, 1, 4, 2, 5, 5, 9] {
            tally.note(number, &mut next);
        }
        assert_eq!(tally, Tally { sent: 0, received: 7, reordered: 2, worst: 3 });
    }
}
