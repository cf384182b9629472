//! Shared addresses: two clients (agents 0 and 1) and those that claim (from 2 on), with and without servers.

mod apart;
mod choice;
mod cost;
mod faults;
mod moves;

use crate::{ms, secs};
use agent_core::claims::ClaimsConfig;
use agent_sim::{Claimed, Fault, Host, Setup, World};
use std::time::Duration;

const ADDRESS: &str = "10.9.0.1";
const PREFIX: &str = "10.9.0.1/32";
const FIRST: usize = 2;
const SECOND: usize = 3;

/// The tightest that issue and documentation promise.
fn tight() -> ClaimsConfig {
    ClaimsConfig { probe_interval: ms(20), dead_after: ms(150), ..ClaimsConfig::default() }
}

/// Two clients, and so many who claim the address.
fn setup(claimers: usize) -> Setup {
    Setup {
        agents: FIRST + claimers,
        claims: (FIRST..FIRST + claimers).map(|agent| Claimed::new(agent, PREFIX)).collect(),
        traced: false,
        ..Setup::default()
    }
}

/// A client uses the address, another request every 5 ms, and the first of those who claim it serves.
fn in_use(setup: &Setup, seed: u64, has_servers: bool) -> (World, usize) {
    let mut world = World::settled(setup, seed);
    if !has_servers {
        (0..world.servers()).for_each(|server| world.apply(&Fault::Kill(server)));
    }
    let caller = world.call(0, ADDRESS, ms(5));
    // Faults come at any time between two checks.
    world.run_for(secs(4) + ms(seed * 97 % 2000));
    assert_eq!(world.serving(0, PREFIX), Some(FIRST), "seed {seed}");
    assert!(world.outage(caller) < secs(1), "seed {seed}");
    // It may have met another one first.
    world.switches(0);
    (world, caller)
}

/// Everybody's way has this round trip, half of it on the client's link.
fn set_round_trip(world: &mut World, agents: usize, round_trip: Duration) {
    // A way is two links; what comes to it by chance is a tenth on average.
    (0..agents)
        .for_each(|agent| world.apply(&Fault::Latency(Host::Agent(agent), round_trip.mul_f64(0.25 / 1.1))));
}

/// Requests that were lost since the caller began; it pauses until all answers are there that come.
fn lost(world: &mut World, caller: usize) -> u64 {
    world.set_caller(caller, false);
    world.run_for(secs(1));
    let (sent, answered) = world.answers(caller);
    world.set_caller(caller, true);
    sent - answered
}
