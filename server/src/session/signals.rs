//! Signals between agents: to the receiver's session here, else into the mailbox of the server that serves it. They are hints that lose
//! their worth in seconds, so nothing is kept for long and nothing is tried twice; the sender sends over both of its sessions.

use crate::{serve::Server, store::Hint};
use prost::Message;
use proto::{
    key::PublicKey,
    session::{AgentMessage, ServerId, Signal},
    statement::NodeId,
    wire::{self, agent_message::Kind},
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, broadcast::error::RecvError},
    time::{MissedTickBehavior, interval},
};

/// Signals that wait to be written; more are dropped, the oldest first.
const QUEUE_LENGTH: usize = 4096;
/// .. of one sender, so that none fills the queue for all.
const SENDER_SHARE: usize = 256;
const BATCH: usize = 256;
/// The mailbox is looked at so often, whatever hints come.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Signals for other servers.
pub(crate) struct Signals {
    queue: Mutex<Queue>,
    work: Notify,
}

/// Oldest first, and how many there are of each sender.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<(PublicKey, ServerId, Vec<u8>)>,
    by_sender: BTreeMap<PublicKey, usize>,
}

impl Queue {
    /// Returns whether something was dropped.
    fn push(&mut self, sender: PublicKey, to: ServerId, payload: Vec<u8>) -> bool {
        let share = self.by_sender.entry(sender).or_default();
        if *share >= SENDER_SHARE {
            return true;
        }
        *share += 1;
        self.waiting.push_back((sender, to, payload));
        self.waiting.len() > QUEUE_LENGTH && self.pop().is_some()
    }

    fn pop(&mut self) -> Option<(ServerId, Vec<u8>)> {
        let (sender, to, payload) = self.waiting.pop_front()?;
        if let Some(share) = self.by_sender.get_mut(&sender) {
            *share -= 1;
            if *share == 0 {
                self.by_sender.remove(&sender);
            }
        }
        Some((to, payload))
    }
}

impl Signals {
    pub(crate) fn new() -> Self {
        Self { queue: Mutex::default(), work: Notify::new() }
    }

    /// Sends what `sender` said on, towards the receiver that it names.
    pub(super) fn forward(&self, server: &Server, sender: PublicKey, signal: Signal) {
        let receiver = server.cluster.state().node_by_key(&signal.peer).map(|node| node.id);
        let Some(receiver) = receiver.filter(|_| signal.peer != sender) else {
            return count("undeliverable");
        };
        let signal = Signal { peer: sender, ..signal };
        if let Some(slot) = server.hub.serving(receiver) {
            count("local");
            slot.tell_signal(signal);
        } else if let Some(other) = server.presence.served_by(receiver) {
            looked_up("found");
            count("remote");
            self.enqueue(sender, other, encode(receiver, signal));
        } else {
            looked_up("missed");
            count("undeliverable");
        }
    }

    fn enqueue(&self, sender: PublicKey, to: ServerId, payload: Vec<u8>) {
        if self.queue().push(sender, to, payload) {
            dropped(1);
        }
        self.work.notify_one();
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Vec<(ServerId, Vec<u8>)> {
        let mut queue = self.queue();
        std::iter::from_fn(|| queue.pop()).take(BATCH).collect()
    }
}

fn count(route: &'static str) {
    metrics::counter!("holdfast_signals_total", "route" => route).increment(1);
}

fn looked_up(outcome: &'static str) {
    metrics::counter!("holdfast_lookups_total", "outcome" => outcome).increment(1);
}

fn dropped(signals: usize) {
    metrics::counter!("holdfast_signals_dropped_total").increment(signals as u64);
}

/// Node id of the receiver (8 bytes, big-endian), then the signal as in an agent's message, with the sender as its peer.
fn encode(receiver: NodeId, signal: Signal) -> Vec<u8> {
    let message = AgentMessage::Signal(signal).into_wire(None, "");
    [&receiver.0.to_be_bytes()[..], &message.encode_to_vec()].concat()
}

pub(crate) fn decode(payload: &[u8]) -> Option<(NodeId, Signal)> {
    let (receiver, message) = payload.split_first_chunk::<8>()?;
    let message = wire::AgentMessage::decode(message).ok()?;
    match message.kind {
        Some(Kind::Signal(_)) => match AgentMessage::from_wire(message).ok()? {
            Some(AgentMessage::Signal(signal)) => Some((NodeId(u64::from_be_bytes(*receiver)), signal)),
            Some(_) | None => None,
        },
        Some(_) | None => None,
    }
}

/// Writes signals for other servers, for ever.
pub(crate) async fn send_signals(server: Arc<Server>) {
    loop {
        server.signals.work.notified().await;
        loop {
            let batch = server.signals.take();
            if batch.is_empty() {
                break;
            }
            if let Err(error) = server.cluster.store().send_signals(&batch).await {
                crate::metrics::database_error("send-signals");
                dropped(batch.len());
                tracing::debug!(%error, signals = batch.len(), "signals were lost");
            }
        }
    }
}

/// Takes signals out of this server's mailbox and hands them to its sessions, for ever.
pub(crate) async fn receive_signals(server: Arc<Server>) {
    let mut hints = server.cluster.store().wake();
    let mut poll = interval(POLL_INTERVAL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = poll.tick() => {}
            hint = hints.recv() => match hint {
                Ok(Hint::Signals(to)) if to != server.id => continue,
                Ok(Hint::Signals(_) | Hint::Anything) | Err(RecvError::Lagged(_)) => {}
                Ok(Hint::Log | Hint::Presence | Hint::Leases) => continue,
                Err(RecvError::Closed) => return,
            },
        }
        match server.cluster.store().take_signals(server.id).await {
            Ok(payloads) => payloads.iter().for_each(|payload| deliver(&server, payload)),
            Err(error) => {
                crate::metrics::database_error("take-signals");
                tracing::debug!(%error, "the mailbox of signals cannot be read");
            }
        }
    }
}

fn deliver(server: &Server, payload: &[u8]) {
    metrics::counter!("holdfast_signals_received_total").increment(1);
    let Some((receiver, signal)) = decode(payload) else { return };
    if let Some(slot) = server.hub.serving(receiver) {
        slot.tell_signal(signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_sender_fills_the_queue_for_all() {
        let (flooder, other, to) = (PublicKey([1; 32]), PublicKey([2; 32]), ServerId([3; 16]));
        let mut queue = Queue::default();
        let kept = (0..10_000).filter(|_| !queue.push(flooder, to, vec![1])).count();
        assert_eq!(kept, SENDER_SHARE);
        assert!(!queue.push(other, to, vec![2]));
        assert_eq!(std::iter::from_fn(|| queue.pop()).last(), Some((to, vec![2])));
        assert!(queue.by_sender.is_empty());
    }

    #[test]
    fn a_signal_survives_the_mailbox_and_foreign_bytes_are_no_signal() {
        let signal =
            Signal { peer: PublicKey([3; 32]), id: 42, endpoints: vec!["192.0.2.1:51820".parse().unwrap()] };
        let payload = encode(NodeId(9), signal.clone());
        assert_eq!(decode(&payload), Some((NodeId(9), signal)));
        assert_eq!(decode(&payload[..7]), None);
        assert_eq!(decode(&[0xff; 40]), None);
    }
}
