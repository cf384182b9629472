//! Wall clocks that are off by hours and jump while everything runs.
//!
//! ```text
//!   a1 ⇄ a2   a3 ⇄ a4   a2 ─ a3 (idle) ── s1, s2 ── Postgres        a1, a3 and s1 have clocks of their own
//! ```

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::client::{Member, within};
use netns_tests::clock::{WallClock, logged_offset};
use netns_tests::figures::{Bound, Samples, ms};
use netns_tests::mesh::{Database, FIVE_MS, Mesh, overlay_address, ping};
use netns_tests::ping::Pinger;
use netns_tests::scenario::Scenario;
use netns_tests::wait::{hold_for, wait_until};
use proto::setup_key::SetupKey;

use super::filter::keeps_rules_and_peer;

const HOUR: i64 = 3600;
/// Six hours in whole hours, whatever is rounded.
const SKEW: i64 = 6 * HOUR + 300;
/// Where a1's and s1's clocks go; a3's goes the other way.
const JUMPS: [i64; 6] = [SKEW, -SKEW, 24 * HOUR, -24 * HOUR, 60, SKEW];
const BETWEEN_JUMPS: Duration = Duration::from_secs(3);
const TIMEOUT: Duration = Duration::from_secs(15);
const TOLERANCE: i64 = 60;

pub(crate) fn jump_while_everything_runs(s: &mut Scenario) -> Result<()> {
    // Whoever sees that its clock is off says so.
    s.expect_warning("clock");
    let mut mesh = Mesh::plan(2, 0).database(Database::Postgres).start(s)?;
    let clock = |name: &str| WallClock::new(&mesh.cluster.directory, name);
    let (server, first, third) = (clock("s1")?, clock("a1")?, clock("a3")?);
    mesh.servers[0].drain()?;
    mesh.servers[0].environment = server.environment();
    mesh.servers[0].start()?;
    for number in 0..4 {
        mesh.add_agent(number)?;
    }
    mesh.agents[0].environment = first.environment();
    mesh.agents[2].environment = third.environment();
    mesh.start_agents()?;
    ping(&mesh.agents[1], &mesh.agents[2])?.finish()?;
    let pings = mesh.ping_pairs()?;
    let begun = Instant::now();
    for jump in JUMPS {
        first.set(jump)?;
        server.set(jump)?;
        third.set(-jump)?;
        hold_for(BETWEEN_JUMPS, || Ok(()))?;
    }
    nobody_noticed(s, &mesh, begun)?;
    for (agent, word) in [(0, "6 h ahead of"), (2, "6 h behind")] {
        mesh.agents[agent].wait_now(TIMEOUT, "says that its clock is off", |status| {
            status.warnings.iter().any(|warning| warning.contains("clock") && warning.contains(word))
        })?;
    }
    newcomers_are_let_in(s, &mut mesh)?;
    each_server_dies(s, &mut mesh)?;
    s.none_lost(pings)?;
    for (agent, expected) in [(0, SKEW), (2, -SKEW)] {
        let offset = logged_offset(mesh.agents[agent].log())?;
        s.require(
            (offset - expected).abs() < TOLERANCE,
            format!("a clock was {offset} s off, not {expected}"),
        );
    }
    agents_restart(s, &mut mesh)
}

fn nobody_noticed(s: &mut Scenario, mesh: &Mesh, since: Instant) -> Result<()> {
    for agent in &mesh.agents {
        let states = agent.watch()?.states_since(since);
        let unserved = states.iter().find(|(_, status)| status.served_by().is_none());
        let when = unserved.map(|(at, _)| ms(*at - since));
        s.require(when.is_none(), format!("{} was not served {when:?} after the first jump", agent.name));
        let failovers = agent.status()?.control.failovers;
        s.require(failovers == 0, format!("{} moved {failovers} times", agent.name));
    }
    let idle = mesh.agents[2].status()?.peer("a2").map(|peer| peer.tunnel.clone());
    s.require(idle.as_deref() == Some("connected"), format!("the idle tunnel of a3 to a2 is {idle:?}"));
    let status = mesh.servers[1].json(&["status"])?;
    let leases: Vec<Option<u64>> = status["servers"]
        .as_array()
        .map(|servers| servers.iter().map(|server| server["lease_remaining_ms"].as_u64()).collect())
        .unwrap_or_default();
    s.note(format!("{} jumps of up to a day; leases left: {leases:?} ms", JUMPS.len()));
    let held = leases.iter().all(|lease| lease.is_some_and(|left| left > 0 && left <= 10_000));
    s.require(leases.len() == 2 && held, format!("the leases are {leases:?}"));
    Ok(())
}

/// By the server whose clock is 6 h ahead: with a key that ends in an hour, and a newcomer talks to everybody.
fn newcomers_are_let_in(s: &mut Scenario, mesh: &mut Mesh) -> Result<()> {
    let key: SetupKey = mesh.servers[1].setup_key(&["--reusable", "--expires", "1h"])?.parse()?;
    let crowd = mesh.bystander("crowd", 0)?;
    let (address, url) = (mesh.servers[0].url.parse()?, mesh.servers[0].url.clone());
    within(&crowd.namespace, || async { Member::new("late")?.join(address, &key).await })?;
    let offset = logged_offset(&mesh.servers[0].log())?;
    s.require((offset - SKEW).abs() < TOLERANCE, format!("the clock of s1 was {offset} s off, not 6 h"));
    wrong_clock_is_told(mesh)?;
    let newcomer = mesh.add_agent(4)?;
    newcomer.options[1] = url;
    let at = newcomer.launch()?;
    newcomer.follow()?;
    let newcomer = &mesh.agents[4];
    newcomer.wait_now(TIMEOUT, "knows everybody", |status| status.peers.len() == 5)?;
    for peer in &mesh.agents[..4] {
        ping(newcomer, peer)?.finish()?;
    }
    s.note(format!("a newcomer at the server whose clock is wrong talks to all after {}", ms(at.elapsed())));
    Ok(())
}

/// By the server itself, and by the command line on any host.
fn wrong_clock_is_told(mesh: &Mesh) -> Result<()> {
    let tells = |degraded: &serde_json::Value| {
        let faults = degraded.as_array().into_iter().flatten();
        faults.into_iter().any(|fault| fault["what"] == "clock-wrong")
    };
    let (own, others) = (&mesh.servers[0], &mesh.servers[1]);
    wait_until("a wrong clock is told in health and status", TIMEOUT, || {
        let (status, health) = own.admin_json("/readyz")?;
        let listed = others.json(&["status"])?["servers"].clone();
        let row = listed.as_array().into_iter().flatten().find(|row| row["id"] == health["server"]);
        let is_listed = row.is_some_and(|row| tells(&row["health"]["degraded"]));
        Ok((status == 200 && tells(&health["degraded"]) && is_listed).then_some(()))
    })
}

/// One after the other, so that all are served by the one with the wrong clock for a while.
fn each_server_dies(s: &mut Scenario, mesh: &mut Mesh) -> Result<()> {
    let victim = mesh.busiest_server()?;
    let mut moved = Samples::new("clocks 6 h ahead and behind, a server killed: served by the other");
    for victim in [victim, 1 - victim] {
        mesh.settle()?;
        let served = mesh.served_by(victim)?;
        let at = mesh.servers[victim].kill()?;
        moved.extend(mesh.moved(&served, at, TIMEOUT)?);
        mesh.servers[victim].start()?;
    }
    ensure!(moved.len() >= mesh.agents.len(), "not every agent was moved");
    s.figure(&moved, &[Bound::Worst(Duration::from_secs(3))]);
    Ok(())
}

/// An agent whose clock went back makes handshakes that look older than its last: they must be taken all the same.
fn agents_restart(s: &mut Scenario, mesh: &mut Mesh) -> Result<()> {
    let mut answered = Samples::new("restarted with a clock 6 h off: a tunnel carries again");
    for (agent, peer) in [(0, 1), (2, 3), (2, 1)] {
        mesh.settle()?;
        let target = overlay_address(&mesh.agents[agent], &mesh.agents[peer])?;
        mesh.agents[agent].kill()?;
        let pinger = Pinger::start("after a restart", &mesh.agents[agent].host.namespace, target, FIVE_MS)?;
        let at = mesh.agents[agent].launch()?;
        answered.push(pinger.first_reply_after(at, TIMEOUT)? - at);
        mesh.agents[agent].follow()?;
    }
    s.figure(&answered, &[Bound::Worst(Duration::from_secs(5))]);
    Ok(())
}

/// Without a server its own clock is all that an agent has: behind the newest certificate it ends nothing, ahead of all it says what it goes by, and one server mends it.
pub(crate) fn a_restart_with_a_wrong_one_and_no_server(s: &mut Scenario) -> Result<()> {
    s.expect_warning("clock");
    s.expect_warning("certificate");
    let mut mesh = Mesh::plan(1, 0).start(s)?;
    let clock = WallClock::new(&mesh.cluster.directory, "a1")?;
    (0..2).try_for_each(|number| mesh.add_agent(number).map(drop))?;
    mesh.agents[0].environment = clock.environment();
    mesh.start_agents()?;
    ping(&mesh.agents[0], &mesh.agents[1])?.finish()?;
    // What it is to start from, without a server.
    wait_until("a1 keeps its map on disk", TIMEOUT, || keeps_rules_and_peer(&mesh.agents[0]))?;
    mesh.servers[0].kill()?;

    clock.set(-SKEW)?;
    let (answered, _) = restarted(&mut mesh, "behind the newest certificate")?;
    s.note(format!(
        "a clock 6 h behind, no server: the tunnel carries after {}",
        ms(answered.context("nothing is ended by a clock that is behind")?)
    ));

    // Certificates live for 30 days.
    clock.set(40 * 24 * HOUR)?;
    let (answered, warnings) = restarted(&mut mesh, "by this machine's clock")?;
    s.require(answered.is_none(), "a clock that is all there is was not believed");
    s.note(warnings.join("; "));
    let at = mesh.servers[0].start()?;
    let (mended, _) = mesh.agents[0].wait(at, TIMEOUT, "knows the time from a server", |status| {
        status.own.certificate.state == "good" && status.peer("a2").is_some()
    })?;
    s.note(format!("a clock 40 days ahead: mended {} after a server's start", ms(mended - at)));
    ping(&mesh.agents[0], &mesh.agents[1])?.finish().map(drop)
}

/// Kills and starts the first agent: when a tunnel carries again, if it does, and what the agent says of its clock.
fn restarted(mesh: &mut Mesh, word: &str) -> Result<(Option<Duration>, Vec<String>)> {
    let target = overlay_address(&mesh.agents[0], &mesh.agents[1])?;
    mesh.agents[0].kill()?;
    let pinger = Pinger::start("after a restart", &mesh.agents[0].host.namespace, target, FIVE_MS)?;
    let at = mesh.agents[0].launch()?;
    mesh.agents[0].follow()?;
    let status = mesh.agents[0].wait_now(TIMEOUT, "says what it goes by", |status| {
        status.warnings.iter().any(|warning| warning.contains(word))
    })?;
    let answered = pinger.first_reply_after(at, Duration::from_secs(5)).ok().map(|replied| replied - at);
    Ok((answered, status.warnings.clone()))
}
