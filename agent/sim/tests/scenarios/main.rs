//! One scenario per module: a fault, and what agents make of it, measured in virtual time over many seeds.

mod always_and_lazy;
mod anycast;
mod bad_news;
mod balancer;
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
mod sleep;
mod spread;
mod stale_database;

use std::time::Duration;

const SEEDS: std::ops::Range<u64> = 0..40;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Median and worst.
fn measured(what: &str, mut outages: Vec<Duration>) -> (Duration, Duration) {
    outages.sort();
    let (median, worst) = (outages[outages.len() / 2], outages[outages.len() - 1]);
    eprintln!("{what}: p50 {median:?}, worst {worst:?} of {}", outages.len());
    (median, worst)
}
