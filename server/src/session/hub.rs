//! Who is connected to this server, and which session serves whom. A node has at most one serving session here; a newer session number
//! takes it over, an older one is refused, and the end of a session ends only itself.

use crate::connection::ConnectionState;
use crate::session::Slot;
use proto::{key::PublicKey, session::SessionNumber, statement::NodeId};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tokio::sync::watch;

/// All welcomed sessions of this server.
pub(crate) struct Hub {
    seats: Mutex<Seats>,
    next_id: AtomicU64,
    draining: AtomicBool,
    connected: watch::Sender<usize>,
}

#[derive(Default)]
struct Seats {
    all: BTreeMap<u64, Arc<Slot>>,
    serving: BTreeMap<NodeId, Arc<Slot>>,
}

/// A session with a newer number serves the node.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stale;

impl Hub {
    pub(crate) fn new() -> Self {
        Self {
            seats: Mutex::default(),
            next_id: AtomicU64::new(1),
            draining: AtomicBool::new(false),
            connected: watch::Sender::new(0),
        }
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a welcomed session, as standby.
    pub(crate) fn enter(&self, node: NodeId, key: PublicKey, connection: &Arc<ConnectionState>) -> Arc<Slot> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let slot = Arc::new(Slot::new(id, node, key, connection));
        let mut seats = self.seats();
        seats.all.insert(id, slot.clone());
        self.connected.send_replace(seats.all.len());
        slot
    }

    /// Makes `slot` the serving session of its node.
    ///
    /// # Errors
    /// [`Stale`]
    pub(crate) fn activate(&self, slot: &Arc<Slot>, number: SessionNumber) -> Result<(), Stale> {
        let mut seats = self.seats();
        if let Some(other) = seats.serving.get(&slot.node)
            && other.id != slot.id
        {
            if other.number() > number {
                return Err(Stale);
            }
            other.set_serving(false);
            other.wake();
        }
        slot.set_number(number);
        slot.set_serving(true);
        seats.serving.insert(slot.node, slot.clone());
        Ok(())
    }

    /// The session serves no more; returns whether it did.
    pub(crate) fn deactivate(&self, slot: &Slot) -> bool {
        let mut seats = self.seats();
        slot.set_serving(false);
        let served = seats.serving.get(&slot.node).is_some_and(|serving| serving.id == slot.id);
        if served {
            seats.serving.remove(&slot.node);
        }
        served
    }

    /// Another server serves the node, with a number above that of the session here.
    pub(crate) fn demote(&self, node: NodeId, newer: SessionNumber) {
        let mut seats = self.seats();
        if let Some(slot) = seats.serving.get(&node)
            && slot.number() < newer
        {
            slot.set_serving(false);
            slot.wake();
            seats.serving.remove(&node);
        }
    }

    /// The session is over; returns whether it served.
    pub(crate) fn leave(&self, slot: &Slot) -> bool {
        let served = self.deactivate(slot);
        let mut seats = self.seats();
        seats.all.remove(&slot.id);
        self.connected.send_replace(seats.all.len());
        served
    }

    /// Whether the session has a place here: it was welcomed and is not over.
    pub(crate) fn has(&self, slot: &Slot) -> bool {
        self.seats().all.contains_key(&slot.id)
    }

    pub(crate) fn serving(&self, node: NodeId) -> Option<Arc<Slot>> {
        self.seats().serving.get(&node).cloned()
    }

    /// Lets every session look for news.
    pub(crate) fn wake_all(&self) {
        self.seats().all.values().for_each(|slot| slot.wake());
    }

    /// Lets every serving session look for news.
    pub(crate) fn wake_serving(&self) {
        self.seats().serving.values().for_each(|slot| slot.wake());
    }

    pub(crate) fn all(&self) -> Vec<Arc<Slot>> {
        self.seats().all.values().cloned().collect()
    }

    /// (serving, standby)
    pub(crate) fn counts(&self) -> (usize, usize) {
        let seats = self.seats();
        (seats.serving.len(), seats.all.len() - seats.serving.len())
    }

    /// How many sessions there are.
    pub(crate) fn connected(&self) -> watch::Receiver<usize> {
        self.connected.subscribe()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// From now on every session is asked to leave.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.wake_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::{Gate, Limits};
    use proto::auth::ChannelBinding;

    const NODE: NodeId = NodeId(1);

    fn number(counter: u64) -> SessionNumber {
        SessionNumber { boot: 1, counter }
    }

    fn connection() -> Arc<ConnectionState> {
        let addr: std::net::SocketAddr = "127.0.0.1:1".parse().unwrap();
        let pass = Gate::new(Limits::default(), None).admit(addr.ip()).unwrap();
        Arc::new(ConnectionState::new(ChannelBinding([0; 32]), addr, pass))
    }

    #[tokio::test]
    async fn a_newer_number_takes_over_and_an_older_is_stale() {
        let (hub, connection) = (Hub::new(), connection());
        let old = hub.enter(NODE, PublicKey([1; 32]), &connection);
        let new = hub.enter(NODE, PublicKey([1; 32]), &connection);
        assert_eq!(hub.activate(&old, number(1)), Ok(()));
        assert_eq!(hub.activate(&new, number(2)), Ok(()));
        assert!(!old.is_serving());
        assert_eq!(hub.activate(&old, number(1)), Err(Stale));
        assert_eq!(hub.serving(NODE).unwrap().id, new.id);
    }

    #[tokio::test]
    async fn a_stale_end_ends_only_itself() {
        let (hub, connection) = (Hub::new(), connection());
        let old = hub.enter(NODE, PublicKey([1; 32]), &connection);
        let new = hub.enter(NODE, PublicKey([1; 32]), &connection);
        hub.activate(&old, number(1)).unwrap();
        hub.activate(&new, number(2)).unwrap();
        assert!(!hub.leave(&old));
        assert!(hub.serving(NODE).is_some());
        assert_eq!(hub.counts(), (1, 0));
        assert!(hub.leave(&new));
        assert_eq!(*hub.connected().borrow(), 0);
    }
}
