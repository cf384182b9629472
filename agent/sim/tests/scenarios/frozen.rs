//! The server that serves falls silent: its process stops, its link is cut, or one direction loses everything.

use crate::{SEEDS, measured, ms, secs};
use agent_sim::{Fault, Host, Setup, World};

#[test]
fn a_silent_server_is_left_within_1500_ms() {
    for (what, fault) in [
        ("frozen", Fault::Freeze as fn(usize) -> Fault),
        ("cut", |server| Fault::Cut(Host::Server(server))),
        ("inbound dropped", |server| Fault::DropIn(Host::Server(server))),
        ("outbound dropped", |server| Fault::DropOut(Host::Server(server))),
    ] {
        let outages = SEEDS.map(|seed| {
            let mut world = World::settled(&Setup::default(), seed);
            // Heartbeats are a second apart: the fault comes anywhere between two.
            world.run_for(ms(seed * 97));
            let victim = world.server_of(0).expect("it is served");
            world.apply(&fault(victim));
            let outage = world.until("another serves", secs(5), |world| world.is_served(0));
            world.settle();
            outage
        });
        let (_, worst) = measured(what, outages.collect());
        assert!(worst < ms(1500), "{what}");
    }
}

#[test]
fn a_pause_shorter_than_peer_timeout_costs_at_most_one_move() {
    for seed in SEEDS {
        let mut world = World::settled(&Setup::default(), seed);
        let victim = world.server_of(0).expect("it is served");
        world.apply(&Fault::Freeze(victim));
        world.run_for(ms(400 + seed * 40));
        world.apply(&Fault::Thaw(victim));
        world.run_for(secs(30));
        assert!(world.is_served(0));
        assert!(world.failovers(0) <= 1, "seed {seed}: {} moves", world.failovers(0));
    }
}
