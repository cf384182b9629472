//! What the servers share: the newest version of everything, and which server serves whom.

use crate::atlas::{Atlas, Change};
use agent_core::BootTime;
use proto::{session::SessionNumber, statement::NodeId};
use std::{collections::BTreeMap, rc::Rc, time::Duration};

/// A server that did not renew its lease for so long counts as gone.
const LEASE: Duration = Duration::from_secs(6);

/// A node is served here, by a session of this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seat {
    pub(crate) server: usize,
    pub(crate) number: SessionNumber,
}

/// The database.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) head: Rc<Atlas>,
    pub(crate) seats: BTreeMap<NodeId, Seat>,
    leases: Vec<Option<BootTime>>,
}

impl Database {
    pub(crate) fn new(servers: usize) -> Self {
        Self { head: Rc::new(Atlas::first()), seats: BTreeMap::new(), leases: vec![None; servers] }
    }

    pub(crate) fn write(&mut self, change: &Change) {
        self.head = self.head.after(change);
    }

    pub(crate) fn renew(&mut self, server: usize, now: BootTime) {
        self.leases[server] = Some(now);
    }

    /// A newer number takes the seat over; an older one does not.
    pub(crate) fn take_seat(&mut self, node: NodeId, seat: Seat) -> bool {
        let newer = self.seats.get(&node).is_none_or(|held| held.number < seat.number);
        if newer {
            self.seats.insert(node, seat);
        }
        newer
    }

    /// Only the server and session that hold a seat give it up.
    pub(crate) fn leave_seat(&mut self, node: NodeId, seat: Seat) {
        if self.seats.get(&node) == Some(&seat) {
            self.seats.remove(&node);
        }
    }

    /// The seats of servers whose lease runs.
    pub(crate) fn live_seats(&self, now: BootTime) -> BTreeMap<NodeId, Seat> {
        let live = |seat: &Seat| self.leases[seat.server].is_some_and(|at| now.since(at) < LEASE);
        self.seats.iter().filter(|(_, seat)| live(seat)).map(|(node, seat)| (*node, *seat)).collect()
    }
}
