//! A socket on the hub's inner address, which sends to the crowd's echo and notes when each of them was heard first.

use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};

use super::crowd::{ECHO_PORT, HEADERS_BYTES, inner, number_of};
use super::intake::Intake;
use crate::namespace::Namespace;

const BUFFER_BYTES: usize = 32 << 20;
/// Packets to many go out so many at a time, each time as soon as the program has taken those before: faster than thousands of handshakes can be
/// made. An interface's queue has 1000 places, and what finds none the system drops itself: on a busy machine, whatever the pace.
const BURST: usize = 200;
const POLL_INTERVAL: Duration = Duration::from_millis(100);

pub(crate) struct Desk {
    socket: UdpSocket,
    intake: Intake,
    notes: Arc<Mutex<Notes>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Notes {
    begun_at: Instant,
    first: Vec<Option<Duration>>,
    heard: usize,
}

impl Desk {
    /// On the inner address, which the interface has.
    pub(crate) fn open(
        namespace: &Namespace,
        (address, interface): (SocketAddrV4, &str),
        crowd: usize,
    ) -> Result<Self> {
        let intake = Intake::open(namespace, interface)?;
        let socket = namespace.run(|| UdpSocket::bind(address))?.context("the desk's socket")?;
        socket.set_read_timeout(Some(POLL_INTERVAL))?;
        // Without the right to force it, the system's limit has to do.
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &BUFFER_BYTES)?;
        }
        let notes = Notes { begun_at: Instant::now(), first: vec![None; crowd], heard: 0 };
        let (notes, stop) = (Arc::new(Mutex::new(notes)), Arc::new(AtomicBool::new(false)));
        let listener = (socket.try_clone()?, Arc::clone(&notes), Arc::clone(&stop));
        let thread = std::thread::spawn(move || listen(&listener.0, &listener.1, &listener.2));
        Ok(Self { socket, intake, notes, stop, thread: Some(thread) })
    }

    /// Forgets whom it heard.
    pub(crate) fn begin(&self) {
        let mut notes = lock(&self.notes);
        notes.begun_at = Instant::now();
        notes.first.fill(None);
        notes.heard = 0;
    }

    /// One packet to each.
    pub(crate) fn send(&self, numbers: Range<usize>, packet_bytes: usize) -> Result<()> {
        let payload = vec![0; packet_bytes.saturating_sub(HEADERS_BYTES)];
        let mut taken = self.intake.taken()?;
        for (sent, number) in numbers.enumerate() {
            if sent > 0 && sent % BURST == 0 {
                self.intake.wait(taken + BURST as u64)?;
                taken = self.intake.taken()?;
            }
            self.socket.send_to(&payload, (inner(number), ECHO_PORT)).context("the desk cannot send")?;
        }
        Ok(())
    }

    /// Packets that the interface had no room for.
    pub(crate) fn refused(&self) -> Result<u64> {
        self.intake.refused()
    }

    /// How many were heard since it began.
    pub(crate) fn heard(&self) -> usize {
        lock(&self.notes).heard
    }

    /// When, in order.
    pub(crate) fn arrivals(&self) -> Vec<Duration> {
        let mut arrivals: Vec<Duration> = lock(&self.notes).first.iter().flatten().copied().collect();
        arrivals.sort_unstable();
        arrivals
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn listen(socket: &UdpSocket, notes: &Mutex<Notes>, stop: &AtomicBool) {
    // Of what is longer the rest is of no interest.
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        let Ok((_, SocketAddr::V4(from))) = socket.recv_from(&mut buffer) else { continue };
        let mut notes = lock(notes);
        let at = notes.begun_at.elapsed();
        let Some(first) = number_of(*from.ip()).and_then(|number| notes.first.get_mut(number)) else {
            continue;
        };
        if first.is_none() {
            *first = Some(at);
            notes.heard += 1;
        }
    }
}

fn lock(notes: &Mutex<Notes>) -> MutexGuard<'_, Notes> {
    notes.lock().unwrap_or_else(PoisonError::into_inner)
}
