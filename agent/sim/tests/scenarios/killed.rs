//! The server that serves is killed.

use crate::{SEEDS, measured, ms, secs};
use agent_sim::{Fault, Setup, World};

#[test]
fn the_standby_takes_over_within_100_ms_and_no_request_is_lost() {
    let outages = SEEDS.map(|seed| {
        let mut world = World::settled(&Setup::default(), seed);
        let flow = world.flow(0, 1, ms(5));
        world.run_for(secs(3));
        let victim = world.server_of(0).expect("it is served");
        world.apply(&Fault::Kill(victim));
        let outage = world.until("another serves", secs(5), |world| world.is_served(0));
        assert_eq!(world.failovers(0), 1);
        world.run_for(secs(1));
        world.set_flow(flow, false);
        world.run_for(secs(1));
        let (sent, answered) = world.traffic(flow);
        assert_eq!(sent, answered, "requests were lost");
        outage
    });
    let (_, worst) = measured("killed", outages.collect());
    assert!(worst < ms(100));
}

#[test]
fn without_a_standby_another_server_is_dialled_at_once() {
    let outages = SEEDS.map(|seed| {
        let mut world = World::settled(&Setup { servers: 2, ..Setup::default() }, seed);
        let victim = world.server_of(0).expect("it is served");
        world.apply(&Fault::Kill(1 - victim));
        world.run_for(secs(30));
        world.apply(&Fault::Start(1 - victim));
        world.apply(&Fault::Kill(victim));
        world.until("another serves", secs(5), |world| world.is_served(0))
    });
    let (_, worst) = measured("killed, without a standby", outages.collect());
    assert!(worst < ms(1500));
}
