//! All servers restart, one after the other.

use crate::{SEEDS, ms, secs};
use agent_sim::{Fault, Setup, World};

#[test]
fn nothing_is_lost_and_each_agent_moves_at_most_once_per_restart() {
    for seed in SEEDS {
        let mut world = World::settled(&Setup { agents: 4, ..Setup::default() }, seed);
        let flows: Vec<usize> = (0..4).map(|agent| world.flow(agent, (agent + 1) % 4, ms(50))).collect();
        world.run_for(secs(2));
        for server in 0..3 {
            let before: Vec<u64> = (0..4).map(|agent| world.failovers(agent)).collect();
            world.apply(&Fault::Drain(server));
            world.run_for(secs(12));
            world.apply(&Fault::Start(server));
            world.run_for(secs(20));
            for (agent, before) in before.iter().enumerate() {
                assert!(world.failovers(agent) - before <= 1, "seed {seed}, agent {agent}");
            }
        }
        flows.iter().for_each(|flow| world.set_flow(*flow, false));
        world.run_for(secs(1));
        for flow in flows {
            let (sent, answered) = world.traffic(flow);
            assert_eq!(sent, answered, "seed {seed}: requests were lost");
        }
    }
}
