//! Connections that cannot go on, since another peer has their prefix now, are broken off at both ends. The table may hold many thousands: a turn looks at
//! some of them and breaks off a few, so packets do not wait.

use std::{collections::VecDeque, net::SocketAddr};

use ipnet::IpNet;

use super::Worker;
use crate::{
    Event, PublicKey,
    capture::{Direction, Fate},
    filter::{Broken, Late, Looked, Via},
    peer::PeerId,
    reset,
};

/// Per turn: some 50 us of looking, and twice as much of writing.
const MAX_LOOKED: usize = 8192;
const MAX_BROKEN: usize = 64;
/// IPv6 and TCP.
const ROOM: usize = 60;

/// A prefix that has moved away from a peer, and how far the table was looked through.
struct Moved {
    prefix: IpNet,
    key: PublicKey,
    id: PeerId,
    place: usize,
    connections: u64,
}

#[derive(Default)]
pub(super) struct Resets {
    moved: VecDeque<Moved>,
    /// Of this turn.
    looked: usize,
    broken: usize,
}

impl Resets {
    pub(super) fn begin_turn(&mut self) {
        (self.looked, self.broken) = (0, 0);
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.moved.is_empty()
    }

    /// One that is under way begins anew.
    fn add(&mut self, moved: Moved) {
        self.moved.retain(|other| (other.prefix, other.key) != (moved.prefix, moved.key));
        self.moved.push_back(moved);
    }
}

impl Worker {
    /// What runs to the prefix by this peer is to be broken off. Only a peer of this worker's has connections here.
    pub(super) fn reset(&mut self, prefix: IpNet, id: PeerId) {
        if !self.peers.owns(id) || self.filter.is_none() {
            return;
        }
        let Some(key) = self.peers.get(id).map(|state| state.key) else { return };
        self.resets.add(Moved { prefix, key, id, place: 0, connections: 0 });
        // At once, since the peer may be removed next.
        self.break_off();
    }

    /// As far as this turn goes.
    pub(super) fn break_off(&mut self) {
        while self.resets.looked < MAX_LOOKED && self.resets.broken < MAX_BROKEN {
            let Some(mut moved) = self.resets.moved.pop_front() else { break };
            if self.look_through(&mut moved) {
                self.tell_reset(&moved);
            } else {
                self.resets.moved.push_front(moved);
            }
        }
        self.write();
    }

    /// Whether that was all.
    fn look_through(&mut self, moved: &mut Moved) -> bool {
        let Some(filter) = &mut self.filter else { return true };
        let (routes, prefix, from) = (&self.routes, moved.prefix, Via(moved.id.0));
        let owner = routes.owner(prefix);
        // One that began by way of another has gone on by the former, if the prefix is what it is routed by.
        let cannot_go_on = |via: Via, remote| {
            let to = if prefix.contains(&remote) { routes.lookup(remote) } else { return false };
            let is_elsewhere = to != Some(PeerId(via.0));
            is_elsewhere && (via == from || (to.is_some() && to == owner))
        };
        let (looks, most) = (MAX_LOOKED - self.resets.looked, MAX_BROKEN - self.resets.broken);
        let places = moved.place..moved.place.saturating_add(looks);
        let mut broken = Vec::new();
        let Looked { until, is_all } =
            filter.break_connections(places, most, cannot_go_on, |found| broken.push(found));
        // An empty table takes its time, too.
        self.resets.looked += (until - moved.place).max(1);
        self.resets.broken += broken.len();
        (moved.place, moved.connections) = (until, moved.connections + broken.len() as u64);
        self.reset_connections += broken.len() as u64;
        for connection in &broken {
            self.reset_here(connection, moved.key);
            self.reset_there(connection, moved);
        }
        is_all
    }

    /// The program on this system, as if the other end had said so.
    fn reset_here(&mut self, connection: &Broken, key: PublicKey) {
        for sequence in connection.expected_here.into_iter().flatten() {
            if self.writer.is_full() {
                self.write();
            }
            let room = self.writer.room();
            let Some(len) = reset::write(connection.remote, connection.local, sequence, room) else {
                continue;
            };
            if !self.taps.is_empty() {
                self.taps.note(key, Direction::Inbound, Fate::Passed, &room[..len]);
            }
            self.writer.keep(len);
        }
    }

    /// The program at the former node, if that can be reached still.
    fn reset_there(&mut self, connection: &Broken, moved: &Moved) {
        if self.peers.get(moved.id).is_some_and(|state| state.key == moved.key) {
            for sequence in connection.expected_there.into_iter().flatten() {
                self.tell_over(moved.id, connection.local, connection.remote, sequence);
            }
        }
    }

    fn tell_over(&mut self, id: PeerId, from: SocketAddr, to: SocketAddr, sequence: u32) {
        let Some(state) = self.peers.get(id) else { return };
        let is_established = state.live.as_ref().is_some_and(|live| live.is_established);
        let (key, Some(path)) = (state.key, state.path.filter(|_| is_established)) else { return };
        let mut packet = vec![0; ROOM];
        let Some(len) = reset::write(from, to, sequence, &mut packet) else { return };
        packet.truncate(len);
        if !self.taps.is_empty() {
            self.taps.note(key, Direction::Outbound, Fate::Passed, &packet);
        }
        self.seal_copy(id, packet, path);
    }

    /// Who sends by a connection that was broken off without its hearing of it.
    pub(super) fn reset_late(&mut self, id: PeerId, late: &Late) {
        self.tell_over(id, late.local, late.remote, late.expected);
    }

    fn tell_reset(&mut self, moved: &Moved) {
        if moved.connections > 0 {
            let Moved { prefix, key: from, connections, .. } = *moved;
            self.emit(Event::Reset { prefix, from, connections });
        }
    }
}
