//! The cluster's root is changed twice under traffic, while one agent is away throughout; then the former roots are retired.
//!
//! ```text
//!   a1 ⇄ a2   a3 ⇄ a4   (a5 away) ── s1, s2 ── Postgres
//! ```

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::figures::{Bound, Samples, ms};
use netns_tests::mesh::{Database, FIVE_MS, Mesh, overlay_address, ping};
use netns_tests::ping::Pinger;
use netns_tests::scenario::Scenario;
use netns_tests::wait::{retry, wait_until};

const AGENTS: u8 = 5;
const AWAY: usize = 4;
const TIMEOUT: Duration = Duration::from_secs(20);
const LEARNED_BOUND: Duration = Duration::from_secs(2);

pub(crate) fn is_changed_under_traffic(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(2, AGENTS).database(Database::Postgres).start(s)?;
    let first = current(&mesh)?;
    mesh.agents[AWAY].stop()?;
    let pings = vec![ping(&mesh.agents[0], &mesh.agents[1])?, ping(&mesh.agents[2], &mesh.agents[3])?];
    let mut learned = Samples::new("the root is changed: an agent keeps the new one");
    rotate(s, &mut mesh, &[], &mut learned)?;
    mesh.add_agent(AGENTS)?.start()?;
    let newcomer = mesh.agents.last().context("just added")?;
    newcomer.wait_now(TIMEOUT, "enters with a setup key of before and knows everybody", |status| {
        status.served_by().is_some() && status.peers.len() == usize::from(AGENTS)
    })?;
    ping(newcomer, &mesh.agents[0])?.finish()?;
    refused(s, &mesh, &["root", "rotate"], "root retire")?;
    rotate(s, &mut mesh, &["--anyway"], &mut learned)?;
    s.figure(&learned, &[Bound::Worst(LEARNED_BOUND)]);
    wait_until("the others have confirmed the new root", TIMEOUT, || {
        let names = shown(&mesh)?["unconfirmed"].clone();
        Ok((names == serde_json::json!(["a5"])).then_some(()))
    })?;
    refused(s, &mesh, &["root", "retire"], "a5")?;
    comes_back(s, &mut mesh)?;
    retire(s, &mesh)?;
    s.require(current(&mesh)? != first, "the root is the one that it was");
    an_old_setup_key_says_what_to_do(s, &mut mesh)?;
    s.none_lost(pings)?;
    holds_without_servers(s, &mut mesh)
}

fn shown(mesh: &Mesh) -> Result<serde_json::Value> {
    mesh.servers[0].json(&["root", "show"])
}

fn current(mesh: &Mesh) -> Result<String> {
    Ok(shown(mesh)?["root"].as_str().context("root show names the root")?.to_owned())
}

/// Changes the root by the command, and waits until every running agent keeps it and everything is signed anew.
fn rotate(s: &mut Scenario, mesh: &mut Mesh, options: &[&str], learned: &mut Samples) -> Result<()> {
    let at = Instant::now();
    mesh.servers[1].json(&[&["root", "rotate"], options].concat())?;
    let took = at.elapsed();
    let root = current(mesh)?;
    let committed = at + took;
    for agent in running(mesh) {
        let (then, _) = agent.wait(at, TIMEOUT, "keeps the new root", |status| {
            status.own.root.as_deref() == Some(root.as_str())
        })?;
        learned.push(then.saturating_duration_since(committed));
    }
    wait_until("everything is signed by the new root", TIMEOUT, || {
        Ok((shown(mesh)?["to_sign_anew"] == 0).then_some(()))
    })?;
    s.note(format!(
        "`server root rotate` took {}; all agents keep the new root and all is signed anew after {}",
        ms(took),
        ms(at.elapsed())
    ));
    Ok(())
}

fn running(mesh: &Mesh) -> impl Iterator<Item = &netns_tests::agent::Agent> {
    mesh.agents.iter().filter(|agent| agent.watch().is_ok())
}

fn refused(s: &mut Scenario, mesh: &Mesh, arguments: &[&str], names: &str) -> Result<()> {
    let output = mesh.servers[0].command(arguments)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    s.require(
        !output.status.success() && said.contains(names),
        format!("`server {}` should be refused and name {names}: {said}", arguments.join(" ")),
    );
    Ok(())
}

/// The agent that knows only the first of three roots.
fn comes_back(s: &mut Scenario, mesh: &mut Mesh) -> Result<()> {
    let root = current(mesh)?;
    let at = Instant::now();
    mesh.agents[AWAY].start()?;
    let (then, _) = mesh.agents[AWAY].wait(at, TIMEOUT, "is served and keeps the newest root", |status| {
        status.served_by().is_some() && status.own.root.as_deref() == Some(root.as_str())
    })?;
    s.note(format!("away for two changes: served under the newest root {} after its start", ms(then - at)));
    ping(&mesh.agents[AWAY], &mesh.agents[0])?.finish().map(drop)
}

fn retire(s: &mut Scenario, mesh: &Mesh) -> Result<()> {
    let at = Instant::now();
    retry("the former roots are retired", TIMEOUT, || {
        let shown = mesh.servers[0].json(&["root", "retire"])?;
        ensure!(shown["roots"].as_array().is_some_and(|roots| roots.len() == 1), "{shown}");
        Ok(())
    })?;
    s.note(format!("the former roots were retired {} after the last agent came back", ms(at.elapsed())));
    Ok(())
}

fn an_old_setup_key_says_what_to_do(s: &mut Scenario, mesh: &mut Mesh) -> Result<()> {
    mesh.add_agent(AGENTS + 1)?.start()?;
    let late = mesh.agents.last().context("just added")?;
    let state = late.wait_now(TIMEOUT, "was refused by both servers", |status| {
        let servers = &status.control.servers;
        servers.len() == mesh.servers.len() && servers.iter().all(|server| server.last_error.is_some())
    })?;
    let said: Vec<_> = state.control.servers.iter().filter_map(|server| server.last_error.clone()).collect();
    s.require(
        said.iter().all(|error| error.contains("retired") && error.contains("setup key")),
        format!("who has a setup key of a retired root is not told so: {said:?}"),
    );
    mesh.agents.last_mut().context("just added")?.stop()?;
    mesh.agents.pop();
    Ok(())
}

/// Everything is killed; agents find each other from what they kept, and servers serve them again.
fn holds_without_servers(s: &mut Scenario, mesh: &mut Mesh) -> Result<()> {
    let target = overlay_address(&mesh.agents[0], &mesh.agents[1])?;
    let root = current(mesh)?;
    mesh.servers.iter_mut().try_for_each(|server| server.kill().map(drop))?;
    for agent in &mut mesh.agents {
        agent.kill()?;
    }
    let pinger = Pinger::start("a1 to a2", &mesh.agents[0].host.namespace, target, FIVE_MS)?;
    let mut at = Instant::now();
    for agent in &mut mesh.agents {
        at = agent.launch()?;
    }
    let answered = pinger.first_reply_after(at, TIMEOUT)?;
    s.note(format!("everything killed, no server: traffic {} after the agents' start", ms(answered - at)));
    for agent in &mut mesh.agents {
        agent.follow()?;
        let kept = agent.status()?.own.root.clone();
        s.require(kept.as_ref() == Some(&root), format!("{} keeps the root {kept:?}", agent.name));
    }
    for server in &mut mesh.servers {
        server.start()?;
    }
    mesh.settle()?;
    let status = mesh.servers[0].json(&["status"])?;
    s.require(status["cluster"] == root.as_str(), "`server status` shows another root");
    Ok(())
}
