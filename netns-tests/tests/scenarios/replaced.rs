//! The machine of the only server is lost, or its database becomes another; agents are told nothing.
//!
//! ```text
//!   a1 ⇄ a2   a3 ⇄ a4 ── s1 (SQLite)      then s1 is another machine with that address, or has a Postgres
//! ```

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::capture::announce_address;
use netns_tests::figures::{Bound, Samples, ms};
use netns_tests::mesh::{Mesh, ping};
use netns_tests::scenario::Scenario;
use netns_tests::server::Server;
use netns_tests::topology::Host;

const AGENTS: u8 = 4;
const TIMEOUT: Duration = Duration::from_secs(20);
const SERVED_BOUND: Duration = Duration::from_secs(5);

/// How the cluster's root is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Root {
    Plain,
    Wrapped,
}

pub(crate) fn a_lost_machine(s: &mut Scenario) -> Result<()> {
    lost(s, Root::Plain)
}

pub(crate) fn a_lost_machine_with_a_wrapped_root(s: &mut Scenario) -> Result<()> {
    lost(s, Root::Wrapped)
}

pub(crate) fn sqlite_by_postgres(s: &mut Scenario) -> Result<()> {
    migrated(s, Root::Plain)
}

pub(crate) fn sqlite_by_postgres_with_a_wrapped_root(s: &mut Scenario) -> Result<()> {
    migrated(s, Root::Wrapped)
}

/// Backup; then the machine is killed, its files are gone; an empty machine restores and gets the address.
fn lost(s: &mut Scenario, root: Root) -> Result<()> {
    let mut mesh = start(s, root)?;
    let pings = mesh.ping_pairs()?;
    let before = nodes(&mesh.servers[0])?;
    let backup = s.directory.join("cluster.backup").display().to_string();
    run(&mesh.servers[0], &["backup", &backup])?;
    let at = mesh.servers[0].kill()?;
    let lost = mesh.servers.remove(0);
    lost.port.unplug()?;
    remove_files(&mesh.cluster.directory, &lost.name)?;
    let host = Host::new("new")?;
    let address = lost.address()?;
    let port = mesh.switch.attach(&host, &format!("{address}/24"))?;
    let mut new = Server::new(&mesh.cluster, host, port, address);
    new.add_options(&root.options(&s.directory));
    run(&new, &["restore", &backup])?;
    announce_address(&new.host.namespace, "eth0", address)?;
    let listening = new.start()?;
    mesh.servers.push(new);
    let mut served = Samples::new("the new machine listens: an agent is served");
    for agent in &mesh.agents {
        let (back, _) = agent.wait(listening, TIMEOUT, "is served by the new machine", |status| {
            status.served_by().is_some()
        })?;
        served.push(back - listening);
    }
    s.note(format!(
        "the machine is lost, its replacement restored and all are served after {}",
        ms(at.elapsed())
    ));
    s.figure(&served, &[Bound::Worst(SERVED_BOUND)]);
    s.require(
        nodes(&mesh.servers[0])? == before,
        "the nodes, their names, keys and addresses are not what they were",
    );
    newcomer_joins(&mut mesh)?;
    s.none_lost(pings)
}

/// The cluster moves into a Postgres while it is used: the server is restarted with another URL.
fn migrated(s: &mut Scenario, root: Root) -> Result<()> {
    let mut mesh = start(s, root)?;
    let pings = mesh.ping_pairs()?;
    let before = nodes(&mesh.servers[0])?;
    let revisions: Vec<Option<u64>> = revisions(&mesh)?;
    // The mesh's own from here on, so that it ends after the server.
    let postgres = mesh.postgres.insert(mesh.add_postgres()?);
    let (from, to) = (mesh.cluster.database.clone(), postgres.url());
    let at = Instant::now();
    run_alone(&mesh.servers[0], &["migrate", &from, &to])?;
    s.note(format!("`server migrate` took {}", ms(at.elapsed())));
    let refused = mesh.servers[0].command(&["node", "rename", "a1", "lost-change"])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    s.require(!refused.status.success(), "the database that was left takes changes, which will be lost");
    s.require(
        said.contains("postgres"),
        format!("who changes the database that was left is not told where to: {said}"),
    );
    mesh.cluster.database.clone_from(&to);
    let at = mesh.servers[0].drain()?;
    mesh.servers[0].use_database(&to);
    let listening = mesh.servers[0].start()?;
    let mut served = Samples::new("the server listens again: an agent is served");
    for agent in &mesh.agents {
        let (back, _) =
            agent.wait(listening, TIMEOUT, "is served again", |status| status.served_by().is_some())?;
        served.push(back - listening);
    }
    s.note(format!("the server is restarted on Postgres and all are served after {}", ms(at.elapsed())));
    s.figure(&served, &[Bound::Worst(SERVED_BOUND)]);
    s.require(
        nodes(&mesh.servers[0])? == before,
        "the nodes, their names, keys and addresses are not what they were",
    );
    let now = self::revisions(&mesh)?;
    s.require(now.iter().zip(&revisions).all(|(now, before)| now >= before), "an agent was taken back");
    newcomer_joins(&mut mesh)?;
    s.none_lost(pings)
}

impl Root {
    /// What a server needs to sign.
    fn options(self, directory: &Path) -> Vec<String> {
        match self {
            Self::Plain => Vec::new(),
            Self::Wrapped => vec!["--cluster-key".to_owned(), key_file(directory).display().to_string()],
        }
    }
}

fn key_file(directory: &Path) -> PathBuf {
    directory.join("cluster.key")
}

fn start(s: &Scenario, root: Root) -> Result<Mesh> {
    let mut mesh = Mesh::plan(0, 0).database_only(s)?;
    let options = root.options(&s.directory);
    let server = mesh.add_server(0)?;
    if root == Root::Wrapped {
        run_alone(server, &["cluster-key", "create", &key_file(&s.directory).display().to_string()])?;
    }
    server.add_options(&options);
    server.start()?;
    mesh.setup_key = mesh.servers[0].first_setup_key()?;
    for number in 0..AGENTS {
        mesh.add_agent(number)?;
    }
    mesh.start_agents()?;
    Ok(mesh)
}

/// Somebody who never knew the old place enters with the old setup key, and talks to a member.
fn newcomer_joins(mesh: &mut Mesh) -> Result<()> {
    mesh.add_agent(AGENTS)?.start()?;
    let newcomer = &mesh.agents[usize::from(AGENTS)];
    newcomer.wait_now(TIMEOUT, "knows everybody", |status| status.peers.len() == usize::from(AGENTS))?;
    ping(newcomer, &mesh.agents[0])?.finish().map(drop)
}

/// The server's own directory, and the database with what SQLite keeps beside it.
fn remove_files(directory: &Path, server: &str) -> Result<()> {
    std::fs::remove_dir_all(directory.join(server))?;
    for entry in std::fs::read_dir(directory)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("cluster.db") {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Number, name, key and addresses of every node.
fn nodes(server: &Server) -> Result<Vec<serde_json::Value>> {
    let listed = server.json(&["node", "list"])?;
    let nodes = listed.as_array().context("node list prints an array")?;
    let lasting = |node: &serde_json::Value| {
        serde_json::json!([node["id"], node["name"], node["public_key"], node["addresses"]])
    };
    Ok(nodes.iter().map(lasting).collect())
}

fn revisions(mesh: &Mesh) -> Result<Vec<Option<u64>>> {
    mesh.agents.iter().map(|agent| Ok(agent.status()?.control.revision.as_u64())).collect()
}

fn run(server: &Server, arguments: &[&str]) -> Result<()> {
    succeeded(arguments, &server.command(arguments)?)
}

/// A command that is not given the database of the cluster.
fn run_alone(server: &Server, arguments: &[&str]) -> Result<()> {
    succeeded(arguments, &server.command_alone(arguments)?)
}

fn succeeded(arguments: &[&str], output: &std::process::Output) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "server {} failed: {said}", arguments.join(" "));
    Ok(())
}
