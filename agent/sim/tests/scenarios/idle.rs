//! A tunnel without data.

use crate::{ms, secs};
use agent_sim::{Setup, World};

#[test]
fn an_idle_tunnel_is_forgotten_and_its_next_packet_is_delivered() {
    for seed in 0..10 {
        let mut world = World::settled(&Setup::default(), seed);
        let flow = world.flow(0, 1, ms(500));
        world.run_for(secs(10));
        world.set_flow(flow, false);
        assert!(world.has_tunnel(0, 1));
        world.run_for(secs(285));
        assert!(
            world.has_tunnel(0, 1) && world.has_tunnel(1, 0),
            "it stays for the idle timeout; seed {seed}"
        );
        world.run_for(secs(15 + 180));
        assert!(!world.has_tunnel(0, 1) && !world.has_tunnel(1, 0), "seed {seed}");
        let before = world.traffic(flow);
        world.set_flow(flow, true);
        world.run_for(ms(400));
        let after = world.traffic(flow);
        assert_eq!((after.0 - before.0, after.1 - before.1), (1, 1), "seed {seed}");
    }
}
