//! A server's data directory is copied while the server runs, and the copy is started on another machine.
//!
//! ```text
//!   a1 ⇄ a2 ── s1, s2 ── Postgres        s3: a copy of s1
//! ```

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns_tests::figures::ms;
use netns_tests::mesh::{Database, Mesh};
use netns_tests::scenario::Scenario;

/// A lease, and what starting takes.
const REFUSED_WITHIN: Duration = Duration::from_secs(20);
const RESTART_BOUND: Duration = Duration::from_secs(3);

pub(crate) fn a_copied_server_is_refused(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(2, 2).database(Database::Postgres).start(s)?;
    let pings = mesh.ping_pairs()?;
    let directory = mesh.cluster.directory.clone();
    let copied = Command::new("cp").arg("-a").arg(directory.join("s1")).arg(directory.join("s3")).status()?;
    ensure!(copied.success(), "cp: {copied}");
    let before: Vec<u64> = failovers(&mesh)?;
    let id = std::fs::read_to_string(directory.join("s1/server-id"))?.trim().to_owned();
    // An error is what it must end with.
    let copy = mesh.add_server(2)?;
    let at = copy.launch()?;
    let status = copy.process()?.wait_end(REFUSED_WITHIN)?;
    s.note(format!("the copy of a server ends by itself after {}", ms(at.elapsed())));
    s.require(!status.success(), "a copy of a running server ended without an error");
    let said = copy.process()?.log_tail(1);
    for word in [id.as_str(), "\"s1\"", "\"s3\"", "192.0.2.11", "192.0.2.13", "server-id"] {
        s.require(said.contains(word), format!("the refusal does not name {word}: {said}"));
    }
    s.require(failovers(&mesh)? == before, "an agent was moved by the copy");
    mesh.servers.pop();
    restarted_at_once(s, &mut mesh)?;
    s.none_lost(pings)
}

/// What looks the same to the database, and is no copy: the lease of the killed run has not ended yet.
fn restarted_at_once(s: &mut Scenario, mesh: &mut Mesh) -> Result<()> {
    mesh.settle()?;
    mesh.servers[0].kill()?;
    let at = Instant::now();
    let listening = mesh.servers[0].start()?;
    s.note(format!("the server itself, killed and started, listens after {}", ms(listening - at)));
    s.require(
        listening - at <= s.widened(RESTART_BOUND),
        "a restart waits for the lease of the run before it",
    );
    mesh.settle()
}

fn failovers(mesh: &Mesh) -> Result<Vec<u64>> {
    mesh.agents.iter().map(|agent| Ok(agent.status()?.control.failovers)).collect()
}
