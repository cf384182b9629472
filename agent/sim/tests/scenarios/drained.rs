//! A server asks its agents to leave.

use crate::{SEEDS, measured, ms, secs};
use agent_sim::{Fault, Setup, World};

#[test]
fn a_draining_server_is_left_within_100_ms() {
    let outages = SEEDS.map(|seed| {
        let mut world = World::settled(&Setup::default(), seed);
        let leaving = world.server_of(0).expect("it is served");
        world.apply(&Fault::Drain(leaving));
        let took = world
            .until("another serves", secs(5), |world| world.server_of(0).is_some_and(|now| now != leaving));
        world.run_for(secs(20));
        assert_eq!(world.failovers(0), 1, "seed {seed}");
        took
    });
    let (_, worst) = measured("drained", outages.collect());
    assert!(worst < ms(100));
}

#[test]
fn the_only_server_drains_restarts_and_serves_again() {
    for seed in SEEDS {
        let mut world = World::settled(&Setup { servers: 1, ..Setup::default() }, seed);
        world.apply(&Fault::Drain(0));
        world.run_for(secs(2));
        world.apply(&Fault::Start(0));
        world.until("it serves again", secs(3), |world| world.is_served(0) && world.is_served(1));
    }
}
