//! One of three servers fails in every way; six agents, three open tunnels with a ping every 5 ms.
//!
//! ```text
//!   s1 s2 s3 ── switch ── a1 ⇄ a2   a3 ⇄ a4   a5 ⇄ a6
//! ```
//!
//! Each round fails the server that serves most agents, measures how long each of them took to be served by another,
//! brings it back, and waits until everybody has a standby again.

use std::time::{Duration, Instant};

use anyhow::Result;
use netns_tests::figures::{Bound, Samples};
use netns_tests::mesh::Mesh;
use netns_tests::scenario::Scenario;
use netns_tests::server::Server;
use netns_tests::topology::Fault;

const ROUNDS: usize = 5;
const AGENTS: u8 = 6;
/// At once: an end of stream or a `Drain`.
const TOLD: Duration = Duration::from_millis(100);
/// By silence alone.
const SILENT: Duration = Duration::from_millis(1500);
const TIMEOUT: Duration = Duration::from_secs(10);

type Step = fn(&mut Server) -> Result<Instant>;

pub(crate) fn killed(s: &mut Scenario) -> Result<()> {
    rounds(s, TOLD, Server::kill, Server::start)
}

pub(crate) fn drained(s: &mut Scenario) -> Result<()> {
    rounds(s, TOLD, Server::drain, Server::start)
}

pub(crate) fn frozen(s: &mut Scenario) -> Result<()> {
    rounds(s, SILENT, |server| server.process()?.freeze(), |server| server.process()?.thaw())
}

pub(crate) fn cut_off(s: &mut Scenario) -> Result<()> {
    rounds(s, SILENT, |server| faulty(server, Fault::Cut), mended)
}

pub(crate) fn deaf(s: &mut Scenario) -> Result<()> {
    rounds(s, SILENT, |server| faulty(server, Fault::Deaf), mended)
}

pub(crate) fn mute(s: &mut Scenario) -> Result<()> {
    rounds(s, SILENT, |server| faulty(server, Fault::Mute), mended)
}

pub(crate) fn unplugged(s: &mut Scenario) -> Result<()> {
    let unplug: Step = |server| {
        let at = Instant::now();
        server.port.unplug()?;
        Ok(at)
    };
    let plug: Step = |server| {
        server.port.plug()?;
        Ok(Instant::now())
    };
    rounds(s, SILENT, unplug, plug)
}

fn faulty(server: &mut Server, fault: Fault) -> Result<Instant> {
    let at = Instant::now();
    server.port.fault(fault)?;
    Ok(at)
}

fn mended(server: &mut Server) -> Result<Instant> {
    server.port.mend()?;
    Ok(Instant::now())
}

fn rounds(s: &mut Scenario, bound: Duration, fail: Step, restore: Step) -> Result<()> {
    let mut mesh = Mesh::plan(3, AGENTS).start(s)?;
    let pings = mesh.ping_pairs()?;
    let mut served_again = Samples::new("served by another");
    for _ in 0..ROUNDS {
        let victim = mesh.busiest_server()?;
        let served = mesh.served_by(victim)?;
        let at = fail(&mut mesh.servers[victim])?;
        served_again.extend(mesh.moved(&served, at, TIMEOUT)?);
        restore(&mut mesh.servers[victim])?;
    }
    s.figure(&served_again, &[Bound::P99(bound)]);
    s.require(served_again.len() >= 20, "fewer than 20 rounds were measured");
    s.none_lost(pings)
}
