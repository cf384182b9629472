//! The order of those who claim a prefix, the same for every client that knows the same of them.
//!
//! The longer prefix first, then the higher priority, then who asks to preempt, then who is up longest, then the lower node id. Who restarted is up shortest, so it ranks last.
//! Where all that are equal by prefix and priority ask to spread, each client has an order of its own: rendezvous hashing (Thaler and Ravishankar, 1998).

use super::since::Since;
use blake2::{Blake2s256, Digest as _};
use proto::{claim::Claim, statement::NodeId};
use std::{cmp::Reverse, time::Duration};

/// Starts that lie within this of each other count as one: clients hear of them after different delays.
const UPTIME_TOLERANCE: Duration = Duration::from_secs(2);

/// A node with its claim on a prefix, or on one around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) node: NodeId,
    pub(super) claim: Claim,
    /// When it started, once it told.
    pub(super) up_since: Option<Since>,
}

impl Candidate {
    /// What comes before how long it is up.
    fn class(&self) -> (u8, u16, bool) {
        (self.claim.prefix.prefix_len(), self.claim.priority, self.claim.preempt)
    }

    /// Whether it comes first by what somebody configured.
    pub(super) fn is_preferred_to(&self, other: &Self) -> bool {
        self.class() > other.class()
    }
}

/// The candidates as places in `candidates`, the best first, as `client` sees them.
pub(super) fn order(candidates: &[Candidate], client: NodeId) -> Vec<usize> {
    let mut places: Vec<usize> = (0..candidates.len()).collect();
    places.sort_by_key(|place| Reverse(candidates[*place].class()));
    let mut ordered = Vec::with_capacity(places.len());
    for equals in places.chunk_by(|a, b| candidates[*a].class() == candidates[*b].class()) {
        order_equals(candidates, equals, client, &mut ordered);
    }
    ordered
}

fn order_equals(candidates: &[Candidate], equals: &[usize], client: NodeId, ordered: &mut Vec<usize>) {
    let mut equals = equals.to_vec();
    if equals.iter().all(|place| candidates[*place].claim.spread) {
        equals.sort_by_key(|place| Reverse(weight(client, candidates[*place].node)));
        ordered.append(&mut equals);
        return;
    }
    // Nobody knows yet how long those are up that have not told.
    equals.sort_by_key(|place| {
        let candidate = &candidates[*place];
        (candidate.up_since.is_none(), candidate.up_since, candidate.node)
    });
    while let Some(first) = equals.first().map(|place| candidates[*place].up_since) {
        let is_alike = |place: &&usize| match (first, candidates[**place].up_since) {
            (Some(first), Some(other)) => !other.is_later_than(first, UPTIME_TOLERANCE),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        let alike = equals.iter().take_while(is_alike);
        let best = alike.min_by_key(|place| candidates[**place].node).copied();
        equals.retain(|place| Some(*place) != best);
        ordered.extend(best);
    }
}

fn weight(client: NodeId, node: NodeId) -> [u8; 32] {
    Blake2s256::new()
        .chain_update(client.0.to_le_bytes())
        .chain_update(node.0.to_le_bytes())
        .finalize()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::BootTime;
    use proptest::prelude::*;

    fn candidate(node: u64, prefix: &str, up_since_s: Option<u64>) -> Candidate {
        let claim = Claim::new(prefix.parse().unwrap());
        let clock = |seconds| BootTime::from_duration(Duration::from_secs(seconds));
        let up_since = up_since_s.map(|seconds| Since::told(Duration::ZERO, clock(seconds)));
        Candidate { node: NodeId(node), claim, up_since }
    }

    fn nodes(candidates: &[Candidate]) -> Vec<u64> {
        order(candidates, NodeId(99)).into_iter().map(|place| candidates[place].node.0).collect()
    }

    #[test]
    fn the_longer_prefix_comes_first_then_the_priority_then_who_is_up_longest() {
        let mut all = [
            candidate(1, "10.0.0.0/31", Some(10)),
            candidate(2, "10.0.0.1/32", Some(500)),
            candidate(3, "10.0.0.1/32", Some(100)),
            candidate(4, "10.0.0.1/32", Some(900)),
        ];
        assert_eq!(nodes(&all), [3, 2, 4, 1]);
        all[3].claim.priority = 1;
        assert_eq!(nodes(&all), [4, 3, 2, 1]);
    }

    #[test]
    fn who_started_at_about_the_same_time_is_ordered_by_number_whatever_the_delays() {
        for jitter in [0, 1, 2] {
            let all = [
                candidate(7, "10.0.0.1/32", Some(100)),
                candidate(5, "10.0.0.1/32", Some(100 + jitter)),
                candidate(6, "10.0.0.1/32", Some(200)),
            ];
            assert_eq!(nodes(&all), [5, 7, 6]);
        }
    }

    #[test]
    fn who_has_not_told_ranks_behind_those_who_have() {
        let all = [candidate(1, "10.0.0.1/32", None), candidate(2, "10.0.0.1/32", Some(5))];
        assert_eq!(nodes(&all), [2, 1]);
        let all = [candidate(2, "10.0.0.1/32", None), candidate(1, "10.0.0.1/32", None)];
        assert_eq!(nodes(&all), [1, 2]);
    }

    #[test]
    fn preempting_comes_before_being_up() {
        let mut all = [candidate(1, "10.0.0.1/32", Some(900)), candidate(2, "10.0.0.1/32", Some(5))];
        all[0].claim.preempt = true;
        assert_eq!(nodes(&all), [1, 2]);
    }

    #[test]
    fn clients_spread_evenly_and_a_lost_node_moves_only_its_own() {
        let mut all: Vec<Candidate> =
            (1..=4).map(|node| candidate(node, "10.0.0.1/32", Some(node * 100))).collect();
        all.iter_mut().for_each(|candidate| candidate.claim.spread = true);
        let first = |all: &[Candidate], client| all[order(all, NodeId(client))[0]].node.0;
        let mut served = [0; 5];
        for client in 1000..2000 {
            let before = first(&all, client);
            served[before as usize] += 1;
            let after = first(&all[..3], client);
            assert!(before == 4 || after == before);
        }
        assert!(served[1..].iter().all(|count| (190..=310).contains(count)), "{served:?}");
    }

    #[test]
    fn the_order_does_not_depend_on_the_order_in_which_nodes_were_met() {
        let all = [
            candidate(3, "10.0.0.1/32", Some(101)),
            candidate(1, "10.0.0.1/32", Some(103)),
            candidate(2, "10.0.0.1/32", Some(105)),
            candidate(4, "10.0.0.0/24", Some(1)),
        ];
        let expected = nodes(&all);
        for turn in 0..4 {
            let mut turned = all;
            turned.rotate_left(turn);
            assert_eq!(nodes(&turned), expected);
        }
    }

    /// What a client knows whose machine started at that moment of the true time, of nodes that started at theirs.
    fn told(starts: &[i64], booted_s: i64, now_s: i64) -> Vec<Candidate> {
        let now = BootTime::from_duration(Duration::from_secs((now_s - booted_s).unsigned_abs()));
        let uptime = |start: &i64| Duration::from_secs((now_s - start).unsigned_abs());
        let since = starts.iter().map(|start| Since::told(uptime(start), now));
        let claim = Claim::new("10.0.0.1/32".parse().unwrap());
        let candidate = |(node, since)| Candidate { node: NodeId(node), claim, up_since: Some(since) };
        (1..).zip(since).map(candidate).collect()
    }

    #[test]
    fn a_client_that_started_after_the_nodes_ranks_them_like_one_that_started_before() {
        let day = 86_400;
        for booted_s in [-60 * day, 0] {
            assert_eq!(nodes(&told(&[-10 * day, -30 * day], booted_s, 60)), [2, 1]);
        }
    }

    proptest! {
        #[test]
        fn clients_rank_alike_whenever_they_started(
            starts in prop::collection::vec(-1000_i64..0, 1..6),
            booted in prop::array::uniform2(-2000_i64..0),
        ) {
            prop_assert_eq!(nodes(&told(&starts, booted[0], 0)), nodes(&told(&starts, booted[1], 0)));
        }
    }
}
