//! The cluster's root changes.

use crate::{SEEDS, measured, ms, secs};
use agent_sim::{Fault, Setup, World};

/// Who a rotation befalls while it is away.
fn away(world: &mut World, agent: usize, rotations: usize) {
    world.apply(&Fault::Stop(agent));
    for _ in 0..rotations {
        world.apply(&Fault::Rotate);
        world.run_for(secs(8));
    }
}

#[test]
fn an_agent_that_missed_one_or_two_changes_is_led_to_the_newest_and_nobody_loses_a_packet() {
    let waits = SEEDS.map(|seed| {
        let mut world = World::settled(&Setup { agents: 3, ..Setup::default() }, seed);
        let flow = world.flow(0, 1, ms(20));
        world.run_for(secs(2));
        away(&mut world, 2, 1 + (seed % 2) as usize);
        world.apply(&Fault::Retire);
        world.apply(&Fault::Launch(2));
        let took = world.until("it believes the newest", secs(5), World::all_have_newest_root);
        world.run_for(secs(10));
        world.apply(&Fault::Retire);
        assert_eq!(world.trusted_roots(), 1, "seed {seed}: nobody needs the former root");
        world.run_for(secs(10));
        world.set_flow(flow, false);
        world.run_for(secs(1));
        let (sent, answered) = world.traffic(flow);
        assert_eq!(sent, answered, "seed {seed}: requests were lost");
        world.settle();
        took
    });
    let (_, worst) = measured("led to the newest root", waits.collect());
    assert!(worst < secs(1));
}

#[test]
fn the_trust_in_a_root_does_not_end_while_an_agent_that_is_away_has_no_other() {
    for seed in SEEDS {
        let mut world = World::settled(&Setup { agents: 3, ..Setup::default() }, seed);
        away(&mut world, 2, 1);
        world.apply(&Fault::Retire);
        assert_eq!(world.trusted_roots(), 2, "seed {seed}");
        world.settle();
    }
}

#[test]
fn a_server_that_is_behind_is_left_alone_by_who_knows_a_newer_root_and_serves_again_when_it_is_level() {
    for seed in SEEDS {
        let mut world = World::settled(&Setup { servers: 2, ..Setup::default() }, seed);
        world.apply(&Fault::CutOff(0));
        world.apply(&Fault::Rotate);
        world.run_for(secs(30));
        assert!((0..2).all(|agent| world.server_of(agent) == Some(1)), "seed {seed}");
        assert!(world.all_have_newest_root());
        (0..2).for_each(|agent| {
            world.apply(&Fault::Stop(agent));
            world.apply(&Fault::Launch(agent));
        });
        world.run_for(secs(5));
        assert!((0..2).all(|agent| !world.has_standby(agent)), "seed {seed}: what it shows is behind");
        world.settle();
    }
}

#[test]
fn with_every_server_down_a_removal_under_a_root_that_was_missed_is_believed_all_the_same() {
    let waits = SEEDS.map(|seed| {
        let mut world = World::settled(&Setup { agents: 4, ..Setup::default() }, seed);
        world.flow(0, 1, ms(200));
        world.run_for(secs(3));
        away(&mut world, 1, 1 + (seed % 2) as usize);
        world.apply(&Fault::Remove(3));
        world.run_for(secs(2));
        (0..3).for_each(|server| world.apply(&Fault::Kill(server)));
        world.apply(&Fault::Launch(1));
        // The root itself only servers change.
        let gone = |world: &World| !world.knows(1, 3);
        let took = world.until("it believes what it missed", secs(3), gone);
        // Its disk has it by then.
        world.run_for(secs(1));
        world.apply(&Fault::Stop(1));
        world.run_for(secs(1));
        world.apply(&Fault::Launch(1));
        world.run_for(secs(5));
        assert!(gone(&world), "seed {seed}: a restart brought it back");
        world.settle();
        took
    });
    let (_, worst) =
        measured("a removal under a root that was missed, heard through a tunnel", waits.collect());
    assert!(worst < secs(3));
}

#[test]
fn certificates_end_while_every_server_is_down_and_all_is_mended_when_they_are_back() {
    for seed in SEEDS {
        let setup = Setup { lifetime: Some(secs(90)), ..Setup::default() };
        let mut world = World::settled(&setup, seed);
        let flow = world.flow(0, 1, ms(500));
        world.run_for(secs(5));
        (0..3).for_each(|server| world.apply(&Fault::Kill(server)));
        world.run_for(secs(60));
        assert!(world.has_tunnel(0, 1), "seed {seed}: it has not ended yet");
        world.run_for(secs(40));
        assert!(!world.has_tunnel(0, 1), "seed {seed}: it has ended");
        world.settle();
        world.set_flow(flow, false);
    }
}
