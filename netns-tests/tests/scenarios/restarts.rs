//! Servers restart and fail one after another under continuous traffic.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netns_tests::figures::{Bound, Samples};
use netns_tests::mesh::Mesh;
use netns_tests::scenario::Scenario;
use netns_tests::topology::Fault;
use netns_tests::wait::hold_for;

const TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than a session lives before it is renewed (120 s), and than it lives at all (180 s).
const LONG_RUN: Duration = Duration::from_secs(200);

/// Each server is stopped in order and started again, as an upgrade does it; seven times.
pub(crate) fn rolling_restart_loses_nothing(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(3, 4).start(s)?;
    let pings = mesh.ping_pairs()?;
    let (mut moved, mut most) = (Samples::new("served by another"), 0);
    for round in 0..21 {
        mesh.settle()?;
        let server = round % 3;
        let before = failovers(&mesh)?;
        let served = mesh.served_by(server)?;
        let at = mesh.servers[server].drain()?;
        moved.extend(mesh.moved(&served, at, TIMEOUT)?);
        mesh.servers[server].start()?;
        mesh.settle()?;
        let moves = failovers(&mesh)?.iter().zip(&before).map(|(after, before)| after - before).max();
        most = most.max(moves.unwrap_or_default());
    }
    s.note(format!("21 restarts; the most moves of one agent in one restart: {most}"));
    s.figure(&moved, &[Bound::P99(Duration::from_millis(100))]);
    s.require(most <= 1, format!("an agent moved {most} times in one restart"));
    s.none_lost(pings)
}

fn failovers(mesh: &Mesh) -> Result<Vec<u64>> {
    mesh.agents.iter().map(|agent| Ok(agent.status()?.control.failovers)).collect()
}

/// Every fault in turn, over and over, while the tunnels are renewed.
pub(crate) fn all_faults_over_200_s_lose_nothing(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(3, 4).start(s)?;
    let pings = mesh.ping_pairs()?;
    let begin = Instant::now();
    let mut faults = 0;
    while begin.elapsed() < LONG_RUN {
        let victim = mesh.busiest_server()?;
        let served = mesh.served_by(victim)?;
        let at = fail(&mut mesh, victim, faults)?;
        mesh.moved(&served, at, TIMEOUT)?;
        restore(&mut mesh, victim, faults)?;
        hold_for(Duration::from_secs(2), || Ok(()))?;
        faults += 1;
    }
    let ran = begin.elapsed().as_secs_f64();
    let status = mesh.agents[0].status()?;
    let age = status.peer("a2").context("a1 knows a2")?.last_handshake_seconds;
    s.note(format!("{faults} faults in {ran:.0} s; the last handshake is {age:?} s old"));
    s.require(age.is_some_and(|age| age < ran - 100.0), "the tunnel was not renewed meanwhile");
    s.none_lost(pings)
}

/// The faults there are, in turn.
const KINDS: usize = 7;

fn fail(mesh: &mut Mesh, victim: usize, turn: usize) -> Result<Instant> {
    let server = &mut mesh.servers[victim];
    let at = Instant::now();
    match turn % KINDS {
        0 => return server.kill(),
        1 => return server.process()?.freeze(),
        2 => server.port.fault(Fault::Cut)?,
        3 => server.port.fault(Fault::Deaf)?,
        4 => server.port.fault(Fault::Mute)?,
        5 => server.port.unplug()?,
        _ => return server.drain(),
    }
    Ok(at)
}

fn restore(mesh: &mut Mesh, victim: usize, turn: usize) -> Result<()> {
    let server = &mut mesh.servers[victim];
    match turn % KINDS {
        1 => server.process()?.thaw().map(drop),
        2..=4 => server.port.mend(),
        5 => server.port.plug(),
        _ => server.start().map(drop),
    }
}
