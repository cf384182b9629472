//! Names that do not resolve.

use crate::{SEEDS, secs};
use agent_sim::{Fault, Setup, World};

#[test]
fn addresses_that_worked_serve_while_names_are_away_even_after_a_restart() {
    for seed in SEEDS {
        let mut world = World::settled(&Setup { named: true, ..Setup::default() }, seed);
        world.apply(&Fault::NamesAway);
        let victim = world.server_of(0).expect("it is served");
        world.apply(&Fault::Kill(victim));
        world.until("another serves", secs(1), |world| world.is_served(0));
        world.run_for(secs(60));
        world.apply(&Fault::Stop(0));
        world.apply(&Fault::Launch(0));
        world.until("served after the restart", secs(3), |world| world.is_served(0));
    }
}

#[test]
fn an_agent_that_starts_before_the_names_are_there_is_served_when_they_are() {
    for seed in SEEDS {
        let mut world = World::new(&Setup { named: true, ..Setup::default() }, seed);
        world.apply(&Fault::NamesAway);
        world.run_for(secs(20));
        world.apply(&Fault::NamesBack);
        world.until("served", secs(4), |world| world.is_served(0));
    }
}
