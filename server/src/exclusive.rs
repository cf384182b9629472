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
/// What takes longer, or a clock that went ahead by more: this process or the database stood still, and others may not have been heard. With the time between renewals less than a lease.
const LARGEST_GAP: Duration = Duration::from_secs(2);
/// Each waits for the log's lock: the next ones wait for the next round, which looks anew.
const MOST_IN_A_ROUND: usize = 32;
/// What was refused for good is not asked for again at once.
const REFUSED_DELAY: Duration = Duration::from_secs(10);

/// What one round looks at.
struct View<'a> {
    state: &'a State,
    clock: UnixTime,
    /// Those that this server serves and hears.
    served: BTreeSet<NodeId>,
    online: &'a OrdSet<NodeId>,
    /// Those elsewhere whose leases run.
    leased: BTreeSet<NodeId>,
    /// Those that may be given nothing more.
    full: BTreeSet<NodeId>,
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
    last: Option<(Instant, UnixTime)>,
    /// Since when the database answers without a gap.
    steady_since: Option<Instant>,
    vacant_since: BTreeMap<IpNet, Instant>,
    /// Since when claimers are served here.
    served_since: BTreeMap<NodeId, Instant>,
    refused_until: BTreeMap<IpNet, Instant>,
    told: Option<GrantError>,
}

impl Rounds {
    /// Also after each wait. The database's clock is looked at as well: leases end by it.
    fn begin(&mut self, now: Instant, clock: UnixTime) {
        let is_gap = |(at, then): (Instant, UnixTime)| {
            now.duration_since(at) > LARGEST_GAP || is_ahead(clock, (then, now.duration_since(at)))
        };
        if self.last.is_some_and(is_gap) {
            self.steady_since = None;
        }
        self.last = Some((now, clock));
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
        self.vacant_since.retain(|prefix, _| view.state.is_exclusive(prefix));
        self.refused_until.retain(|_, until| now < *until);
        let wishes = prefixes.into_iter().filter_map(|prefix| self.decide_on(prefix, view, now));
        let wishes: Vec<Wish> = wishes.collect();
        let may_ask = |wish: &Wish| !self.refused_until.contains_key(&wish.prefix);
        wishes.into_iter().filter(may_ask).take(MOST_IN_A_ROUND).collect()
    }

    fn decide_on(&mut self, prefix: IpNet, view: &View<'_>, now: Instant) -> Option<Wish> {
        let claimers = view.state.exclusive_claimers(&prefix, view.clock);
        let from = view.state.holder(&prefix, view.clock).copied();
        // Online for a while yet, although it died: nobody waits for its turn.
        let is_over =
            |node: &NodeId| from.is_some_and(|holding| holding.node == *node) && !view.leased.contains(node);
        let is_connected = |node: &NodeId| {
            let is_there = view.served.contains(node) || view.online.contains(node) && !is_over(node);
            is_there && !view.full.contains(node)
        };
        let mut connected = claimers.iter().filter(|(node, _)| is_connected(node)).enumerate();
        let mine = connected.find(|(_, (node, _))| view.served.contains(node));
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
        let (place, (to, claim)) = mine?;
        // Who yields comes last, so who does not would be the first.
        let first = claimers.iter().find(|(node, _)| is_connected(node));
        if claim.yields && first.is_some_and(|(_, first)| !first.yields) {
            return None;
        }
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

/// Whether the clock is further than the time that went by since it was `then`. It has whole seconds.
fn is_ahead(clock: UnixTime, (then, passed): (UnixTime, Duration)) -> bool {
    Duration::from_secs(clock.0.saturating_sub(then.0)) > passed + LARGEST_GAP + Duration::from_secs(1)
}

/// Keeps the leases of holders that are heard here, for ever. Nothing that waits for the log's lock holds it up.
pub(crate) async fn keep(server: Arc<Server>) {
    let mut renewals = interval(RENEW_INTERVAL);
    renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        renewals.tick().await;
        let here: Vec<NodeId> =
            holders(&server).into_iter().filter(|node| is_served(&server, *node)).collect();
        if !here.is_empty()
            && let Err(error) = server.cluster.store().renew_holders(&here, LEASE).await
        {
            database_error("exclusive");
            tracing::debug!(%error, "the leases of exclusive claims are not renewed");
        }
    }
}

fn holders(server: &Server) -> BTreeSet<NodeId> {
    let (state, clock) = (server.cluster.state(), server.cluster.now());
    state.exclusive_prefixes().filter_map(|prefix| Some(state.holder(&prefix, clock)?.node)).collect()
}

fn is_served(server: &Server, node: NodeId) -> bool {
    server.hub.serving(node).is_some_and(|slot| slot.is_heard())
}

/// Grants what is free, for ever.
pub(crate) async fn run(server: Arc<Server>) {
    let mut rounds = Rounds::default();
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        rounds.begin(Instant::now(), server.cluster.now());
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
    let (state, clock) = (server.cluster.state(), server.cluster.now());
    let claimers = state.exclusive_prefixes().flat_map(|prefix| state.exclusive_claimers(&prefix, clock));
    let served: BTreeSet<NodeId> =
        claimers.map(|(node, _)| node).filter(|node| is_served(server, *node)).collect();
    let elsewhere: Vec<NodeId> = holders(server).into_iter().filter(|node| !served.contains(node)).collect();
    // With no claimer here there is nothing to grant, but what is known of them has to go.
    let leased = match elsewhere.is_empty() || served.is_empty() {
        true => BTreeSet::new(),
        false => server.cluster.store().holder_leases(&elsewhere).await?.into_keys().collect(),
    };
    let online = server.presence.online();
    let full = state.full_holders(clock);
    let view = View { state: &state, clock, served, online: &online, leased, full };
    let now = Instant::now();
    rounds.begin(now, server.cluster.now());
    let decided = (now, server.cluster.now());
    for wish in rounds.decide(&view, now) {
        match take(server, wish, decided).await {
            Ok(holding) => {
                let Holding { prefix, node, fence, since: _ } = holding;
                metrics::counter!("holdfast_exclusive_grants_total").increment(1);
                tracing::info!(%prefix, %node, fence, "holds the prefix from now on");
                rounds.vacant_since.remove(&prefix);
                rounds.told = None;
            }
            Err(WriteError::Refused(GrantError::Overtaken | GrantError::NodeFull)) => {}
            Err(WriteError::Refused(error @ (GrantError::Full | GrantError::Exhausted))) => {
                if rounds.told.as_ref() != Some(&error) {
                    tracing::warn!(prefix = %wish.prefix, %error, "nobody holds the prefix");
                }
                rounds.told = Some(error);
                rounds.refused_until.insert(wish.prefix, Instant::now() + REFUSED_DELAY);
            }
            Err(WriteError::Database(error) | WriteError::Unknown(error)) => return Err(error),
        }
    }
    Ok(())
}

async fn take(
    server: &Server,
    wish: Wish,
    (decided_at, clock): (Instant, UnixTime),
) -> Result<Holding, WriteError<GrantError>> {
    let Wish { prefix, from, to, is_forced } = wish;
    // What can be seen without the log's lock is.
    grant(&server.cluster.state(), prefix, (from, to), clock).map_err(WriteError::Refused)?;
    let must_be_over = from.filter(|_| !is_forced).map(|holding| holding.node);
    let take = TakeOver { from: must_be_over, to, ttl: LEASE };
    let written = server.cluster.write_take_over(Actor::Server(server.id), take, |state, now, is_free| {
        let waited = decided_at.elapsed();
        // The lease may be over only because nobody could renew it meanwhile.
        let is_late = waited > LARGEST_GAP || is_ahead(now, (clock, waited));
        match is_free && !(is_late && must_be_over.is_some()) {
            true => grant(state, prefix, (from, to), now),
            false => Err(GrantError::Overtaken),
        }
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
