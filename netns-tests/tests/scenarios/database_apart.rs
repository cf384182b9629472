//! One server and the database lose each other, and another server goes on: no agent is taken back to an older map.
//!
//! ```text
//!   db ── s1 ── a3 a4          db ─X─ s1 ── a1 ⇄ a2, a3 (reaches s1 alone)
//!   db ── px ── s2 ── a1 a2     db ─── s2 ── a4
//! ```

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::agent::Agent;
use netns_tests::figures::{Bound, Samples, ms};
use netns_tests::mesh::{Database, Mesh, ping};
use netns_tests::proxy::{Direction, Whose};
use netns_tests::scenario::Scenario;
use netns_tests::topology::Fault;
use netns_tests::wait::{hold_for, wait_until};

use crate::database::{
    FROM_MEMORY, TIMEOUT, change_at_last, database_is, knows, must_change, never_backwards, pinned,
};

/// A server that has not been level for so long is left.
const STALE: Duration = Duration::from_secs(10);
/// Its heartbeat says so within a second, and the standby was asked every 10 s only.
const LEFT: Duration = Duration::from_secs(14);
const POLLED: Duration = Duration::from_millis(2500);
const CAUGHT_UP: Duration = Duration::from_secs(2);

/// In each way: both directions, and either alone.
pub(crate) fn cut(s: &mut Scenario) -> Result<()> {
    s.expect_warning(FROM_MEMORY);
    let mut mesh = Mesh::plan(2, 0).database(Database::Postgres).servers_only(s)?;
    for (number, server) in [(0, 0), (1, 0), (2, 0), (3, 1)] {
        pinned(&mut mesh, number, server)?;
        if number == 2 {
            mesh.agents[2].port.fault(Fault::CutFrom(mesh.servers[1].address()?))?;
        }
    }
    let settled = |mesh: &Mesh| -> Result<()> {
        for agent in [&mesh.agents[0], &mesh.agents[1], &mesh.agents[3]] {
            agent.wait_now(TIMEOUT, "has a standby", |status| {
                status.has_standby() && status.peers.len() == 3
            })?;
        }
        Ok(())
    };
    settled(&mesh)?;
    let pings = vec![ping(&mesh.agents[0], &mesh.agents[1])?, ping(&mesh.agents[2], &mesh.agents[3])?];
    let (begun, database) = (Instant::now(), mesh.postgres()?.address);
    let mut left = Samples::new("a server cut from its database is left for one that has it after");
    let mut mended = Samples::new("its database back: all is well after");
    for (round, fault) in
        [Fault::CutFrom(database), Fault::DeafTo(database), Fault::MuteTo(database)].into_iter().enumerate()
    {
        settled(&mesh)?;
        let (lone, other) = (round % 2, (round + 1) % 2);
        let served: Vec<_> = mesh.served_by(lone)?.into_iter().filter(|served| served.agent < 2).collect();
        ensure!(served.len() == 2, "a1 and a2 are on {}", mesh.servers[lone].name);
        let at = Instant::now();
        mesh.servers[lone].port.fault(fault)?;
        let name = format!("a4-{round}");
        must_change(
            &mesh.servers[other],
            &["node", "rename", &mesh.agents[3].status()?.address()?.to_string(), &name],
        )?;
        let spans = mesh.moved(&served, at, TIMEOUT)?;
        s.require(
            spans.iter().all(|span| *span > STALE - 2 * CAUGHT_UP),
            format!("{fault:?}: agents left too early: {spans:?}"),
        );
        left.extend(spans);
        for agent in &mesh.agents[..2] {
            knows(agent, at, &name)?;
        }
        // s1 is all it has, whatever s1 knows.
        hold_for(Duration::from_secs(2), || {
            let status = mesh.agents[2].status()?;
            ensure!(status.served_by().is_some(), "{fault:?}: a3 was left alone");
            Ok(())
        })?;
        let back = Instant::now();
        mesh.servers[lone].port.mend()?;
        mended.push(database_is(&mesh.servers[lone], true)? - back);
        knows(&mesh.agents[2], back, &name)?;
    }
    s.figure(&left, &[Bound::Worst(LEFT)]);
    s.figure(&mended, &[Bound::Worst(CAUGHT_UP)]);
    s.require(mesh.agents[2].status()?.control.failovers == 0, "a3 left the one server that it reaches");
    never_backwards(s, &mesh, begun)?;
    s.none_lost(pings)
}

/// `s2` does not hear notifications, then nothing at all, then a replica that lags; `s1` goes on, and a node is removed there.
pub(crate) fn unheard(s: &mut Scenario) -> Result<()> {
    s.expect_warning(FROM_MEMORY);
    let mut mesh = Mesh::plan(1, 0).database(Database::Postgres).servers_only(s)?;
    mesh.add_proxy()?;
    mesh.add_server(1)?.start()?;
    for (number, server) in [(0, 1), (1, 1), (2, 0), (3, 0)] {
        pinned(&mut mesh, number, server)?;
    }
    for agent in &mesh.agents {
        agent.wait_now(TIMEOUT, "knows all", |status| status.has_standby() && status.peers.len() == 3)?;
    }
    let pings = vec![ping(&mesh.agents[0], &mesh.agents[1])?];
    let begun = Instant::now();
    notifications_lost(s, &mesh)?;
    half_open(s, &mesh)?;
    behind(s, &mut mesh)?;
    lagging(s, &mut mesh)?;
    never_backwards(s, &mesh, begun)?;
    s.none_lost(pings)
}

/// Notifications are hints: without them the log is looked at all the same.
fn notifications_lost(s: &mut Scenario, mesh: &Mesh) -> Result<()> {
    mesh.proxy()?.set(|manner| manner.loses_notifications = true);
    let polled = renamed(mesh, "notifications lost: a change is known on the other server after", "lost")?;
    mesh.proxy()?.set(|manner| manner.loses_notifications = false);
    s.figure(&polled, &[Bound::Worst(POLLED)]);
    Ok(())
}

/// LISTEN half open: the connection looks alive, and nothing comes.
fn half_open(s: &mut Scenario, mesh: &Mesh) -> Result<()> {
    let proxy = mesh.proxy()?;
    wait_until("s2 listens", TIMEOUT, || Ok((proxy.listeners() > 0).then_some(())))?;
    let begun = Instant::now();
    proxy.set(|manner| manner.holds = Some((Direction::FromDatabase, Whose::Listeners)));
    let polled = renamed(mesh, "LISTEN half open: a change is known on the other server after", "half-open")?;
    s.figure(&polled, &[Bound::Worst(POLLED)]);
    let found = wait_until("s2 gives the dead connection up", TIMEOUT, || {
        Ok((proxy.listeners() == 0).then(Instant::now))
    })?;
    s.note(format!("the server finds the dead connection after {}", ms(found - begun)));
    proxy.set(|manner| manner.holds = None);
    wait_until("s2 listens again", TIMEOUT, || Ok((proxy.listeners() > 0).then_some(())))
}

fn renamed(mesh: &Mesh, what: &str, word: &str) -> Result<Samples> {
    let mut samples = Samples::new(what);
    let address = mesh.agents[3].status()?.address()?.to_string();
    for round in 0..5 {
        let name = format!("a4-{word}-{round}");
        let at = Instant::now();
        must_change(&mesh.servers[0], &["node", "rename", &address, &name])?;
        samples.push(knows(&mesh.agents[0], at, &name)?);
    }
    Ok(samples)
}

/// `s2` hears nothing while a node is removed on `s1`: who knows that and comes to `s2` is not taken back.
fn behind(s: &mut Scenario, mesh: &mut Mesh) -> Result<()> {
    mesh.agents[2].kill()?;
    mesh.proxy()?.set(|manner| manner.holds = Some((Direction::FromDatabase, Whose::Everybody)));
    let at = Instant::now();
    must_change(&mesh.servers[0], &["node", "remove", "a3"])?;
    let told = forgets(&mesh.agents[3], at)?;
    // Agents may know: the removal is told inside tunnels, too.
    let [first, second] = revisions(mesh)?;
    s.require(second < first, "s2 knew of the removal, so nothing was tried");
    mesh.agents[3].port.fault(Fault::CutFrom(mesh.servers[0].address()?))?;
    let second = mesh.servers[1].url.clone();
    let moved = mesh.agents[3].wait(at, TIMEOUT, "is served by s2", |status| {
        status.served_by().is_some_and(|server| server.url.contains(&second))
    });
    let moved = moved?.0;
    hold_for(Duration::from_secs(3), || {
        let status = mesh.agents[3].status()?;
        ensure!(status.peer("a3").is_none(), "a server that was behind brought a removed node back");
        Ok(())
    })?;
    let back = Instant::now();
    mesh.proxy()?.set(|manner| manner.holds = None);
    let caught_up = wait_until("s2 is level with s1", TIMEOUT, || {
        let [first, second] = revisions(mesh)?;
        Ok((first == second).then(|| back.elapsed()))
    })?;
    mesh.agents[..2].iter().try_for_each(|agent| forgets(agent, back).map(drop))?;
    s.note(format!(
        "removed on s1: known there after {}; an agent that knows it is served by s2, which does not, {} later and keeps it; s2 hears again: level after {}",
        ms(told), ms(moved - at - told), ms(caught_up)
    ));
    mesh.agents[3].port.mend()?;
    mesh.agents.remove(2);
    Ok(())
}

/// As `s1` and `s2` have it.
fn revisions(mesh: &Mesh) -> Result<[u64; 2]> {
    let of = |server: usize| {
        mesh.servers[server].admin_json("/readyz")?.1["revision"].as_u64().context("a revision")
    };
    Ok([of(0)?, of(1)?])
}

fn forgets(agent: &Agent, since: Instant) -> Result<Duration> {
    let (at, _) = agent.wait(since, TIMEOUT, "forgets the removed", |status| status.peer("a3").is_none())?;
    Ok(at - since)
}

/// `s2` finds a replica in the place of its database: older, and it takes no writes.
fn lagging(s: &mut Scenario, mesh: &mut Mesh) -> Result<()> {
    let replica = mesh.add_standby()?;
    replica.pause_replay()?;
    let agent = &mesh.agents[2];
    let address = agent.status()?.address()?.to_string();
    let at = Instant::now();
    must_change(&mesh.servers[0], &["node", "rename", &address, "a4-replicated"])?;
    knows(&mesh.agents[0], at, "a4-replicated").or_else(|_| knows(&mesh.agents[1], at, "a4-replicated"))?;
    mesh.proxy()?.turn_to(replica.authority().parse()?);
    database_is(&mesh.servers[1], false).context("s2 takes a replica for its database")?;
    let revision = mesh.servers[1].admin_json("/readyz")?.1["revision"].as_u64();
    hold_for(Duration::from_secs(3), || {
        let now = mesh.servers[1].admin_json("/readyz")?.1["revision"].as_u64();
        ensure!(now >= revision, "s2 went from revision {revision:?} to {now:?} of a replica");
        Ok(())
    })?;
    let back = Instant::now();
    mesh.proxy()?.turn_to(mesh.postgres()?.authority().parse()?);
    let well = database_is(&mesh.servers[1], true)? - back;
    let tried = change_at_last(&mesh.servers[1], &["node", "rename", &address, "a4"])?;
    knows(&mesh.agents[0], tried, "a4")?;
    s.note(format!(
        "s2 on a lagging replica: says so, and keeps what it knows; its database back: well after {}",
        ms(well)
    ));
    s.require(well < s.widened(CAUGHT_UP), "s2 took its time to find its database again");
    Ok(())
}
