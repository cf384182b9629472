//! Claimants that serve no more for now, and say so.

use super::*;

#[test]
fn whoever_withdraws_is_left_before_anything_is_lost_and_restored_it_is_a_newcomer() {
    let mut world = pair();
    world.withdraw(1, true);
    world.use_for_s(30);
    assert_eq!(world.serving(), 2);
    assert!(world.outage() <= TICK * 2);
    world.withdraw(1, false);
    world.use_for_s(300);
    assert_eq!((world.serving(), world.moves.len()), (2, 2));
    world.withdraw(2, true);
    world.use_for_s(5);
    assert_eq!(world.serving(), 1);
    assert!(world.outage() <= TICK * 2);
}

#[test]
fn one_that_is_preferred_and_restored_serves_again_after_the_hold() {
    let mut world = World::new(&[Claim { priority: 1, ..claim(ADDRESS) }, claim(ADDRESS)]);
    world.use_for_s(20);
    world.outage();
    world.withdraw(1, true);
    world.use_for_s(20);
    assert_eq!(world.serving(), 2);
    world.withdraw(1, false);
    world.use_for_s(4);
    assert_eq!(world.serving(), 2);
    world.use_for_s(2);
    assert_eq!((world.serving(), world.moves.len()), (1, 3));
    assert!(world.outage() <= TICK * 2);
}

#[test]
fn with_all_withdrawn_nobody_serves_until_one_is_restored() {
    let mut world = pair();
    world.withdraw(1, true);
    world.withdraw(2, true);
    world.use_for_s(5);
    assert!(world.routes.is_empty());
    assert!(world.claims.routed().eq([prefix(ADDRESS)]), "it is routed nowhere else meanwhile");
    assert!(world.withheld.contains(&prefix(ADDRESS)));
    world.withdraw(2, false);
    assert_eq!(world.serving(), 2);
    world.use_for_s(100);
    world.withdraw(1, false);
    world.use_for_s(100);
    assert_eq!(world.serving(), 2);
}

#[test]
fn one_that_withdraws_beside_a_dead_one_serves_no_more() {
    let mut world = pair();
    world.kill(2);
    world.withdraw(1, true);
    world.use_for_s(5);
    assert_eq!(world.serving(), 2);
    world.withdraw(1, false);
    world.use_for_s(5);
    assert_eq!(world.serving(), 1);
}

#[test]
fn words_of_withdrawal_that_were_lost_are_made_good_by_answers() {
    let mut world = pair();
    world.node(1).is_withdrawn = true;
    world.use_for_s(3);
    assert_eq!(world.serving(), 2);
    let restored_at = world.now;
    (world.node(1).is_withdrawn, world.node(1).started_at) = (false, Some(restored_at));
    world.use_for_s(30);
    world.kill(2);
    world.use_for_s(5);
    assert_eq!(world.serving(), 1);
    // Withdrawn and restored while nobody looked: it is a newcomer all the same.
    let mut world = pair();
    world.node(1).started_at = Some(world.now);
    world.use_for_s(60);
    assert_eq!((world.serving(), world.moves.len()), (2, 2), "as for the clients that noticed");
    assert!(world.outage() <= TICK * 2);
}

#[test]
fn an_idle_client_that_missed_a_restoration_finds_it_with_a_probe_in_25_s() {
    let mut world = pair();
    world.withdraw(1, true);
    world.withdraw(2, true);
    world.use_for_s(5);
    world.run(Duration::from_secs(400), None);
    world.node(2).is_withdrawn = false;
    world.node(1).is_withdrawn = false;
    world.use_for_s(26);
    assert!(world.outage() <= Duration::from_secs(400) + Duration::from_secs(7 + 25));
    world.use_for_s(3);
    assert!(world.outage() <= TICK * 2);
}

const OTHER: &str = "10.9.0.2/32";

/// Both claim two addresses, of which both are in use.
fn pair_of_two() -> World {
    let mut world = pair();
    for number in [1, 2] {
        let claims = vec![claim(ADDRESS), claim(OTHER)];
        world.claims.handle_claims(key(number), NodeId(number.into()), claims, world.now);
    }
    world.drain();
    world.run(Duration::from_secs(5), Some(prefix(OTHER)));
    world.use_for_s(5);
    world.outage();
    assert_eq!((world.serving(), world.routes[&prefix(OTHER)]), (1, key(1)));
    world
}

#[test]
fn one_claim_that_is_withdrawn_leaves_the_others_where_they_are_and_restored_it_alone_is_a_newcomer() {
    let mut world = pair_of_two();
    let moves = world.moves.len();
    world.withdraw_one(1, OTHER, true);
    world.run(Duration::from_secs(5), Some(prefix(OTHER)));
    world.use_for_s(30);
    assert_eq!((world.serving(), world.routes[&prefix(OTHER)]), (1, key(2)));
    world.withdraw_one(1, OTHER, false);
    world.run(Duration::from_secs(100), Some(prefix(OTHER)));
    world.use_for_s(100);
    assert_eq!((world.serving(), world.routes[&prefix(OTHER)]), (1, key(2)));
    world.withdraw_one(2, OTHER, true);
    world.run(Duration::from_secs(1), Some(prefix(OTHER)));
    assert_eq!(world.routes[&prefix(OTHER)], key(1), "it may serve again");
    assert_eq!(world.moves.len(), moves + 2);
    assert!(world.outage() <= TICK * 2);
}

#[test]
fn words_of_one_claim_that_were_lost_are_made_good_by_answers() {
    let mut world = pair_of_two();
    world.node(1).apart.insert(prefix(OTHER), None);
    world.run(Duration::from_secs(3), Some(prefix(OTHER)));
    assert_eq!((world.serving(), world.routes[&prefix(OTHER)]), (1, key(2)));
    let mut world = pair_of_two();
    let restored_at = world.now;
    world.node(1).apart.insert(prefix(OTHER), Some(restored_at));
    world.run(Duration::from_secs(60), Some(prefix(OTHER)));
    assert_eq!((world.serving(), world.routes[&prefix(OTHER)]), (1, key(2)), "as for who noticed");
}

#[test]
fn what_a_claimant_does_not_list_it_does_not_serve_whatever_the_map_says_until_it_does() {
    let mut world = pair_of_two();
    world.node(1).listed = Some(vec![prefix(ADDRESS)]);
    world.run(Duration::from_secs(3), Some(prefix(OTHER)));
    assert_eq!((world.serving(), world.routes[&prefix(OTHER)]), (1, key(2)));
    let moves = world.moves.len();
    // As the standby, too, of whom no use is told.
    world.run(Duration::from_secs(100), Some(prefix(OTHER)));
    assert_eq!(world.moves.len(), moves);
    world.withdraw_one(2, OTHER, true);
    world.run(Duration::from_secs(30), Some(prefix(OTHER)));
    assert_eq!(world.routes.get(&prefix(OTHER)), None, "nobody serves it");
    world.node(1).listed = Some(vec![prefix(ADDRESS), prefix(OTHER)]);
    world.run(Duration::from_secs(30), Some(prefix(OTHER)));
    assert_eq!(world.routes[&prefix(OTHER)], key(1));
}

#[test]
fn a_preferred_claim_that_is_restored_alone_serves_again_after_the_hold() {
    let mut world = World::new(&[Claim { priority: 1, ..claim(ADDRESS) }, claim(ADDRESS)]);
    world.use_for_s(20);
    world.withdraw_one(1, ADDRESS, true);
    world.use_for_s(20);
    assert_eq!(world.serving(), 2);
    world.withdraw_one(1, ADDRESS, false);
    world.use_for_s(4);
    assert_eq!(world.serving(), 2);
    world.use_for_s(2);
    assert_eq!((world.serving(), world.moves.len()), (1, 3));
}

#[test]
fn where_all_have_withdrawn_one_claim_nobody_serves_that_alone() {
    let mut world = pair_of_two();
    world.withdraw_one(1, OTHER, true);
    world.withdraw_one(2, OTHER, true);
    world.use_for_s(3);
    assert_eq!(world.serving(), 1);
    assert!(!world.routes.contains_key(&prefix(OTHER)) && world.withheld.contains(&prefix(OTHER)));
    world.withdraw_one(2, OTHER, false);
    assert_eq!(world.routes[&prefix(OTHER)], key(2));
}
