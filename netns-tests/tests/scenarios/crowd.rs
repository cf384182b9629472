//! An agent whose map has ten thousand peers.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns_tests::figures::{Bound, Samples};
use netns_tests::mesh::{Mesh, ping};
use netns_tests::scenario::Scenario;

const PEERS: usize = 10_000;
const ROUNDS: usize = 20;
const LOAD_TIMEOUT: Duration = Duration::from_secs(60);

/// `status --json` is quick, and meanwhile the daemon's loop goes on: its tunnel answers every ping, its server stays.
pub(crate) fn status_with_10_000_peers_is_quick(s: &mut Scenario) -> Result<()> {
    let mesh = Mesh::plan(1, 2).start(s)?;
    let at = Instant::now();
    let server = mesh.servers[0].url.parse()?;
    netns_tests::crowd::enrol(&mesh.agents[1].host.namespace, server, &mesh.setup_key, PEERS)?;
    let enrolled = at.elapsed();
    let agent = &mesh.agents[0];
    agent.wait_now(LOAD_TIMEOUT, "knows everybody", |status| status.peers.len() > PEERS)?;
    s.note(format!("{PEERS} enrolled in {enrolled:.1?}, known to the agent after {:.1?}", at.elapsed()));
    let before = agent.status()?.control.failovers;
    let pings = vec![ping(agent, &mesh.agents[1])?];
    let mut answered = Samples::new("status --json, whole command");
    for _ in 0..ROUNDS {
        let asked = Instant::now();
        let text = agent.ask(&["status", "--json"])?;
        answered.push(asked.elapsed());
        let status: netns_tests::status::Status = serde_json::from_str(&text)?;
        ensure!(status.peers.len() > PEERS, "{} peers in the answer", status.peers.len());
    }
    s.figure(&answered, &[Bound::P99(Duration::from_millis(200))]);
    s.require(agent.status()?.control.failovers == before, "the agent left its server meanwhile");
    for line in pings.iter().map(|pinger| pinger.so_far()) {
        s.note(format!("slowest ping meanwhile: {:.1?}", line.slowest()));
    }
    s.none_lost(pings)
}
