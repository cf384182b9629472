//! After the database went back in time: what must not be given out twice. Nodes that enrolled after the copy was made live on with numbers and
//! addresses that the database does not know any more, so a recovery leaves a gap for them: new nodes get numbers and addresses behind it.
//! The gap is as long as the revisions that are known to be lost (an enrolment is one at least) and some more; where nobody knows, generous.

use crate::cluster::{
    ChangeId, Entity, Head, Op, Snapshot, State,
    address::{self, Range, Used},
};
use ipnet::{IpNet, Ipv4Net};
use proto::{map::MapVersion, statement::NodeId, time::UnixTime};
use serde::{Deserialize, Serialize};

/// Beside the revisions known to be lost: somebody else may have seen more.
const SLACK: u64 = 256;
/// Where nobody knows how much was lost: this part of the overlay, and at least so many nodes.
const UNKNOWN_PART: u64 = 64;
const UNKNOWN_LEAST: u64 = 1024;
/// A gap takes no more of the overlay than this.
const LARGEST_PART: u64 = 8;
/// Older gaps are closed: a database that goes back so often has other troubles.
const GAPS_KEPT: usize = 16;

/// That the database went back in time, and what of that still matters. There is one, of the last time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// By the database's clock.
    pub at: UnixTime,
    /// What was put back is of this version; zero: nobody remembered anything.
    pub remembered: MapVersion,
    /// Numbers below it may be held.
    pub next_node_id: NodeId,
    /// Addresses that may be held by nodes that are not known.
    pub gaps: Vec<Range>,
}

/// How much went with the database's past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// At least so many revisions.
    Revisions(u64),
    Unknown,
}

impl Recovery {
    /// What a state that lost its future has to leave out from now on.
    pub(crate) fn of(state: &State, loss: Loss, remembered: MapVersion, now: UnixTime) -> Self {
        let length = gap_length(state, loss);
        let before = state.recovery();
        let mut gaps = before.map_or_else(Vec::new, |before| before.gaps.clone());
        if let IpNet::V4(prefix) = state.network.overlay_v4 {
            gaps.extend(gap(prefix, state, length));
        }
        gaps.drain(..gaps.len().saturating_sub(GAPS_KEPT));
        // Room is left in a column, and for the numbers to come.
        let next = state.next_node_id().0.saturating_add(length).min(i64::MAX as u64 / 2);
        Self { at: now, remembered, next_node_id: NodeId(next).max(state.next_node_id()), gaps }
    }

    pub(crate) fn into_op(self) -> Op {
        Op::Put(Entity::Recovery(Box::new(self)))
    }
}

/// The version that a recovery begins: above everything seen, and never the same for two recoveries from one copy.
///
/// # Errors
/// There is nothing above.
pub(crate) fn next_version(seen: MapVersion, now: UnixTime) -> Result<MapVersion, VersionsExhausted> {
    const LIMIT: u64 = i64::MAX as u64 - 1;
    let epoch = seen.epoch.saturating_add(1).max(now.0.min(LIMIT / 2));
    let revision = seen.revision.saturating_add(1);
    match epoch >= LIMIT || revision >= LIMIT {
        true => Err(VersionsExhausted),
        false => Ok(MapVersion { epoch, revision }),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its epochs or revisions are used up")]
pub struct VersionsExhausted;

/// A copy as it may be served: in an epoch of its own, with room for what came after the copy. `id` is the head's, random.
///
/// # Errors
/// The copy's epochs or revisions are used up.
pub fn restored(copy: Snapshot, id: ChangeId, now: UnixTime) -> Result<Snapshot, VersionsExhausted> {
    let version = next_version(copy.head.version, now)?;
    let state = State::from_snapshot(copy.clone());
    let recovery = Recovery::of(&state, Loss::Unknown, MapVersion::default(), now);
    let head = Head { version, id };
    Ok(Snapshot { head, next_node_id: recovery.next_node_id, recovery: Some(recovery), ..copy })
}

fn gap_length(state: &State, loss: Loss) -> u64 {
    let hosts = match state.network.overlay_v4 {
        IpNet::V4(prefix) => 1_u64 << (32 - prefix.prefix_len()),
        IpNet::V6(_) => u64::MAX,
    };
    let length = match loss {
        Loss::Revisions(lost) => lost.saturating_add(SLACK),
        Loss::Unknown => (hosts / UNKNOWN_PART).max(UNKNOWN_LEAST),
    };
    length.min(hosts / LARGEST_PART)
}

/// The addresses that the next `length` nodes would have got: behind the highest, then the lowest free ones.
fn gap(prefix: Ipv4Net, state: &State, length: u64) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    let free = address::in_order(prefix, state).filter(|a| !state.is_owned(*a) && !state.is_resting(*a));
    for address in free.take(usize::try_from(length).unwrap_or(usize::MAX)) {
        match ranges.last_mut() {
            Some(range) if range.last < address => range.last = address,
            Some(_) | None => ranges.push(Range { first: address, last: address }),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing;
    use std::net::Ipv4Addr;

    fn restored_from(state: &State) -> State {
        let copy = testing::snapshot(state);
        State::from_snapshot(restored(copy, ChangeId([9; 16]), testing::NOW).unwrap())
    }

    #[test]
    fn what_was_given_out_after_the_copy_is_not_given_out_again() {
        let (copy, _) = testing::with_node("kept");
        let mut past = copy.clone();
        let mut restored = restored_from(&copy);
        let held: Vec<_> = (0..20).map(|n| testing::enrol(&mut past, &format!("lost{n}"))).collect();
        for n in 0..20 {
            let new = testing::enrol(&mut restored, &format!("new{n}"));
            assert!(
                held.iter().all(|lost| lost.address_v4 != new.address_v4 && lost.id != new.id),
                "{new:?}"
            );
        }
    }

    #[test]
    fn near_the_end_of_the_overlay_the_gap_goes_around() {
        let mut state = testing::state();
        state.network.overlay_v4 = "10.0.0.0/28".parse().unwrap();
        let kept: Vec<_> = (0..13).map(|n| testing::enrol(&mut state, &format!("n{n}"))).collect();
        let ops = crate::cluster::remove(&state, &kept[0], testing::NOW);
        testing::apply(&mut state, ops);
        testing::forget_removals(&mut state);
        let mut past = state.clone();
        let mut restored = restored_from(&state);
        let lost = testing::enrol(&mut past, "lost");
        assert_eq!(lost.address_v4, Ipv4Addr::new(10, 0, 0, 14));
        let gaps = &restored.recovery().unwrap().gaps;
        assert!(gaps.iter().any(|gap| gap.contains(lost.address_v4)), "{gaps:?}");
        // Nothing else is left: the gap is the last resort, as resting addresses are.
        assert!(
            kept.iter().all(|node| node.address_v4 != testing::enrol(&mut restored.clone(), "x").address_v4
                || node.id == kept[0].id)
        );
        testing::enrol(&mut restored, "next");
    }

    #[test]
    fn two_restores_of_one_backup_are_two_epochs_and_both_above_it() {
        let copy = testing::snapshot(&testing::with_node("a").0);
        let first = restored(copy.clone(), ChangeId([1; 16]), testing::NOW).unwrap();
        let later = UnixTime(testing::NOW.0 + 60);
        let second = restored(copy.clone(), ChangeId([2; 16]), later).unwrap();
        let of_restored = restored(first.clone(), ChangeId([3; 16]), testing::NOW).unwrap();
        assert!(copy.head.version < first.head.version && first.head.version < second.head.version);
        assert!(first.head.version.epoch < of_restored.head.version.epoch);
        assert!(first.head.version.revision > copy.head.version.revision);
    }

    #[test]
    fn versions_that_are_used_up_are_an_error_and_a_wild_clock_is_none() {
        let seen = MapVersion { epoch: u64::MAX, revision: 1 };
        assert_eq!(next_version(seen, testing::NOW), Err(VersionsExhausted));
        let seen = MapVersion { epoch: 1, revision: u64::MAX };
        assert_eq!(next_version(seen, testing::NOW), Err(VersionsExhausted));
        let seen = MapVersion { epoch: 1, revision: 1 };
        let wild = next_version(seen, UnixTime(u64::MAX)).unwrap();
        assert!(next_version(wild, UnixTime(0)).is_ok());
    }

    #[test]
    fn the_gap_follows_what_is_known_to_be_lost() {
        let (state, node) = testing::with_node("a");
        let of = |loss| Recovery::of(&state, loss, MapVersion::default(), testing::NOW);
        let (known, unknown) = (of(Loss::Revisions(10)), of(Loss::Unknown));
        assert!(known.next_node_id.0 >= node.id.0 + 10 && known.next_node_id < unknown.next_node_id);
        let span = |gap: &Range| u32::from(gap.last) - u32::from(gap.first) + 1;
        let length = |recovery: &Recovery| recovery.gaps.iter().map(span).sum::<u32>();
        assert!((10..1000).contains(&length(&known)), "{known:?}");
        assert!((65_536..70_000).contains(&length(&unknown)), "{unknown:?}");
    }
}
