//! What the scenarios about the database ask of a mesh: changes and what became of them, who sees them, and what nobody may ever see.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netns_tests::agent::Agent;
use netns_tests::mesh::Mesh;
use netns_tests::scenario::Scenario;
use netns_tests::server::Server;
use netns_tests::status::Status;
use netns_tests::wait::wait_until;

pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);
/// Every database scenario's servers say this while theirs is away.
pub(crate) const FROM_MEMORY: &str = "serving from memory";

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Made,
    /// What the command said.
    NotMade(String),
}

/// Gives a node another name by a `server` command on the host of `server`.
pub(crate) fn rename(server: &Server, node: &str, name: &str) -> Result<Change> {
    change(server, &["node", "rename", node, name])
}

pub(crate) fn change(server: &Server, arguments: &[&str]) -> Result<Change> {
    let output = server.command(arguments)?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match output.status.code() {
        Some(0) => Ok(Change::Made),
        Some(1) if !said.is_empty() => Ok(Change::NotMade(said)),
        _ => bail!("server {} ended with {}: {said}", arguments.join(" "), output.status),
    }
}

/// A change that must be made.
pub(crate) fn must_change(server: &Server, arguments: &[&str]) -> Result<()> {
    match change(server, arguments)? {
        Change::Made => Ok(()),
        Change::NotMade(said) => bail!("server {} failed: {said}", arguments.join(" ")),
    }
}

/// Tries until the change is made; the moment at which the last try began.
pub(crate) fn change_at_last(server: &Server, arguments: &[&str]) -> Result<Instant> {
    wait_until("a change is made again", TIMEOUT, || {
        let at = Instant::now();
        Ok((change(server, arguments)? == Change::Made).then_some(at))
    })
}

/// What a try said that the database kept from being made: it names the database, and shows no password.
pub(crate) fn refusal(server: &Server, arguments: &[&str], database: &str) -> Result<String> {
    let at = Instant::now();
    match change(server, arguments)? {
        Change::Made => bail!("server {} was made without its database", arguments.join(" ")),
        Change::NotMade(said) => {
            ensure!(said.contains(database), "the error does not name the database {database}: {said}");
            ensure!(at.elapsed() < TIMEOUT, "the error came after {:.0?}", at.elapsed());
            Ok(said)
        }
    }
}

/// How long after `since` the last of the agents that follow (but the one of that name itself) knew a peer called `name`.
pub(crate) fn all_know(mesh: &Mesh, since: Instant, name: &str, itself: &str) -> Result<Duration> {
    let others = mesh.agents.iter().filter(|agent| agent.name != itself && agent.watch().is_ok());
    let spans = others.map(|agent| knows(agent, since, name));
    spans.collect::<Result<Vec<_>>>()?.into_iter().max().context("there are others")
}

pub(crate) fn knows(agent: &Agent, since: Instant, name: &str) -> Result<Duration> {
    let what = format!("knows {name}");
    Ok(agent.wait(since, TIMEOUT, &what, |status| status.peer(name).is_some())?.0 - since)
}

/// Waits until the server says that its database is well, or not; the moment that it was first seen.
pub(crate) fn database_is(server: &Server, well: bool) -> Result<Instant> {
    let what = format!("{} says that its database is {}", server.name, if well { "well" } else { "away" });
    wait_until(&what, TIMEOUT, || {
        let ok = server.admin_json("/readyz").ok().map(|(_, readiness)| readiness["database_ok"] == true);
        Ok((ok == Some(well)).then(Instant::now))
    })
}

/// The nodes that the database has: name and IPv4 address.
pub(crate) fn nodes(server: &Server) -> Result<Vec<(String, String)>> {
    let list = server.json(&["node", "list"])?;
    let list = list.as_array().or_else(|| list["nodes"].as_array()).context("node list --json has a list")?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Ok(list.iter().map(|node| (text(&node["name"]), text(&node["addresses"][0]))).collect())
}

pub(crate) fn revision(status: &Status) -> u64 {
    status.control.revision.as_u64().unwrap_or_default()
}

/// Of every state that was told since: no agent ever went back to an older map.
pub(crate) fn never_backwards(s: &mut Scenario, mesh: &Mesh, since: Instant) -> Result<()> {
    let mut looks = 0;
    for agent in mesh.agents.iter().filter(|agent| agent.watch().is_ok()) {
        let states = agent.watch()?.states_since(since);
        looks += states.len();
        for pair in states.windows(2) {
            let (before, after) = (revision(&pair[0].1), revision(&pair[1].1));
            s.require(before <= after, format!("{} went from revision {before} to {after}", agent.name));
        }
    }
    s.note(format!("no agent's revision fell, of {looks} states told"));
    Ok(())
}

/// Waits until all agents are settled and see each other online.
pub(crate) fn settled(mesh: &Mesh) -> Result<()> {
    mesh.settle()?;
    for agent in &mesh.agents {
        agent.wait_now(TIMEOUT, "sees everybody online", |status| {
            status.peers.iter().all(|peer| peer.online == Some(true))
        })?;
    }
    Ok(())
}

/// Of every state that was told to the living since: nobody saw another of them offline, or missed one.
pub(crate) fn nobody_seen_offline(
    s: &mut Scenario,
    mesh: &Mesh,
    since: Instant,
    living: &[&str],
) -> Result<()> {
    for agent in mesh.agents.iter().filter(|agent| living.contains(&agent.name.as_str())) {
        for (at, status) in agent.watch()?.states_since(since) {
            let others = living.iter().filter(|name| **name != agent.name);
            let gone = others.filter(|name| status.peer(name).is_none_or(|peer| peer.online == Some(false)));
            let gone: Vec<_> = gone.collect();
            if !gone.is_empty() {
                let after = at - since;
                s.require(false, format!("{} saw {gone:?} offline or gone, {after:.1?} later", agent.name));
                break;
            }
        }
    }
    Ok(())
}

/// Only what `agent` itself began may come in: its peers reach it after a signal alone.
pub(crate) fn firewall(agent: &Agent) -> Result<()> {
    agent.host.namespace.nft(
        "table inet firewall { chain in { type filter hook input priority 0; \
         iifname \"eth0\" meta l4proto udp ct state new drop; }; }",
    )
}

/// Adds an agent that is served by this server and knows of the others by it alone.
pub(crate) fn pinned(mesh: &mut Mesh, number: u8, server: usize) -> Result<()> {
    let url = mesh.servers[server].url.clone();
    let agent = mesh.add_agent(number)?;
    agent.options[1] = url.clone();
    agent.start()?;
    let served = |status: &Status| status.served_by().is_some_and(|server| server.url.contains(&url));
    agent.wait_now(TIMEOUT, "is served by its own server", served).map(drop)
}
