//! A machine sleeps; the boot clock goes on.

use crate::{SEEDS, measured, ms, secs};
use agent_sim::{Fault, Setup, World};

#[test]
fn after_an_hour_of_sleep_an_agent_is_served_and_its_tunnel_carries_again_at_once() {
    let outages = (0..10).map(|seed| {
        let mut world = World::settled(&Setup::default(), seed);
        let flow = world.flow(0, 1, ms(500));
        world.run_for(secs(5));
        world.apply(&Fault::Sleep(0));
        world.run_for(secs(3600));
        world.apply(&Fault::WakeUp(0));
        let (_, before) = world.traffic(flow);
        let served = world.until("served", secs(10), |world| world.is_served(0));
        world.until("a reply", secs(3), |world| world.traffic(flow).1 > before);
        served
    });
    let (_, worst) = measured("woken, served", outages.collect());
    assert!(worst < secs(1));
}

#[test]
fn a_nap_shorter_than_the_servers_patience_ends_no_tunnel() {
    for seed in SEEDS {
        let mut world = World::settled(&Setup::default(), seed);
        world.flow(0, 1, ms(500));
        world.run_for(secs(5));
        world.apply(&Fault::Sleep(0));
        world.run_for(secs(2));
        world.apply(&Fault::WakeUp(0));
        world.run_for(secs(5));
        assert!(world.has_tunnel(0, 1) && world.is_served(0), "seed {seed}");
    }
}
