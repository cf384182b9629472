//! What is wrong with a server, and since when. Every server says the same of the same state: the faults are facts about the database as this server
//! sees it, and none of them stops what agents need from memory.

use crate::serve::Server;
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
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fault {
    DatabaseAway,
    DatabaseReadOnly,
    DatabaseSlow,
    /// The state was not level with the log for so long that agents go elsewhere.
    Behind,
    /// Notifications do not arrive; the log is polled.
    NotHearing,
    LeaseLost,
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
    found
}

impl Server {
    fn facts(&self) -> Facts {
        let health = self.cluster.health();
        let error = self.cluster.database_error();
        Facts {
            is_read_only: error.as_ref().is_some_and(|error| error.is_read_only()),
            error: error.map(|error| error.to_string()),
            is_answering: health.database_ok,
            answer_time: self.cluster.answer_time(),
            level_age: health.level_age,
            is_hearing: self.cluster.store().is_hearing(),
            is_leased: self.servers.lease_age().is_some_and(|age| age < self.settings.lease),
        }
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
    fn a_replica_is_read_only_and_not_away() {
        let monitor = Monitor::default();
        monitor.handle(
            &Facts { is_answering: false, is_read_only: true, is_hearing: false, ..FINE },
            UnixTime(1),
        );
        assert_eq!(what(&monitor), [Fault::DatabaseReadOnly, Fault::NotHearing]);
    }
}
