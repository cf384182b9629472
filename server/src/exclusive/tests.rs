use super::*;
use crate::cluster::testing::{self, NOW, claimers, exclusive, vip};
use proto::claim::Claim;

/// One server that does as it decides, with a database that agrees.
struct World {
    state: State,
    nodes: Vec<NodeId>,
    rounds: Rounds,
    now: Instant,
    clock: UnixTime,
    served: BTreeSet<NodeId>,
    online: OrdSet<NodeId>,
    leased: BTreeSet<NodeId>,
    granted: Vec<Holding>,
}

impl World {
    fn new(priorities: &[u16]) -> Self {
        let (state, nodes) = claimers(priorities);
        let (served, online) = (nodes.iter().copied().collect(), nodes.iter().copied().collect());
        let (rounds, now) = (Rounds::default(), Instant::now());
        let clock = UnixTime(1_000_000);
        Self {
            state,
            nodes,
            rounds,
            now,
            clock,
            served,
            online,
            leased: BTreeSet::new(),
            granted: Vec::new(),
        }
    }

    fn leaves(&mut self, node: usize) {
        self.served.remove(&self.nodes[node]);
        self.online.remove(&self.nodes[node]);
    }

    fn round(&mut self, is_database_ok: bool) {
        self.rounds.begin(self.now, self.clock);
        self.rounds.on_database(is_database_ok, self.now);
        let view = View {
            state: &self.state,
            clock: NOW,
            served: self.served.clone(),
            online: &self.online,
            leased: self.leased.clone(),
            full: self.state.full_holders(NOW),
        };
        for wish in self.rounds.decide(&view, self.now) {
            let (ops, holding) = grant(&self.state, wish.prefix, (wish.from, wish.to), NOW).unwrap();
            testing::apply(&mut self.state, ops);
            self.rounds.vacant_since.remove(&wish.prefix);
            self.granted.push(holding);
        }
    }

    fn run(&mut self, span: Duration) {
        let (start, began) = (self.now, self.clock);
        let end = start + span;
        while self.now < end {
            self.round(true);
            self.now += LOOK_INTERVAL;
            let passed = self.now.duration_since(start);
            self.clock = UnixTime(began.0 + passed.as_secs());
        }
    }

    fn holder(&self) -> Option<usize> {
        let holder = self.state.holder(&vip(), NOW)?.node;
        self.nodes.iter().position(|node| *node == holder)
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_best_that_is_connected_gets_it_at_once_and_keeps_it() {
    let mut world = World::new(&[0, 7, 7]);
    world.round(true);
    assert_eq!(world.holder(), Some(1));
    world.run(SECOND * 60);
    assert_eq!(world.granted.len(), 1);
}

#[test]
fn while_the_lease_of_one_who_is_gone_runs_nobody_takes_over() {
    let mut world = World::new(&[0, 0]);
    world.run(SECOND * 10);
    world.leased.insert(world.nodes[0]);
    world.leaves(0);
    world.run(SECOND * 60);
    assert_eq!(world.holder(), Some(0));
    world.leased.clear();
    world.run(LOOK_INTERVAL);
    assert_eq!((world.holder(), world.granted.last().unwrap().fence), (Some(1), 2));
}

#[test]
fn after_an_outage_of_the_database_holders_are_heard_of_first() {
    let mut world = World::new(&[0, 0]);
    world.run(SECOND * 10);
    world.leaves(0);
    world.round(false);
    world.run(LEASE);
    assert_eq!(world.holder(), Some(0), "it may be renewed elsewhere");
    world.run(LOOK_INTERVAL);
    assert_eq!(world.holder(), Some(1));
}

#[test]
fn who_stood_still_hears_first_what_it_missed() {
    let mut world = World::new(&[0, 0]);
    world.run(SECOND * 10);
    world.leaves(0);
    world.now += SECOND * 60;
    world.round(true);
    assert_eq!(world.holder(), Some(0));
    world.run(LEASE + LOOK_INTERVAL);
    assert_eq!(world.holder(), Some(1));
}

#[test]
fn leases_that_end_by_a_clock_that_jumped_are_not_believed() {
    let mut world = World::new(&[0, 0]);
    world.run(SECOND * 10);
    world.leaves(0);
    world.clock = UnixTime(world.clock.0 + 60);
    world.run(LEASE);
    assert_eq!(world.holder(), Some(0), "it may live");
    world.run(LOOK_INTERVAL);
    assert_eq!(world.holder(), Some(1));
}

#[test]
fn a_wait_within_a_round_is_a_gap() {
    let mut world = World::new(&[0, 0]);
    world.run(SECOND * 10);
    world.leaves(0);
    world.rounds.begin(world.now, world.clock);
    world.now += LARGEST_GAP + LOOK_INTERVAL;
    world.round(true);
    assert_eq!(world.holder(), Some(0));
}

#[test]
fn nobody_waits_for_one_that_died_and_counts_as_online_for_a_while() {
    let mut world = World::new(&[9, 0]);
    world.run(SECOND * 10);
    world.served.remove(&world.nodes[0]);
    world.run(LOOK_INTERVAL);
    assert_eq!(world.holder(), Some(1), "its lease is over");
}

#[test]
fn one_that_yields_gets_nothing_while_another_is_there_that_does_not() {
    let mut world = World::new(&[9, 0]);
    testing::claims(&mut world.state, world.nodes[0], Some(Claim { yields: true, ..exclusive(9) }));
    world.served.remove(&world.nodes[1]);
    world.run(SECOND * 60);
    assert_eq!(world.holder(), None, "the other one's server is to act");
    world.leaves(1);
    world.run(LOOK_INTERVAL);
    assert_eq!(world.holder(), Some(0), "better than nobody");
}

#[test]
fn what_was_refused_waits_and_holds_up_nothing_else() {
    let mut world = World::new(&[0]);
    world.rounds.refused_until.insert(vip(), world.now + REFUSED_DELAY);
    world.run(REFUSED_DELAY);
    assert_eq!(world.holder(), None);
    world.run(LOOK_INTERVAL);
    assert_eq!(world.holder(), Some(0));
}

#[test]
fn whoever_serves_a_worse_claimer_waits_for_those_who_serve_better_ones() {
    let mut world = World::new(&[0, 0, 0]);
    world.served = BTreeSet::from([world.nodes[2]]);
    world.run(SECOND * 2);
    assert_eq!(world.holder(), None);
    world.run(LOOK_INTERVAL);
    assert_eq!(world.holder(), Some(2), "nobody else took it");
}

#[test]
fn a_higher_priority_takes_over_after_a_hold_only_if_it_asks_to() {
    let mut world = World::new(&[0, 0]);
    world.round(true);
    let better = Claim { priority: 9, ..exclusive(9) };
    testing::claims(&mut world.state, world.nodes[1], Some(better));
    world.run(SECOND * 60);
    assert_eq!(world.holder(), Some(0));
    world.leaves(1);
    world.run(SECOND);
    testing::claims(&mut world.state, world.nodes[1], Some(Claim { preempt: true, ..better }));
    world.served.insert(world.nodes[1]);
    world.online.insert(world.nodes[1]);
    world.run(PREEMPT_HOLD);
    assert_eq!(world.holder(), Some(0));
    world.run(LOOK_INTERVAL);
    assert_eq!(world.holder(), Some(1));
    world.run(SECOND * 60);
    assert_eq!(world.granted.len(), 2, "nobody takes it back");
}

#[test]
fn who_yields_keeps_it_until_there_is_another_who_does_not() {
    let mut world = World::new(&[0, 0]);
    world.leaves(1);
    world.round(true);
    testing::claims(&mut world.state, world.nodes[0], Some(Claim { yields: true, ..exclusive(0) }));
    world.run(SECOND * 10);
    assert_eq!(world.holder(), Some(0));
    world.served.insert(world.nodes[1]);
    world.online.insert(world.nodes[1]);
    world.round(true);
    assert_eq!(world.holder(), Some(1));
    testing::claims(&mut world.state, world.nodes[1], Some(Claim { yields: true, ..exclusive(0) }));
    world.run(SECOND * 10);
    assert_eq!(world.granted.len(), 2, "nobody better is there");
}

#[test]
fn who_withdraws_gives_way_at_once() {
    let mut world = World::new(&[0, 0]);
    world.round(true);
    testing::claims(&mut world.state, world.nodes[0], None);
    world.round(true);
    assert_eq!(world.holder(), Some(1));
}
