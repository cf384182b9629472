//! The database is restored from an older copy.

use crate::{SEEDS, secs};
use agent_sim::{Fault, Setup, World};

/// Everybody is there, agent 3 talks to agent 0, and the copy is older than the newest agents if `is_early`.
fn world(seed: u64, is_early: bool) -> World {
    let mut world = World::new(&Setup { agents: 4, servers: 2, ..Setup::default() }, seed);
    if is_early {
        world.apply(&Fault::Copy);
    }
    world.until("everyone is served", secs(20), |world| {
        (0..4).all(|at| world.is_served(at) && world.has_newest_map(at))
    });
    if !is_early {
        world.apply(&Fault::Copy);
    }
    world.flow(3, 0, secs(1));
    world.run_for(secs(45));
    world
}

#[test]
fn servers_that_run_put_back_what_was_lost_and_nobody_notices() {
    for seed in SEEDS {
        let mut world = world(seed, true);
        world.apply(&Fault::Restore);
        world.run_for(secs(30));
        for agent in 0..4 {
            assert!(world.has_newest_map(agent) && world.is_served(agent), "seed {seed}, agent {agent}");
            assert_eq!(world.failovers(agent), 0, "seed {seed}, agent {agent}");
        }
        assert!(world.knows(0, 3) && world.has_tunnel(0, 3));
        world.settle();
    }
}

#[test]
fn servers_that_all_restarted_take_everybody_in_again_and_no_tunnel_drops() {
    for seed in SEEDS {
        let mut world = world(seed, true);
        (0..2).for_each(|server| world.apply(&Fault::Kill(server)));
        world.apply(&Fault::Restore);
        (0..2).for_each(|server| world.apply(&Fault::Start(server)));
        world.until("all are members again", secs(60), |world| {
            (0..4).all(|at| world.is_served(at) && world.has_newest_map(at) && world.knows(at, (at + 1) % 4))
        });
        world.settle();
    }
}

#[test]
fn a_removal_that_was_lost_is_made_again_where_a_server_remembers_it() {
    for seed in SEEDS {
        let mut world = world(seed, false);
        world.apply(&Fault::Remove(2));
        world.until("it is known", secs(5), |world| world.is_removed(2) && world.has_newest_map(0));
        world.apply(&Fault::Restore);
        world.run_for(secs(20));
        assert!(!world.knows(0, 2) && !world.is_served(2), "seed {seed}");
        world.settle();
    }
}
