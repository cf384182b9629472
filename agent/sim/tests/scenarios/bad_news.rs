//! A server says something against the agent that is not so.

use crate::{SEEDS, secs};
use agent_sim::{Fault, Host, Setup, World};

#[test]
fn a_server_that_does_not_know_a_node_yet_ends_nothing() {
    for seed in SEEDS {
        // Server 1 hears of nothing: it does not know the node that enrols at server 0.
        let mut world = World::settled(&Setup { agents: 3, ..Setup::default() }, seed);
        world.apply(&Fault::CutOff(1));
        world.apply(&Fault::Remove(2));
        world.run_for(secs(30));
        assert!(world.is_removed(2), "two servers say so, under the root's signature");
        assert!(world.is_served(0) && world.is_served(1) && !world.knows(0, 2), "seed {seed}");
    }
}

#[test]
fn an_agent_between_a_good_server_and_one_that_never_heard_of_it_is_served() {
    for seed in SEEDS {
        let mut world = World::new(&Setup { servers: 2, ..Setup::default() }, seed);
        world.apply(&Fault::CutOff(1));
        world.apply(&Fault::Partition(Host::Agent(0), Host::Server(0)));
        world.run_for(secs(20));
        assert!(
            !world.is_served(0) && !world.is_removed(0),
            "seed {seed}: nobody who knows it can be reached"
        );
        world.apply(&Fault::Join(Host::Agent(0), Host::Server(0)));
        world.until("served", secs(20), |world| world.is_served(0));
    }
}
