//! What happens, and when: one queue, in order of time and then of entry.

use crate::{
    faults::Fault,
    stream::{Lane, StreamId},
    tunnel::Body,
};
use agent_core::{BootTime, io::TunnelEvent};
use proto::{root::Fingerprint, server_url::ServerUrl, session::Signal, statement::NodeId};
use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    net::SocketAddr,
};

/// One thing that happens. `life` tells a process from the one started after it.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// An agent's deadline.
    Wake {
        agent: usize,
        life: u32,
    },
    /// An agent's data plane looks at its timers.
    Tick {
        agent: usize,
        life: u32,
    },
    Tunnel {
        agent: usize,
        life: u32,
        event: TunnelEvent,
    },
    Resolved {
        agent: usize,
        life: u32,
        url: ServerUrl,
    },
    /// An agent's disk has a state.
    Kept {
        agent: usize,
        life: u32,
        root: Option<Fingerprint>,
    },
    Datagram {
        from: SocketAddr,
        to: SocketAddr,
        body: Body,
    },
    /// A dial's first packet is sent; the number counts the tries.
    Syn(StreamId, u32),
    /// It arrives.
    Accept(StreamId),
    DialTimeout(StreamId),
    Reset(StreamId),
    Arrive(StreamId, Lane),
    /// What could not be sent is tried again.
    Retry(StreamId, Lane),
    ServerTick {
        server: usize,
        life: u32,
    },
    /// A server hears of news in the database.
    Follow {
        server: usize,
        life: u32,
    },
    /// A server's maps are recomputed.
    Publish {
        server: usize,
        life: u32,
    },
    /// A server writes what its nodes told.
    Report {
        server: usize,
        life: u32,
    },
    /// A signal through the database.
    Mail {
        server: usize,
        node: NodeId,
        signal: Signal,
    },
    /// A server looks at who holds what.
    Round {
        server: usize,
        life: u32,
    },
    DrainEnd {
        server: usize,
        life: u32,
    },
    /// Traffic from one agent to another.
    Flow(usize),
    /// .. and from one to a shared address.
    Call(usize),
    /// An agent's data plane looks at those that it watches.
    Look {
        agent: usize,
        life: u32,
    },
    Fault(Fault),
    Check,
}

#[derive(Debug)]
struct Entry {
    at: BootTime,
    number: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// The queue.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Reverse<Entry>>,
    next: u64,
}

impl Queue {
    pub(crate) fn push(&mut self, at: BootTime, event: Event) {
        self.next += 1;
        self.heap.push(Reverse(Entry { at, number: self.next, event }));
    }

    pub(crate) fn next_at(&self) -> Option<BootTime> {
        self.heap.peek().map(|Reverse(entry)| entry.at)
    }

    pub(crate) fn pop(&mut self) -> Option<(BootTime, Event)> {
        self.heap.pop().map(|Reverse(entry)| (entry.at, entry.event))
    }
}
