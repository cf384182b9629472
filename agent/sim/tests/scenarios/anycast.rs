//! One address, another machine behind it.

use crate::{SEEDS, measured, ms, outage_under_traffic};
use agent_sim::{Fault, Setup, World};

#[test]
fn the_route_moves_and_the_agent_is_served_again_within_1500_ms() {
    let outages = SEEDS.map(|seed| {
        let mut world = World::settled(&Setup::default(), seed);
        let fault = |server| Fault::Route { address_of: server, to: (server + 1) % 3 };
        let outage = outage_under_traffic(&mut world, fault, |world, _| world.is_served(0));
        world.settle();
        outage
    });
    let (_, worst) = measured("anycast", outages.collect());
    assert!(worst < ms(1500));
}
