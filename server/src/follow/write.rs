//! How a change is made: the log is locked, this server catches up, `decide` looks at exactly that state, and what it says is appended and applied. All of that has one
//! deadline, and how far it came tells what it means that the deadline has passed.

use super::{Cluster, Inner};
use crate::{
    cluster::{Actor, Change, ChangeId, Head, Op, State},
    cluster_key::UnlockError,
    store::{Attendance, CALL_TIMEOUT, JobLock, LockedLog, StoreError},
};
use proto::{map::MapVersion, root::RootSecret, statement::NodeId, time::UnixTime};
use std::time::Duration;
use tokio::time::timeout;

/// A write gives up when the log was lost under it so often.
const WRITE_ATTEMPTS: u32 = 3;

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
        self.write_with(actor, With::default(), |state, now, _| decide(state, now)).await
    }

    /// As [`Cluster::write`], for a job. `decide` is told when the nodes of `work` were last there, or `None` where the job is no longer the lock's:
    /// both hold until the change is made.
    pub(crate) async fn write_job<T, E>(
        &self,
        actor: Actor,
        work: JobWork<'_>,
        mut decide: impl FnMut(&State, UnixTime, Option<&Attendance>) -> Result<(Vec<Op>, T), E> + Send,
    ) -> Result<T, WriteError<E>>
    where
        T: Send,
        E: Send,
    {
        let with = With { work: Some(work), ..With::default() };
        self.write_with(actor, with, |state, now, looked| decide(state, now, looked.attendance.as_ref()))
            .await
    }

    /// As [`Cluster::write`], for a take-over. `decide` is told whether it is free: that holds until the change is made.
    pub(crate) async fn write_take_over<T, E>(
        &self,
        actor: Actor,
        take: TakeOver,
        mut decide: impl FnMut(&State, UnixTime, bool) -> Result<(Vec<Op>, T), E> + Send,
    ) -> Result<T, WriteError<E>>
    where
        T: Send,
        E: Send,
    {
        let with = With { take: Some(take), ..With::default() };
        self.write_with(actor, with, |state, now, looked| decide(state, now, looked.is_free)).await
    }

    /// As [`Cluster::write`], where what `decide` says makes `next` the current root, whose secret goes into the database with it.
    pub(super) async fn write_root<E: Send>(
        &self,
        next: &RootSecret,
        actor: Actor,
        mut decide: impl FnMut(&State, UnixTime) -> Result<Vec<Op>, E> + Send,
    ) -> Result<(), WriteError<E>> {
        let with = With { root: Some(next), ..With::default() };
        let is_written = self.write_with(actor, with, |state, now, _| {
            let ops = decide(state, now)?;
            let is_any = !ops.is_empty();
            Ok((ops, is_any))
        });
        if is_written.await?
            && let Err(error) = self.erase_former_root().await
        {
            tracing::warn!(%error, "the former root's key stays in the database's file until a server erases it");
        }
        Ok(())
    }

    async fn write_with<T, E>(
        &self,
        actor: Actor,
        with: With<'_>,
        decide: impl FnMut(&State, UnixTime, &Looked) -> Result<(Vec<Op>, T), E> + Send,
    ) -> Result<T, WriteError<E>>
    where
        T: Send,
        E: Send,
    {
        let mut phase = WritePhase::Waiting;
        let written = timeout(CALL_TIMEOUT, self.write_in_phases(&mut phase, actor, with, decide)).await;
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
        with: With<'_>,
        mut decide: impl FnMut(&State, UnixTime, &Looked) -> Result<(Vec<Op>, T), E> + Send,
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
            if with.root.is_some() && self.state().root.secret().is_none() {
                locked.unlock().await;
                return Err(WriteError::Database(self.0.locked(UnlockError::NeedsKey)));
            }
            let looked = with.look(&mut *locked).await.map_err(WriteError::Database)?;
            let (state, now) = (self.state(), locked.now());
            let (ops, answer) = match decide(&state, now, &looked) {
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
            if let Some(next) = with.root {
                let stored = self.0.stored_root(next).map_err(WriteError::Database)?;
                locked.put_root(&stored).await.map_err(WriteError::Database)?;
            }
            *phase = WritePhase::Committing;
            locked.commit(&change).await.map_err(WriteError::of_commit)?;
            match with.root {
                Some(next) => self.0.begin_root(&change, next),
                None => self.0.advance(&[change]),
            }
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

/// Who is to have what another holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TakeOver {
    /// Whose lease must be over.
    pub(crate) from: Option<NodeId>,
    pub(crate) to: NodeId,
    /// The lease of `to`.
    pub(crate) ttl: Duration,
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

/// What goes with a write.
#[derive(Debug, Clone, Copy, Default)]
struct With<'a> {
    work: Option<JobWork<'a>>,
    take: Option<TakeOver>,
    /// The root that is the current one from this change on.
    root: Option<&'a RootSecret>,
}

/// What was found behind the log's lock.
#[derive(Debug, Default)]
struct Looked {
    attendance: Option<Attendance>,
    is_free: bool,
}

impl With<'_> {
    async fn look(&self, locked: &mut dyn LockedLog) -> Result<Looked, StoreError> {
        let mut looked = Looked::default();
        if let Some(work) = &self.work {
            looked.attendance = work.look(locked).await?;
        }
        if let Some(TakeOver { from, to, ttl }) = self.take {
            looked.is_free = locked.take_over(from, to, ttl).await?;
        }
        Ok(looked)
    }
}

impl Inner {
    fn next_change(&self, at: UnixTime, actor: Actor, ops: Vec<Op>) -> Result<Change, StoreError> {
        let MapVersion { epoch, revision } = self.state.load().version();
        let version = MapVersion { epoch, revision: revision + 1 };
        Ok(Change { head: Head { version, id: self.change_id()? }, at, actor, ops })
    }

    pub(super) fn change_id(&self) -> Result<ChangeId, StoreError> {
        ChangeId::generate().map_err(|error| self.unavailable(error))
    }
}
