//! An agent's machine gets another address.

use crate::{SEEDS, measured, ms, secs};
use agent_sim::{Fault, Setup, World};

#[test]
fn a_live_tunnel_follows_with_every_server_down() {
    let outages = SEEDS.map(|seed| {
        let mut world = World::settled(&Setup::default(), seed);
        let flow = world.flow(0, 1, ms(20));
        world.run_for(secs(5));
        (0..3).for_each(|server| world.apply(&Fault::Kill(server)));
        world.apply(&Fault::Move(1));
        let before = world.traffic(flow).1;
        world.until("a reply", secs(3), |world| world.traffic(flow).1 > before)
    });
    let (_, worst) = measured("moved, every server down", outages.collect());
    assert!(worst < ms(200));
}

#[test]
fn both_ends_move_and_find_each_other_through_servers() {
    let outages = SEEDS.map(|seed| {
        let mut world = World::settled(&Setup::default(), seed);
        let flow = world.flow(0, 1, ms(100));
        world.run_for(secs(5));
        world.apply(&Fault::Move(0));
        world.apply(&Fault::Move(1));
        let before = world.traffic(flow).1;
        world.until("a reply", secs(30), |world| world.traffic(flow).1 > before)
    });
    let (_, worst) = measured("both moved", outages.collect());
    assert!(worst < secs(3));
}

#[test]
fn an_agent_that_moved_is_served_again_within_two_seconds() {
    let outages = SEEDS.map(|seed| {
        let mut world = World::settled(&Setup::default(), seed);
        world.apply(&Fault::Move(0));
        world.run_for(ms(1));
        world.until("served", secs(10), |world| world.has_newest_map(1) && world.is_served(0))
    });
    let (_, worst) = measured("moved", outages.collect());
    assert!(worst < secs(2));
}
