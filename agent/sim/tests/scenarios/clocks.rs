//! A machine's wall clock is set while its agent runs.

use crate::{SEEDS, measured, ms, secs};
use agent_sim::{Fault, Setup, World};

#[test]
fn a_tunnel_that_slept_wakes_although_the_clock_was_set_back_by_hours() {
    let waits = SEEDS.map(|seed| {
        let mut world = World::settled(&Setup::default(), seed);
        let flow = world.flow(0, 1, ms(200));
        world.until("a reply", secs(2), |world| world.traffic(flow).1 > 0);
        world.set_flow(flow, false);
        world.run_for(secs(600));
        assert!(!world.has_tunnel(0, 1), "it sleeps");
        world.apply(&Fault::WallClock(0, -7200));
        let before = world.traffic(flow).1;
        world.set_flow(flow, true);
        world.until("a reply to a peer that remembers the later time", secs(2), |world| {
            world.traffic(flow).1 > before
        })
    });
    let (_, worst) = measured("woken with a clock set back", waits.collect());
    assert!(worst < ms(500), "{worst:?}");
}

#[test]
fn hours_either_way_cost_no_session_and_no_packet() {
    for seed in SEEDS {
        let mut world = World::settled(&Setup::default(), seed);
        let flow = world.flow(0, 1, ms(200));
        world.run_for(secs(3));
        for ahead_s in [7200, -7200, 86_400, 0] {
            world.apply(&Fault::WallClock(0, ahead_s));
            world.run_for(secs(200));
        }
        world.set_flow(flow, false);
        world.run_for(secs(1));
        let (sent, answered) = world.traffic(flow);
        assert_eq!((sent, world.failovers(0)), (answered, 0), "seed {seed}");
    }
}
