//! One agent of a live tunnel restarts.

use crate::{SEEDS, measured, ms, secs};
use agent_sim::{Fault, Setup, World};

#[test]
fn a_restarted_agent_is_reached_again_at_once_by_who_was_talking_to_it() {
    for servers_alive in [true, false] {
        let outages = SEEDS.map(|seed| {
            let mut world = World::settled(&Setup::default(), seed);
            let flow = world.flow(0, 1, ms(20));
            world.run_for(secs(5));
            if !servers_alive {
                (0..3).for_each(|server| world.apply(&Fault::Kill(server)));
            }
            world.apply(&Fault::Stop(1));
            world.run_for(secs(2));
            world.apply(&Fault::Launch(1));
            let before = world.traffic(flow).1;
            world.until("a reply", secs(3), |world| world.traffic(flow).1 > before)
        });
        let (_, worst) = measured(&format!("restart, servers {servers_alive}"), outages.collect());
        assert!(worst < ms(300));
    }
}
