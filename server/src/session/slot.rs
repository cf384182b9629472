//! What others may reach of a session: a place for messages to it, its role, the state of a fetch. The session itself is polled by its
//! connection alone and looks in here whenever it is woken.

use crate::{
    connection::ConnectionState,
    limit::{Bucket, Rate},
    map::Atlas,
};
use futures_util::task::AtomicWaker;
use proto::{
    key::PublicKey,
    map::MapVersion,
    session::{Refused, ServerMessage, SessionNumber, Signal},
    statement::NodeId,
};
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::Waker,
    time::Duration,
};
use tokio::time::Instant;

/// Messages that wait for one session; the oldest goes first. A peer that asks again is worth more than a queue.
const INBOX_LENGTH: usize = 64;
/// Signals of one sender among them: what it said last counts.
const SENDER_SHARE: usize = 4;
/// An agent that said something counts as there for so long, and for one and a half of its intervals.
const HEARD_FOR: Duration = Duration::from_millis(1500);
/// Maps fetched: one whenever a change is too large for the session.
const FETCHES: Rate = Rate { burst: 10, per_second: 0.5 };

/// The shared half of a session.
pub(crate) struct Slot {
    /// Unique in this process.
    pub(crate) id: u64,
    pub(crate) node: NodeId,
    pub(crate) key: PublicKey,
    connection: Weak<ConnectionState>,
    waker: AtomicWaker,
    serving: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    number: SessionNumber,
    /// The newest version that the agent has seen: nothing older is told.
    floor: MapVersion,
    inbox: VecDeque<ServerMessage>,
    refused: Option<Refused>,
    fetch: Fetch,
    fetches: Option<Bucket>,
    /// Until when the agent need not say anything to count as there.
    heard_until: Option<Instant>,
}

/// What FetchMap on the session's connection does.
#[derive(Default)]
enum Fetch {
    #[default]
    None,
    Running(Instant),
    /// The agent has this one now.
    Done(Arc<Atlas>),
}

impl Slot {
    pub(crate) fn new(id: u64, node: NodeId, key: PublicKey, connection: &Arc<ConnectionState>) -> Self {
        Self {
            id,
            node,
            key,
            connection: Arc::downgrade(connection),
            waker: AtomicWaker::new(),
            serving: AtomicBool::new(false),
            inner: Mutex::default(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    pub(crate) fn is_serving(&self) -> bool {
        self.serving.load(Ordering::Acquire)
    }

    pub(crate) fn set_serving(&self, serving: bool) {
        self.serving.store(serving, Ordering::Release);
    }

    pub(crate) fn number(&self) -> SessionNumber {
        self.inner().number
    }

    pub(crate) fn set_number(&self, number: SessionNumber) {
        self.inner().number = number;
    }

    pub(crate) fn floor(&self) -> MapVersion {
        self.inner().floor
    }

    pub(crate) fn raise_floor(&self, version: MapVersion) {
        let mut inner = self.inner();
        inner.floor = inner.floor.max(version);
    }

    /// The agent said something, and means to do so every `interval`.
    pub(crate) fn hear(&self, interval: Duration) {
        self.inner().heard_until = Some(Instant::now() + (interval * 3 / 2).max(HEARD_FOR));
    }

    /// Whether the agent is heard as often as it means to be.
    pub(crate) fn is_heard(&self) -> bool {
        self.inner().heard_until.is_some_and(|until| Instant::now() < until)
    }

    /// Hands a signal on. No sender pushes out what others said.
    pub(crate) fn tell_signal(&self, signal: Signal) {
        let mut inner = self.inner();
        let is_same = |m: &ServerMessage| matches!(m, ServerMessage::Signal(s) if s.peer == signal.peer);
        if inner.inbox.iter().filter(|message| is_same(message)).count() >= SENDER_SHARE
            && let Some(oldest) = inner.inbox.iter().position(is_same)
        {
            inner.inbox.remove(oldest);
        }
        drop(inner);
        self.tell(ServerMessage::Signal(signal));
    }

    /// Says something to the agent. Returns whether all that waited is still there.
    pub(crate) fn tell(&self, message: ServerMessage) -> bool {
        let mut inner = self.inner();
        inner.inbox.push_back(message);
        let overflows = inner.inbox.len() > INBOX_LENGTH;
        if overflows {
            inner.inbox.pop_front();
        }
        drop(inner);
        self.wake();
        !overflows
    }

    pub(crate) fn next_message(&self) -> Option<ServerMessage> {
        self.inner().inbox.pop_front()
    }

    /// Ends the session with a reason.
    pub(crate) fn refuse(&self, refused: Refused) {
        self.inner().refused = Some(refused);
        self.wake();
    }

    pub(crate) fn take_refused(&self) -> Option<Refused> {
        self.inner().refused.take()
    }

    /// Ends the connection after `span`.
    pub(crate) fn ends_within(&self, span: Duration) {
        if let Some(connection) = self.connection.upgrade() {
            connection.ends_within(span);
        }
    }

    /// Marks a fetch as under way: the session sends no map meanwhile.
    ///
    /// # Errors
    /// [`NoFetch`]
    pub(crate) fn begin_fetch(self: &Arc<Self>) -> Result<FetchGuard, NoFetch> {
        let now = Instant::now();
        let mut inner = self.inner();
        if matches!(inner.fetch, Fetch::Running(_)) {
            return Err(NoFetch::Running);
        }
        let fetches = inner.fetches.get_or_insert_with(|| Bucket::full(FETCHES, now));
        fetches.take(FETCHES, now).map_err(NoFetch::TooOften)?;
        inner.fetch = Fetch::Running(now);
        Ok(FetchGuard { slot: self.clone(), fetched: None })
    }

    pub(crate) fn fetch_is_running(&self) -> bool {
        matches!(self.inner().fetch, Fetch::Running(_))
    }

    /// The agent does not take what it fetches.
    pub(crate) fn fetch_is_stuck(&self, timeout: Duration) -> bool {
        matches!(self.inner().fetch, Fetch::Running(since) if since.elapsed() > timeout)
    }

    /// What was fetched since this was last asked.
    pub(crate) fn take_fetched(&self) -> Option<Arc<Atlas>> {
        let mut inner = self.inner();
        match std::mem::take(&mut inner.fetch) {
            Fetch::Done(atlas) => Some(atlas),
            fetch @ (Fetch::None | Fetch::Running(_)) => {
                inner.fetch = fetch;
                None
            }
        }
    }
}

/// Why no fetch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoFetch {
    /// One is under way on this connection.
    Running,
    /// Another may begin after this time.
    TooOften(Duration),
}

/// A running fetch; ends it when dropped.
pub(crate) struct FetchGuard {
    slot: Arc<Slot>,
    fetched: Option<Arc<Atlas>>,
}

impl FetchGuard {
    /// Everything was handed over.
    pub(crate) fn complete(mut self, atlas: Arc<Atlas>) {
        self.fetched = Some(atlas);
    }
}

impl Drop for FetchGuard {
    fn drop(&mut self) {
        self.slot.inner().fetch = self.fetched.take().map_or(Fetch::None, Fetch::Done);
        self.slot.wake();
    }
}
