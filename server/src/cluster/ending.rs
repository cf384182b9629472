//! What ends by time: how long an ephemeral node was absent, and what nobody can need any more.

use crate::{
    cluster::{EntityId, Node, Op, Removed, SetupKey, State},
    store::{Attendance, LastSeen},
};
use proto::time::UnixTime;
use std::{collections::BTreeSet, time::Duration};

/// A setup key that ended so long ago is forgotten.
const ENDED_KEYS_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Clocks of agents that are wrong by so much are no reason to believe who was removed.
const CLOCK_MARGIN: Duration = Duration::from_secs(24 * 3600);

/// A server that fell silent, and did not take its leave, may be cut from the database alone and still have its agents: whoever sat there counts as there for so
/// long. If it comes back before, it says itself who is there.
const SILENT_SERVER_GRACE: Duration = Duration::from_secs(24 * 3600);

/// How long nobody could reach the node although some server could have served it. `None`: it is there.
pub fn absence(node: &Node, seen: LastSeen, attendance: &Attendance) -> Option<Duration> {
    // Who asks to enter again is on its way.
    let heard_of = node.updated_at.max(node.created_at).max(attendance.served_since);
    match seen {
        LastSeen::Online => None,
        LastSeen::Until(at) => Some(attendance.now.since(at.max(heard_of))),
        LastSeen::Unheard(at) => {
            Some(attendance.now.since(at.saturating_add(SILENT_SERVER_GRACE).max(heard_of)))
        }
        LastSeen::Never => Some(attendance.now.since(heard_of)),
    }
}

/// Deletes what ended long ago, at most `limit` at once.
pub fn forget_ended(state: &State, now: UnixTime, limit: usize) -> Vec<Op> {
    let removals = state.removals().filter(|removed| is_over(removed, now));
    let removals = removals.map(|removed| Op::Delete(EntityId::Removal(removed.key)));
    // Who entered with a key may ask again with it. The newest stays: the next one's number is counted from it.
    let in_use: BTreeSet<_> = state.nodes().map(|node| node.setup_key).collect();
    let newest = state.setup_keys().next_back().map(|key| key.id);
    let keys = state.setup_keys().filter(|key| Some(key.id) != newest && !in_use.contains(&key.id));
    let keys = keys.filter(|key| ended_at(key, now).is_some_and(|end| now.since(end) >= ENDED_KEYS_KEPT));
    removals.chain(keys.map(|key| Op::Delete(EntityId::SetupKey(key.id)))).take(limit).collect()
}

/// Whether no certificate of the removed node can be good any more.
fn is_over(removed: &Removed, now: UnixTime) -> bool {
    removed.until.is_some_and(|until| until.saturating_add(CLOCK_MARGIN) < now)
}

fn ended_at(key: &SetupKey, now: UnixTime) -> Option<UnixTime> {
    let expired = key.expires_at.filter(|end| *end <= now);
    let used = key.last_used_at.filter(|_| key.is_used_up());
    [key.revoked_at, expired, used].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{SetupKeyTerms, remove, testing};
    use testing::NOW;

    fn seconds(seconds: u64) -> UnixTime {
        NOW.saturating_add(Duration::from_secs(seconds))
    }

    fn at(now: u64, served_since: u64) -> Attendance {
        Attendance { served_since: seconds(served_since), now: seconds(now), nodes: Default::default() }
    }

    #[test]
    fn absence_counts_from_when_the_node_went_or_servers_came_back_or_it_was_heard_of() {
        let (_, node) = testing::with_node("a");
        assert_eq!(absence(&node, LastSeen::Online, &at(900, 0)), None);
        let went = LastSeen::Until(seconds(300));
        assert_eq!(absence(&node, went, &at(900, 0)), Some(Duration::from_secs(600)));
        assert_eq!(absence(&node, went, &at(900, 890)), Some(Duration::from_secs(10)), "nobody served it");
        assert_eq!(absence(&node, LastSeen::Never, &at(900, 0)), Some(Duration::from_secs(900)));
        let asked_again = Node { updated_at: seconds(880), ..node };
        assert_eq!(absence(&asked_again, went, &at(900, 0)), Some(Duration::from_secs(20)));
    }

    #[test]
    fn who_sat_at_a_server_that_fell_silent_is_not_absent_for_a_day() {
        let (_, node) = testing::with_node("a");
        let silent = LastSeen::Unheard(seconds(300));
        let grace_s = SILENT_SERVER_GRACE.as_secs();
        assert_eq!(absence(&node, silent, &at(300 + grace_s, 0)), Some(Duration::ZERO));
        assert_eq!(absence(&node, silent, &at(360 + grace_s, 0)), Some(Duration::from_secs(60)));
        assert_eq!(absence(&node, silent, &at(360 + grace_s, 350 + grace_s)), Some(Duration::from_secs(10)));
    }

    #[test]
    fn a_removal_is_kept_for_as_long_as_a_certificate_may_last() {
        let (mut state, node) = testing::with_node("gone");
        let ops = remove(&state, &node, NOW);
        testing::apply(&mut state, ops);
        let until = node.not_after.unwrap();
        assert!(forget_ended(&state, until, 9).is_empty());
        let over = until.saturating_add(CLOCK_MARGIN + Duration::from_secs(1));
        let ops = forget_ended(&state, over, 9);
        assert!(ops.contains(&Op::Delete(EntityId::Removal(node.key))), "{ops:?}");
        testing::apply(&mut state, ops);
        assert!(forget_ended(&state, over, 9).is_empty());
    }

    #[test]
    fn a_setup_key_that_ended_is_forgotten_unless_it_is_the_newest_or_a_nodes() {
        let (mut state, _with_its_key) = testing::with_node("a");
        let terms = SetupKeyTerms { lifetime: Some(Duration::from_secs(60)), ..SetupKeyTerms::default() };
        for _ in 0..3 {
            testing::setup_key(&mut state, &terms);
        }
        let later = seconds(61).saturating_add(ENDED_KEYS_KEPT);
        assert!(forget_ended(&state, seconds(61), 9).is_empty());
        assert_eq!(forget_ended(&state, later, 1).len(), 1, "in batches");
        let ops = forget_ended(&state, later, 9);
        testing::apply(&mut state, ops);
        let left: Vec<_> = state.setup_keys().map(|key| key.id.0).collect();
        assert_eq!(left, [1, 4]);
    }
}
