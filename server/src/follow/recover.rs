//! What is done when the database went back in time: because its log lacks what this server saw, or because an agent shows the receipt of a version
//! that the log has not reached. Facts are gathered here (`Told`), and settled by the follower, level with the log, until the database took them.
//!
//! One server begins the epoch: whoever holds the log's lock first. Every server puts back what it remembers and the others did not.

use super::{Cluster, Inner, WriteError};
use crate::{
    cluster::{
        Actor, Change, Head, Loss, Op, Recovery, State, holdings_back, next_version, put_back, settings_back,
        take_over, unknown_removal,
    },
    store::{Lost, StoreError, Tail},
};
use proto::{key::PublicKey, map::MapVersion, receipt::Receipt, statement::Removal, time::UnixTime};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What one change puts back: small enough for a statement's deadline.
const BATCH: usize = 500;
/// Pasts that wait to be put back. More than one only where the database goes back again meanwhile.
const PASTS_KEPT: usize = 4;
/// Removals that wait to be taken over.
const REMOVALS_KEPT: usize = 10_000;

/// What the log may lack.
#[derive(Default)]
pub(super) struct Told(Mutex<Facts>);

#[derive(Default)]
struct Facts {
    /// The newest version that an agent has proved.
    proved: MapVersion,
    /// A version that an agent has proved, and whose change is another in the log.
    fork: Option<MapVersion>,
    /// That somebody claims to have seen more is said once.
    claim_told: bool,
    /// What this server knew when the log had it no more, newest last.
    pasts: Vec<Arc<State>>,
    /// Removals that agents have shown.
    removals: BTreeMap<PublicKey, (Removal, Vec<u8>)>,
}

impl Told {
    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cluster {
    /// An agent holds this version. A valid receipt above what is known here has the log looked at; without one a version proves nothing.
    pub(crate) fn show_version(&self, version: MapVersion, receipt: &Receipt) {
        let state = self.state();
        let has_forked = state.has_forked_from(version, receipt);
        if version <= state.version() && !has_forked {
            return;
        }
        let mut facts = self.0.told.facts();
        if state.is_proved(version, receipt) {
            facts.proved = facts.proved.max(version);
            facts.fork = if has_forked { Some(version) } else { facts.fork };
        } else if !std::mem::replace(&mut facts.claim_told, true) {
            let MapVersion { epoch, revision } = version;
            tracing::warn!(
                epoch,
                revision,
                "an agent claims a newer map without proof: it gets none until this server is as new"
            );
        }
        drop(facts);
        self.look();
    }

    /// Whether an epoch has to be begun, and was not yet.
    pub(crate) fn lacks_what_was_proved(&self) -> bool {
        self.0.lacks_what_was_proved()
    }

    /// An agent holds this removal, an encoded `Signed`. One that is not known here is taken over.
    pub(crate) fn show_removal(&self, signed: &[u8]) {
        let Some(removal) = unknown_removal(&self.state(), signed) else { return };
        let mut facts = self.0.told.facts();
        if facts.removals.len() < REMOVALS_KEPT {
            facts.removals.insert(removal.node_key, (removal, signed.to_vec()));
        }
        drop(facts);
        self.look();
    }
}

impl Inner {
    /// The log lacks what this server knows.
    pub(super) fn remember(&self, past: Arc<State>) {
        let mut facts = self.told.facts();
        if facts.pasts.iter().any(|other| Arc::ptr_eq(other, &past)) {
            return;
        }
        if facts.pasts.len() >= PASTS_KEPT {
            facts.pasts.remove(0);
        }
        facts.pasts.push(past);
    }

    /// Begins an epoch above all that was seen, with what was lost put back as far as one change goes; unless somebody has.
    pub(super) async fn begin_epoch(&self, known: Head) -> Result<(), StoreError> {
        let proved = self.told.facts().proved;
        if !self.has_gone_back(known).await? {
            return Ok(());
        }
        let mut found = self.load().await?;
        let locked = self.store.lock(found.head()).await?;
        match locked.tail() {
            Tail::Changes(changes) => {
                changes.iter().for_each(|change| found.apply(change));
                if let Err(error) = self.check_root(&found) {
                    locked.unlock().await;
                    return Err(error);
                }
            }
            Tail::Lost(_) => {
                locked.unlock().await;
                return Err(self.unavailable("its log is being replaced"));
            }
        }
        let seen = known.version.max(proved);
        if found.version().epoch > known.version.epoch && found.version() > seen {
            locked.unlock().await;
            return Ok(());
        }
        let change = self.epoch_change(&found, seen, locked.now())?;
        locked.commit(&change).await?;
        found.apply(&change);
        tracing::warn!(
            epoch = change.head.version.epoch,
            put_back = change.ops.len() - 1,
            "began a new epoch: the database went back in time"
        );
        self.replace_if_newer(found);
        Ok(())
    }

    /// Judged under the lock: who reads a copy that lags behind must not begin anything.
    async fn has_gone_back(&self, known: Head) -> Result<bool, StoreError> {
        let locked = self.store.lock(known).await?;
        let has_gone_back = match locked.tail() {
            Tail::Changes(changes) => {
                self.advance(changes);
                self.lacks_what_was_proved()
            }
            Tail::Lost(Lost::WentBack { .. }) => true,
            Tail::Lost(Lost::NewEpoch | Lost::Pruned) => false,
        };
        locked.unlock().await;
        Ok(has_gone_back)
    }

    /// Only an epoch of its own is above a fork.
    fn lacks_what_was_proved(&self) -> bool {
        let (version, facts) = (self.state.load().version(), self.told.facts());
        facts.proved > version || facts.fork.is_some_and(|fork| fork.epoch >= version.epoch)
    }

    fn epoch_change(&self, found: &State, seen: MapVersion, now: UnixTime) -> Result<Change, StoreError> {
        let past = self.told.facts().pasts.last().cloned();
        let above = MapVersion {
            epoch: seen.epoch.max(found.version().epoch),
            revision: seen.revision.max(found.version().revision),
        };
        let version =
            next_version(above, now).map_err(|error| StoreError::failed(self.store.location(), error))?;
        let loss = match &past {
            Some(_) => Loss::Revisions(above.revision - found.version().revision),
            None => Loss::Unknown,
        };
        let remembered = past.as_ref().map_or(MapVersion::default(), |past| past.version());
        let recovery = Recovery::of(found, loss, remembered, now);
        let mut with_gap = found.clone();
        let mut ops = vec![recovery.into_op()];
        let head = Head { version, id: self.change_id()? };
        with_gap.apply(&Change { head, at: now, actor: Actor::Recovery, ops: ops.clone() });
        // What a root signed that the log does not know comes after the root.
        if let Some(past) = past.filter(|past| past.root_number() <= found.root_number()) {
            ops.extend(settings_back(&with_gap, &past));
            ops.extend(holdings_back(&with_gap, &past));
            ops.extend(put_back(&with_gap, &past, BATCH, now));
        }
        Ok(Change { head, at: now, actor: Actor::Recovery, ops })
    }

    /// Does what was told, level with the log. What the database does not take waits for the next time.
    pub(super) async fn settle(self: &Arc<Self>) -> Result<(), StoreError> {
        let known = self.state.load().head();
        if self.lacks_what_was_proved() {
            // Mostly it has not: the change that the agent knows was not read here yet. The log's lock decides.
            tracing::debug!(found = known.version.revision, "an agent proves more than the log had");
            self.begin_epoch(known).await?;
        }
        self.settle_pasts().await?;
        self.settle_removals().await
    }

    async fn settle_pasts(self: &Arc<Self>) -> Result<(), StoreError> {
        loop {
            let Some(past) = self.told.facts().pasts.last().cloned() else { return Ok(()) };
            self.put_root_back(&past).await?;
            // Where nothing is missing the log need not be locked to see that.
            let is_level = put_back(&self.state.load(), &past, 1, UnixTime(0)).is_empty();
            let is_done = is_level || self.put_back(&past).await?;
            if is_done {
                self.retire_again(&past).await?;
                self.told.facts().pasts.retain(|other| !Arc::ptr_eq(other, &past));
            }
        }
    }

    /// One batch; whether nothing is left.
    async fn put_back(self: &Arc<Self>, past: &State) -> Result<bool, StoreError> {
        let count = self.change(|state, now| {
            let mut ops = put_back(state, past, BATCH, now);
            let recovery = state.recovery().filter(|recovery| recovery.remembered < past.version());
            if let (false, Some(recovery)) = (ops.is_empty(), recovery) {
                ops.push(Recovery { remembered: past.version(), ..Recovery::clone(recovery) }.into_op());
            }
            ops
        });
        let count = count.await?;
        if count > 0 {
            tracing::info!(count, "put back what the database had lost");
        }
        Ok(count == 0)
    }

    async fn settle_removals(self: &Arc<Self>) -> Result<(), StoreError> {
        let removals = self.told.facts().removals.clone();
        if removals.is_empty() {
            return Ok(());
        }
        let some = || removals.values().take(BATCH).map(|(removal, signed)| (removal, signed.as_slice()));
        let count = self.change(|state, now| take_over(state, some(), now)).await?;
        if count > 0 {
            tracing::info!(count, "took over removals that agents have shown");
        }
        self.told.facts().removals.retain(|key, _| !some().any(|(removal, _)| removal.node_key == *key));
        Ok(())
    }

    pub(super) async fn change(
        self: &Arc<Self>,
        mut decide: impl FnMut(&State, UnixTime) -> Vec<Op> + Send,
    ) -> Result<usize, StoreError> {
        let cluster = Cluster(self.clone());
        let written = cluster.write::<_, Infallible>(Actor::Recovery, |state, now| {
            let ops = decide(state, now);
            let count = ops.len();
            Ok((ops, count))
        });
        written.await.map_err(|error| match error {
            WriteError::Refused(never) => match never {},
            WriteError::Database(error) | WriteError::Unknown(error) => error,
        })
    }
}
