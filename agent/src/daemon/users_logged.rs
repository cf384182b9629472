//! Which changes of the number of users are logged for people. Peers say themselves that they are users, as often as they like, so of each claim one change a second is; what the second ends with is logged then, so
//! the last word is true.

use agent_core::BootTime;
use ipnet::IpNet;
use std::{collections::BTreeMap, time::Duration};

const PACE: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Logged {
    users: u64,
    /// As logged last, and when the next may be; `None`: not yet.
    last: Option<(u64, BootTime)>,
}

impl Logged {
    fn is_news(&self) -> bool {
        self.last.is_none_or(|(users, _)| users != self.users)
    }

    fn waits_until(&self) -> Option<BootTime> {
        self.last.map(|(_, until)| until)
    }
}

/// The claims whose users changed within the last second.
#[derive(Debug, Default)]
pub(super) struct UsersLogged(BTreeMap<IpNet, Logged>);

impl UsersLogged {
    pub(super) fn set_users(&mut self, prefix: IpNet, users: u64) {
        self.0.entry(prefix).or_insert(Logged { users, last: None }).users = users;
    }

    /// What is to be logged now; to be asked again until there is nothing.
    pub(super) fn poll(&mut self, now: BootTime) -> Option<(IpNet, u64)> {
        self.0.retain(|_, logged| logged.is_news() || logged.waits_until().is_some_and(|until| now < until));
        let is_due =
            |logged: &Logged| logged.is_news() && logged.waits_until().is_none_or(|until| now >= until);
        let (prefix, logged) = self.0.iter_mut().find(|(_, logged)| is_due(logged))?;
        logged.last = Some((logged.users, now + PACE));
        Some((*prefix, logged.users))
    }

    /// When to ask for the next one.
    pub(super) fn due(&self) -> Option<BootTime> {
        self.0.values().filter(|logged| logged.is_news()).filter_map(Logged::waits_until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> BootTime {
        BootTime::from_duration(Duration::from_millis(ms))
    }

    #[test]
    fn of_each_claim_one_change_a_second_is_for_people() {
        let mut logged = UsersLogged::default();
        let prefixes: [IpNet; 2] = ["10.9.0.1/32", "10.1.0.0/24"].map(|text| text.parse().unwrap());
        let mut told = [0, 0];
        for tick in 0..500 {
            for prefix in prefixes {
                logged.set_users(prefix, tick);
            }
            while let Some((prefix, _)) = logged.poll(at(10 * tick)) {
                told[usize::from(prefix == prefixes[1])] += 1;
            }
        }
        assert_eq!(told, [5, 5]);
    }

    #[test]
    fn the_last_number_is_logged_when_the_second_is_over_and_nothing_is_kept_then() {
        let mut logged = UsersLogged::default();
        let prefix: IpNet = "10.9.0.1/32".parse().unwrap();
        logged.set_users(prefix, 1);
        assert_eq!((logged.poll(at(0)), logged.due()), (Some((prefix, 1)), None));
        for users in [2, 0] {
            logged.set_users(prefix, users);
            assert_eq!((logged.poll(at(500)), logged.due()), (None, Some(at(1000))));
        }
        assert_eq!((logged.poll(at(1000)), logged.due()), (Some((prefix, 0)), None));
        for users in [1, 0] {
            logged.set_users(prefix, users);
        }
        assert_eq!((logged.poll(at(1500)), logged.due()), (None, None), "as was logged");
        assert!(logged.poll(at(2000)).is_none() && logged.0.is_empty());
    }
}
