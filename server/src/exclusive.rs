//! Gives what is claimed exclusively to one node at a time, and keeps the leases of those whose sessions this server has.
//!
//! ```text
//!   nobody's ------ granted to the best that is connected ------> held, with a lease
//!      ^                                                             |  |  ^
//!      |   its holder claims it no more, may not, or left            |  +--+ renewed once a second
//!      +-------------------------------------------------------------+
//!      |   the lease is over: the holder was not heard, or its server was not
//!      +-------------------------------------------------------------+
//! ```
//!
//! Every server does this alike: the one that serves the best claimer acts first, the others a second later for each better one that did not get it. Two that act at once meet at the log's lock.
//! With the database away nothing moves; once it is back, holders have the time of a lease to be heard of first.

use crate::{
    cluster::{Actor, GrantError, State, grant},
    follow::{TakeOver, WriteError},
    metrics::database_error,
    serve::Server,
    store::StoreError,
};
use imbl::OrdSet;
use ipnet::IpNet;
use proto::{holding::Holding, statement::NodeId, time::UnixTime};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::{MissedTickBehavior, interval};

/// How long a holder counts as there without being heard of: longer than a session takes to move to another server, or a database to its standby in most cases, and as
/// long as users of the service have to wait where the holder died.
pub(crate) const LEASE: Duration = Duration::from_secs(5);
const RENEW_INTERVAL: Duration = Duration::from_secs(1);
/// What is free is noticed so soon.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// For each better claimer that does not take what is free.
const TURN_DELAY: Duration = Duration::from_secs(1);
/// Who is to take over from a living holder must have been there for so long.
const PREEMPT_HOLD: Duration = Duration::from_secs(5);
/// Rounds that are further apart: this process stood still, and others may not have been heard.
const LARGEST_GAP: Duration = Duration::from_secs(2);

/// What one round looks at.
struct View<'a> {
    state: &'a State,
    clock: UnixTime,
    /// Those that this server serves and hears.
    served: BTreeSet<NodeId>,
    online: &'a OrdSet<NodeId>,
    /// Those elsewhere whose leases run.
    leased: BTreeSet<NodeId>,
}

/// That a node is to have a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wish {
    prefix: IpNet,
    from: Option<Holding>,
    to: NodeId,
    /// The former holder lives, and has to give way all the same.
    is_forced: bool,
}

/// What is known from round to round.
#[derive(Debug, Default)]
struct Rounds {
    last_at: Option<Instant>,
    /// Since when the database answers without a gap.
    steady_since: Option<Instant>,
    vacant_since: BTreeMap<IpNet, Instant>,
    /// Since when claimers are served here.
    served_since: BTreeMap<NodeId, Instant>,
    renewed_at: Option<Instant>,
    told: Option<GrantError>,
}

impl Rounds {
    fn begin(&mut self, now: Instant) {
        if self.last_at.is_some_and(|last| now.duration_since(last) > LARGEST_GAP) {
            self.steady_since = None;
        }
        self.last_at = Some(now);
    }

    fn on_database(&mut self, is_ok: bool, now: Instant) {
        match is_ok {
            true => _ = self.steady_since.get_or_insert(now),
            false => self.steady_since = None,
        }
    }

    /// Whether every holder had the time to be heard of.
    fn is_steady(&self, now: Instant) -> bool {
        self.steady_since.is_some_and(|since| now.duration_since(since) >= LEASE)
    }

    fn decide(&mut self, view: &View<'_>, now: Instant) -> Vec<Wish> {
        self.served_since.retain(|node, _| view.served.contains(node));
        view.served.iter().for_each(|node| _ = self.served_since.entry(*node).or_insert(now));
        let prefixes: Vec<IpNet> = view.state.exclusive_prefixes().collect();
        self.vacant_since.retain(|prefix, _| prefixes.contains(prefix));
        prefixes.into_iter().filter_map(|prefix| self.decide_on(prefix, view, now)).collect()
    }

    fn decide_on(&mut self, prefix: IpNet, view: &View<'_>, now: Instant) -> Option<Wish> {
        let claimers = view.state.exclusive_claimers(&prefix, view.clock);
        let is_connected = |node: &NodeId| view.served.contains(node) || view.online.contains(node);
        let mut connected = claimers.iter().filter(|(node, _)| is_connected(node)).enumerate();
        let mine = connected.find(|(_, (node, _))| view.served.contains(node));
        let from = view.state.holder(&prefix, view.clock).copied();
        if let Some(holding) = from
            && (view.served.contains(&holding.node) || view.leased.contains(&holding.node))
        {
            self.vacant_since.remove(&prefix);
            if view.state.is_of_former_epoch(&holding) {
                return view.served.contains(&holding.node).then_some(Wish {
                    prefix,
                    from,
                    to: holding.node,
                    is_forced: true,
                });
            }
            let &(place, (to, claim)) = mine.as_ref()?;
            let held_as = claimers.iter().find(|(node, _)| *node == holding.node)?.1;
            let is_there =
                self.served_since.get(to).is_some_and(|at| now.duration_since(*at) >= PREEMPT_HOLD);
            let is_better = claim.preempt && claim.priority > held_as.priority && is_there;
            let takes_over = place == 0 && !claim.yields && (held_as.yields || is_better);
            return takes_over.then_some(Wish { prefix, from, to: *to, is_forced: true });
        }
        let vacant_since = *self.vacant_since.entry(prefix).or_insert(now);
        let (place, (to, _)) = mine?;
        let delay = TURN_DELAY * u32::try_from(place).unwrap_or(u32::MAX);
        let may_take = from.is_none() || self.is_steady(now);
        (may_take && now.duration_since(vacant_since) >= delay).then_some(Wish {
            prefix,
            from,
            to: *to,
            is_forced: false,
        })
    }
}

/// Keeps leases and grants what is free, for ever.
pub(crate) async fn run(server: Arc<Server>) {
    let mut rounds = Rounds::default();
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        rounds.begin(Instant::now());
        let result = round(&server, &mut rounds).await;
        rounds.on_database(result.is_ok() && server.cluster.health().database_ok, Instant::now());
        if let Err(error) = result {
            database_error("exclusive");
            tracing::debug!(%error, "leases of exclusive claims have to wait");
        }
    }
}

/// Nothing is asked of the database where nobody claims exclusively.
async fn round(server: &Server, rounds: &mut Rounds) -> Result<(), StoreError> {
    let (state, clock, now) = (server.cluster.state(), server.cluster.now(), Instant::now());
    let mut claimers = BTreeMap::new();
    for prefix in state.exclusive_prefixes() {
        claimers.insert(prefix, state.exclusive_claimers(&prefix, clock));
    }
    let is_served = |node: &NodeId| server.hub.serving(*node).is_some_and(|slot| slot.is_heard());
    let all = claimers.values().flatten().map(|(node, _)| *node);
    let served: BTreeSet<NodeId> = all.filter(is_served).collect();
    if served.is_empty() {
        return Ok(());
    }
    let holders: BTreeSet<NodeId> =
        claimers.keys().filter_map(|prefix| Some(state.holder(prefix, clock)?.node)).collect();
    let (here, elsewhere): (Vec<NodeId>, Vec<NodeId>) =
        holders.into_iter().partition(|node| served.contains(node));
    let store = server.cluster.store();
    if !here.is_empty() && rounds.renewed_at.is_none_or(|at| now.duration_since(at) >= RENEW_INTERVAL) {
        store.renew_holders(&here, LEASE).await?;
        rounds.renewed_at = Some(now);
    }
    let leased = match elsewhere.is_empty() {
        true => BTreeSet::new(),
        false => store.holder_leases(&elsewhere).await?.into_keys().collect(),
    };
    let online = server.presence.online();
    let view = View { state: &state, clock, served, online: &online, leased };
    for wish in rounds.decide(&view, Instant::now()) {
        match take(server, wish).await {
            Ok(holding) => {
                let Holding { prefix, node, fence, since: _ } = holding;
                metrics::counter!("holdfast_exclusive_grants_total").increment(1);
                tracing::info!(%prefix, %node, fence, "holds the prefix from now on");
                rounds.vacant_since.remove(&prefix);
                rounds.told = None;
            }
            Err(WriteError::Refused(GrantError::Overtaken)) => {}
            Err(WriteError::Refused(error @ (GrantError::Full | GrantError::Exhausted))) => {
                if rounds.told.as_ref() != Some(&error) {
                    tracing::warn!(prefix = %wish.prefix, %error, "nobody holds the prefix");
                }
                rounds.told = Some(error);
            }
            Err(WriteError::Database(error) | WriteError::Unknown(error)) => return Err(error),
        }
    }
    Ok(())
}

async fn take(server: &Server, wish: Wish) -> Result<Holding, WriteError<GrantError>> {
    let Wish { prefix, from, to, is_forced } = wish;
    let must_be_over = from.filter(|_| !is_forced).map(|holding| holding.node);
    let take = TakeOver { from: must_be_over, to, ttl: LEASE };
    let written =
        server.cluster.write_take_over(Actor::Server(server.id), take, |state, now, is_free| match is_free {
            true => grant(state, prefix, (from, to), now),
            false => Err(GrantError::Overtaken),
        });
    written.await
}

/// The node says that it goes: what it holds is free at once.
pub(crate) async fn release(server: Arc<Server>, node: NodeId) {
    let (state, now) = (server.cluster.state(), server.cluster.now());
    if state.held_by(node, now).next().is_none() {
        return;
    }
    if let Err(error) = server.cluster.store().release_holder(node).await {
        database_error("exclusive");
        tracing::debug!(%error, %node, "what the node holds is free when its lease is over");
    }
}

#[cfg(test)]
mod tests;
