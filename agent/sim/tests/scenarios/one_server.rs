//! A cluster of one server that comes back.

use crate::{measured, ms, secs};
use agent_sim::{Fault, Setup, World};
use std::time::Duration;

fn outage_after(down: Duration, fault: fn(usize) -> Fault, cure: fn(usize) -> Fault) -> Vec<Duration> {
    let run = |seed: u64| {
        let mut world = World::settled(&Setup { servers: 1, ..Setup::default() }, seed);
        world.apply(&fault(0));
        world.run_for(down + ms(seed * 37));
        world.apply(&cure(0));
        world.until("it is served", secs(20), |world| world.is_served(0))
    };
    (0..60).map(run).collect()
}

#[test]
fn back_after_10_s_and_60_s_it_serves_within_1_s_and_3_s_at_worst() {
    for down in [secs(10), secs(60)] {
        let outages = outage_after(down, Fault::Kill, Fault::Start);
        let (median, worst) = measured(&format!("back after {down:?}"), outages);
        assert!(median <= secs(1) && worst <= secs(3), "{median:?}, {worst:?}");
    }
}

#[test]
fn a_frozen_server_that_goes_on_serves_within_4_s() {
    let outages = outage_after(secs(60), Fault::Freeze, Fault::Thaw);
    let (_, worst) = measured("60 s frozen", outages);
    assert!(worst <= secs(4), "{worst:?}");
}
