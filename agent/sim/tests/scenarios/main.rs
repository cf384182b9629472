//! One scenario per module: a fault, and what agents make of it, measured in virtual time over many seeds.

mod always_and_lazy;
mod anycast;
mod bad_news;
mod balancer;
mod claims;
mod clocks;
mod drained;
mod every_server_down;
mod frozen;
mod idle;
mod killed;
mod names;
mod one_server;
mod removal;
mod restart;
mod restored_database;
mod roaming;
mod rolling_restart;
mod roots;
mod rules;
mod sleep;
mod spread;
mod stale_database;

use agent_sim::{Fault, World};
use std::time::Duration;

const SEEDS: std::ops::Range<u64> = 0..40;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A fault befalls the server of an agent that exchanges data meanwhile: the time until `done`, of that server. No request is lost.
fn outage_under_traffic(
    world: &mut World,
    fault: impl Fn(usize) -> Fault,
    done: impl Fn(&World, usize) -> bool,
) -> Duration {
    let flow = world.flow(0, 1, ms(5));
    world.run_for(secs(3));
    let victim = world.server_of(0).expect("it is served");
    world.apply(&fault(victim));
    world.run_for(ms(1));
    let outage = world.until("served again", secs(5), |world| done(world, victim));
    world.set_flow(flow, false);
    world.run_for(secs(1));
    let (sent, answered) = world.traffic(flow);
    assert_eq!(sent, answered, "requests were lost");
    outage
}

/// Median and worst.
fn measured(what: &str, mut outages: Vec<Duration>) -> (Duration, Duration) {
    outages.sort();
    let (median, worst) = (outages[outages.len() / 2], outages[outages.len() - 1]);
    eprintln!("{what}: p50 {median:?}, worst {worst:?} of {}", outages.len());
    (median, worst)
}
