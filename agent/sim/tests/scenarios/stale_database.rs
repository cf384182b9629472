//! A server, or all, lose touch with the database.

use crate::{SEEDS, secs};
use agent_sim::{Fault, Setup, World};

#[test]
fn a_server_that_lost_the_database_is_left_for_one_that_did_not() {
    for seed in SEEDS {
        let mut world = World::settled(&Setup::default(), seed);
        let lagging = world.server_of(0).expect("it is served");
        world.apply(&Fault::CutOff(lagging));
        world.until("another serves", secs(25), |world| world.server_of(0).is_some_and(|now| now != lagging));
        world.run_for(secs(60));
        assert_eq!(world.failovers(0), 1, "seed {seed}");
        assert!(world.has_newest_map(0));
    }
}

#[test]
fn where_every_server_lost_it_nobody_moves() {
    for seed in SEEDS {
        let mut world = World::settled(&Setup::default(), seed);
        world.apply(&Fault::DatabaseAway);
        world.run_for(secs(120));
        assert_eq!(world.failovers(0) + world.failovers(1), 0, "seed {seed}");
        world.apply(&Fault::DatabaseBack);
        world.run_for(secs(20));
        assert_eq!(world.failovers(0) + world.failovers(1), 0, "seed {seed}");
    }
}
