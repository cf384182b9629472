//! A change of the root: the new secret and what the log tells of it go into the database in one transaction. The log carries no secret, so whoever follows
//! it loads the state again when it comes to such a change.

use super::{Cluster, Inner, WRITE_ATTEMPTS, WriteError};
use crate::{
    cluster::{Actor, Change, Root, RotationError, State, rotate},
    cluster_key::UnlockError,
    store::{StoreError, Tail},
};
use proto::root::{RootKey, RootSecret};

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
        let _turn = self.0.turn.lock().await;
        for _ in 0..WRITE_ATTEMPTS {
            let mut locked = self.0.store.lock(self.state().head()).await.map_err(WriteError::Database)?;
            if !self.0.take_tail(locked.tail()) {
                locked.unlock().await;
                self.0.catch_up().await.map_err(WriteError::Database)?;
                continue;
            }
            let (state, now) = (self.state(), locked.now());
            if state.root.secret().is_none() {
                locked.unlock().await;
                return Err(WriteError::Database(self.0.locked(UnlockError::NeedsKey)));
            }
            let ops = match state.root.public() == *expected {
                true => rotate(&state, &next, now, beside_former),
                false => Err(RotationError::Changed),
            };
            let ops = match ops {
                Ok(ops) => ops,
                Err(refused) => {
                    locked.unlock().await;
                    return Err(WriteError::Refused(refused));
                }
            };
            let stored = self.0.access.stored(state.network_id, next.clone());
            let stored = stored.map_err(|error| WriteError::Refused(error.into()))?;
            let change = self.0.next_change(now, Actor::CommandLine, ops).map_err(WriteError::Database)?;
            locked.put_root(&stored).await.map_err(WriteError::Database)?;
            locked.commit(&change).await.map_err(WriteError::of_commit)?;
            self.0.begin_root(&change, &next);
            // The same again: what was there before is overwritten as far as the database can.
            if let Err(error) = self.0.store.put_root(&stored, &stored).await {
                tracing::warn!(%error, "the former root's key may stay in free space of the database for a while");
            }
            return Ok(());
        }
        Err(WriteError::Database(self.0.unavailable("its log is being replaced; try again")))
    }
}

impl Inner {
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
