//! What is wrong with a server, and since when. Every server says the same of the same state: the faults are facts about the database as this server
//! sees it, and none of them stops what agents need from memory.

use crate::{
    serve::Server,
    store::{Degraded, HealthReport, ServerReport},
};
use proto::time::UnixTime;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::{MissedTickBehavior, interval};

const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// A look at the log that takes longer is slow, until it takes half of it again.
const SLOW_ABOVE: Duration = Duration::from_millis(250);
/// As agents judge it, from the age that heartbeats carry.
const BEHIND_ABOVE: Duration = Duration::from_secs(10);

/// One thing that is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "&'static str")]
pub(crate) enum Fault {
    DatabaseAway,
    DatabaseReadOnly,
    DatabaseSlow,
    /// The state was not level with the log for so long that agents go elsewhere.
    Behind,
    /// Notifications do not arrive; the log is polled.
    NotHearing,
    LeaseLost,
    /// Another server has this one's id.
    IdTaken,
    ClockWrong,
    /// Servers were started with different options that should be the same.
    SettingsDiffer,
    /// The database has another root than the one that agents were told of.
    RootForked,
}

impl From<Fault> for &'static str {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::DatabaseAway => "database-away",
            Fault::DatabaseReadOnly => "database-read-only",
            Fault::DatabaseSlow => "database-slow",
            Fault::Behind => "behind",
            Fault::NotHearing => "not-hearing",
            Fault::LeaseLost => "lease-lost",
            Fault::IdTaken => "id-taken",
            Fault::ClockWrong => "clock-wrong",
            Fault::SettingsDiffer => "settings-differ",
            Fault::RootForked => "root-forked",
        }
    }
}

/// What the faults are judged by.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// What the database last said, if that was an error.
    pub(crate) error: Option<String>,
    pub(crate) is_read_only: bool,
    pub(crate) is_answering: bool,
    /// Of a look at the log.
    pub(crate) answer_time: Duration,
    pub(crate) level_age: Duration,
    pub(crate) is_hearing: bool,
    pub(crate) is_leased: bool,
    /// What is told of another server with this one's id.
    pub(crate) conflict: Option<String>,
    /// By how much the machine's clock is ahead of the database's, where that is too much.
    pub(crate) clock_ahead_ms: Option<i64>,
    pub(crate) differing: Vec<String>,
    /// What is told of another root in the place of a known one.
    pub(crate) root_fork: Option<String>,
}

/// A fault as it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Told {
    what: Fault,
    since_unix_s: u64,
    reason: String,
}

/// The faults of now, each since when.
#[derive(Debug, Default)]
pub(crate) struct Monitor(Mutex<BTreeMap<Fault, (UnixTime, String)>>);

impl Monitor {
    fn faults(&self) -> MutexGuard<'_, BTreeMap<Fault, (UnixTime, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the facts in; a fault that goes on keeps its beginning.
    pub(crate) fn handle(&self, facts: &Facts, now: UnixTime) {
        let mut faults = self.faults();
        let was_slow = faults.contains_key(&Fault::DatabaseSlow);
        let found = judge(facts, was_slow);
        faults.retain(|fault, _| found.contains_key(fault));
        for (fault, reason) in found {
            faults.entry(fault).or_insert((now, String::new())).1 = reason;
        }
    }

    pub(crate) fn told(&self) -> Vec<Told> {
        let faults = self.faults();
        let told = faults.iter().map(|(what, (since, reason))| Told {
            what: *what,
            since_unix_s: since.0,
            reason: reason.clone(),
        });
        told.collect()
    }
}

fn judge(facts: &Facts, was_slow: bool) -> BTreeMap<Fault, String> {
    let mut found = BTreeMap::new();
    let error = facts.error.clone().unwrap_or_else(|| "it does not answer".to_owned());
    match (facts.is_read_only, facts.is_answering) {
        (true, _) => drop(found.insert(Fault::DatabaseReadOnly, error)),
        (false, false) => drop(found.insert(Fault::DatabaseAway, error)),
        (false, true) => {
            let limit = if was_slow { SLOW_ABOVE / 2 } else { SLOW_ABOVE };
            if facts.answer_time > limit {
                let reason = format!("an answer takes {} ms", facts.answer_time.as_millis());
                found.insert(Fault::DatabaseSlow, reason);
            }
        }
    }
    if facts.level_age > BEHIND_ABOVE {
        let reason = format!("last level with the log {} s ago", facts.level_age.as_secs());
        found.insert(Fault::Behind, reason);
    }
    if !facts.is_hearing {
        found.insert(Fault::NotHearing, "notifications do not arrive; the log is polled".to_owned());
    }
    if !facts.is_leased {
        found.insert(Fault::LeaseLost, "the lease was not renewed in time".to_owned());
    }
    if let Some(conflict) = &facts.conflict {
        found.insert(Fault::IdTaken, conflict.clone());
    }
    if let Some(ahead_ms) = facts.clock_ahead_ms {
        let off_s = ahead_ms.unsigned_abs() / 1000;
        let side = if ahead_ms > 0 { "ahead of" } else { "behind" };
        let reason =
            format!("this machine's clock is {off_s} s {side} the database's, which is used; set it");
        found.insert(Fault::ClockWrong, reason);
    }
    if !facts.differing.is_empty() {
        found.insert(Fault::SettingsDiffer, facts.differing.join(" | "));
    }
    if let Some(fork) = &facts.root_fork {
        found.insert(Fault::RootForked, fork.clone());
    }
    found
}

impl Server {
    fn facts(&self) -> Facts {
        let health = self.cluster.health();
        let (error, clock) = (self.cluster.database_error(), self.cluster.clock());
        Facts {
            is_read_only: error.as_ref().is_some_and(|error| error.is_read_only()),
            error: error.map(|error| error.to_string()),
            is_answering: health.database_ok,
            answer_time: self.cluster.answer_time(),
            level_age: health.level_age,
            is_hearing: self.cluster.store().is_hearing(),
            is_leased: self.servers.lease_age().is_some_and(|age| age < self.settings.lease),
            conflict: self.servers.conflict().map(str::to_owned),
            clock_ahead_ms: clock.is_skewed().then(|| clock.machine_ahead_ms()),
            differing: self.servers.differing(),
            root_fork: self.cluster.root_fork(),
        }
    }

    /// What others are told of this server.
    pub(crate) fn report(&self) -> ServerReport {
        let (cluster, store) = (&self.cluster, self.cluster.store());
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let (connections_used, connections_limit) = store.connections().unzip();
        let degraded = self.monitor.told().into_iter().map(|Told { what, since_unix_s, reason }| Degraded {
            what: <&str>::from(what).to_owned(),
            since_unix_s,
            reason,
        });
        let health = HealthReport {
            database_host: store.host(),
            database_answer_ms: millis(cluster.answer_time()),
            log_age_ms: millis(cluster.health().level_age),
            is_hearing: store.is_hearing(),
            connections_used,
            connections_limit,
            degraded: degraded.collect(),
        };
        ServerReport { settings: Some(self.settings.shared()), health: Some(health) }
    }
}

/// Keeps the faults of a server up to date, for ever.
pub(crate) async fn watch(server: Arc<Server>) {
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        server.monitor.handle(&server.facts(), server.cluster.now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINE: Facts = Facts {
        error: None,
        is_read_only: false,
        is_answering: true,
        answer_time: Duration::from_millis(2),
        level_age: Duration::from_millis(800),
        is_hearing: true,
        is_leased: true,
        conflict: None,
        clock_ahead_ms: None,
        differing: Vec::new(),
        root_fork: None,
    };

    fn what(monitor: &Monitor) -> Vec<Fault> {
        monitor.told().iter().map(|told| told.what).collect()
    }

    #[test]
    fn a_fault_keeps_its_beginning_while_it_goes_on_and_ends_with_it() {
        let monitor = Monitor::default();
        let away = Facts { is_answering: false, error: Some("refused".to_owned()), ..FINE };
        monitor.handle(&FINE, UnixTime(1));
        assert_eq!(what(&monitor), []);
        monitor.handle(&away, UnixTime(2));
        monitor.handle(&Facts { level_age: Duration::from_secs(11), ..away }, UnixTime(13));
        assert_eq!(what(&monitor), [Fault::DatabaseAway, Fault::Behind]);
        assert_eq!(monitor.told()[0].since_unix_s, 2);
        assert_eq!(monitor.told()[0].reason, "refused");
        monitor.handle(&FINE, UnixTime(14));
        assert_eq!(what(&monitor), []);
    }

    #[test]
    fn slow_is_told_until_it_is_clearly_over() {
        let monitor = Monitor::default();
        for (millis, is_slow) in [(200, false), (500, true), (200, true), (100, false)] {
            monitor.handle(&Facts { answer_time: Duration::from_millis(millis), ..FINE }, UnixTime(1));
            assert_eq!(!what(&monitor).is_empty(), is_slow, "{millis} ms");
        }
    }

    #[test]
    fn a_copied_id_a_wrong_clock_and_settings_that_differ_are_told_with_what_to_do() {
        let monitor = Monitor::default();
        let facts = Facts {
            conflict: Some("two servers have the id".to_owned()),
            clock_ahead_ms: Some(-3_600_000),
            differing: vec!["--lease: 10s on a; 5s on b".to_owned()],
            root_fork: Some("another root".to_owned()),
            ..FINE
        };
        monitor.handle(&facts, UnixTime(1));
        assert_eq!(
            what(&monitor),
            [Fault::IdTaken, Fault::ClockWrong, Fault::SettingsDiffer, Fault::RootForked]
        );
        let reasons: Vec<_> = monitor.told().into_iter().map(|told| told.reason).collect();
        assert!(reasons[1].contains("3600 s behind") && reasons[2].contains("5s on b"), "{reasons:?}");
        let json = serde_json::to_value(monitor.told()).unwrap();
        assert_eq!(json[0]["what"], "id-taken");
    }

    #[test]
    fn a_replica_is_read_only_and_not_away() {
        let monitor = Monitor::default();
        monitor.handle(
            &Facts { is_answering: false, is_read_only: true, is_hearing: false, ..FINE },
            UnixTime(1),
        );
        assert_eq!(what(&monitor), [Fault::DatabaseReadOnly, Fault::NotHearing]);
    }
}
