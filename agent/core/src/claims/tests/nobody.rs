//! Prefixes that nobody serves, or one alone could.

use super::*;

fn exclusive(text: &str) -> Claim {
    Claim { exclusive: true, ..claim(text) }
}

#[test]
fn what_is_claimed_exclusively_and_held_by_nobody_is_withheld_from_those_around_it() {
    let mut world = World::new(&[exclusive(ADDRESS), claim("10.9.0.0/24")]);
    assert!(world.withheld.contains(&prefix(ADDRESS)));
    let now = world.now;
    world.claims.handle_holders(BTreeMap::from([(prefix(ADDRESS), NodeId(1))]), now);
    world.drain();
    assert_eq!((world.serving(), world.withheld.len()), (1, 0));
    world.claims.handle_holders(BTreeMap::new(), now);
    let withheld = Output::Withhold { prefix: prefix(ADDRESS), withheld: true };
    assert_eq!(world.claims.poll_output(), Some(withheld), "before the former loses it");
    world.withheld.insert(prefix(ADDRESS));
    world.drain();
    assert!(!world.routes.contains_key(&prefix(ADDRESS)));
    world.claims.handle_claims(key(1), NodeId(1), vec![], now);
    world.drain();
    assert!(world.withheld.is_empty(), "whom nobody claims goes to those around it");
}

#[test]
fn while_all_are_withdrawn_nobody_serves_for_hours_and_the_first_that_is_back_does() {
    let mut world = pair();
    world.use_for_s(5);
    world.withdraw(1, true);
    world.withdraw(2, true);
    let moves = world.moves.len();
    world.run(Duration::from_secs(301), None);
    world.probes = 0;
    world.use_for_s(3600);
    assert_eq!((world.moves.len(), world.routes.len(), world.withheld.len()), (moves, 0, 1));
    assert!((280..=300).contains(&world.probes), "both each 25 s: {}", world.probes);
    world.withdraw(2, false);
    assert_eq!((world.serving(), world.moves.len()), (2, moves + 1));
    world.run(Duration::from_secs(301), None);
    world.withdraw(1, false);
    assert_eq!(world.claims.poll_timeout(), None, "it is in use no longer than any other");
}

#[test]
fn another_node_with_the_key_and_the_claims_of_one_that_failed_is_a_newcomer() {
    let mut world = pair();
    world.use_for_s(5);
    world.kill(1);
    world.use_for_s(2);
    world.restart(1);
    let now = world.now;
    world.claims.handle_claims(key(1), NodeId(7), vec![claim(ADDRESS)], now);
    let claimant = &world.claims.claimants[&key(1)];
    assert_eq!((claimant.node, claimant.has_failed, claimant.boot), (NodeId(7), false, None));
    world.drain();
    world.use_for_s(5);
    assert_eq!(world.serving(), 2, "and is up for less");
}

#[test]
fn one_that_nobody_could_replace_is_asked_every_2_s_and_not_watched_until_another_claims() {
    let mut world = World::new(&[claim(ADDRESS)]);
    world.use_for_s(5);
    assert!(world.watched.is_empty() && world.kept.contains(&key(1)));
    world.kill(1);
    world.probes = 0;
    world.use_for_s(100);
    assert!((48..=52).contains(&world.probes), "{}", world.probes);
    world.restart(1);
    world.use_for_s(5);
    let now = world.now;
    let (boot, rtt) = (1, Duration::from_millis(1));
    let (hears, is_heard, is_leaving, is_withdrawn) = (true, true, false, false);
    world.nodes.push(Node {
        key: key(2),
        rtt,
        boot,
        started_at: Some(now),
        older: Duration::ZERO,
        hears,
        is_heard,
        is_leaving,
        is_withdrawn,
        apart: BTreeMap::new(),
        listed: None,
    });
    world.claims.handle_claims(key(2), NodeId(2), vec![claim("10.9.0.0/31")], now);
    world.use_for_s(5);
    assert!(world.watched.contains_key(&key(1)));
    world.outage();
    world.kill(1);
    world.use_for_s(5);
    assert_eq!(world.serving(), 2);
    assert!(world.outage() <= Duration::from_millis(800));
}
