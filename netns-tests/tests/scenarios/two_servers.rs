//! What a high-availability set-up of another product shows with Redis and a load balancer, on Postgres alone.
//!
//! ```text
//!   a1 ⇄ a2, crowd ── s1, s2 ── Postgres
//! ```
//!
//! The figures that the high-availability fork of NetBird publishes stand beside ours.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::client::{Member, Talk, within};
use netns_tests::figures::{Bound, Samples, ms};
use netns_tests::mesh::{Database, Mesh, ping};
use netns_tests::scenario::Scenario;
use netns_tests::server::Server;
use netns_tests::topology::Host;
use netns_tests::wait::wait_until;
use proto::key::PublicKey;
use proto::session::{AgentMessage, ServerMessage, Signal};
use proto::setup_key::SetupKey;

const TIMEOUT: Duration = Duration::from_secs(10);
const ROUNDS: u64 = 20;
/// Renames of one node begun at once on each server.
const RENAMES: usize = 8;

pub(crate) fn are_one(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(2, 2).database(Database::Postgres).start(s)?;
    let crowd = mesh.bystander("crowd", 0)?;
    let pings = vec![ping(&mesh.agents[0], &mesh.agents[1])?, ping(&mesh.agents[1], &mesh.agents[0])?];
    signals_go_to_one(s, &mesh, &crowd)?;
    say_the_same(s, &mesh, &crowd)?;
    changes_have_one_order(s, &mesh)?;
    one_is_killed(s, &mut mesh, &crowd)?;
    s.note("pings between the agents, both ways, throughout:");
    s.none_lost(pings)
}

/// Whoever is served by the other server hears a signal from there, once; its standby here hears nothing, nor does anybody else.
fn signals_go_to_one(s: &mut Scenario, mesh: &Mesh, crowd: &Host) -> Result<()> {
    let (servers, key) = (addresses(mesh)?, mesh.setup_key.parse::<SetupKey>()?);
    let mut crossed = Samples::new("a signal from s1 to a peer on s2 (theirs: isolation 3.03 s)");
    let members = [Member::new("sender")?, Member::new("receiver")?, Member::new("third")?];
    let stray = within(&crowd.namespace, || async {
        for member in &members {
            member.join(servers[0], &key).await?;
        }
        let sender = members[0].serving(servers[0], key.fingerprint, 1).await?;
        let mut standby = members[1].standby(servers[0], key.fingerprint, 1).await?;
        let mut receiver = members[1].serving(servers[1], key.fingerprint, 2).await?;
        let mut third = members[2].serving(servers[1], key.fingerprint, 1).await?;
        where_everybody_is_known(s, mesh, &mut receiver).await?;
        let mut stray = 0;
        for id in 1..=ROUNDS {
            let at = Instant::now();
            sender.say(signal(members[1].key(), id))?;
            stray += heard(&mut receiver, id).await?;
            crossed.push(at.elapsed());
        }
        // What goes to one server comes in order: a second delivery would have come before this one.
        sender.say(signal(members[2].key(), ROUNDS + 1))?;
        stray += heard(&mut third, ROUNDS + 1).await?;
        for talk in [&mut receiver, &mut standby, &mut third] {
            stray += talk
                .said_so_far()
                .await?
                .iter()
                .filter(|said| matches!(said, ServerMessage::Signal(_)))
                .count();
        }
        Ok(stray)
    })?;
    s.figure(&crossed, &[Bound::P99(Duration::from_millis(200))]);
    s.require(stray == 0, format!("{stray} signals were delivered twice, or to another"));
    Ok(())
}

/// The registry: both servers' counts, and the command line on both hosts.
async fn where_everybody_is_known(s: &mut Scenario, mesh: &Mesh, receiver: &mut Talk) -> Result<()> {
    let at = Instant::now();
    let online = mesh.agents.len() + 3;
    loop {
        receiver.said_so_far().await?;
        let counts = mesh.servers.iter().map(|server| gauge(server, "holdfast_nodes_online"));
        if counts.collect::<Result<Vec<f64>>>()?.iter().all(|count| *count == online as f64) {
            break;
        }
        ensure!(at.elapsed() < TIMEOUT, "the servers do not agree that {online} are online");
    }
    s.note(format!(
        "who is where: {online} sessions on two servers, known to both after {}",
        ms(at.elapsed())
    ));
    let told: Vec<_> = mesh.servers.iter().map(registry).collect::<Result<_>>()?;
    s.require(told[0] == told[1], format!("two views of one registry: {told:?}"));
    s.require(
        told[0].iter().map(|(_, sessions)| sessions).sum::<u64>() == online as u64,
        format!("{told:?}"),
    );
    Ok(())
}

/// Each server's id and sessions as `server status` has them.
fn registry(server: &Server) -> Result<Vec<(String, u64)>> {
    let status = server.json(&["status"])?;
    let servers = status["servers"].as_array().context("server status prints no servers")?;
    let line = |server: &serde_json::Value| {
        Some((server["id"].as_str()?.to_owned(), server["sessions_online"].as_u64()?))
    };
    let mut lines: Vec<_> = servers.iter().filter_map(line).collect();
    lines.sort();
    Ok(lines)
}

fn gauge(server: &Server, name: &str) -> Result<f64> {
    let (_, metrics) = server.admin("/metrics")?;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.with_context(|| format!("{} has no metric {name}", server.name))?.parse().context("a metric")
}

/// After a change on one server both are ready, at the same revision, and welcome an agent with the same cluster.
fn say_the_same(s: &mut Scenario, mesh: &Mesh, crowd: &Host) -> Result<()> {
    let (servers, key) = (addresses(mesh)?, mesh.setup_key.parse::<SetupKey>()?);
    let member = Member::new("reader")?;
    let at = Instant::now();
    within(&crowd.namespace, || async { member.join(servers[0], &key).await })?;
    wait_until("both servers say the same of themselves", TIMEOUT, || {
        let answers: Vec<_> = mesh.servers.iter().map(readiness).collect::<Result<_>>()?;
        Ok((answers[0] == answers[1] && answers[0].1 == 200).then_some(()))
    })?;
    s.note(format!(
        "a change on s1: the same health and revision from both after {} (theirs: 0.50 s)",
        ms(at.elapsed())
    ));
    let welcomes = within(&crowd.namespace, || async {
        let first = member.standby(servers[0], key.fingerprint, 1).await?;
        let second = member.standby(servers[1], key.fingerprint, 2).await?;
        Ok([first.welcome, second.welcome])
    })?;
    let lists = welcomes.clone().map(|welcome| {
        let mut urls: Vec<String> = welcome.servers.urls.iter().map(ToString::to_string).collect();
        urls.sort();
        (urls, welcome.membership, welcome.at)
    });
    s.require(lists[0] == lists[1], format!("two configurations: {:?} and {:?}", lists[0].0, lists[1].0));
    s.require(welcomes[0].server != welcomes[1].server, "both servers have one id");
    Ok(())
}

/// What must be the same: the version of the map, and the code.
fn readiness(server: &Server) -> Result<([u64; 2], u16)> {
    let (code, body) = server.admin_json("/readyz")?;
    let number =
        |field: &str| body[field].as_u64().with_context(|| format!("/readyz has no {field}: {body}"));
    Ok(([number("epoch")?, number("revision")?], code))
}

/// One node renamed through both servers' hosts at once: no rename is lost, all have one order, and the last in it holds everywhere.
fn changes_have_one_order(s: &mut Scenario, mesh: &Mesh) -> Result<()> {
    let postgres = mesh.postgres.as_ref().context("this mesh has a Postgres")?;
    let node = number_of(&mesh.servers[0], "third")?;
    let at = Instant::now();
    let mut commands = Vec::new();
    for number in 0..RENAMES {
        for server in &mesh.servers {
            let name = format!("{}-{number}", server.name);
            commands.push((server.begin(&["node", "rename", &node, &name])?, name));
        }
    }
    let mut order = Vec::new();
    for (command, name) in &mut commands {
        let status = command.wait_end(TIMEOUT)?;
        ensure!(status.success(), "a rename failed: {}", command.log_tail(3));
        let revision = format!("select revision from changes where ops::text like '%\"{name}\"%'");
        let revisions = postgres.psql("holdfast", &revision)?;
        order.push((
            revisions.parse::<u64>().with_context(|| format!("{name} has the revisions {revisions:?}"))?,
            name,
        ));
    }
    order.sort();
    s.note(format!(
        "{} renames of one node through both servers' hosts at once: all in one order after {}",
        order.len(),
        ms(at.elapsed())
    ));
    let (last, name) = order.last().context("there were renames")?;
    s.require(order.windows(2).all(|pair| pair[0].0 < pair[1].0), "two changes have one revision");
    s.require(
        number_of(&mesh.servers[1], name).is_ok_and(|id| id == node),
        format!("{name}, of revision {last}, is not the name now"),
    );
    for agent in &mesh.agents {
        agent.wait_now(TIMEOUT, "knows the last name", |status| status.peer(name).is_some())?;
    }
    Ok(())
}

fn number_of(server: &Server, name: &str) -> Result<String> {
    let nodes = server.json(&["node", "list"])?;
    let nodes = nodes.as_array().context("node list prints an array")?;
    let node = nodes.iter().find(|node| node["name"] == name).with_context(|| format!("no node {name}"))?;
    Ok(node["id"].to_string())
}

/// The server that serves most is killed: agents are served by the other, and signals reach who was served by the dead one.
fn one_is_killed(s: &mut Scenario, mesh: &mut Mesh, crowd: &Host) -> Result<()> {
    const KILLS: u64 = 5;
    let (servers, key) = (addresses(mesh)?, mesh.setup_key.parse::<SetupKey>()?);
    let mut served = Samples::new("killed: an agent is served by the other (theirs: management 3.64 s)");
    let mut signalled = Samples::new("killed: a signal arrives by the other (theirs: signal 2.52 s)");
    let [sender, receiver] = [Member::new("calls")?, Member::new("is-called")?];
    within(&crowd.namespace, || async {
        sender.join(servers[0], &key).await?;
        receiver.join(servers[0], &key).await.map(drop)
    })?;
    for round in 0..KILLS {
        let victim = mesh.busiest_server()?;
        let moving = mesh.served_by(victim)?;
        let (dying, staying, mesh) = (servers[victim], servers[1 - victim], &mut *mesh);
        let at = within(&crowd.namespace, || async {
            let counter = 10 * (round + 1);
            let caller = sender.serving(staying, key.fingerprint, counter).await?;
            let standby = receiver.standby(staying, key.fingerprint, counter).await?;
            let serving = receiver.serving(dying, key.fingerprint, counter + 1).await?;
            let at = mesh.servers[victim].kill()?;
            signalled.push(reached(&caller, (serving, standby), receiver.key(), counter + 2).await? - at);
            Ok(at)
        })?;
        served.extend(mesh.moved(&moving, at, TIMEOUT)?);
        mesh.servers[victim].start()?;
    }
    s.figure(&served, &[Bound::P99(Duration::from_millis(100))]);
    s.figure(&signalled, &[Bound::P99(Duration::from_millis(100))]);
    Ok(())
}

/// When a signal of `caller` reached a member whose serving session has just been killed.
async fn reached(
    caller: &Talk,
    (mut serving, mut standby): (Talk, Talk),
    to: PublicKey,
    counter: u64,
) -> Result<Instant> {
    while serving.next().await.is_ok() {}
    let number = proto::session::SessionNumber { boot: 1, counter };
    standby.say(AgentMessage::Activate { number, map: proto::session::MapState::default() })?;
    let begun = Instant::now();
    for id in 1.. {
        caller.say(signal(to, id))?;
        let any =
            standby.find("hears a signal", |said| matches!(said, ServerMessage::Signal(_)).then_some(()));
        if let Ok(heard) = tokio::time::timeout(Duration::from_millis(5), any).await {
            return heard.map(|()| Instant::now());
        }
        ensure!(begun.elapsed() < TIMEOUT, "no signal arrives by the other server");
    }
    Ok(begun)
}

fn signal(peer: PublicKey, id: u64) -> AgentMessage {
    AgentMessage::Signal(Signal { peer, id, endpoints: Vec::new() })
}

/// Waits for a signal; how many others came before it.
async fn heard(receiver: &mut Talk, id: u64) -> Result<usize> {
    let mut others = 0;
    let is_it = |said: &ServerMessage| {
        let ServerMessage::Signal(signal) = said else { return None };
        others += usize::from(signal.id != id);
        (signal.id == id).then_some(())
    };
    receiver.find("hears a signal", is_it).await?;
    Ok(others)
}

fn addresses(mesh: &Mesh) -> Result<Vec<SocketAddr>> {
    mesh.servers.iter().map(|server| server.url.parse().context("a server's address")).collect()
}
