//! Keeps a server level with the change log. `Cluster` is the handle that everything uses: readers take the current state, which never touches
//! the database; a write locks the log, catches up, decides on exactly that state, appends, and applies what it appended. A task follows what other servers
//! append: hints wake it, polling makes sure.
//!
//! A log that no longer has what was seen went back in time: the state is loaded again and a new epoch begun, above every revision seen.

mod recover;
mod rotation;
mod write;

pub use write::WriteError;
pub(crate) use write::{JobWork, TakeOver};

use crate::{
    clock::{Clock, machine_ms},
    cluster::{Change, ChangeId, Founding, Snapshot, State, StoredRoot},
    cluster_key::{RootAccess, UnlockError},
    metrics::database_error,
    store::{Hint, Lost, Store, StoreError, Tail},
};
use arc_swap::ArcSwap;
use proto::{map::MapVersion, time::UnixTime};
use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::sync::{
    Notify,
    broadcast::{self, error::RecvError},
    watch,
};

/// The log is looked at so often, whatever hints come.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// A database that was not heard of for so long counts as away, although no call has failed yet.
const SILENCE_LIMIT: Duration = Duration::from_secs(5);

/// The cluster, as this process knows it. Cheap to clone.
#[derive(Clone)]
pub struct Cluster(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    access: RootAccess,
    clock: Clock,
    state: ArcSwap<State>,
    changed: watch::Sender<MapVersion>,
    database_ok: AtomicBool,
    level_since: Mutex<Instant>,
    /// Why the log could not be read, the last time that it was looked at.
    error: Mutex<Option<StoreError>>,
    /// How long a look at the log takes, smoothed.
    answer_time: Mutex<Duration>,
    /// One write of this process at a time: the others would only wait in the database.
    turn: tokio::sync::Mutex<()>,
    /// Held while the state is replaced.
    replacing: Mutex<()>,
    follower: Mutex<Option<tokio::task::JoinHandle<()>>>,
    /// Somebody wants to know how the log stands now.
    asked: Arc<Notify>,
    told: recover::Told,
    /// The root that the database has instead of one that this server knew.
    root_fork: Mutex<Option<String>>,
    /// The database does not let this process erase a former root, and that was told.
    is_erasure_refused: AtomicBool,
    /// Closed when the follower ends.
    following: watch::Receiver<()>,
}

/// How fresh the state is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    pub database_ok: bool,
    /// How long ago the state was last known level with the database.
    pub level_age: Duration,
}

/// The cluster cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the system has no random source: {0}")]
    Random(#[from] getrandom::Error),
}

impl Cluster {
    /// Loads the state and follows the log. The first to open a database makes the cluster.
    ///
    /// # Errors
    /// The database does not answer, or holds what cannot be read.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, OpenError> {
        Self::open_with(store, RootAccess::Sign(None)).await
    }

    /// As [`Cluster::open`], for a database whose root may be wrapped.
    ///
    /// # Errors
    /// As there; or the root cannot be opened.
    pub(crate) async fn open_with(store: Arc<dyn Store>, access: RootAccess) -> Result<Self, OpenError> {
        let snapshot = match store.snapshot().await {
            Err(StoreError::NoCluster { .. }) => {
                if store.found(&founding(&access)?, ChangeId::generate()?).await? {
                    tracing::info!("made a new cluster");
                }
                store.snapshot().await?
            }
            found => found?,
        };
        if let Some(to) = store.moved_to().await? {
            return Err(StoreError::Moved { location: store.location().to_owned(), to }.into());
        }
        let (alive, following) = watch::channel(());
        let cluster = Self::at(store, access, snapshot, following)?;
        let hints = cluster.0.store.wake();
        let (followed, asked) = (Arc::downgrade(&cluster.0), cluster.0.asked.clone());
        let follower = tokio::spawn(async move {
            let _alive = alive;
            follow(followed, hints, &asked).await;
        });
        *cluster.0.follower.lock().unwrap_or_else(PoisonError::into_inner) = Some(follower);
        Ok(cluster)
    }

    /// Loads the state of a cluster that exists, without following it: for commands.
    ///
    /// # Errors
    /// There is no cluster, or the database does not answer, or holds what cannot be read.
    pub(crate) async fn load(store: Arc<dyn Store>, access: RootAccess) -> Result<Self, StoreError> {
        let (snapshot, now_ms) = store.snapshot_and_time().await?;
        let read_at = Instant::now();
        let cluster = Self::at(store, access, snapshot, watch::channel(()).1)?;
        cluster.clock().handle_reading(now_ms, read_at, machine_ms());
        Ok(cluster)
    }

    fn at(
        store: Arc<dyn Store>,
        access: RootAccess,
        snapshot: Snapshot,
        following: watch::Receiver<()>,
    ) -> Result<Self, StoreError> {
        let state = unlocked(store.location(), &access, snapshot, None)?;
        Ok(Self(Arc::new(Inner {
            changed: watch::Sender::new(state.version()),
            state: ArcSwap::from_pointee(state),
            database_ok: AtomicBool::new(true),
            level_since: Mutex::new(Instant::now()),
            error: Mutex::default(),
            answer_time: Mutex::default(),
            turn: tokio::sync::Mutex::new(()),
            replacing: Mutex::new(()),
            follower: Mutex::new(None),
            asked: Arc::default(),
            told: recover::Told::default(),
            root_fork: Mutex::default(),
            is_erasure_refused: AtomicBool::new(false),
            following,
            access,
            clock: Clock::default(),
            store,
        })))
    }

    /// The newest state known here.
    pub fn state(&self) -> Arc<State> {
        self.0.state.load_full()
    }

    /// Tells of every newer state.
    pub fn changed(&self) -> watch::Receiver<MapVersion> {
        self.0.changed.subscribe()
    }

    /// Has the log looked at now: one look for all who ask meanwhile. `health` tells when it was.
    pub(crate) fn look(&self) {
        self.0.asked.notify_one();
    }

    /// Waits until the log is no longer followed, which happens by a fault alone.
    pub(crate) async fn follower_ended(&self) {
        let mut following = self.0.following.clone();
        while following.changed().await.is_ok() {}
    }

    pub fn health(&self) -> Health {
        let level_age = self.0.level_since.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        let database_ok = self.0.database_ok.load(Relaxed) && level_age < SILENCE_LIMIT;
        Health { database_ok, level_age }
    }

    /// The cluster's time: the database's clock, as far as it was heard.
    pub fn now(&self) -> UnixTime {
        self.0.clock.now()
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Why the database cannot be read, if it cannot.
    pub(crate) fn database_error(&self) -> Option<StoreError> {
        self.0.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How long the database takes to answer.
    pub(crate) fn answer_time(&self) -> Duration {
        *self.0.answer_time.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.0.store
    }
}

impl Inner {
    fn locked(&self, reason: UnlockError) -> StoreError {
        StoreError::Locked { location: self.store.location().to_owned(), reason }
    }

    fn unavailable(&self, reason: impl ToString) -> StoreError {
        StoreError::unavailable(self.store.location(), reason)
    }

    /// Applies those changes that are next. Whoever reads the log may be behind whoever just wrote to it.
    fn advance(&self, changes: &[Change]) {
        let _guard = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.state.load_full();
        let MapVersion { epoch, revision } = current.version();
        let fresh = changes.iter().filter(|change| change.head.version.revision > revision);
        let mut next: Option<State> = None;
        for change in fresh {
            // The secret of another root is not in the log: the state is loaded again.
            if change.changes_root(&current.root.public()) {
                break;
            }
            let state = next.get_or_insert_with(|| State::clone(&current));
            if change.head.version == (MapVersion { epoch, revision: state.version().revision + 1 }) {
                state.apply(change);
            }
        }
        if let Some(state) = next {
            self.replace(state);
        }
    }

    fn replace(&self, state: State) {
        let version = state.version();
        self.state.store(Arc::new(state));
        self.changed.send_replace(version);
    }

    /// Makes the state level with the database, and notes whether that worked.
    async fn catch_up(&self) -> Result<(), StoreError> {
        let begun_at = Instant::now();
        let result = self.read_log().await;
        let is_ok = result.is_ok();
        if is_ok {
            *self.level_since.lock().unwrap_or_else(PoisonError::into_inner) = begun_at;
            let mut time = self.answer_time.lock().unwrap_or_else(PoisonError::into_inner);
            *time = (*time * 3 + begun_at.elapsed()) / 4;
        }
        if !is_ok {
            database_error("tail");
        }
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = result.as_ref().err().cloned();
        if self.database_ok.swap(is_ok, Relaxed) != is_ok {
            match &result {
                Ok(()) => tracing::info!("the database answers again"),
                Err(error) => tracing::warn!(%error, "serving from memory; changes have to wait"),
            }
        }
        result
    }

    async fn read_log(&self) -> Result<(), StoreError> {
        let known = self.state.load().head();
        match self.store.tail(known).await? {
            Tail::Changes(changes) => {
                self.advance(&changes);
                if self.lacks_root_of(&changes) {
                    self.reload().await?;
                    let root = self.state.load().root.public().fingerprint();
                    tracing::info!(%root, "the cluster's root was changed");
                }
            }
            Tail::Lost(Lost::Pruned) => self.reload().await?,
            Tail::Lost(Lost::NewEpoch) => {
                let past = self.state.load_full();
                self.reload().await?;
                self.remember(past);
            }
            Tail::Lost(Lost::WentBack { to }) => {
                tracing::warn!(
                    seen = known.version.revision,
                    found = to.version.revision,
                    "the database went back in time"
                );
                self.remember(self.state.load_full());
                self.begin_epoch(known).await?;
                self.reload().await?;
            }
        }
        Ok(())
    }

    async fn reload(&self) -> Result<(), StoreError> {
        let state = self.load().await?;
        self.replace_if_newer(state);
        Ok(())
    }

    async fn load(&self) -> Result<State, StoreError> {
        let snapshot = self.store.snapshot().await?;
        unlocked(self.store.location(), &self.access, snapshot, Some(&self.state.load()))
    }

    fn replace_if_newer(&self, state: State) {
        let _guard = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        if state.version() > self.state.load().version() {
            self.replace(state);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(follower) = self.follower.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            follower.abort();
        }
    }
}

/// The state of a snapshot, with the root as this process may use it.
fn unlocked(
    location: &str,
    access: &RootAccess,
    snapshot: Snapshot,
    known: Option<&State>,
) -> Result<State, StoreError> {
    if known.is_some_and(|known| known.network_id != snapshot.founding.network_id) {
        return Err(StoreError::corrupt(location, "another cluster has taken the place of this server's"));
    }
    let root = access.unlock(&snapshot.founding, known.map(|known| &known.root));
    let root = root.map_err(|reason| StoreError::Locked { location: location.to_owned(), reason })?;
    let mut state = State::from_snapshot(snapshot);
    state.root = root;
    Ok(state)
}

/// Of a new cluster.
fn founding(access: &RootAccess) -> Result<Founding, getrandom::Error> {
    let founding = Founding::generate()?;
    match founding.root {
        StoredRoot::Plain(root) => {
            Ok(Founding { root: access.stored(founding.network_id, root)?, ..founding })
        }
        StoredRoot::Wrapped(_) => Ok(founding),
    }
}

/// Ends with the cluster's last handle.
async fn follow(cluster: Weak<Inner>, mut hints: broadcast::Receiver<Hint>, asked: &Notify) {
    let mut poll = tokio::time::interval(POLL_INTERVAL);
    poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let mut is_poll = false;
        tokio::select! {
            _ = poll.tick() => is_poll = true,
            () = asked.notified() => {}
            hint = hints.recv() => match hint {
                Ok(Hint::Log | Hint::Anything) | Err(RecvError::Lagged(_)) => {}
                Ok(Hint::Presence | Hint::Signals(_) | Hint::Leases) => continue,
                Err(RecvError::Closed) => return,
            },
        }
        // One look covers all that was hinted before it.
        while hints.try_recv().is_ok() {}
        let Some(cluster) = cluster.upgrade() else { return };
        let before = cluster.state.load().version();
        // Told by `health` and logged where it changes; the next round tries again.
        let caught_up = cluster.catch_up().await;
        if is_poll && cluster.state.load().version() != before {
            metrics::counter!("holdfast_notifications_total", "fate" => "missed").increment(1);
        }
        if caught_up.is_ok()
            && let Err(error) = cluster.settle().await
        {
            tracing::debug!(%error, "what the database lost waits");
        }
    }
}
