//! An agent whose map has ten thousand peers.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::agent::Agent;
use netns_tests::figures::{Bound, Samples};
use netns_tests::mesh::{FIVE_MS, Mesh};
use netns_tests::ping::Pinger;
use netns_tests::scenario::Scenario;
use netns_tests::status::Status;
use netns_tests::wait::wait_until;

const PEERS: usize = 10_000;
const ROUNDS: usize = 20;
const LOAD_TIMEOUT: Duration = Duration::from_secs(60);

/// `status --json` is quick, and meanwhile the daemon's loop goes on: its tunnel answers every ping, its server stays.
pub(crate) fn status_with_10_000_peers_is_quick(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 2).start(s)?;
    mesh.agents.iter_mut().for_each(Agent::unfollow);
    let at = Instant::now();
    let server = mesh.servers[0].url.parse()?;
    netns_tests::crowd::enrol(&mesh.agents[1].host.namespace, server, &mesh.setup_key, PEERS)?;
    let enrolled = at.elapsed();
    let agent = &mesh.agents[0];
    wait_until("the agent knows everybody", LOAD_TIMEOUT, || {
        Ok((status(agent)?.0.peers.len() > PEERS).then_some(()))
    })?;
    s.note(format!("{PEERS} enrolled in {enrolled:.1?}, known to the agent after {:.1?}", at.elapsed()));
    let (before, _) = status(agent)?;
    let peer = before.peer("a2").context("a1 knows a2")?.address()?;
    let pings = Pinger::start("a1 to a2", &agent.host.namespace, peer, FIVE_MS)?;
    pings.first_reply_after(at, LOAD_TIMEOUT)?;
    let mut answered = Samples::new("status --json, whole command");
    for _ in 0..ROUNDS {
        let (status, took) = status(agent)?;
        answered.push(took);
        ensure!(status.peers.len() > PEERS, "{} peers in the answer", status.peers.len());
    }
    s.figure(&answered, &[Bound::P99(Duration::from_millis(200))]);
    let (after, _) = status(agent)?;
    s.require(after.control.failovers == before.control.failovers, "the agent left its server meanwhile");
    s.none_lost(vec![pings])
}

/// The answer, and how long the command took.
fn status(agent: &Agent) -> Result<(Status, Duration)> {
    let asked = Instant::now();
    let text = agent.ask(&["status", "--json"])?;
    let took = asked.elapsed();
    Ok((serde_json::from_str(&text)?, took))
}
