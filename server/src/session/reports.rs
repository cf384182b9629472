//! What nodes say of themselves (facts, endpoints, the address they are seen at), on its way to the database: only what is new, many nodes
//! in one change, never in a session's way. While the database is away the newest report of each node waits. The renewal of
//! certificates goes along, and their reissue when their lifetime is changed.

use crate::{
    cluster::{Actor, Entity, Node, Op, Settings, State, confirm, observe, renew},
    follow::WriteError,
    limit::{Buckets, Rate},
    metrics::database_error,
    serve::Server,
};
use proto::{map::MAX_ENDPOINTS, root::Fingerprint, session::Facts, statement::NodeId, time::UnixTime};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};

/// Reports gather for so long before they are written.
const GATHERING: Duration = Duration::from_millis(50);
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// So many nodes in one change at most.
const BATCH: usize = 500;
/// Changes of one node that are written: every server applies each, and the log keeps only so many. Of what comes faster, the newest is written.
const CHANGES: Rate = Rate { burst: 10, per_second: 0.2 };
const CHANGERS_KEPT: usize = 4096;
/// How often it is looked whether certificates are to be looked at.
const RENEWAL_TICK: Duration = Duration::from_secs(1);
/// Certificates are looked at so often at least ..
const RENEWAL_INTERVAL: Duration = Duration::from_secs(600);
/// .. and so many times in the span after which they are due.
const LOOKS_PER_RENEWAL: u32 = 4;
/// When the database did not take them.
const RETRY_RENEWAL: Duration = Duration::from_secs(5);
/// Between two changes that reissue certificates: each goes to everybody.
const REISSUE_PAUSE: Duration = Duration::from_millis(200);
/// Addresses at which servers saw a node, kept beside those that it tells.
const OBSERVED_KEPT: usize = 2;

/// What is known of one node, as of now.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    facts: Facts,
    endpoints: Vec<SocketAddr>,
    /// Where a server sees it; with its WireGuard port a guess that is often right.
    observed: Option<SocketAddr>,
    /// The newest root that the agent keeps.
    root: Option<Fingerprint>,
}

/// Reports that wait to be written.
pub(crate) struct Reports {
    waiting: Mutex<BTreeMap<NodeId, Report>>,
    changes: Mutex<Buckets<NodeId>>,
    work: Notify,
}

impl Report {
    /// What no peer could use, or should be made to send to, is left out of what is told.
    pub(super) fn new(facts: Facts, mut endpoints: Vec<SocketAddr>, seen_at: Option<IpAddr>) -> Self {
        endpoints.retain(|addr| addr.port() != 0 && may_be_reached(addr.ip()));
        let observed = endpoints.first().zip(seen_at).map(|(told, ip)| SocketAddr::new(ip, told.port()));
        Self { facts, endpoints, observed: observed.filter(|addr| may_be_reached(addr.ip())), root: None }
    }

    /// With the newest root that the agent says it keeps.
    pub(super) fn with_root(self, root: Option<Fingerprint>) -> Self {
        Self { root, ..self }
    }

    pub(super) fn root(&self) -> Option<Fingerprint> {
        self.root
    }

    /// The endpoints that the node's row should have: those told, then those observed. Two servers may see a node at two addresses: both stay,
    /// so that a failover changes no map.
    fn endpoints(&self, node: &Node, state: &State) -> Vec<SocketAddr> {
        let overlay = [state.network.overlay_v4, state.network.overlay_v6];
        let outside = |addr: &SocketAddr| !overlay.iter().any(|prefix| prefix.contains(&addr.ip()));
        let told: Vec<SocketAddr> = self.endpoints.iter().copied().filter(outside).collect();
        let before = node.endpoints.strip_prefix(told.as_slice()).unwrap_or_default();
        let observed = self.observed.filter(outside);
        let observed = observed.filter(|addr| !told.contains(addr) && !before.contains(addr));
        let kept =
            before.iter().copied().take(if observed.is_some() { OBSERVED_KEPT - 1 } else { OBSERVED_KEPT });
        told.iter().copied().chain(observed).chain(kept).take(MAX_ENDPOINTS).collect()
    }

    /// What it changes in the node's row, renewal included.
    fn op(&self, state: &State, node: &Node, now: UnixTime) -> Option<Op> {
        let confirmed = self.root.and_then(|root| confirm(state, node, root));
        let node = confirmed.as_ref().unwrap_or(node);
        let observed = observe(node, now, Some(&self.facts), Some(&self.endpoints(node, state)));
        let Some(Op::Put(Entity::Node(changed))) = &observed else {
            return renew(state, node, now).or(confirmed.map(Op::put_node));
        };
        renew(state, changed, now).or(observed)
    }
}

/// An address that others might reach it at; a node on the server's own machine is seen at the loopback address.
fn may_be_reached(ip: IpAddr) -> bool {
    let is_of_a_link = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || is_of_a_link)
}

impl Reports {
    pub(crate) fn new() -> Self {
        let changes = Buckets::new(CHANGES, CHANGERS_KEPT, Instant::now());
        Self { waiting: Mutex::default(), changes: Mutex::new(changes), work: Notify::new() }
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<NodeId, Report>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a report, if it says anything new.
    pub(super) fn add(&self, server: &Server, node: NodeId, report: &Report) {
        let state = server.cluster.state();
        let Some(row) = state.node(node) else { return };
        // A waiting report may say otherwise than the row: the newest wins.
        if self.waiting().contains_key(&node) || report.op(&state, row, server.cluster.now()).is_some() {
            self.waiting().insert(node, report.clone());
            self.work.notify_one();
        }
    }

    /// Reports that may be written now, and in how long there are more that must wait.
    fn take(&self, now: Instant) -> (BTreeMap<NodeId, Report>, Option<Duration>) {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut batch, mut next) = (BTreeMap::new(), None::<Duration>);
        let mut waiting = self.waiting();
        waiting.retain(|node, report| {
            if batch.len() == BATCH {
                next = Some(Duration::ZERO);
                return true;
            }
            match changes.take(node, now) {
                Ok(()) => drop(batch.insert(*node, report.clone())),
                Err(wait) => {
                    next = Some(next.map_or(wait, |next| next.min(wait)));
                    return true;
                }
            }
            false
        });
        (batch, next)
    }

    fn restore(&self, batch: BTreeMap<NodeId, Report>) {
        let mut waiting = self.waiting();
        for (node, report) in batch {
            waiting.entry(node).or_insert(report);
        }
    }
}

/// Writes what waits, for ever.
pub(crate) async fn write_reports(server: Arc<Server>) {
    let mut renewals = interval(RENEWAL_TICK);
    renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let settings = *server.cluster.state().settings();
    let mut renewed = Renewed { due_at: Instant::now() + renewal_interval(&settings), settings };
    // When there is more to write, whatever is told meanwhile.
    let mut more_at: Option<Instant> = None;
    loop {
        let more = sleep_until(more_at.unwrap_or_else(Instant::now));
        tokio::select! {
            () = server.reports.work.notified() => {}
            () = more, if more_at.is_some() => {}
            _ = renewals.tick() => {
                renew_served(&server, &mut renewed).await;
                continue;
            }
        }
        sleep(GATHERING).await;
        let (batch, next) = server.reports.take(Instant::now());
        let is_written = batch.is_empty() || write(&server, batch).await;
        let wait = if is_written { next } else { Some(RETRY_DELAY) };
        more_at = wait.map(|wait| Instant::now() + wait);
    }
}

async fn write(server: &Server, batch: BTreeMap<NodeId, Report>) -> bool {
    let written = server.cluster.write::<_, Infallible>(Actor::Server(server.id), |state, now| {
        let op = |(node, report): (&NodeId, &Report)| report.op(state, state.node(*node)?, now);
        Ok((batch.iter().filter_map(op).collect(), ()))
    });
    settle(server, written.await, batch)
}

/// Whether it was written. Where the database is away it is kept; what it refused for good is not tried again.
fn settle(
    server: &Server,
    written: Result<(), WriteError<Infallible>>,
    batch: BTreeMap<NodeId, Report>,
) -> bool {
    match written {
        Ok(()) => true,
        Err(error) if error.is_retriable() => {
            database_error("write");
            tracing::debug!(%error, nodes = batch.len(), "what nodes say of themselves waits for the database");
            server.reports.restore(batch);
            false
        }
        Err(error) => {
            tracing::warn!(%error, nodes = batch.len(), "what nodes say of themselves was not written");
            false
        }
    }
}

/// When certificates are to be looked at again, and under which settings they were.
struct Renewed {
    due_at: Instant,
    settings: Settings,
}

fn renewal_interval(settings: &Settings) -> Duration {
    settings.renew_after().map_or(RENEWAL_INTERVAL, |age| (age / LOOKS_PER_RENEWAL).min(RENEWAL_INTERVAL))
}

/// Renews the certificates of the nodes served here, if it is time to look at them.
async fn renew_served(server: &Server, renewed: &mut Renewed) {
    let settings = *server.cluster.state().settings();
    if renewed.settings == settings && Instant::now() < renewed.due_at {
        return;
    }
    *renewed = Renewed { due_at: Instant::now() + renewal_interval(&settings), settings };
    let served: Vec<NodeId> =
        server.hub.all().iter().filter(|slot| slot.is_serving()).map(|slot| slot.node).collect();
    for nodes in served.chunks(BATCH) {
        let written = server.cluster.write::<_, Infallible>(Actor::Server(server.id), |state, now| {
            let op = |node: &NodeId| renew(state, state.node(*node)?, now);
            let ops: Vec<Op> = nodes.iter().filter_map(op).collect();
            let count = ops.len();
            Ok((ops, count))
        });
        match written.await {
            Ok(0) => {}
            Ok(_) => sleep(REISSUE_PAUSE).await,
            Err(error) => {
                tracing::debug!(%error, "certificates are renewed later");
                renewed.due_at = renewed.due_at.min(Instant::now() + RETRY_RENEWAL);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing;

    fn report(node: &Node, told: &[&str], seen_at: &str) -> Report {
        let told = told.iter().map(|text| text.parse().unwrap()).collect();
        Report::new(node.facts.clone(), told, Some(seen_at.parse().unwrap()))
    }

    fn written(state: &mut State, report: &Report) -> Vec<String> {
        let node = state.nodes().next().unwrap().clone();
        testing::apply(state, report.op(state, &node, testing::NOW).into_iter().collect());
        state.node(node.id).unwrap().endpoints.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_address_a_server_sees_is_published_behind_those_told() {
        let (mut state, node) = testing::with_node("a");
        let first = report(&node, &["10.0.0.5:51820"], "198.51.100.7");
        assert_eq!(written(&mut state, &first), ["10.0.0.5:51820", "198.51.100.7:51820"]);
        let other_server = report(&node, &["10.0.0.5:51820"], "2001:db8::7");
        let both = ["10.0.0.5:51820", "[2001:db8::7]:51820", "198.51.100.7:51820"];
        assert_eq!(written(&mut state, &other_server), both);
        assert_eq!(written(&mut state, &first), both, "a failover changes nothing");
        let moved = report(&node, &["10.0.0.6:51820"], "10.0.0.6");
        assert_eq!(written(&mut state, &moved), ["10.0.0.6:51820"], "what was seen before the move is gone");
    }

    #[test]
    fn addresses_that_nobody_else_reaches_are_not_published() {
        let (mut state, node) = testing::with_node("a");
        for seen_at in ["127.0.0.1", "::1", "169.254.1.1", "fe80::1", "100.64.0.9"] {
            assert_eq!(
                written(&mut state, &report(&node, &["10.0.0.5:1"], seen_at)),
                ["10.0.0.5:1"],
                "{seen_at}"
            );
        }
    }

    #[test]
    fn what_is_told_of_places_where_no_peer_is_is_left_out() {
        let (mut state, node) = testing::with_node("a");
        let told =
            ["127.0.0.1:53", "224.0.0.1:1", "255.255.255.255:1", "[ff02::1]:1", "0.0.0.0:1", "10.0.0.5:0"];
        let told = [&told[..], &["100.64.0.9:1", "10.0.0.5:1"]].concat();
        assert_eq!(written(&mut state, &report(&node, &told, "127.0.0.1")), ["10.0.0.5:1"]);
    }

    #[test]
    fn of_a_flood_of_changes_few_are_taken_and_the_newest_wins() {
        let (_, node) = testing::with_node("a");
        let (reports, start) = (Reports::new(), Instant::now());
        let mut taken = 0;
        for port in 1..1000 {
            let told = format!("10.0.0.5:{port}");
            reports.waiting().insert(node.id, report(&node, &[&told], "127.0.0.1"));
            taken += reports.take(start).0.len();
        }
        assert_eq!(taken, CHANGES.burst as usize);
        let (_, next) = reports.take(start);
        let (last, next) = reports.take(start + next.unwrap());
        assert_eq!(last[&node.id].endpoints[0].port(), 999);
        assert_eq!(next, None);
    }

    #[test]
    fn a_report_renews_a_certificate_that_is_due_in_the_same_change() {
        let (state, node) = testing::with_node("a");
        let later = testing::NOW.saturating_add(Duration::from_secs(24 * 3600));
        let op = report(&node, &["10.0.0.5:1"], "127.0.0.1").op(&state, &node, later);
        let Some(Op::Put(Entity::Node(changed))) = op else { panic!("{op:?}") };
        assert_eq!((changed.issued_at, changed.endpoints.len()), (later, 1));
    }
}
