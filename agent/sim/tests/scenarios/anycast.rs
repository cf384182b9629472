//! One address, another machine behind it.

use crate::{SEEDS, measured, ms, secs};
use agent_sim::{Fault, Setup, World};

#[test]
fn the_route_moves_and_the_agent_is_served_again_within_1500_ms() {
    let outages = SEEDS.map(|seed| {
        let mut world = World::settled(&Setup::default(), seed);
        let flow = world.flow(0, 1, ms(5));
        world.run_for(secs(3));
        let before = world.server_of(0).expect("it is served");
        world.apply(&Fault::Route { address_of: before, to: (before + 1) % 3 });
        world.run_for(ms(1));
        let outage = world.until("served again", secs(5), |world| world.is_served(0));
        world.set_flow(flow, false);
        world.run_for(secs(1));
        let (sent, answered) = world.traffic(flow);
        assert_eq!(sent, answered, "requests were lost");
        world.settle();
        outage
    });
    let (_, worst) = measured("anycast", outages.collect());
    assert!(worst < ms(1500));
}
