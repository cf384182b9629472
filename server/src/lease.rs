//! The lease by which this server counts as living, and the list of the servers that live, by the database's clock.
//!
//! A server's end counts only while this server could have seen it renew: after an outage of the database the leases of all have
//! lapsed, and whoever is first back must not declare the others dead.

mod contest;

use crate::{
    clock::machine_ms,
    metrics::database_error,
    serve::Server,
    settings::{Shared, differences},
    store::{Hint, Incarnation, LeaseAnswer, LiveServer, ServerRow, StoreError},
};
use anyhow::bail;
use arc_swap::ArcSwap;
use contest::Contest;
use proto::{
    server_url::ServerUrl,
    session::{ServerId, ServerList},
};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::broadcast::error::RecvError,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

/// How often a lease that another incarnation holds is looked at.
const CONTEST_INTERVAL: Duration = Duration::from_millis(250);
/// How long agents have to leave a server that lost its id to another.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The servers that live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LiveServers {
    pub(crate) ids: BTreeSet<ServerId>,
    /// Every address of every one, this server's first.
    pub(crate) urls: Vec<ServerUrl>,
}

impl LiveServers {
    /// As agents are told.
    pub(crate) fn told(&self) -> ServerList {
        ServerList { urls: self.urls.clone(), ids: self.ids.iter().copied().collect() }
    }
}

/// This server's row, and the others as last seen.
pub(crate) struct Servers {
    pub(crate) me: ServerRow,
    live: ArcSwap<LiveServers>,
    /// The runs of this server before this one of which it is certain that they are over.
    predecessors: OnceLock<Vec<Incarnation>>,
    /// Another server has this one's id: what is to be told of that.
    conflict: OnceLock<String>,
    /// Before the call that renewed the lease.
    renewed_at: Mutex<Option<Instant>>,
    /// What this server and others were told differently.
    differing: Mutex<Vec<String>>,
}

impl Servers {
    pub(crate) fn new(me: ServerRow) -> Self {
        let live = LiveServers { ids: [me.id].into(), urls: me.urls.clone() };
        Self {
            me,
            live: ArcSwap::from_pointee(live),
            predecessors: OnceLock::new(),
            conflict: OnceLock::new(),
            renewed_at: Mutex::default(),
            differing: Mutex::default(),
        }
    }

    pub(crate) fn current(&self) -> Arc<LiveServers> {
        self.live.load_full()
    }

    pub(crate) fn conflict(&self) -> Option<&str> {
        self.conflict.get().map(String::as_str)
    }

    fn is_over(&self, run: Incarnation) -> bool {
        self.predecessors.get().is_some_and(|runs| runs.contains(&run))
    }

    fn handle_renewed(&self, asked_at: Instant) {
        *self.renewed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(asked_at);
    }

    /// How long ago the lease was renewed. `None`: never.
    pub(crate) fn lease_age(&self) -> Option<Duration> {
        let renewed_at = self.renewed_at.lock().unwrap_or_else(PoisonError::into_inner);
        renewed_at.map(|at| at.elapsed())
    }

    pub(crate) fn differing(&self) -> Vec<String> {
        self.differing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Compares what the others were told with `mine`; says so where that is news.
    fn handle_settings(&self, list: &[LiveServer], mine: Shared) {
        let others = list.iter().filter(|live| live.server.id != self.me.id);
        let others = others.filter_map(|live| Some((live.server.name.clone(), live.server.report.settings?)));
        let all: Vec<_> = others.chain([(self.me.name.clone(), mine)]).collect();
        let found = differences(&all);
        let mut differing = self.differing.lock().unwrap_or_else(PoisonError::into_inner);
        if *differing == found {
            return;
        }
        match found.is_empty() {
            true => tracing::info!("all servers have the same settings again"),
            false => tracing::warn!(
                options = found.join(" | "),
                "servers of this cluster have different settings; give all the same"
            ),
        }
        *differing = found;
    }

    pub(crate) fn urls(&self) -> Vec<ServerUrl> {
        self.live.load().urls.clone()
    }

    /// Takes the list over; returns whether it is new. `may_miss`: servers that it lacks are kept.
    fn handle_list(&self, list: &[LiveServer], may_miss: bool) -> bool {
        let before = self.current();
        let mut ids: BTreeSet<_> = list.iter().map(|live| live.server.id).chain([self.me.id]).collect();
        let mut urls = self.me.urls.clone();
        let others = list.iter().filter(|live| live.server.id != self.me.id);
        urls.extend(others.flat_map(|live| live.server.urls.iter().cloned()));
        if may_miss {
            ids.extend(&before.ids);
            urls.extend(before.urls.iter().cloned());
        }
        let mut seen = BTreeSet::new();
        urls.retain(|url| seen.insert(url.clone()));
        let live = LiveServers { ids, urls };
        let is_new = live != *before;
        if is_new {
            self.live.store(Arc::new(live));
        }
        is_new
    }
}

/// Renews the lease and follows the others', for ever; ends where another server has this one's id.
pub(crate) async fn keep(server: Arc<Server>) {
    let lease = server.settings.lease;
    let mut hints = server.cluster.store().wake();
    let mut renewals = interval(server.settings.renewal_interval());
    renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut continuity, mut contest) = (Continuity::new(lease), Contest::default());
    loop {
        tokio::select! {
            _ = renewals.tick() => {
                let renewed = renew(&server).await;
                continuity.handle_renewal(matches!(renewed, Ok(LeaseAnswer::Held { .. })), Instant::now());
                match renewed {
                    // Those who held a seat here have to be known again.
                    Ok(LeaseAnswer::Held { begins_period: true, .. }) => server.presence.refresh(),
                    Ok(LeaseAnswer::Held { .. }) => {}
                    Ok(LeaseAnswer::Taken(other)) => {
                        let had_it = continuity.has_begun();
                        if had_it || contest.handle_taken(&other, Instant::now()) {
                            return give_way(&server, &other).await;
                        }
                        continue;
                    }
                    Err(error) => {
                        database_error("renew-lease");
                        tracing::debug!(%error, "the lease was not renewed");
                        continue;
                    }
                }
                server.jobs.handle_settled(continuity.is_steady(Instant::now()));
            }
            hint = hints.recv() => match hint {
                Ok(Hint::Leases | Hint::Anything) | Err(RecvError::Lagged(_)) => {}
                Ok(Hint::Log | Hint::Presence | Hint::Signals(_)) => continue,
                Err(RecvError::Closed) => return,
            },
        }
        read_list(&server, !continuity.is_settled(Instant::now())).await;
    }
}

/// Takes the lease for the first time, and learns who else lives. Where the database is away, it is taken later.
///
/// # Errors
/// Another server with this one's id lives.
pub(crate) async fn begin(server: &Server, predecessors: Vec<Incarnation>) -> anyhow::Result<()> {
    // Told once.
    server.servers.predecessors.set(predecessors).ok();
    let mut contest = Contest::default();
    loop {
        match renew(server).await {
            Ok(LeaseAnswer::Held { .. }) => break,
            Ok(LeaseAnswer::Taken(other)) => {
                if contest.is_new() {
                    let remaining = other.lease_remaining;
                    tracing::info!(
                        ?remaining,
                        "another run of this server holds its lease; waiting for its end"
                    );
                }
                if contest.handle_taken(&other, Instant::now()) {
                    bail!(contest::verdict(&server.servers.me, &other.server));
                }
                sleep(CONTEST_INTERVAL).await;
            }
            Err(error) => {
                database_error("renew-lease");
                tracing::debug!(%error, "the lease is taken later");
                break;
            }
        }
    }
    read_list(server, false).await;
    Ok(())
}

/// Renews once, where need be after taking over what a run before had, and hears the database's clock.
async fn renew(server: &Server) -> Result<LeaseAnswer, StoreError> {
    let clock = server.cluster.clock();
    let me = ServerRow {
        clock_ahead_ms: clock.machine_ahead_ms(),
        report: server.report(),
        ..server.servers.me.clone()
    };
    let store = server.cluster.store();
    let asked_at = Instant::now();
    // A renewal that comes too late is none; the next one must not wait for it.
    let renewal = async {
        let answer = store.renew_lease(&me, server.settings.lease).await?;
        match &answer {
            LeaseAnswer::Taken(other) if server.servers.is_over(other.server.incarnation) => {
                store.inherit_lease(&me, other.server.incarnation).await?;
                store.renew_lease(&me, server.settings.lease).await
            }
            LeaseAnswer::Taken(_) | LeaseAnswer::Held { .. } => Ok(answer),
        }
    };
    let late = |_| Err(StoreError::unavailable(store.location(), "it did not answer in time"));
    let answer = timeout(server.settings.lease / 2, renewal).await.unwrap_or_else(late)?;
    if matches!(answer, LeaseAnswer::Held { .. }) {
        server.servers.handle_renewed(asked_at);
    }
    if let LeaseAnswer::Held { now_ms, .. } = answer
        && let Some(ahead_ms) = clock.handle_reading(now_ms, asked_at, machine_ms())
    {
        match clock.is_skewed() {
            true => tracing::warn!(
                ahead_s = ahead_ms as f64 / 1000.0,
                "this machine's clock is not the database's; the database's is used. Set the machine's clock"
            ),
            false => tracing::info!("this machine's clock agrees with the database's again"),
        }
    }
    Ok(answer)
}

/// Serves nobody any more: whoever has the lease does.
async fn give_way(server: &Server, other: &LiveServer) {
    let verdict = contest::verdict(&server.servers.me, &other.server);
    tracing::error!("{verdict}");
    // Told once.
    server.servers.conflict.set(verdict).ok();
    server.hub.drain();
    let mut connected = server.hub.connected();
    timeout(LEAVE_TIMEOUT, connected.wait_for(|count| *count == 0)).await.ok();
}

async fn read_list(server: &Server, may_miss: bool) {
    match server.cluster.store().live_servers().await {
        Ok(list) => {
            server.servers.handle_settings(&list, server.settings.shared());
            if server.servers.handle_list(&list, may_miss) {
                server.presence.handle_live(server.servers.current().ids.clone());
                server.hub.wake_all();
            }
        }
        Err(error) => {
            database_error("live-servers");
            tracing::debug!(%error, "the list of servers cannot be read");
        }
    }
}

/// Since when the database has been answering without a gap that could have cost others their lease.
#[derive(Debug)]
struct Continuity {
    lease: Duration,
    began_at: Option<Instant>,
    last_at: Option<Instant>,
    had_gap: bool,
}

impl Continuity {
    fn new(lease: Duration) -> Self {
        Self { lease, began_at: None, last_at: None, had_gap: false }
    }

    fn has_begun(&self) -> bool {
        self.began_at.is_some()
    }

    /// Whether this server and all others have had the time to say who is there.
    fn is_steady(&self, now: Instant) -> bool {
        self.began_at.is_some_and(|began| now.duration_since(began) >= self.lease)
    }

    fn handle_renewal(&mut self, is_ok: bool, now: Instant) {
        if !is_ok {
            return;
        }
        let gap = self.last_at.is_some_and(|last| now.duration_since(last) > self.lease / 2);
        if gap || self.began_at.is_none() {
            self.had_gap |= gap;
            self.began_at = Some(now);
        }
        self.last_at = Some(now);
    }

    /// Whether whoever is missing had the time to renew.
    fn is_settled(&self, now: Instant) -> bool {
        !self.had_gap || self.is_steady(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{settings::Settings, store::ServerReport};

    const LEASE: Duration = Duration::from_secs(10);

    pub(super) fn row(id: u8, url: &str) -> ServerRow {
        ServerRow {
            id: ServerId([id; 16]),
            incarnation: Incarnation([1; 16]),
            name: id.to_string(),
            host: String::new(),
            urls: vec![url.parse().unwrap()],
            version: String::new(),
            clock_ahead_ms: 0,
            report: ServerReport::default(),
        }
    }

    fn live(rows: &[ServerRow]) -> Vec<LiveServer> {
        rows.iter().map(|row| LiveServer { server: row.clone(), lease_remaining: LEASE }).collect()
    }

    #[test]
    fn after_an_outage_the_others_have_time_to_come_back() {
        let (mut continuity, start) = (Continuity::new(LEASE), Instant::now());
        continuity.handle_renewal(true, start);
        assert!(continuity.is_settled(start));
        continuity.handle_renewal(false, start + Duration::from_secs(2));
        let back = start + Duration::from_secs(60);
        continuity.handle_renewal(true, back);
        assert!(!continuity.is_settled(back));
        for seconds in (2..=10).step_by(2) {
            continuity.handle_renewal(true, back + Duration::from_secs(seconds));
        }
        assert!(continuity.is_settled(back + LEASE));
    }

    #[test]
    fn a_setting_that_another_server_was_told_differently_is_known_while_it_lives() {
        let (servers, mine) = (Servers::new(row(1, "a:1")), Settings::default());
        let told = |settings: &Settings| {
            let report = ServerReport { settings: Some(settings.shared()), health: None };
            live(&[row(1, "a:1"), ServerRow { report, ..row(2, "b:2") }, row(3, "c:3")])
        };
        servers.handle_settings(&told(&mine), mine.shared());
        assert!(servers.differing().is_empty());
        let other = Settings { max_nodes: Some(9), ..mine };
        servers.handle_settings(&told(&other), mine.shared());
        assert_eq!(servers.differing(), ["--max-nodes: 9 on 2; not set on 1"]);
        servers.handle_settings(&live(&[]), mine.shared());
        assert!(servers.differing().is_empty());
    }

    #[test]
    fn the_list_begins_with_this_server_and_names_each_address_once() {
        let (me, other) = (row(1, "a:1"), row(2, "b:2"));
        let servers = Servers::new(me.clone());
        assert!(servers.handle_list(&live(&[other.clone(), me.clone(), row(3, "b:2")]), false));
        let urls: Vec<_> = servers.urls().iter().map(ToString::to_string).collect();
        assert_eq!(urls, ["a:1", "b:2"]);
        assert!(!servers.handle_list(&live(std::slice::from_ref(&me)), true), "who is missing may come back");
        assert_eq!(servers.current().ids.len(), 3);
        assert!(servers.handle_list(&live(&[me]), false));
        assert_eq!(servers.current().ids.len(), 1);
    }
}
