//! All servers behind one address: the standby is another server all the same.

use crate::{SEEDS, measured, ms, outage_under_traffic, secs};
use agent_sim::{Fault, Host, Setup, World};

fn settled(seed: u64) -> World {
    let setup = Setup { balanced: true, servers: 2 + (seed % 2) as usize, ..Setup::default() };
    let mut world = World::settled(&setup, seed);
    world.until("both have a standby", secs(60), |world| (0..2).all(|agent| world.has_standby(agent)));
    // A standby is good from the first answer on.
    world.run_for(secs(2) + ms(seed * 97));
    world
}

#[test]
fn a_server_behind_a_balancer_is_left_as_quickly_as_any_other() {
    for (what, fault, bound) in [
        ("killed", Fault::Kill as fn(usize) -> Fault, ms(100)),
        ("drained", Fault::Drain, ms(100)),
        ("frozen", Fault::Freeze, ms(1500)),
        ("cut", |server| Fault::Cut(Host::Server(server)), ms(1500)),
    ] {
        let outages = SEEDS.map(|seed| {
            let mut world = settled(seed);
            let outage = outage_under_traffic(&mut world, fault, |world, victim| {
                world.server_of(0).is_some_and(|server| server != victim)
            });
            world.settle();
            outage
        });
        let (_, worst) = measured(&format!("behind a balancer, {what}"), outages.collect());
        assert!(worst < bound, "{what}: {worst:?}");
    }
}

#[test]
fn a_server_that_is_back_behind_the_balancer_is_found_again() {
    let found = SEEDS.map(|seed| {
        let mut world = settled(seed);
        (1..world.servers()).for_each(|server| world.apply(&Fault::Kill(server)));
        world.run_for(secs(120));
        assert!(!world.has_standby(0));
        world.apply(&Fault::Start(1));
        world.until("both have a standby", secs(60), |world| (0..2).all(|agent| world.has_standby(agent)))
    });
    let (median, _) = measured("a standby again", found.collect());
    assert!(median < secs(4), "{median:?}");
}
