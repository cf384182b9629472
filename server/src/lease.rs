//! The lease by which this server counts as living, and the list of the servers that live, by the database's clock.
//!
//! A server's end counts only while this server could have seen it renew: after an outage of the database the leases of all have
//! lapsed, and whoever is first back must not declare the others dead.

use crate::{
    metrics::database_error,
    serve::Server,
    store::{Hint, LiveServer, ServerRow},
};
use arc_swap::ArcSwap;
use proto::{server_url::ServerUrl, session::ServerId};
use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::broadcast::error::RecvError,
    time::{MissedTickBehavior, interval},
};

const RENEWAL_INTERVAL: Duration = Duration::from_secs(2);
pub(crate) const LEASE_TTL: Duration = Duration::from_secs(10);

/// The servers that live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LiveServers {
    pub(crate) ids: BTreeSet<ServerId>,
    /// Every address of every one, this server's first.
    pub(crate) urls: Vec<ServerUrl>,
}

/// This server's row, and the others as last seen.
pub(crate) struct Servers {
    me: ServerRow,
    live: ArcSwap<LiveServers>,
}

impl Servers {
    pub(crate) fn new(me: ServerRow) -> Self {
        let live = LiveServers { ids: [me.id].into(), urls: me.urls.clone() };
        Self { me, live: ArcSwap::from_pointee(live) }
    }

    pub(crate) fn current(&self) -> Arc<LiveServers> {
        self.live.load_full()
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

/// Renews the lease and follows the others', for ever.
pub(crate) async fn keep(server: Arc<Server>) {
    let mut hints = server.cluster.store().wake();
    let mut renewals = interval(RENEWAL_INTERVAL);
    renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut continuity = Continuity::default();
    loop {
        tokio::select! {
            _ = renewals.tick() => {
                let renewed = server.cluster.store().renew_lease(&server.servers.me, LEASE_TTL).await;
                continuity.handle_renewal(renewed.is_ok(), Instant::now());
                if let Err(error) = renewed {
                    database_error("renew-lease");
                    tracing::debug!(%error, "the lease was not renewed");
                    continue;
                }
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

/// Takes the lease for the first time, and learns who else lives.
pub(crate) async fn begin(server: &Server) {
    if let Err(error) = server.cluster.store().renew_lease(&server.servers.me, LEASE_TTL).await {
        database_error("renew-lease");
        tracing::debug!(%error, "the lease is taken later");
    }
    read_list(server, false).await;
}

async fn read_list(server: &Server, may_miss: bool) {
    match server.cluster.store().live_servers().await {
        Ok(list) => {
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
#[derive(Debug, Default)]
struct Continuity {
    began_at: Option<Instant>,
    last_at: Option<Instant>,
    had_gap: bool,
}

impl Continuity {
    fn handle_renewal(&mut self, is_ok: bool, now: Instant) {
        if !is_ok {
            return;
        }
        let gap = self.last_at.is_some_and(|last| now.duration_since(last) > LEASE_TTL / 2);
        if gap || self.began_at.is_none() {
            self.had_gap |= gap;
            self.began_at = Some(now);
        }
        self.last_at = Some(now);
    }

    /// Whether whoever is missing had the time to renew.
    fn is_settled(&self, now: Instant) -> bool {
        !self.had_gap || self.began_at.is_some_and(|began| now.duration_since(began) >= LEASE_TTL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: u8, url: &str) -> ServerRow {
        ServerRow {
            id: ServerId([id; 16]),
            name: id.to_string(),
            urls: vec![url.parse().unwrap()],
            version: String::new(),
        }
    }

    fn live(rows: &[ServerRow]) -> Vec<LiveServer> {
        rows.iter().map(|row| LiveServer { server: row.clone(), lease_remaining: LEASE_TTL }).collect()
    }

    #[test]
    fn after_an_outage_the_others_have_time_to_come_back() {
        let (mut continuity, start) = (Continuity::default(), Instant::now());
        continuity.handle_renewal(true, start);
        assert!(continuity.is_settled(start));
        continuity.handle_renewal(false, start + Duration::from_secs(2));
        let back = start + Duration::from_secs(60);
        continuity.handle_renewal(true, back);
        assert!(!continuity.is_settled(back));
        for seconds in (2..=10).step_by(2) {
            continuity.handle_renewal(true, back + Duration::from_secs(seconds));
        }
        assert!(continuity.is_settled(back + LEASE_TTL));
    }

    #[test]
    fn the_list_begins_with_this_server_and_names_each_address_once() {
        let (me, other) = (row(1, "a:1"), row(2, "b:2"));
        let servers = Servers::new(me.clone());
        assert!(servers.handle_list(&live(&[other.clone(), me.clone(), row(3, "b:2")]), false));
        let urls: Vec<_> = servers.urls().iter().map(ToString::to_string).collect();
        assert_eq!(urls, ["a:1", "b:2"]);
        assert!(
            !servers.handle_list(&live(std::slice::from_ref(&me)), true) || servers.current().ids.len() == 3
        );
        assert!(servers.handle_list(&live(&[me]), false));
        assert_eq!(servers.current().ids.len(), 1);
    }
}
