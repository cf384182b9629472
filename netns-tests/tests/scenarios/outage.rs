//! No server at all: one that comes back, none that does, agents that restart meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::figures::{Bound, Samples, ms};
use netns_tests::mesh::{FIVE_MS, Mesh, overlay_address, ping};
use netns_tests::ping::Pinger;
use netns_tests::scenario::Scenario;
use netns_tests::wait::{hold_for, wait_until};
use netns_tests::watch::summary;

const TIMEOUT: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);
/// Agents write what changes to disk with a delay that gathers changes.
const SETTLED: Duration = Duration::from_secs(3);
const MINUTE: Duration = Duration::from_secs(60);

pub(crate) fn lone_server_back_after_10_s(s: &mut Scenario) -> Result<()> {
    lone_server(s, Duration::from_secs(10), 3)
}

pub(crate) fn lone_server_back_after_60_s(s: &mut Scenario) -> Result<()> {
    lone_server(s, MINUTE, 3)
}

/// `s1 ── a1 .. a8`: eight samples a round.
fn lone_server(s: &mut Scenario, outage: Duration, rounds: usize) -> Result<()> {
    let mut mesh = Mesh::plan(1, 8).start(s)?;
    let pings = mesh.ping_pairs()?;
    let mut served_again = Samples::new(format!("after {} served again", ms(outage)));
    for _ in 0..rounds {
        mesh.settle()?;
        mesh.servers[0].kill()?;
        hold_for(outage, || Ok(()))?;
        let listening = mesh.servers[0].start()?;
        for agent in &mesh.agents {
            let (at, _) =
                agent.wait(listening, TIMEOUT, "is served again", |status| status.served_by().is_some())?;
            served_again.push(at - listening);
        }
    }
    s.figure(&served_again, &[Bound::Median(SECOND), Bound::Worst(3 * SECOND)]);
    s.none_lost(pings)
}

/// Ten agents; with all three servers dead, each of the others is pinged by `a1` for the first time.
pub(crate) fn a_never_used_peer_answers_its_first_ping(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(3, 22).start(s)?;
    kill_all_servers(&mut mesh)?;
    let (first, others) = mesh.agents.split_first().context("there are agents")?;
    let mut answered = Samples::new("first ping of an idle tunnel answered after");
    for peer in others {
        let tunnel = first.status()?.peer(&peer.name).map(|peer| peer.tunnel.clone());
        ensure!(tunnel.as_deref() == Some("idle"), "{} was used before: {tunnel:?}", peer.name);
        answered.push(first_ping(first.host.namespace.clone(), overlay_address(first, peer)?)?);
    }
    s.figure(&answered, &[Bound::Worst(SECOND)]);
    s.require(answered.len() >= 20, "fewer than 20 rounds were measured");
    Ok(())
}

/// One request, and its answer: nothing is sent a second time.
fn first_ping(namespace: netns_tests::namespace::Namespace, target: std::net::Ipv4Addr) -> Result<Duration> {
    let at = Instant::now();
    let pinger = Pinger::start("first", &namespace, target, MINUTE)?;
    let answer =
        pinger.first_reply_after(at, TIMEOUT).with_context(|| format!("the first ping to {target}"))?;
    Ok(answer - at)
}

pub(crate) fn open_tunnels_lose_nothing_in_60_s_without_servers(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(3, 4).start(s)?;
    let pings = mesh.ping_pairs()?;
    kill_all_servers(&mut mesh)?;
    hold_for(MINUTE, || Ok(()))?;
    for agent in &mesh.agents {
        ensure!(agent.status()?.served_by().is_none(), "{} says it is served", agent.name);
    }
    s.none_lost(pings)
}

/// Both ends of a tunnel are killed and started again while no server answers, twenty times.
pub(crate) fn agents_restarted_without_servers_carry_traffic(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(3, 2).start(s)?;
    let target = overlay_address(&mesh.agents[0], &mesh.agents[1])?;
    ping(&mesh.agents[0], &mesh.agents[1])?.finish()?;
    hold_for(SETTLED, || Ok(()))?;
    kill_all_servers(&mut mesh)?;
    let mut flows = Samples::new("both agents killed and started: traffic after the second start");
    for round in 0..20 {
        for agent in &mut mesh.agents {
            if round % 2 == 0 {
                agent.kill()?
            } else {
                agent.stop()?
            };
        }
        let pinger = Pinger::start("a1 to a2", &mesh.agents[0].host.namespace, target, FIVE_MS)?;
        mesh.agents[0].launch()?;
        let second = mesh.agents[1].launch()?;
        let answer = pinger.first_reply_after(second, TIMEOUT).with_context(|| plights(&mut mesh))?;
        flows.push(answer - second);
        for agent in &mut mesh.agents {
            agent.follow()?;
            let source = agent.status()?.control.map_source.clone();
            ensure!(source == "cache", "{} says its map is {source:?} with no server there", agent.name);
        }
    }
    s.figure(&flows, &[Bound::Worst(SECOND)]);
    Ok(())
}

/// Memory and processor time of an agent, minute by minute.
pub(crate) fn ten_minutes_without_servers_cost_nothing(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(2, 2).start(s)?;
    kill_all_servers(&mut mesh)?;
    let mut usage = Vec::new();
    for _ in 0..=10 {
        usage.push(mesh.agents[0].process()?.usage()?);
        hold_for(MINUTE, || Ok(()))?;
    }
    let kilobytes: Vec<u64> = usage.iter().map(|(bytes, _)| bytes / 1024).collect();
    let cpu: Vec<u128> = usage.windows(2).map(|pair| (pair[1].1 - pair[0].1).as_millis()).collect();
    s.note(format!("resident KB each minute: {kilobytes:?}; CPU ms in each minute: {cpu:?}"));
    let (settled, last) = (kilobytes[2], kilobytes[10]);
    s.require(last <= settled + settled / 20, format!("memory grew from {settled} to {last} KB"));
    let (early, late) = (cpu[1].max(100), cpu[9]);
    s.require(late <= 2 * early, format!("a minute took {early} ms of CPU at first and {late} ms at last"));
    Ok(())
}

/// For messages: the agents' states.
fn plights(mesh: &mut Mesh) -> String {
    let mut plights = Vec::new();
    for agent in &mut mesh.agents {
        let status = agent.follow().and_then(|()| agent.status());
        plights.push(format!(
            "{}: {}",
            agent.name,
            status.map_or_else(|error| error.to_string(), |status| summary(&status))
        ));
    }
    plights.join("; ")
}

fn kill_all_servers(mesh: &mut Mesh) -> Result<()> {
    mesh.servers.iter_mut().try_for_each(|server| server.kill().map(drop))?;
    for agent in &mesh.agents {
        wait_until("the agents know that no server is there", TIMEOUT, || {
            Ok(agent.status()?.served_by().is_none().then_some(()))
        })?;
    }
    Ok(())
}
