//! A cluster of one server that comes back.

use crate::{measured, ms, secs};
use agent_sim::{Fault, Setup, World};
use std::time::Duration;

fn outage_after(down: Duration, fault: fn(usize) -> Fault, cure: fn(usize) -> Fault) -> Vec<Duration> {
    let run = |seed: u64| {
        let mut world = World::settled(&Setup { servers: 1, agents: 4, ..Setup::default() }, seed);
        world.apply(&fault(0));
        world.run_for(down + ms(seed * 37));
        world.apply(&cure(0));
        let everyone = |world: &World| (0..4).all(|agent| world.is_served(agent));
        world.until("everyone is served", secs(20), everyone)
    };
    (0..60).map(run).collect()
}

#[test]
fn back_after_10_s_and_60_s_it_serves_within_1_s_and_3_s_at_worst() {
    for down in [secs(10), secs(60)] {
        let outages = outage_after(down, Fault::Kill, Fault::Start);
        let (median, worst) = measured(&format!("all of four agents, {down:?} down"), outages);
        assert!(median <= ms(1500) && worst <= secs(3), "{median:?}, {worst:?}");
    }
}

#[test]
fn a_frozen_server_that_goes_on_serves_within_4_s() {
    let outages = outage_after(secs(60), Fault::Freeze, Fault::Thaw);
    let (_, worst) = measured("all of four agents, 60 s frozen", outages);
    assert!(worst <= secs(4), "{worst:?}");
}
