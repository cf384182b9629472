//! Servers ask for failovers to be spread.

use crate::{SEEDS, measured, ms, secs};
use agent_sim::{Fault, Setup, World};

#[test]
fn failovers_are_spread_over_the_time_that_servers_ask_for() {
    let outages = SEEDS.map(|seed| {
        let mut world = World::settled(&Setup { spread: ms(200), ..Setup::default() }, seed);
        let victim = world.server_of(0).expect("it is served");
        world.apply(&Fault::Kill(victim));
        world.until("another serves", secs(2), |world| world.is_served(0))
    });
    let (median, worst) = measured("spread over 200 ms", outages.collect());
    assert!(worst < ms(300) && median > ms(50), "{median:?}, {worst:?}");
}
