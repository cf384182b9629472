//! How many connections there may be: in all, without a session, and from one source. Whoever is turned away costs nothing; whoever is let in
//! holds a `Pass`. A source is generous, since whole companies sit behind one address; behind a load balancer all do, so that what
//! comes from one of its addresses is not counted per source.

use crate::limit::{Buckets, Rate, Source};
use ipnet::IpNet;
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Semaphore, time::Instant};

/// Connections, where `--max-connections` does not say otherwise; at most what descriptors there are.
pub(crate) const MAX_CONNECTIONS: usize = 65_536;
/// Descriptors for the database, the log, the admin port and whatever else.
const RESERVED_DESCRIPTORS: usize = 256;
/// Connections without a welcomed session, handshakes included.
const MAX_NEWCOMERS: usize = 16_384;
/// .. from one source: a company whose agents all come back at once.
const MAX_SOURCE_NEWCOMERS: usize = 4096;
/// One source may hold so much of all connections.
const SOURCE_SHARE: usize = 2;
/// Enrolments under way; each may wait for the database.
const MAX_ENROLMENTS: usize = 4096;
/// Enrolments that failed, per source: each costs a key agreement, and may cost a look at the database.
const SOURCE_FAILURES: Rate = Rate { burst: 100, per_second: 1.0 };
/// .. and in all, whatever the source.
const ALL_FAILURES: Rate = Rate { burst: 2000, per_second: 50.0 };
const SOURCES_KEPT: usize = 8192;
/// A proxy that breaks TLS is named in the log so often.
const PROXY_TOLD: Rate = Rate { burst: 1, per_second: 1.0 / 600.0 };
/// So many sessions from one address, and it is a NAT's or a balancer's, not a node's own.
const SHARED_ADDRESS: usize = 16;

/// What stands before this server, and how much it takes in.
#[derive(Debug, Clone)]
pub struct Limits {
    pub max_connections: usize,
    /// Load balancers in front of this server.
    pub proxies: Vec<IpNet>,
    pub patience: Patience,
}

/// How long is waited for who is let in.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// From the handshake until a connection has asked for anything at all.
    pub first_call: Duration,
    /// An agent that takes longer over its map does not read it.
    pub fetch: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { first_call: Duration::from_secs(10), fetch: Duration::from_secs(120) }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_connections: MAX_CONNECTIONS, proxies: Vec::new(), patience: Patience::default() }
    }
}

/// Counts connections, and lets in or not.
pub(crate) struct Gate {
    limits: Limits,
    /// A place for each enrolment that is being decided or written.
    pub(crate) enrolments: Semaphore,
    counts: Mutex<Counts>,
    failures: Mutex<Failures>,
}

#[derive(Default)]
struct Counts {
    all: Count,
    sources: BTreeMap<Source, Count>,
}

#[derive(Default, Clone, Copy)]
struct Count {
    connections: usize,
    newcomers: usize,
}

struct Failures {
    sources: Buckets<Source>,
    all: Buckets<()>,
    proxies_told: Buckets<Source>,
}

/// Why a connection is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    Connections,
    Newcomers,
    Source,
    SourceNewcomers,
}

/// The right of one connection to be there; given back when dropped.
pub(crate) struct Pass {
    gate: Arc<Gate>,
    source: Source,
    is_newcomer: Mutex<bool>,
}

impl Full {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Newcomers => "newcomers",
            Self::Source => "source",
            Self::SourceNewcomers => "source-newcomers",
        }
    }
}

impl Gate {
    /// `descriptors`: how many files this process may have open.
    pub(crate) fn new(limits: Limits, descriptors: Option<usize>) -> Arc<Self> {
        let most =
            descriptors.map_or(usize::MAX, |all| all.saturating_sub(RESERVED_DESCRIPTORS).max(all / 2));
        if most < limits.max_connections {
            tracing::info!(max_connections = most, "the limit of open files bounds the connections");
        }
        let now = Instant::now();
        Arc::new(Self {
            limits: Limits { max_connections: limits.max_connections.min(most), ..limits },
            enrolments: Semaphore::new(MAX_ENROLMENTS),
            counts: Mutex::default(),
            failures: Mutex::new(Failures {
                sources: Buckets::new(SOURCE_FAILURES, SOURCES_KEPT, now),
                all: Buckets::new(ALL_FAILURES, 1, now),
                proxies_told: Buckets::new(PROXY_TOLD, 64, now),
            }),
        })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn patience(&self) -> Patience {
        self.limits.patience
    }

    /// Whether the address is a load balancer's.
    pub(crate) fn is_proxy(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.limits.proxies.iter().any(|prefix| prefix.contains(&ip))
    }

    /// Whether what comes from the address may be told of a single node: it is no balancer's, and not that of many.
    pub(crate) fn is_own_address(&self, ip: IpAddr) -> bool {
        let count = self.counts().sources.get(&ip.into()).map_or(0, |count| count.connections);
        // Many in one /64 of IPv6 have an address each.
        !self.is_proxy(ip) && (count <= SHARED_ADDRESS || ip.to_canonical().is_ipv6())
    }

    /// Lets a connection in.
    ///
    /// # Errors
    /// [`Full`]
    pub(crate) fn admit(self: &Arc<Self>, ip: IpAddr) -> Result<Pass, Full> {
        let most = self.limits.max_connections;
        let source = Source::from(ip);
        let mut counts = self.counts();
        let mine = counts.sources.get(&source).copied().unwrap_or_default();
        if counts.all.connections >= most {
            return Err(Full::Connections);
        }
        if counts.all.newcomers >= MAX_NEWCOMERS {
            return Err(Full::Newcomers);
        }
        if !self.is_proxy(ip) {
            if mine.connections >= most.div_ceil(SOURCE_SHARE) {
                return Err(Full::Source);
            }
            if mine.newcomers >= MAX_SOURCE_NEWCOMERS {
                return Err(Full::SourceNewcomers);
            }
        }
        counts.all.enter();
        counts.sources.entry(source).or_default().enter();
        Ok(Pass { gate: self.clone(), source, is_newcomer: Mutex::new(true) })
    }

    /// Whether the log may name `ip` as a proxy that terminates TLS, again.
    pub(crate) fn may_tell_of_proxy(&self, ip: IpAddr) -> bool {
        self.failures().proxies_told.take(&ip.into(), Instant::now()).is_ok()
    }

    /// (connections, those without a session)
    pub(crate) fn load(&self) -> (usize, usize) {
        let all = self.counts().all;
        (all.connections, all.newcomers)
    }

    /// Whether an enrolment from `ip` may be tried.
    ///
    /// # Errors
    /// Too many failed; when to come again.
    pub(crate) fn may_enrol(&self, ip: IpAddr) -> Result<(), Duration> {
        let now = Instant::now();
        let mut failures = self.failures();
        failures.all.peek(&(), now)?;
        if self.is_proxy(ip) { Ok(()) } else { failures.sources.peek(&ip.into(), now) }
    }

    /// An enrolment from `ip` was refused.
    pub(crate) fn enrolment_failed(&self, ip: IpAddr) {
        let now = Instant::now();
        let mut failures = self.failures();
        // An empty bucket stays empty.
        let _empty = failures.all.take(&(), now);
        let _empty = failures.sources.take(&ip.into(), now);
    }
}

impl Count {
    fn enter(&mut self) {
        self.connections += 1;
        self.newcomers += 1;
    }
}

impl Pass {
    pub(crate) fn patience(&self) -> Patience {
        self.gate.patience()
    }

    /// The connection has a session now.
    pub(crate) fn welcomed(&self) {
        let mut is_newcomer = self.is_newcomer.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut *is_newcomer) {
            self.gate.counts().change(self.source, |count| count.newcomers -= 1);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.welcomed();
        self.gate.counts().change(self.source, |count| count.connections -= 1);
    }
}

impl Counts {
    fn change(&mut self, source: Source, step: impl Fn(&mut Count)) {
        step(&mut self.all);
        if let Some(count) = self.sources.get_mut(&source) {
            step(count);
            if count.connections == 0 {
                self.sources.remove(&source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(max_connections: usize) -> Arc<Gate> {
        let proxies = vec!["203.0.113.0/24".parse().unwrap()];
        Gate::new(Limits { max_connections, proxies, ..Limits::default() }, None)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn one_source_cannot_take_all_and_a_balancer_can() {
        let gate = gate(10);
        let mine: Vec<Pass> = (0..5).map(|_| gate.admit(ip("2001:db8::1")).unwrap()).collect();
        assert_eq!(gate.admit(ip("2001:db8::2")).err(), Some(Full::Source));
        let others: Vec<Pass> = (0..5).map(|_| gate.admit(ip("203.0.113.9")).unwrap()).collect();
        assert_eq!(gate.admit(ip("203.0.113.9")).err(), Some(Full::Connections));
        drop(mine);
        assert_eq!(gate.load(), (5, 5));
        others[0].welcomed();
        others[0].welcomed();
        assert_eq!(gate.load(), (5, 4));
        assert!((0..5).all(|_| gate.admit(ip("203.0.113.9")).is_ok()));
        drop(others);
        assert_eq!(gate.load(), (0, 0));
        assert!(gate.counts().sources.is_empty());
    }

    #[tokio::test]
    async fn newcomers_are_bounded_per_source() {
        let gate = gate(usize::MAX);
        let held: Vec<Pass> =
            (0..MAX_SOURCE_NEWCOMERS).map(|_| gate.admit(ip("192.0.2.1")).unwrap()).collect();
        assert_eq!(gate.admit(ip("192.0.2.1")).err(), Some(Full::SourceNewcomers));
        assert!(gate.admit(ip("192.0.2.2")).is_ok());
        held[0].welcomed();
        assert!(gate.admit(ip("192.0.2.1")).is_ok());
    }

    #[tokio::test]
    async fn descriptors_bound_connections_with_some_in_reserve() {
        let bounded = Gate::new(Limits::default(), Some(1024));
        assert_eq!(bounded.limits.max_connections, 1024 - RESERVED_DESCRIPTORS);
        assert_eq!(Gate::new(Limits::default(), Some(64)).limits.max_connections, 32);
    }

    #[tokio::test]
    async fn who_fails_to_enrol_too_often_waits_and_others_do_not() {
        let gate = gate(10);
        for _ in 0..SOURCE_FAILURES.burst {
            assert_eq!(gate.may_enrol(ip("192.0.2.1")), Ok(()));
            gate.enrolment_failed(ip("192.0.2.1"));
        }
        assert!(gate.may_enrol(ip("192.0.2.1")).is_err());
        assert_eq!(gate.may_enrol(ip("192.0.2.2")), Ok(()));
        for host in 0..ALL_FAILURES.burst {
            gate.enrolment_failed(IpAddr::V4((host << 8).into()));
        }
        assert!(gate.may_enrol(ip("192.0.2.2")).is_err(), "the bound for all sources together");
    }

    #[tokio::test]
    async fn an_address_of_many_or_of_a_balancer_is_nobodys_own() {
        let gate = gate(1000);
        let _held: Vec<Pass> =
            (0..=SHARED_ADDRESS).map(|_| gate.admit(ip("198.51.100.1")).unwrap()).collect();
        assert!(!gate.is_own_address(ip("198.51.100.1")));
        assert!(!gate.is_own_address(ip("203.0.113.1")));
        assert!(gate.is_own_address(ip("198.51.100.2")));
    }
}
