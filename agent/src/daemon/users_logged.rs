//! Which changes of the number of users are logged for people. Peers say themselves that they are users, as often as they like, so of each claim one change a second is; `agent status` has the number at any time.

use agent_core::BootTime;
use ipnet::IpNet;
use std::{collections::BTreeMap, time::Duration};

const PACE: Duration = Duration::from_secs(1);

/// The claims of the last second, and when a change was logged.
#[derive(Debug, Default)]
pub(super) struct UsersLogged(BTreeMap<IpNet, BootTime>);

impl UsersLogged {
    /// Whether a change now is one for people; it counts as logged then.
    pub(super) fn is_due(&mut self, prefix: IpNet, now: BootTime) -> bool {
        self.0.retain(|_, at| now < *at + PACE);
        let is_due = !self.0.contains_key(&prefix);
        self.0.entry(prefix).or_insert(now);
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_claim_one_change_a_second_is_for_people() {
        let mut logged = UsersLogged::default();
        let prefixes: [IpNet; 2] = ["10.9.0.1/32", "10.1.0.0/24"].map(|text| text.parse().unwrap());
        let mut told = [0, 0];
        for tick in 0..500 {
            let now = BootTime::from_duration(Duration::from_millis(10) * tick);
            for (prefix, told) in prefixes.iter().zip(&mut told) {
                *told += u32::from(logged.is_due(*prefix, now));
            }
        }
        assert_eq!(told, [5, 5]);
        let later = BootTime::from_duration(Duration::from_secs(60));
        assert!(logged.is_due(prefixes[0], later) && logged.0.len() == 1, "nothing is kept for long");
    }
}
