//! Agents of a server that holds the cluster's certificate and misbehaves: each in another way, at the same moment, with a good server as their standby.
//!
//! ```text
//!   a1 .. a5 ── switch ── s1 192.0.2.11, rogue 192.0.2.41
//! ```

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns_tests::figures::{Bound, Samples, ms};
use netns_tests::mesh::Mesh;
use netns_tests::rogue::{Mischief, Rogue};
use netns_tests::scenario::Scenario;
use netns_tests::status::Status;
use netns_tests::wait::hold_for;
use proto::root::RootSecret;

const TIMEOUT: Duration = Duration::from_secs(30);
/// A map that does not come is waited for longest.
const BOUND: Duration = Duration::from_secs(7);
/// One for each kind of mischief.
const AGENTS: u8 = 5;
/// Of one agent, whatever it is sent; an unoptimised one included.
const MEMORY_BYTES: u64 = 160 * 1024 * 1024;
/// The rogue is left alone for 10 s.
const AFTERWARDS: Duration = Duration::from_secs(5);

pub(crate) fn is_left_for_a_good_server(s: &mut Scenario) -> Result<()> {
    s.expect_warning("breaks the protocol");
    s.expect_warning("not believed");
    let mut mesh = Mesh::plan(1, 0).servers_only(s)?;
    let host = mesh.bystander("rogue", 0)?;
    let rogue = Rogue::start(&host, "192.0.2.41".parse()?, &root(s)?)?;
    let servers = format!("{},{}", mesh.servers[0].url, rogue.url);
    for number in 0..AGENTS {
        let agent = mesh.add_agent(number)?;
        agent.options[1].clone_from(&servers);
        agent.start()?;
    }
    let by = |status: &Status, url: &str| status.served_by().is_some_and(|server| server.url == url);
    all(&mesh, "is served, with its standby and every peer", |status| {
        status.has_standby() && status.peers.len() + 1 == usize::from(AGENTS)
    })?;
    mesh.servers[0].kill()?;
    all(&mesh, "is served by the rogue", |status| by(status, &rogue.url))?;
    mesh.servers[0].start()?;
    all(&mesh, "has the good one as its standby", |status| by(status, &rogue.url) && status.has_standby())?;
    let pings = netns_tests::mesh::ping(&mesh.agents[0], &mesh.agents[1])?;
    let at = Instant::now();
    rogue.misbehave();
    let mut left = Samples::new("a server begins to misbehave: served by the good one");
    for (agent, mischief) in mesh.agents.iter().zip(Mischief::ALL) {
        let (then, _) = agent
            .wait(at, TIMEOUT, "is served by the good server", |status| by(status, &mesh.servers[0].url))?;
        left.push(then - at);
        // A rogue that keeps the agent busy is suspected first, and left when it is found out.
        let reason = |status: &Status| {
            let line = status.control.servers.iter().find(|server| server.url == rogue.url);
            line.and_then(|server| server.last_error.clone())
        };
        // Of all states since: while others were looked at, it may have been dialled again.
        let (_, said) = agent.wait(at, TIMEOUT, "says why", |status| reason(status).is_some())?;
        let why = reason(&said).unwrap_or_default();
        s.note(format!("{mischief:?}: left after {}: {why}", ms(then - at)));
    }
    s.figure(&left, &[Bound::Worst(BOUND)]);
    hold_for(AFTERWARDS, || Ok(()))?;
    for agent in &mut mesh.agents {
        let by_good = agent.status()?.served_by().is_some_and(|server| server.url != rogue.url);
        ensure!(by_good, "{} went back", agent.name);
        let memory = agent.process()?.usage()?.0;
        s.note(format!("{}: {} MiB", agent.name, memory >> 20));
        s.require(memory < MEMORY_BYTES, format!("{} holds {memory} bytes", agent.name));
    }
    s.none_lost(vec![pings])
}

fn all(mesh: &Mesh, what: &str, holds: impl Fn(&Status) -> bool) -> Result<()> {
    mesh.agents.iter().try_for_each(|agent| agent.wait_now(TIMEOUT, what, &holds).map(drop))
}

/// The cluster's own, as the servers' database has it.
fn root(s: &Scenario) -> Result<RootSecret> {
    let database = rusqlite::Connection::open(s.directory.join("cluster.db"))?;
    let seed: Vec<u8> = database.query_row("SELECT root_seed FROM cluster", [], |row| row.get(0))?;
    let seed = seed.try_into().map_err(|_| anyhow::anyhow!("a root's seed has 32 bytes"))?;
    Ok(RootSecret::from_seed(&seed))
}
