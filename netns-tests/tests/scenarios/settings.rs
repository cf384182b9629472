//! What is told to a member that runs: another pace of heartbeats, and a setup key of another network.
//!
//! ```text
//!   a1 ⇄ a2 ── switch ── s1, s2; x1, a server of another cluster
//! ```

use std::time::Duration;

use anyhow::{Result, ensure};
use netns_tests::figures::{Bound, Samples};
use netns_tests::mesh::{Mesh, ping};
use netns_tests::scenario::Scenario;
use netns_tests::server::{Cluster, Server};
use netns_tests::topology::Host;

const TIMEOUT: Duration = Duration::from_secs(15);
/// With a heartbeat each second it is 300 to 1,300 ms: that all of so many rounds come below this by chance does not happen.
const QUICK: Duration = Duration::from_millis(700);
const ROUNDS: usize = 4;

/// Sessions that are open go by it at once: a frozen server is left sooner.
pub(crate) fn a_keepalive_reaches_open_sessions(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(2, 2).start(s)?;
    let pings = mesh.ping_pairs()?;
    for agent in &mesh.agents {
        agent.ask(&["set", "--keepalive", "200ms", "--peer-timeout", "1s"])?;
    }
    let mut moved = Samples::new("heartbeats each 200 ms, a server frozen: served by the other");
    for _ in 0..ROUNDS {
        let victim = mesh.busiest_server()?;
        let served = mesh.served_by(victim)?;
        let at = mesh.servers[victim].process()?.freeze()?;
        moved.extend(mesh.moved(&served, at, TIMEOUT)?);
        mesh.servers[victim].process()?.thaw()?;
        mesh.settle()?;
    }
    s.figure(&moved, &[Bound::Worst(QUICK)]);
    s.none_lost(pings)
}

/// It is refused by name with what to do, while the agent runs and when it starts; nothing else changes.
pub(crate) fn a_setup_key_of_another_network_changes_nothing(s: &mut Scenario) -> Result<()> {
    s.expect_warning("the setup key is not used");
    let mut mesh = Mesh::plan(1, 2).start(s)?;
    let foreign = foreign_key(s, &mesh)?;
    let pings = mesh.ping_pairs()?;
    let before = mesh.agents[0].status()?;
    let output = mesh.agents[0].command(&["up", "--setup-key", &foreign])?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(said.contains("the setup key is not used") && said.contains("agent logout"), "up said: {said}");
    ensure!(output.status.success(), "the settings are in use all the same: {said}");
    s.note(said.trim());
    ensure!(!said.contains(&foreign), "the key is told again: {said}");
    s.none_lost(pings)?;
    mesh.agents[0].stop()?;
    let key = mesh.agents[0].options.iter().position(|option| option == "--setup-key");
    let key = key.map(|at| std::mem::replace(&mut mesh.agents[0].options[at + 1], foreign));
    ensure!(key.is_some_and(|key| key == mesh.setup_key), "the agent was started with another key");
    mesh.agents[0].start()?;
    let after = mesh.agents[0].wait_now(TIMEOUT, "is served again", |status| status.served_by().is_some())?;
    ensure!(after.own.addresses == before.own.addresses, "it has other addresses");
    let nodes = mesh.servers[0].json(&["node", "list"])?;
    ensure!(nodes.as_array().is_some_and(|nodes| nodes.len() == 2), "nobody entered again: {nodes}");
    ping(&mesh.agents[0], &mesh.agents[1])?.finish().map(drop)
}

/// Of a cluster of its own.
fn foreign_key(s: &Scenario, mesh: &Mesh) -> Result<String> {
    let host = Host::new("x1")?;
    let port = mesh.switch.attach(&host, "192.0.2.21/24")?;
    let directory = s.directory.join("other");
    std::fs::create_dir_all(&directory)?;
    let cluster = Cluster {
        program: s.binaries.server.clone(),
        database: format!("sqlite:{}", directory.join("cluster.db").display()),
        directory: s.directory.clone(),
    };
    let mut stranger = Server::new(&cluster, host, port, "192.0.2.21".parse()?);
    stranger.start()?;
    stranger.first_setup_key()
}
