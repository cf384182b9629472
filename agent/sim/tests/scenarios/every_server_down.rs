//! No server is there, and nobody notices.

use crate::{SEEDS, measured, ms, secs};
use agent_sim::{Fault, Setup, World};

fn without_servers(seed: u64) -> World {
    let mut world = World::settled(&Setup::default(), seed);
    (0..3).for_each(|server| world.apply(&Fault::Kill(server)));
    world.run_for(secs(5));
    world
}

#[test]
fn a_tunnel_never_used_wakes_within_one_handshake() {
    let waits = SEEDS.map(|seed| {
        let mut world = without_servers(seed);
        assert!(!world.has_tunnel(0, 1));
        let flow = world.flow(0, 1, ms(500));
        world.until("the first reply", secs(2), |world| world.traffic(flow).1 > 0);
        assert_eq!(world.traffic(flow).0, 1, "the first packet itself is answered");
        world.last_round_trip(flow).expect("answered")
    });
    let (_, worst) = measured("first packet", waits.collect());
    assert!(worst < ms(60), "two round trips: {worst:?}");
}

#[test]
fn nothing_is_lost_on_an_open_tunnel_in_ten_minutes() {
    for seed in 0..5 {
        let mut world = without_servers(seed);
        let flow = world.flow(0, 1, ms(100));
        world.run_for(secs(600));
        world.set_flow(flow, false);
        world.run_for(secs(1));
        let (sent, answered) = world.traffic(flow);
        assert_eq!(sent, answered, "over {} rekeys", 600 / 120);
    }
}

#[test]
fn both_agents_restart_from_their_disks_and_talk_within_1_s() {
    let waits = SEEDS.map(|seed| {
        let mut world = without_servers(seed);
        (0..2).for_each(|agent| world.apply(&Fault::Stop(agent)));
        world.run_for(secs(1));
        (0..2).for_each(|agent| world.apply(&Fault::Launch(agent)));
        let flow = world.flow(0, 1, ms(200));
        world.until("the first reply", secs(1), |world| world.traffic(flow).1 > 0)
    });
    measured("restarted, first reply", waits.collect());
}
