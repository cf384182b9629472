//! Captures: copies of what goes through the tunnel, decrypted, for whoever looks into it.
//!
//! While nobody does, a packet costs one branch. The worker collects copies and gives them away once per turn, or when
//! they have become many; it never waits, so whoever takes them ([`Sink`]) bounds what it keeps and counts what it cannot
//! take. A capture is over when its [`Capture`] is dropped.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use crate::PublicKey;

/// At the same time.
pub const MAX_CAPTURES: usize = 8;
/// Copies are given away no later than at so many bytes.
const BATCH_BYTES: usize = 64 * 1024;

/// What is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// `None`: of every peer.
    pub peer: Option<PublicKey>,
    /// Of each packet no more than so many bytes.
    pub snaplen: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the peer.
    Inbound,
    Outbound,
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Passed,
    /// Dropped: the peer may not send from that address.
    BadSource,
    /// Dropped: to the agents' port, but not from the peer's own address.
    ForgedMessage,
    /// Dropped by the filter: no rule allows it.
    Denied,
    /// Dropped by the filter: it cannot be read.
    Malformed,
}

/// What is known of a packet besides its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub at: SystemTime,
    pub peer: PublicKey,
    pub direction: Direction,
    pub fate: Fate,
    /// The packet's length, of which fewer bytes may be here.
    pub len: usize,
}

/// Copies of packets, in the order in which one worker saw them.
#[derive(Debug, Default)]
pub struct Packets {
    /// With where the packet's bytes end.
    seen: Vec<(Seen, usize)>,
    bytes: Vec<u8>,
}

impl Packets {
    pub fn iter(&self) -> impl Iterator<Item = (&Seen, &[u8])> {
        let mut begin = 0;
        self.seen
            .iter()
            .map(move |(seen, end)| (seen, &self.bytes[std::mem::replace(&mut begin, *end)..*end]))
    }

    pub fn count(&self) -> usize {
        self.seen.len()
    }

    /// What they take in memory.
    pub fn size(&self) -> usize {
        self.bytes.capacity() + self.seen.capacity() * size_of::<(Seen, usize)>()
    }

    fn push(&mut self, seen: Seen, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.seen.push((seen, self.bytes.len()));
    }
}

impl<'a> FromIterator<(Seen, &'a [u8])> for Packets {
    fn from_iter<I: IntoIterator<Item = (Seen, &'a [u8])>>(packets: I) -> Self {
        let mut all = Self::default();
        packets.into_iter().for_each(|(seen, bytes)| all.push(seen, bytes));
        all
    }
}

/// Takes what was captured. Called on a worker's thread: it must return at once.
pub type Sink = Arc<dyn Fn(Packets) + Send + Sync>;

/// One capture, as a worker has it.
#[derive(Clone)]
pub(crate) struct Tap {
    wanted: Wanted,
    sink: Sink,
    is_over: Arc<AtomicBool>,
}

impl std::fmt::Debug for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tap").field("wanted", &self.wanted).finish_non_exhaustive()
    }
}

/// A capture that goes on until this is dropped.
pub struct Capture {
    is_over: Arc<AtomicBool>,
    running: Arc<AtomicUsize>,
    /// Makes the workers look.
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Capture {
    /// With the worker's end of it. `None`: there are [`MAX_CAPTURES`].
    pub(crate) fn begin(
        running: &Arc<AtomicUsize>,
        wanted: Wanted,
        sink: Sink,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Option<(Self, Tap)> {
        let one_more = |count| (count < MAX_CAPTURES).then_some(count + 1);
        running.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        let is_over = Arc::<AtomicBool>::default();
        let tap = Tap { wanted, sink, is_over: is_over.clone() };
        Some((Self { is_over, running: running.clone(), wake: Box::new(wake) }, tap))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.running.fetch_sub(1, Ordering::Relaxed);
        (self.wake)();
    }
}

/// A worker's captures, mostly none.
#[derive(Debug, Default)]
pub(crate) struct Taps(Vec<(Tap, Packets)>);

impl Taps {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn add(&mut self, tap: Tap) {
        self.0.push((tap, Packets::default()));
    }

    /// Those that are over go.
    pub(crate) fn tidy(&mut self) {
        self.0.retain(|(tap, _)| !tap.is_over.load(Ordering::Relaxed));
    }

    /// Copies a packet for those who want it. Reads the clock: to be called only where there are taps.
    pub(crate) fn note(&mut self, peer: PublicKey, direction: Direction, fate: Fate, packet: &[u8]) {
        let seen = Seen { at: SystemTime::now(), peer, direction, fate, len: packet.len() };
        for (tap, packets) in &mut self.0 {
            if tap.wanted.peer.is_none_or(|wanted| wanted == peer) {
                packets.push(seen, &packet[..packet.len().min(tap.wanted.snaplen)]);
                if packets.bytes.len() >= BATCH_BYTES {
                    (tap.sink)(std::mem::take(packets));
                }
            }
        }
    }

    /// Gives away what was collected.
    pub(crate) fn flush(&mut self) {
        for (tap, packets) in &mut self.0 {
            if packets.count() > 0 {
                (tap.sink)(std::mem::take(packets));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use super::*;

    type Copies = Arc<Mutex<Vec<(usize, Vec<u8>)>>>;

    fn tap(wanted: Wanted, running: &Arc<AtomicUsize>) -> Option<(Capture, Tap, Copies)> {
        let copies = Copies::default();
        let into = copies.clone();
        let sink: Sink = Arc::new(move |packets: Packets| {
            let mut into = into.lock().unwrap_or_else(PoisonError::into_inner);
            into.extend(packets.iter().map(|(seen, bytes)| (seen.len, bytes.to_vec())));
        });
        Capture::begin(running, wanted, sink, || ()).map(|(capture, tap)| (capture, tap, copies))
    }

    #[test]
    fn a_capture_gets_its_peers_packets_cut_to_its_length_and_nothing_once_it_is_over() {
        let (running, one, two) = (Arc::default(), PublicKey([1; 32]), PublicKey([2; 32]));
        let (all, all_tap, of_all) = tap(Wanted { peer: None, snaplen: 4 }, &running).unwrap();
        let (_own, own_tap, of_one) = tap(Wanted { peer: Some(one), snaplen: 99 }, &running).unwrap();
        let mut taps = Taps::default();
        taps.add(all_tap);
        taps.add(own_tap);
        taps.note(one, Direction::Inbound, Fate::Passed, b"a packet");
        taps.note(two, Direction::Outbound, Fate::Denied, b"another");
        assert!(of_all.lock().unwrap().is_empty());
        taps.flush();
        assert_eq!(*of_all.lock().unwrap(), [(8, b"a pa".to_vec()), (7, b"anot".to_vec())]);
        assert_eq!(*of_one.lock().unwrap(), [(8, b"a packet".to_vec())]);
        drop(all);
        taps.tidy();
        taps.note(one, Direction::Inbound, Fate::Passed, b"third");
        taps.flush();
        assert_eq!((of_all.lock().unwrap().len(), of_one.lock().unwrap().len()), (2, 2));
    }

    #[test]
    fn many_packets_are_given_away_before_the_turn_ends() {
        let (_capture, tap, copies) = tap(Wanted { peer: None, snaplen: 65_535 }, &Arc::default()).unwrap();
        let mut taps = Taps::default();
        taps.add(tap);
        for _ in 0..100 {
            taps.note(PublicKey([1; 32]), Direction::Inbound, Fate::Passed, &[0; 1420]);
        }
        assert_eq!(copies.lock().unwrap().len(), 2 * BATCH_BYTES.div_ceil(1420));
    }

    #[test]
    fn captures_are_few_and_one_that_ends_makes_room() {
        let (running, wanted) = (Arc::default(), Wanted { peer: None, snaplen: 1 });
        let mut captures: Vec<_> = (0..MAX_CAPTURES).map(|_| tap(wanted, &running).unwrap()).collect();
        assert!(tap(wanted, &running).is_none());
        captures.pop();
        assert!(tap(wanted, &running).is_some());
    }
}
