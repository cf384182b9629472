//! Two servers, an agent on each: what changes through one reaches the agent on the other.
//!
//! ```text
//!   a1 ── s1 ── database ── s2 ── a2
//! ```

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns_tests::figures::{Bound, Samples};
use netns_tests::mesh::{Database, Mesh};
use netns_tests::scenario::Scenario;
use netns_tests::server::Server;

const TIMEOUT: Duration = Duration::from_secs(10);
const ROUNDS: u8 = 20;
const RENAMES: u8 = 5;

pub(crate) fn reach_the_other_server_on_sqlite(s: &mut Scenario) -> Result<()> {
    changes(s, Database::Sqlite, Duration::from_millis(250))
}

pub(crate) fn reach_the_other_server_on_postgres(s: &mut Scenario) -> Result<()> {
    changes(s, Database::Postgres, Duration::from_millis(100))
}

fn changes(s: &mut Scenario, database: Database, bound: Duration) -> Result<()> {
    let mut mesh = split(s, database)?;
    let mut enrolled = Samples::new("enrolled");
    let mut renamed = Samples::new("renamed");
    let mut removed = Samples::new("removed");
    for round in 0..ROUNDS {
        let name = format!("a{}", round + 3);
        // Served by s1 alone, so that s1 admits it.
        let first = mesh.servers[0].url.clone();
        let newcomer = mesh.add_agent(round + 2)?;
        newcomer.options[1] = first;
        let launched = newcomer.launch()?;
        enrolled.push(seen_on_a2(&mesh, launched, "knows the newcomer", &name, true)?);
        let mut name = name;
        for rename in 0..RENAMES {
            let new_name = format!("renamed-{round}-{rename}");
            let at = Instant::now();
            run(&mesh.servers[0], &["node", "rename", &name, &new_name])?;
            renamed.push(seen_on_a2(&mesh, at, "knows the new name", &new_name, true)?);
            name = new_name;
        }
        let at = Instant::now();
        run(&mesh.servers[0], &["node", "remove", &name])?;
        removed.push(seen_on_a2(&mesh, at, "forgets the removed", &name, false)?);
        drop(mesh.agents.pop());
    }
    for samples in [&enrolled, &renamed, &removed] {
        s.figure(samples, &[Bound::P99(bound)]);
    }
    s.note("each counted from the start of a program: the newcomer's agent, or the `server` command");
    Ok(())
}

fn seen_on_a2(mesh: &Mesh, since: Instant, what: &str, name: &str, present: bool) -> Result<Duration> {
    let (at, _) =
        mesh.agents[1].wait(since, TIMEOUT, what, |status| status.peer(name).is_some() == present)?;
    Ok(at - since)
}

fn run(server: &Server, arguments: &[&str]) -> Result<()> {
    let output = server.command(arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "server {} failed: {said}", arguments.join(" "));
    Ok(())
}

/// `a1` is told of `s1` alone and `a2` of `s2` alone; both keep the first of their list.
fn split(s: &mut Scenario, database: Database) -> Result<Mesh> {
    let mut mesh = Mesh::plan(2, 0).database(database).start(s)?;
    for number in 0..2 {
        let url = mesh.servers[usize::from(number)].url.clone();
        let agent = mesh.add_agent(number)?;
        agent.options[1] = url;
        agent.start()?;
    }
    for (number, agent) in mesh.agents.iter().enumerate() {
        agent.wait_now(TIMEOUT, "is served and sees the other", |status| {
            status.served_by().is_some() && status.peers.len() == 1
        })?;
        ensure!(mesh.server_of(agent)? == Some(number), "{} is on its own server", agent.name);
    }
    Ok(mesh)
}

/// The second server, on another host with an empty data directory, is given the database and where to listen.
pub(crate) fn a_second_server_needs_the_database_url_alone(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 1).database(Database::Postgres).start(s)?;
    mesh.add_server(1)?.only(&["--database", "--data-dir"]);
    mesh.servers[1].start()?;
    mesh.settle()?;
    mesh.servers[0].kill()?;
    let second = mesh.servers[1].url.clone();
    mesh.agents[0].wait_now(TIMEOUT, "is served by the second server", |status| {
        status.served_by().is_some_and(|server| server.url.contains(&second))
    })?;
    Ok(())
}
