//! Keeps a server level with the change log. `Cluster` is the handle that everything uses: readers take the current state, which never touches
//! the database; a write locks the log, catches up, decides on exactly that state, appends, and applies what it appended. A task follows what other servers
//! append: hints wake it, polling makes sure.
//!
//! A log that no longer has what was seen went back in time: the state is loaded again and a new epoch begun, above every revision seen.

mod recover;
mod rotation;

use crate::{
    clock::{Clock, machine_ms},
    cluster::{Actor, Change, ChangeId, Founding, Head, Op, Snapshot, State, StoredRoot},
    cluster_key::{RootAccess, UnlockError},
    metrics::database_error,
    store::{Attendance, CALL_TIMEOUT, Hint, JobLock, LockedLog, Lost, Store, StoreError, Tail},
};
use arc_swap::ArcSwap;
use proto::{map::MapVersion, statement::NodeId, time::UnixTime};
use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{
        Notify,
        broadcast::{self, error::RecvError},
        watch,
    },
    time::timeout,
};

/// The log is looked at so often, whatever hints come.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// A database that was not heard of for so long counts as away, although no call has failed yet.
const SILENCE_LIMIT: Duration = Duration::from_secs(5);
/// A write gives up when the log was lost under it so often.
const WRITE_ATTEMPTS: u32 = 3;

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

/// A change was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError<E> {
    /// `decide` refused.
    #[error(transparent)]
    Refused(E),
    #[error("the change was not made: {0}")]
    Database(StoreError),
    /// The database went away while it took the change.
    #[error("the change may have been made: {0}; look before you try again")]
    Unknown(StoreError),
}

impl<E> WriteError<E> {
    /// Whether the same write may succeed later.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Refused(_) => false,
            Self::Database(error) | Self::Unknown(error) => error.is_retriable(),
        }
    }

    fn of_commit(error: StoreError) -> Self {
        match error.is_retriable() {
            true => Self::Unknown(error),
            false => Self::Database(error),
        }
    }
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

    /// Makes a change, within [`CALL_TIMEOUT`] in all. `decide` sees the state that the change will follow upon, and the database's clock; it may be asked more than once. No ops: nothing
    /// is written. When this returns, `state()` has the change.
    ///
    /// # Errors
    /// `decide` refused; or the database did not take the change, or (where it is away just then) may have.
    pub async fn write<T, E>(
        &self,
        actor: Actor,
        mut decide: impl FnMut(&State, UnixTime) -> Result<(Vec<Op>, T), E> + Send,
    ) -> Result<T, WriteError<E>>
    where
        T: Send,
        E: Send,
    {
        self.write_with(actor, None, |state, now, _| decide(state, now)).await
    }

    /// As [`Cluster::write`], for a job. `decide` is told when the nodes of `work` were last there, or `None` where the job is no longer the lock's:
    /// both hold until the change is made.
    pub(crate) async fn write_job<T, E>(
        &self,
        actor: Actor,
        work: JobWork<'_>,
        decide: impl FnMut(&State, UnixTime, Option<&Attendance>) -> Result<(Vec<Op>, T), E> + Send,
    ) -> Result<T, WriteError<E>>
    where
        T: Send,
        E: Send,
    {
        self.write_with(actor, Some(work), decide).await
    }

    async fn write_with<T, E>(
        &self,
        actor: Actor,
        work: Option<JobWork<'_>>,
        decide: impl FnMut(&State, UnixTime, Option<&Attendance>) -> Result<(Vec<Op>, T), E> + Send,
    ) -> Result<T, WriteError<E>>
    where
        T: Send,
        E: Send,
    {
        let mut phase = WritePhase::Waiting;
        let written = timeout(CALL_TIMEOUT, self.write_in_phases(&mut phase, actor, work, decide)).await;
        written.unwrap_or_else(|_elapsed| match phase {
            WritePhase::Waiting => {
                Err(WriteError::Database(self.0.unavailable("earlier changes still wait for it")))
            }
            WritePhase::Deciding => {
                Err(WriteError::Database(self.0.unavailable("it did not answer in time")))
            }
            WritePhase::Committing => {
                Err(WriteError::Unknown(self.0.unavailable("it did not answer in time")))
            }
        })
    }

    async fn write_in_phases<T, E>(
        &self,
        phase: &mut WritePhase,
        actor: Actor,
        work: Option<JobWork<'_>>,
        mut decide: impl FnMut(&State, UnixTime, Option<&Attendance>) -> Result<(Vec<Op>, T), E> + Send,
    ) -> Result<T, WriteError<E>>
    where
        T: Send,
        E: Send,
    {
        let _turn = self.0.turn.lock().await;
        *phase = WritePhase::Deciding;
        for _ in 0..WRITE_ATTEMPTS {
            let locked = self.0.store.lock(self.state().head()).await;
            let mut locked = locked.map_err(WriteError::Database)?;
            if !self.0.take_tail(locked.tail()) {
                locked.unlock().await;
                self.0.catch_up().await.map_err(WriteError::Database)?;
                continue;
            }
            let attendance = match &work {
                Some(work) => work.look(&mut *locked).await.map_err(WriteError::Database)?,
                None => None,
            };
            let (state, now) = (self.state(), locked.now());
            let (ops, answer) = match decide(&state, now, attendance.as_ref()) {
                Ok((ops, answer)) if !ops.is_empty() => (ops, answer),
                decided => {
                    locked.unlock().await;
                    return decided.map(|(_, answer)| answer).map_err(WriteError::Refused);
                }
            };
            if ops.iter().any(Op::lacks_signature) {
                locked.unlock().await;
                return Err(WriteError::Database(self.0.locked(UnlockError::NeedsKey)));
            }
            let change = self.0.next_change(now, actor, ops).map_err(WriteError::Database)?;
            *phase = WritePhase::Committing;
            locked.commit(&change).await.map_err(WriteError::of_commit)?;
            self.0.advance(&[change]);
            return Ok(answer);
        }
        Err(WriteError::Database(self.0.unavailable("its log is being replaced; try again")))
    }
}

/// How far a write has come: what it means that its time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WritePhase {
    /// For the writes of this process before it.
    Waiting,
    Deciding,
    Committing,
}

/// What a job's write depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JobWork<'a> {
    pub(crate) lock: JobLock,
    /// For how long the job is kept from then on.
    pub(crate) ttl: Duration,
    /// Whose absence counts.
    pub(crate) nodes: &'a [NodeId],
}

impl JobWork<'_> {
    /// `None`: somebody else has the job.
    async fn look(&self, locked: &mut dyn LockedLog) -> Result<Option<Attendance>, StoreError> {
        match locked.keep_job(self.lock, self.ttl).await? {
            true => locked.attendance(self.nodes).await.map(Some),
            false => Ok(None),
        }
    }
}

impl Inner {
    fn next_change(&self, at: UnixTime, actor: Actor, ops: Vec<Op>) -> Result<Change, StoreError> {
        let MapVersion { epoch, revision } = self.state.load().version();
        let version = MapVersion { epoch, revision: revision + 1 };
        Ok(Change { head: Head { version, id: self.change_id()? }, at, actor, ops })
    }

    fn change_id(&self) -> Result<ChangeId, StoreError> {
        ChangeId::generate().map_err(|error| self.unavailable(error))
    }

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
