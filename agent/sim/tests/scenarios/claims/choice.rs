//! Who serves, and who does not.

use super::*;

#[test]
fn two_clients_use_the_same_node_whomever_they_met_first() {
    for seed in 0..20 {
        let mut world = World::settled(&setup(3), seed);
        // Each hears of one of them later than of the others.
        let apart = [(0, 2 + seed as usize % 3), (1, 2 + (seed as usize + 1) % 3)];
        apart.iter().for_each(|(client, claimer)| {
            world.apply(&Fault::Partition(Host::Agent(*client), Host::Agent(*claimer)));
        });
        for client in [0, 1] {
            world.call(client, ADDRESS, ms(50));
        }
        world.run_for(secs(20));
        apart.iter().for_each(|(client, claimer)| {
            world.apply(&Fault::Join(Host::Agent(*client), Host::Agent(*claimer)));
        });
        world.run_for(secs(120));
        assert_eq!(world.serving(0, PREFIX), Some(FIRST), "seed {seed}");
        assert_eq!(world.serving(1, PREFIX), Some(FIRST), "seed {seed}");
    }
}

#[test]
fn the_primary_returns_and_nobody_moves_among_equals() {
    for seed in 0..10 {
        let (mut world, caller) = in_use(&setup(2), seed, seed % 2 == 0);
        world.apply(&Fault::Stop(FIRST));
        world.run_for(secs(5));
        world.apply(&Fault::Launch(FIRST));
        world.outage(caller);
        world.run_for(secs(180));
        assert_eq!((world.serving(0, PREFIX), world.switches(0)), (Some(SECOND), 1), "seed {seed}");
        assert!(world.outage(caller) < ms(100), "seed {seed}");
    }
}

#[test]
fn the_primary_returns_and_preempts_after_its_hold_and_nothing_is_lost() {
    for seed in 0..10 {
        let mut setup = setup(2);
        setup.claims[0].claim.preempt = true;
        let (mut world, caller) = in_use(&setup, seed, seed % 2 == 0);
        world.apply(&Fault::Stop(FIRST));
        world.run_for(secs(5));
        let lost_before = lost(&mut world, caller);
        world.apply(&Fault::Launch(FIRST));
        world.run_for(secs(5));
        assert_eq!(world.serving(0, PREFIX), Some(SECOND), "seed {seed}");
        world.run_for(secs(30));
        assert_eq!((world.serving(0, PREFIX), world.switches(0)), (Some(FIRST), 2), "seed {seed}");
        assert_eq!(lost(&mut world, caller), lost_before, "seed {seed}: on the way back");
    }
}

/// A claims the /32, B the /31 around it, and C has the other address of that.
#[test]
fn a_secondary_serves_the_address_by_a_shorter_prefix_until_the_primary_is_back_for_good() {
    const NEIGHBOUR: &str = "100.64.0.4";
    const SHARED: &str = "100.64.0.5";
    for seed in 0..20 {
        let claims = vec![Claimed::new(1, "100.64.0.5/32"), Claimed::new(2, "100.64.0.4/31")];
        let setup = Setup { agents: 4, claims, traced: false, ..Setup::default() };
        let mut world = World::settled(&setup, seed);
        if seed % 2 == 1 {
            (0..3).for_each(|server| world.apply(&Fault::Kill(server)));
        }
        let (shared, neighbour) = (world.call(0, SHARED, ms(5)), world.call(0, NEIGHBOUR, ms(5)));
        world.run_for(secs(5));
        assert_eq!(world.answered_by(shared), [1]);
        world.outage(shared);
        world.switches(0);
        world.apply(&Fault::Stop(1));
        world.run_for(secs(5));
        assert!(world.outage(shared) <= ms(800), "seed {seed}");
        let lost_before = lost(&mut world, shared);
        world.apply(&Fault::Launch(1));
        world.run_for(secs(60));
        assert_eq!(world.switches(0), 2, "seed {seed}: once there and once back");
        assert_eq!(world.serving(0, "100.64.0.5/32"), Some(1), "seed {seed}");
        assert_eq!(lost(&mut world, shared), lost_before, "seed {seed}: nothing is lost on the way back");
        assert_eq!(lost(&mut world, neighbour), 0, "seed {seed}");
        assert_eq!(world.answered_by(neighbour), [3], "seed {seed}");
    }
}

#[test]
fn a_client_whose_machine_started_after_the_nodes_agrees_with_one_that_was_there_before() {
    for seed in 0..20 {
        let (mut world, _) = in_use(&setup(2), seed, true);
        for agent in [FIRST, 1] {
            world.apply(&Fault::Stop(agent));
            world.run_for(secs(30));
            world.apply(&Fault::Launch(agent));
            world.run_for(secs(30));
        }
        world.call(1, ADDRESS, ms(100));
        world.run_for(secs(20));
        assert_eq!([0, 1].map(|client| world.serving(client, PREFIX)), [Some(SECOND); 2], "seed {seed}");
    }
}
