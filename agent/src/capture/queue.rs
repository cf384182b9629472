//! Between the data plane's threads, which must not wait, and the task that writes to a caller, who may be slow.

use agent_tunnel::capture::Packets;
use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Of copies that wait; a gigabit per second is 8 MiB in 67 ms.
const MAX_BYTES: usize = 8 << 20;

#[derive(Debug, Default)]
struct Counts {
    waiting_bytes: AtomicUsize,
    taken: AtomicU64,
    dropped: AtomicU64,
}

/// The end for all of the data plane's threads.
#[derive(Debug)]
pub(super) struct Sender {
    counts: Arc<Counts>,
    packets: UnboundedSender<Packets>,
}

#[derive(Debug)]
pub(super) struct Receiver {
    counts: Arc<Counts>,
    packets: UnboundedReceiver<Packets>,
}

pub(super) fn queue() -> (Sender, Receiver) {
    let (sender, receiver) = unbounded_channel();
    let counts = Arc::<Counts>::default();
    (Sender { counts: counts.clone(), packets: sender }, Receiver { counts, packets: receiver })
}

impl Sender {
    /// Takes packets, or counts them as dropped.
    pub(super) fn send(&self, packets: Packets) {
        let (count, size) = (packets.count() as u64, packets.size());
        let waiting = self.counts.waiting_bytes.fetch_add(size, Ordering::Relaxed);
        if waiting + size <= MAX_BYTES && self.packets.send(packets).is_ok() {
            self.counts.taken.fetch_add(count, Ordering::Relaxed);
        } else {
            self.counts.waiting_bytes.fetch_sub(size, Ordering::Relaxed);
            self.counts.dropped.fetch_add(count, Ordering::Relaxed);
        }
    }
}

impl Receiver {
    /// `None`: the data plane has let go of the capture, and nothing is left. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Packets> {
        let packets = self.packets.recv().await?;
        self.counts.waiting_bytes.fetch_sub(packets.size(), Ordering::Relaxed);
        Some(packets)
    }

    /// Packets that were taken, and those that were dropped.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.counts.taken.load(Ordering::Relaxed), self.counts.dropped.load(Ordering::Relaxed))
    }
}
