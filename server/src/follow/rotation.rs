//! A change of the root: the new secret and what the log tells of it go into the database in one transaction. The log carries no secret, so whoever follows
//! it loads the state again when it comes to such a change.

use super::{Cluster, Inner, WRITE_ATTEMPTS, WriteError};
use crate::{
    cluster::{Actor, Change, Entity, Op, Root, Roots, RotationError, State, rotate},
    cluster_key::UnlockError,
    store::{StoreError, Tail},
};
use proto::{
    root::{RootKey, RootSecret},
    time::UnixTime,
};
use std::convert::Infallible;

impl Cluster {
    /// Makes the next root, signed by the current one. `beside_former`: also while one before is still trusted.
    ///
    /// # Errors
    /// As [`Cluster::write`]; this process cannot sign; or the root is another than `expected` by now.
    pub(crate) async fn rotate_root(
        &self,
        expected: &RootKey,
        beside_former: bool,
    ) -> Result<(), WriteError<RotationError>> {
        let next = RootSecret::generate().map_err(|error| WriteError::Refused(error.into()))?;
        let written = self.0.write_root(&next, Actor::CommandLine, |state, now| {
            match state.root.public() == *expected {
                true => rotate(state, &next, now, beside_former),
                false => Err(RotationError::Changed),
            }
        });
        written.await
    }
}

impl Inner {
    /// The database lost the change to a root that this server knows: whoever learned it trusts no other.
    pub(super) async fn put_root_back(&self, past: &State) -> Result<(), StoreError> {
        if past.root_number() <= self.state.load().root_number() {
            return Ok(());
        }
        let (Some(secret), Some(roots)) = (past.root.secret(), past.roots()) else {
            return Err(self.locked(UnlockError::NeedsKey));
        };
        let put = self.write_root(secret, Actor::Recovery, |state, _| {
            let is_lost = past.root_number() > state.root_number();
            let roots = Op::Put(Entity::Roots(Box::new(Roots::clone(roots))));
            Ok::<_, Infallible>(is_lost.then_some(roots).into_iter().collect())
        });
        match put.await {
            Ok(()) => {
                tracing::info!(root = %secret.public().fingerprint(), "put back the root that the database had lost");
                Ok(())
            }
            Err(WriteError::Refused(never)) => match never {},
            Err(WriteError::Database(error) | WriteError::Unknown(error)) => Err(error),
        }
    }

    /// Writes what `decide` says, and the root that it makes the current one. No ops: nothing is written.
    async fn write_root<E>(
        &self,
        next: &RootSecret,
        actor: Actor,
        mut decide: impl FnMut(&State, UnixTime) -> Result<Vec<Op>, E>,
    ) -> Result<(), WriteError<E>> {
        let _turn = self.turn.lock().await;
        for _ in 0..WRITE_ATTEMPTS {
            let mut locked = self.store.lock(self.state.load().head()).await.map_err(WriteError::Database)?;
            if !self.take_tail(locked.tail()) {
                locked.unlock().await;
                self.catch_up().await.map_err(WriteError::Database)?;
                continue;
            }
            let (state, now) = (self.state.load_full(), locked.now());
            let decided = match state.root.secret() {
                Some(_) => decide(&state, now).map_err(WriteError::Refused),
                None => Err(WriteError::Database(self.locked(UnlockError::NeedsKey))),
            };
            let ops = match decided {
                Ok(ops) if !ops.is_empty() => ops,
                decided => {
                    locked.unlock().await;
                    return decided.map(|_nothing| ());
                }
            };
            let stored = self.access.stored(state.network_id, next.clone());
            let stored = stored.map_err(|error| WriteError::Database(self.unavailable(error)))?;
            let change = self.next_change(now, actor, ops).map_err(WriteError::Database)?;
            locked.put_root(&stored).await.map_err(WriteError::Database)?;
            locked.commit(&change).await.map_err(WriteError::of_commit)?;
            self.begin_root(&change, next);
            // The same again: what was there before is overwritten as far as the database can.
            if let Err(error) = self.store.put_root(&stored, &stored).await {
                tracing::warn!(%error, "the former root's key may stay in free space of the database for a while");
            }
            return Ok(());
        }
        Err(WriteError::Database(self.unavailable("its log is being replaced; try again")))
    }

    /// Applies what the log has; `false`: the state has to be loaded again first.
    pub(super) fn take_tail(&self, tail: &Tail) -> bool {
        let Tail::Changes(changes) = tail else { return false };
        self.advance(changes);
        !self.lacks_root_of(changes)
    }

    /// Whether these changes were not applied for a new root.
    pub(super) fn lacks_root_of(&self, changes: &[Change]) -> bool {
        let state = self.state.load();
        let root = state.root.public();
        changes.iter().any(|change| change.head.version > state.version() && change.changes_root(&root))
    }

    fn begin_root(&self, change: &Change, secret: &RootSecret) {
        let _guard = self.replacing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut state = State::clone(&self.state.load());
        state.apply(change);
        state.root = Root::Secret(secret.clone());
        self.replace(state);
    }

    /// As an error, where the log's newest root is not at hand.
    pub(super) fn check_root(&self, state: &State) -> Result<(), StoreError> {
        let could_sign = self.state.load().root.secret().is_some();
        match could_sign && state.root.secret().is_none() {
            true => Err(self.unavailable("its root was changed meanwhile")),
            false => Ok(()),
        }
    }
}
