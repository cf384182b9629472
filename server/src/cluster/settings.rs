//! What holds for the whole cluster and may be changed while it runs: how long membership certificates are good for.
//!
//! A shorter lifetime ends who was removed sooner where no removal is heard; a longer one, or none, lets peers talk to each other for longer while every
//! server is away. A certificate is renewed while its node is served, thirty times within its life.

use crate::cluster::{Entity, Op, State};
use proto::time::UnixTime;
use serde::{Deserialize, Serialize};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);
const DEFAULT_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// Below it, a restart of a server or a slow database would cut members off.
const SHORTEST_LIFETIME: Duration = Duration::from_secs(90);
const LONGEST_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const RENEWALS_PER_LIFETIME: u32 = 30;
/// Each renewal changes everybody's map.
const SHORTEST_RENEWAL: Duration = Duration::from_secs(10);

/// The cluster's settings. There is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Seconds that a certificate is good for; `None`: it never ends. So a removed node could be believed by one that hears no removal.
    membership_lifetime_s: Option<u64>,
    earlier: Earlier,
}

/// The certificates that were issued under earlier settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Earlier {
    None,
    EndBy(UnixTime),
    NeverEnd,
}

/// Why settings are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error(
        "a membership lifetime of {0:?} is too short: use at least 90s, so that a server's restart ends no membership"
    )]
    TooShort(Duration),
    #[error("a membership lifetime of {0:?} is too long: use at most 3650d, or `never`")]
    TooLong(Duration),
}

impl Default for Settings {
    fn default() -> Self {
        Self { membership_lifetime_s: Some(DEFAULT_LIFETIME.as_secs()), earlier: Earlier::None }
    }
}

impl Settings {
    /// `None`: certificates never end.
    pub fn membership_lifetime(&self) -> Option<Duration> {
        self.membership_lifetime_s.map(Duration::from_secs)
    }

    /// Whether anybody could have set it so.
    pub(crate) fn is_valid(&self) -> bool {
        self.membership_lifetime().is_none_or(|span| (SHORTEST_LIFETIME..=LONGEST_LIFETIME).contains(&span))
    }

    /// A certificate older than this is renewed while its node is served; `None`: none is, by its age.
    pub fn renew_after(&self) -> Option<Duration> {
        let lifetime = self.membership_lifetime()?;
        Some((lifetime / RENEWALS_PER_LIFETIME).max(SHORTEST_RENEWAL).min(DAY))
    }

    /// The end of a certificate that is issued now.
    pub(crate) fn not_after(&self, issued_at: UnixTime) -> Option<UnixTime> {
        Some(issued_at.saturating_add(self.membership_lifetime()?))
    }

    /// When every certificate that a key was given has ended, where this is the end of the newest.
    pub(crate) fn all_end_by(&self, newest: Option<UnixTime>) -> Option<UnixTime> {
        match (newest, self.earlier) {
            (None, _) | (_, Earlier::NeverEnd) => None,
            (Some(newest), Earlier::EndBy(earlier)) => Some(newest.max(earlier)),
            (Some(newest), Earlier::None) => Some(newest),
        }
    }

    fn with_lifetime(self, lifetime: Option<Duration>, now: UnixTime) -> Self {
        let issued = match self.membership_lifetime() {
            None => Earlier::NeverEnd,
            Some(lifetime) => Earlier::EndBy(now.saturating_add(lifetime)),
        };
        let earlier = match self.earlier {
            // Every one of them has been ended or replaced since.
            Earlier::EndBy(end) if end <= now => issued,
            earlier @ (Earlier::None | Earlier::EndBy(_) | Earlier::NeverEnd) => earlier.max(issued),
        };
        Self { membership_lifetime_s: lifetime.map(|lifetime| lifetime.as_secs()), earlier }
    }
}

/// Sets how long certificates are good for from now on; those of nodes that are served are issued again.
///
/// # Errors
/// The lifetime is out of bounds.
pub fn set_membership_lifetime(
    state: &State,
    lifetime: Option<Duration>,
    now: UnixTime,
) -> Result<Vec<Op>, SettingsError> {
    match lifetime {
        Some(lifetime) if lifetime < SHORTEST_LIFETIME => Err(SettingsError::TooShort(lifetime)),
        Some(lifetime) if lifetime > LONGEST_LIFETIME => Err(SettingsError::TooLong(lifetime)),
        lifetime if lifetime == state.settings().membership_lifetime() => Ok(Vec::new()),
        lifetime => {
            let settings = state.settings().with_lifetime(lifetime, now);
            Ok(vec![Op::Put(Entity::Settings(Box::new(settings)))])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Removed, remove, renew, testing};
    use proto::statement::{Removal, Statement};

    fn days(days: u64) -> Duration {
        DAY * u32::try_from(days).unwrap()
    }

    fn set(state: &mut State, lifetime: Option<Duration>, now: UnixTime) {
        let ops = set_membership_lifetime(state, lifetime, now).unwrap();
        testing::apply(state, ops);
    }

    fn until(removed: &Removed) -> Option<UnixTime> {
        let Ok((_, Statement::Removal(Removal { until, .. }))) = Statement::trust(&removed.signed) else {
            panic!()
        };
        assert_eq!(until, removed.until);
        until
    }

    #[test]
    fn certificates_are_renewed_thirty_times_in_their_life_but_not_every_moment() {
        let renewed = |lifetime| {
            let settings = Settings::default().with_lifetime(lifetime, testing::NOW);
            settings.renew_after()
        };
        assert_eq!(Settings::default().renew_after(), Some(days(1)));
        assert_eq!(renewed(Some(days(3650))), Some(days(1)));
        assert_eq!(renewed(Some(Duration::from_secs(3600))), Some(Duration::from_secs(120)));
        assert_eq!(renewed(Some(SHORTEST_LIFETIME)), Some(SHORTEST_RENEWAL));
        assert_eq!(renewed(None), None);
    }

    #[test]
    fn a_change_reissues_certificates_that_say_otherwise_once() {
        let (mut state, node) = testing::with_node("a");
        assert_eq!(renew(&state, &node, testing::NOW), None);
        for lifetime in [Some(days(2)), None, Some(days(90))] {
            set(&mut state, lifetime, testing::NOW);
            let node = state.node(node.id).unwrap().clone();
            let op = renew(&state, &node, testing::NOW).expect("its lifetime is another");
            testing::apply(&mut state, vec![op]);
            let node = state.node(node.id).unwrap();
            assert_eq!(node.not_after, lifetime.map(|lifetime| node.issued_at.saturating_add(lifetime)));
            assert_eq!(renew(&state, node, testing::NOW), None);
        }
        set(&mut state, None, testing::NOW);
        let node = state.node(node.id).unwrap().clone();
        let op = renew(&state, &node, testing::NOW).unwrap();
        testing::apply(&mut state, vec![op]);
        let node = state.node(node.id).unwrap();
        assert_eq!(renew(&state, node, testing::NOW.saturating_add(days(9999))), None, "it never ends");
    }

    #[test]
    fn a_removal_lasts_as_long_as_any_certificate_of_its_node() {
        let (mut state, node) = testing::with_node("a");
        let later = testing::NOW.saturating_add(days(1));
        set(&mut state, Some(days(2)), later);
        let node = crate::cluster::Node::clone(state.node(node.id).unwrap());
        let ops = vec![renew(&state, &node, later).unwrap()];
        testing::apply(&mut state, ops);
        let node = crate::cluster::Node::clone(state.node(node.id).unwrap());
        let mut removed = state.clone();
        testing::apply(&mut removed, remove(&state, &node, later));
        assert_eq!(until(removed.removal(&node.key).unwrap()), Some(testing::NOW.saturating_add(days(31))));
        set(&mut state, None, later);
        set(&mut state, Some(days(2)), later);
        let mut removed = state.clone();
        testing::apply(&mut removed, remove(&state, &node, later));
        assert_eq!(until(removed.removal(&node.key).unwrap()), None, "one may never end");
    }

    #[test]
    fn lifetimes_out_of_bounds_are_refused_and_the_same_is_no_change() {
        let state = testing::state();
        let set = |seconds| set_membership_lifetime(&state, Some(Duration::from_secs(seconds)), testing::NOW);
        assert_eq!(set(89), Err(SettingsError::TooShort(Duration::from_secs(89))));
        assert!(matches!(set(u64::MAX), Err(SettingsError::TooLong(_))));
        assert_eq!(set(DEFAULT_LIFETIME.as_secs()), Ok(vec![]));
        assert_eq!(set(90).map(|ops| ops.len()), Ok(1));
    }
}
