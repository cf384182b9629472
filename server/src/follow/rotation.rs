//! A change of the root: the new secret and what the log tells of it go into the database in one transaction. The log carries no secret, so whoever follows
//! it loads the state again when it comes to such a change.

use super::{Cluster, Inner, WriteError};
use crate::{
    cluster::{Actor, Change, Entity, Op, Root, Roots, RotationError, State, StoredRoot, rotate},
    cluster_key::UnlockError,
    store::{Erased, StoreError, Tail},
};
use proto::{
    root::{Fingerprint, RootKey, RootSecret},
    root_list::MAX_ROOTS,
};
use std::{
    cmp::Ordering,
    convert::Infallible,
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
};

/// How the roots of a database that went back stand to those that this server knew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// The same, or newer.
    Level,
    /// A change of the root was lost.
    Lost,
    /// Former roots are trusted again.
    Unretired,
    /// Another root has this number.
    Forked { number: u32, known: Fingerprint, found: Fingerprint },
}

impl Standing {
    fn of(past: &State, found: &State) -> Self {
        let newest = past.root_number().min(found.root_number());
        // From the newest root that both have; where one is not trusted any more, it cannot be compared.
        for number in (0..=newest).rev().take(MAX_ROOTS) {
            match (past.root_at(number), found.root_at(number)) {
                (Some(known), Some(found)) if known != found => {
                    let (known, found) = (known.fingerprint(), found.fingerprint());
                    return Self::Forked { number, known, found };
                }
                (Some(_), Some(_)) => break,
                (None, _) | (_, None) => {}
            }
        }
        let count = |state: &State| state.roots().map_or(0, |roots| roots.former.len());
        match past.root_number().cmp(&found.root_number()) {
            Ordering::Greater => Self::Lost,
            Ordering::Equal if count(past) < count(found) => Self::Unretired,
            Ordering::Equal | Ordering::Less => Self::Level,
        }
    }
}

impl Cluster {
    /// That the database has another root where this server knew one, if so: with what to do.
    pub(crate) fn root_fork(&self) -> Option<String> {
        self.0.root_fork.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

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
        self.rotate_root_to(&next, expected, beside_former).await
    }

    /// As [`Self::rotate_root`], to this root.
    pub(crate) async fn rotate_root_to(
        &self,
        next: &RootSecret,
        expected: &RootKey,
        beside_former: bool,
    ) -> Result<(), WriteError<RotationError>> {
        let written =
            self.write_root(next, Actor::CommandLine, |state, now| match state.root.public() == *expected {
                true => rotate(state, next, now, beside_former),
                false => Err(RotationError::Changed),
            });
        written.await
    }

    /// What a former root's secret left in the database's file goes; whoever changed the root may not have come to that.
    pub(crate) async fn erase_former_root(&self) -> Result<(), StoreError> {
        match self.0.store.erase_former_root().await? {
            Erased::Before => {}
            Erased::Now => tracing::info!("a former root's key was erased from the database's file"),
            Erased::HeldUp => {
                tracing::debug!("a former root's key waits in the database's file for a reader to end")
            }
            Erased::NotAllowed if self.0.is_erasure_refused.swap(true, Relaxed) => {}
            Erased::NotAllowed => tracing::warn!(
                "a former root's key stays in the database's file: this server's role does not own its tables. Their owner can erase it: VACUUM (FULL) cluster"
            ),
        }
        Ok(())
    }
}

impl Inner {
    /// The database lost the change to a root that this server knows: whoever learned it trusts no other. Where the database has another root in its place, nothing is put back
    /// of it: that is for people.
    pub(super) async fn put_root_back(self: &Arc<Self>, past: &State) -> Result<(), StoreError> {
        match Standing::of(past, &self.state.load()) {
            Standing::Level | Standing::Unretired => return Ok(()),
            Standing::Forked { number, known, found } => {
                self.tell_fork(number, known, found);
                return Ok(());
            }
            Standing::Lost => {}
        }
        let (Some(secret), Some(roots)) = (past.root.secret(), past.roots()) else {
            return Err(self.locked(UnlockError::NeedsKey));
        };
        let cluster = Cluster(self.clone());
        let put = cluster.write_root(secret, Actor::Recovery, |state, _| {
            let is_lost = Standing::of(past, state) == Standing::Lost;
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

    /// The database lost that former roots were retired. Comes after what this server knows of nodes, which is not under them.
    pub(super) async fn retire_again(self: &Arc<Self>, past: &State) -> Result<(), StoreError> {
        let Some(roots) = past.roots() else { return Ok(()) };
        if Standing::of(past, &self.state.load()) != Standing::Unretired {
            return Ok(());
        }
        let count = self.change(|state, _| {
            let is_lost = Standing::of(past, state) == Standing::Unretired;
            let roots = Op::Put(Entity::Roots(Box::new(Roots::clone(roots))));
            is_lost.then_some(roots).into_iter().collect()
        });
        if count.await? > 0 {
            tracing::info!("retired former roots again that the database had back");
        }
        Ok(())
    }

    fn tell_fork(&self, number: u32, known: Fingerprint, found: Fingerprint) {
        let fork = format!(
            "the database has root {found} where this server knew {known} (change {number} of the root): it went back in time, and the root was changed again. Agents that keep {known} refuse its servers: restore a copy of the database that has {known}, or let those nodes in with new setup keys and start this server again"
        );
        let mut told = self.root_fork.lock().unwrap_or_else(PoisonError::into_inner);
        if told.as_ref() != Some(&fork) {
            tracing::error!("{fork}");
            *told = Some(fork);
        }
    }

    pub(super) fn stored_root(&self, root: &RootSecret) -> Result<StoredRoot, StoreError> {
        let stored = self.access.stored(self.state.load().network_id, root.clone());
        stored.map_err(|error| self.unavailable(error))
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

    pub(super) fn begin_root(&self, change: &Change, secret: &RootSecret) {
        let _guard = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
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
