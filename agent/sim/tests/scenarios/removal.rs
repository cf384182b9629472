//! A node is removed, under the root's signature.

use crate::{SEEDS, measured, ms, secs};
use agent_sim::{Fault, Host, Setup, World};

#[test]
fn its_tunnels_end_everywhere_and_it_learns_why() {
    let waits = SEEDS.map(|seed| {
        let mut world = World::settled(&Setup { agents: 3, ..Setup::default() }, seed);
        world.flow(0, 2, ms(200));
        world.flow(0, 1, ms(200));
        world.run_for(secs(3));
        world.apply(&Fault::Remove(2));
        let gone = |world: &World| !world.knows(0, 2) && !world.knows(1, 2) && !world.has_tunnel(0, 2);
        let took = world.until("the others forgot it", secs(1), gone);
        world.until("it knows", secs(15), |world| world.is_removed(2));
        assert!(world.has_tunnel(0, 1), "the others' tunnel stays");
        took
    });
    let (_, worst) = measured("removed", waits.collect());
    assert!(worst < ms(100));
}

#[test]
fn an_agent_that_no_server_reaches_hears_of_it_through_its_tunnels_and_keeps_it() {
    let waits = SEEDS.map(|seed| {
        let mut world = World::settled(&Setup { agents: 3, servers: 2, ..Setup::default() }, seed);
        world.flow(0, 1, ms(200));
        world.flow(1, 2, ms(200));
        world.run_for(secs(3));
        (0..2).for_each(|server| world.apply(&Fault::Partition(Host::Agent(1), Host::Server(server))));
        world.apply(&Fault::Remove(2));
        let gone = |world: &World| !world.knows(1, 2) && !world.has_tunnel(1, 2);
        let took = world.until("the one without servers forgot it", secs(1), gone);
        world.until("it knows from its peers or servers", secs(15), |world| world.is_removed(2));
        (0..2).for_each(|server| world.apply(&Fault::Kill(server)));
        world.apply(&Fault::Stop(1));
        world.run_for(secs(1));
        world.apply(&Fault::Launch(1));
        world.run_for(secs(5));
        assert!(!world.knows(1, 2), "seed {seed}: a restart brought it back");
        took
    });
    let (_, worst) = measured("heard through a tunnel", waits.collect());
    assert!(worst < ms(300));
}

#[test]
fn one_that_was_away_hears_of_it_from_a_peer_whose_tunnel_to_it_seemed_to_be_up() {
    for seed in SEEDS {
        let mut world = World::settled(&Setup { agents: 3, servers: 1, ..Setup::default() }, seed);
        world.flow(0, 1, ms(200));
        world.run_for(secs(3));
        world.apply(&Fault::Stop(1));
        world.run_for(secs(1));
        world.apply(&Fault::Remove(2));
        // It is told again and again meanwhile, for the last time after 15 s.
        world.run_for(secs(20));
        world.apply(&Fault::Kill(0));
        world.apply(&Fault::Launch(1));
        world.until("it knows", secs(15), |world| !world.knows(1, 2));
    }
}
