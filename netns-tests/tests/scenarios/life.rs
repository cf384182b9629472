//! The agent's life on its host: `up`, `status`, `down`, and what is left of it afterwards.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::agent::{Agent, INTERFACE};
use netns_tests::mesh::{Mesh, ping};
use netns_tests::scenario::Scenario;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Everything as a user does it: no `--foreground`, commands and their exit codes.
pub(crate) fn commands_keep_their_contract(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 1).start(s)?;
    let agent = mesh.add_agent(1)?;
    code(agent, &["status"], 3, "")?;
    code(agent, &["down"], 3, "")?;
    code(agent, &["up", "--servers"], 2, "servers")?;
    code(agent, &["frobnicate"], 2, "")?;
    let options: Vec<String> = agent.options.clone();
    let mut up = vec!["up"];
    up.extend(options.iter().map(String::as_str));
    code(agent, &up, 0, "")?;
    let status = agent.ask(&["status"])?;
    for word in ["a1", "192.0.2.11", "idle"] {
        ensure!(status.contains(word), "`agent status` shows no {word:?}:\n{status}");
    }
    agent.follow()?;
    agent.wait_now(TIMEOUT, "is served", |status| status.served_by().is_some())?;
    let socket = socket_of(agent)?;
    let mode = std::fs::metadata(&socket)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "the local socket is {mode:o}, not 600");
    agent.ask(&["ping", "a1"])?;
    agent.ask(&["wait"])?;
    agent.ask(&["down"])?;
    nothing_left(agent)?;
    code(agent, &["status"], 3, "")?;
    code(agent, &["version"], 0, "")?;
    code(agent, &["completion", "bash"], 0, "")
}

pub(crate) fn an_agent_without_enrolment_says_so(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 0).start(s)?;
    let url = mesh.servers[0].url.clone();
    let agent = mesh.add_agent(0)?;
    code(agent, &["up", "--servers", &url, "--timeout", "3"], 4, "setup-key")?;
    nothing_left(agent)
}

pub(crate) fn sigterm_leaves_nothing_behind(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 2).start(s)?;
    ping(&mesh.agents[0], &mesh.agents[1])?.finish()?;
    for agent in &mut mesh.agents {
        agent.stop()?;
        nothing_left(agent)?;
    }
    Ok(())
}

/// A killed agent leaves its interface's rules and its socket file; the next start does not trip over them.
pub(crate) fn the_start_after_kill_9_cleans_up(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 2).start(s)?;
    ping(&mesh.agents[0], &mesh.agents[1])?.finish()?;
    for _ in 0..3 {
        mesh.agents[0].kill()?;
        mesh.agents[0].start()?;
        mesh.settle()?;
        ping(&mesh.agents[0], &mesh.agents[1])?.finish()?;
    }
    mesh.agents[0].stop()?;
    nothing_left(&mesh.agents[0])
}

/// Who logs out is forgotten by the others; the agent runs on without a membership, until it is told to end.
pub(crate) fn logout_ends_the_membership(s: &mut Scenario) -> Result<()> {
    let mesh = Mesh::plan(1, 2).start(s)?;
    mesh.agents[1].ask(&["logout"])?;
    mesh.agents[0]
        .wait(Instant::now(), TIMEOUT, "forgets who logged out", |status| status.peers.is_empty())?;
    mesh.agents[1]
        .wait_now(TIMEOUT, "knows that it has logged out", |status| status.state == "needs-enrolment")?;
    mesh.agents[1].ask(&["down"])?;
    nothing_left(&mesh.agents[1])
}

fn code(agent: &Agent, arguments: &[&str], expected: i32, word: &str) -> Result<()> {
    let output = agent.command(arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    let line = arguments.join(" ");
    ensure!(
        output.status.code() == Some(expected),
        "`agent {line}` ended with {}, not {expected}: {said}",
        output.status
    );
    ensure!(said.contains(word), "`agent {line}` says nothing of {word:?}: {said}");
    ensure!(expected == 0 || !said.trim().is_empty(), "`agent {line}` fails without a word");
    Ok(())
}

fn socket_of(agent: &Agent) -> Result<PathBuf> {
    let entries = std::fs::read_dir(&agent.state_directory)?.flatten();
    let mut sockets = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
        .map(|entry| entry.path());
    sockets.next().context("no socket in the state directory")
}

/// No interface, no route, no rule, no socket.
pub(crate) fn nothing_left(agent: &Agent) -> Result<()> {
    let namespace = &agent.host.namespace;
    let links = namespace.output("ip", &["-o", "link"])?;
    ensure!(!links.contains(INTERFACE), "the interface is left: {links}");
    for family in ["-4", "-6"] {
        let routes = namespace.output("ip", &[family, "route", "show", "table", "all"])?;
        ensure!(!routes.contains("100.64") && !routes.contains(INTERFACE), "routes are left: {routes}");
        let rules = namespace.output("ip", &[family, "rule"])?;
        ensure!(rules.lines().count() <= 3, "rules are left: {rules}");
    }
    let tables = namespace.output("nft", &["list", "ruleset"])?;
    ensure!(tables.trim().is_empty(), "nftables rules are left: {tables}");
    ensure!(socket_of(agent).is_err(), "the socket is left");
    Ok(())
}
