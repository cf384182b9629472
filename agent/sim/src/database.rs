//! What the servers share: the newest version of everything, and which server serves whom.

use crate::{
    atlas::{Atlas, Change},
    claims::Claimed,
};
use agent_core::BootTime;
use ipnet::IpNet;
use proto::{map::MapVersion, receipt::Mark, session::SessionNumber, statement::NodeId, time::UnixTime};
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

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
    log: BTreeMap<MapVersion, Mark>,
    /// An older state of it, to be restored: at first that of a cluster without nodes.
    copy: (Rc<Atlas>, BTreeMap<MapVersion, Mark>),
    /// It went back in time once.
    pub(crate) recovered: bool,
    changes: u64,
    pub(crate) seats: BTreeMap<NodeId, Seat>,
    leases: Vec<Option<BootTime>>,
    /// Until when a holder counts as there.
    pub(crate) holders: BTreeMap<usize, BootTime>,
    /// Every grant of whatever timeline: what, whose, with which fence.
    pub(crate) granted: BTreeSet<(IpNet, usize, u64)>,
    pub(crate) granted_at: BootTime,
}

impl Database {
    pub(crate) fn new(servers: usize, lifetime: Option<Duration>, claims: &[Claimed]) -> Self {
        let head = Rc::new(Atlas::first(lifetime, claims.into()));
        let log = BTreeMap::from([(head.version, head.mark)]);
        Self {
            copy: (head.clone(), log.clone()),
            log,
            head,
            recovered: false,
            changes: 0,
            seats: BTreeMap::new(),
            leases: vec![None; servers],
            holders: BTreeMap::new(),
            granted: BTreeSet::new(),
            granted_at: BootTime::default(),
        }
    }

    pub(crate) fn write(&mut self, change: &Change, at: UnixTime) {
        let next = self.head.after(change, at);
        self.append(next);
    }

    fn append(&mut self, mut next: Atlas) {
        self.changes += 1;
        next.mark = self.changes.to_be_bytes();
        self.head = Rc::new(next);
        self.log.insert(self.head.version, self.head.mark);
    }

    /// A backup is made.
    pub(crate) fn keep_copy(&mut self) {
        self.copy = (self.head.clone(), self.log.clone());
    }

    /// The database is as it was when it was copied; seats, which are told again, go with it.
    pub(crate) fn restore_copy(&mut self) {
        (self.head, self.log) = self.copy.clone();
        (self.recovered, self.seats) = (false, BTreeMap::new());
    }

    /// Whether this version was reached by this change, as far as the log tells.
    pub(crate) fn holds(&self, version: MapVersion, mark: Mark) -> bool {
        self.log.get(&version) == Some(&mark)
    }

    /// Begins an epoch above `seen`, with what `past` knows put back.
    pub(crate) fn begin_epoch(&mut self, seen: MapVersion, past: Option<&Atlas>) {
        let above = seen.max(self.head.version);
        let revision = seen.revision.max(self.head.version.revision) + 1;
        let version = MapVersion { epoch: above.epoch + 1, revision };
        let mut next = Atlas::clone(&self.head);
        next.version = version;
        if let Some(past) = past {
            next.put_back(past);
        }
        self.recovered = true;
        self.append(next);
    }

    /// What `past` knows and the others did not; whether there was anything.
    pub(crate) fn put_back(&mut self, past: &Atlas) -> bool {
        let mut next = Atlas::clone(&self.head);
        let is_news = next.put_back(past);
        if is_news {
            next.version.revision += 1;
            self.append(next);
        }
        is_news
    }

    pub(crate) fn renew(&mut self, server: usize, now: BootTime) {
        self.leases[server] = Some(now);
    }

    /// The servers whose lease runs.
    pub(crate) fn live_servers(&self, now: BootTime) -> Vec<usize> {
        (0..self.leases.len()).filter(|server| self.is_live(*server, now)).collect()
    }

    fn is_live(&self, server: usize, now: BootTime) -> bool {
        self.leases[server].is_some_and(|at| now.since(at) < LEASE)
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
        let live = |seat: &Seat| self.is_live(seat.server, now);
        self.seats.iter().filter(|(_, seat)| live(seat)).map(|(node, seat)| (*node, *seat)).collect()
    }
}
