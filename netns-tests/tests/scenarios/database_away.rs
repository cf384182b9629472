//! The database stops, hangs, is slow, or loses its connections: agents stay served, changes wait, and nobody is taken for dead.
//!
//! ```text
//!   s1 s2 ── switch ── a1 ⇄ a2   a3 (lets nobody in)   a4   a5 (ephemeral, off)
//!                └── px (proxy) ── db
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netns_tests::agent::Agent;
use netns_tests::figures::{Bound, Samples, ms};
use netns_tests::mesh::{Database, FIVE_MS, Mesh, overlay_address, ping};
use netns_tests::ping::Pinger;
use netns_tests::postgres::Stop;
use netns_tests::scenario::Scenario;
use netns_tests::server::Server;
use netns_tests::wait::hold_for;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;

use crate::database::{
    Change, FROM_MEMORY, TIMEOUT, all_know, change_at_last, database_is, firewall, knows, must_change,
    never_backwards, nobody_seen_offline, nodes, refusal, rename, settled,
};

/// Longer than a lease (10 s), and than an ephemeral node is kept that is away.
const OUTAGE: Duration = Duration::from_secs(34);
const EPHEMERAL_TIMEOUT: &str = "30s";
const CAUGHT_UP: Duration = Duration::from_secs(2);
/// What the high-availability fork of NetBird measured without its shared store.
const FORK_DEGRADED: Duration = Duration::from_millis(2590);
const SLOW: Duration = Duration::from_millis(500);
/// Longer than a lease.
const SLOW_RUN: Duration = Duration::from_secs(20);
const MINUTE: Duration = Duration::from_secs(60);
const SEED: u64 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outage {
    Stopped,
    Hangs,
}

pub(crate) fn stopped(s: &mut Scenario) -> Result<()> {
    outage(s, Outage::Stopped)
}

pub(crate) fn hangs(s: &mut Scenario) -> Result<()> {
    outage(s, Outage::Hangs)
}

fn outage(s: &mut Scenario, how: Outage) -> Result<()> {
    s.expect_warning(FROM_MEMORY);
    let options = ["--ephemeral-timeout", EPHEMERAL_TIMEOUT];
    let mut mesh = Mesh::plan(2, 4).database(Database::Postgres).server_options(&options).start(s)?;
    firewall(&mesh.agents[2])?;
    let ephemeral = add_ephemeral(&mut mesh)?;
    let pings = vec![ping(&mesh.agents[0], &mesh.agents[1])?];
    settled(&mesh)?;
    // Its absence begins with the outage, which is longer than such a node is kept.
    mesh.agents[4].kill()?;
    let begun = Instant::now();
    match how {
        Outage::Stopped => mesh.postgres_mut()?.stop(Stop::Fast)?,
        Outage::Hangs => mesh.postgres_mut()?.freeze()?,
    };
    meanwhile(s, &mut mesh, begun)?;
    hold_for(OUTAGE.saturating_sub(begun.elapsed()), || Ok(()))?;
    let living = ["a1", "a2", "a3"];
    nobody_seen_offline(s, &mesh, begun, &living)?;
    let back = match how {
        Outage::Stopped => mesh.postgres_mut()?.run()?,
        Outage::Hangs => mesh.postgres_mut()?.thaw()?,
    };
    caught_up(s, &mut mesh, back)?;
    let list = nodes(&mesh.servers[0])?;
    s.require(list.contains(&ephemeral), format!("the ephemeral node was deleted; there are {list:?}"));
    mesh.agents[4].start()?;
    let served =
        mesh.agents[4].wait_now(TIMEOUT, "is served again", |status| status.served_by().is_some())?;
    s.require(served.address()?.to_string() == ephemeral.1, "the ephemeral node has another address");
    nobody_seen_offline(s, &mesh, begun, &living)?;
    never_backwards(s, &mesh, begun)?;
    s.none_lost(pings)
}

/// `a5`, whose node goes when it has been away for long enough; its name and address.
fn add_ephemeral(mesh: &mut Mesh) -> Result<(String, String)> {
    let key = mesh.servers[0].setup_key(&["--ephemeral", "--reusable"])?;
    let agent = mesh.add_agent(4)?;
    agent.options[3] = key;
    agent.start()?;
    let status = agent.wait_now(TIMEOUT, "is served", |status| status.served_by().is_some())?;
    Ok((agent.name.clone(), status.address()?.to_string()))
}

/// What goes on while the database is away, and what is said of what does not.
fn meanwhile(s: &mut Scenario, mesh: &mut Mesh, begun: Instant) -> Result<()> {
    let noticed = mesh.servers.iter().map(|server| Ok(database_is(server, false)? - begun));
    let noticed = noticed.collect::<Result<Vec<_>>>()?;
    s.note(format!(
        "servers say so after {}",
        noticed.iter().map(|span| ms(*span)).collect::<Vec<_>>().join(", ")
    ));
    let database = mesh.postgres()?.authority();
    let said = refusal(&mesh.servers[0], &["node", "rename", "a1", "other"], &database)?;
    s.note(format!("a change: {said}"));
    enrolment_is_refused(s, mesh)?;
    degraded(s, mesh)
}

/// A newcomer gets an error that says what is away and that trying again helps; its key is not used up.
fn enrolment_is_refused(s: &mut Scenario, mesh: &mut Mesh) -> Result<()> {
    let newcomer = mesh.add_agent(5)?;
    let output = newcomer.command(&up(newcomer))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(!output.status.success(), "a node was enrolled without a database");
    ensure!(said.contains("database"), "enrolment says nothing of the database: {said}");
    s.note(format!("an enrolment: {}", said.lines().last().unwrap_or_default()));
    Ok(())
}

/// An agent that restarts is served, has its map, and a signal opens a peer that it never spoke with and that lets nobody in.
fn degraded(s: &mut Scenario, mesh: &mut Mesh) -> Result<()> {
    mesh.agents[3].kill()?;
    let at = mesh.agents[3].launch()?;
    mesh.agents[3].follow()?;
    let agent = &mesh.agents[3];
    let served =
        |status: &netns_tests::status::Status| status.served_by().is_some() && status.peers.len() >= 3;
    let (served, _) = agent.wait(at, TIMEOUT, "is served with a map", served)?;
    let asked = Instant::now();
    let target = overlay_address(agent, &mesh.agents[2])?;
    let opening = Pinger::start("a4 to a3", &agent.host.namespace, target, FIVE_MS)?;
    let answered = opening.first_reply_after(asked, TIMEOUT).context("a signal opens the peer")?;
    drop(opening);
    s.note(format!(
        "without the database an agent restarts: served with its map after {} (the fork: {}), a peer that lets nobody in answers its first ping after {}",
        ms(served - at), ms(FORK_DEGRADED), ms(answered - asked)
    ));
    s.require(served - at < s.widened(FORK_DEGRADED), "slower than the fork");
    Ok(())
}

/// Everything is as if nothing had been, without a restart of anything.
fn caught_up(s: &mut Scenario, mesh: &mut Mesh, back: Instant) -> Result<()> {
    let mut well = Samples::new("database back: a server says that all is well after");
    for server in &mesh.servers {
        well.push(database_is(server, true)? - back);
    }
    let tried = change_at_last(&mesh.servers[0], &["node", "rename", "a4", "a4-renamed"])?;
    let known = all_know(mesh, tried, "a4-renamed", "a4")?;
    let mut changed = Samples::new("database back: a change is known to all after");
    changed.push(tried - back + known);
    s.figure(&well, &[Bound::Worst(CAUGHT_UP)]);
    s.figure(&changed, &[Bound::Worst(CAUGHT_UP)]);
    let newcomer = &mesh.agents[5];
    newcomer.ask(&up(newcomer))?;
    knows(&mesh.agents[0], back, "a6")
        .context("the newcomer that was refused is enrolled with the same key")?;
    newcomer.ask(&["down"]).map(drop)
}

fn up(agent: &Agent) -> Vec<&str> {
    let mut arguments = vec!["up", "--hostname", &agent.name, "--timeout", "12"];
    arguments.extend(agent.options.iter().map(String::as_str));
    arguments
}

/// Each query takes half a second longer: changes are slow, and nobody's session is.
pub(crate) fn slow(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(2, 4).behind_proxy().start(s)?;
    let pings = mesh.ping_pairs()?;
    settled(&mesh)?;
    let failovers = failovers(&mesh)?;
    let begun = Instant::now();
    mesh.proxy()?.set(|manner| manner.delay = SLOW);
    let mut changed = Samples::new(
        "each query delayed by 500 ms: from the command's start, a change is known to all after",
    );
    for round in 0..4 {
        let (name, server) = (format!("a4-{round}"), &mesh.servers[round % 2]);
        let at = Instant::now();
        rename_in_time(server, &mesh.agents[3].status()?.address()?.to_string(), &name)?;
        changed.push(all_know(&mesh, at, &name, "a4")?);
    }
    s.figure(&changed, &[Bound::Worst(TIMEOUT)]);
    let newcomer = mesh.add_agent(4)?;
    let at = newcomer.launch()?;
    newcomer.follow()?;
    let (served, _) = newcomer.wait(at, TIMEOUT, "is served", |status| status.served_by().is_some())?;
    let known = all_know(&mesh, at, "a5", "a5")?;
    s.note(format!("an enrolment: served after {}, known to all after {}", ms(served - at), ms(known)));
    hold_for(SLOW_RUN.saturating_sub(begun.elapsed()), || Ok(()))?;
    mesh.agents.truncate(4);
    let states = mesh.agents.iter().map(|agent| Ok(agent.watch()?.states_since(begun)));
    for (agent, states) in mesh.agents.iter().zip(states.collect::<Result<Vec<_>>>()?) {
        let unserved = states.iter().filter(|(_, status)| status.served_by().is_none()).count();
        s.require(unserved == 0, format!("{} was not served {unserved} times", agent.name));
    }
    s.require(self::failovers(&mesh)? == failovers, "an agent left its server");
    nobody_seen_offline(s, &mesh, begun, &["a1", "a2", "a3"])?;
    never_backwards(s, &mesh, begun)?;
    s.none_lost(pings)
}

fn failovers(mesh: &Mesh) -> Result<Vec<u64>> {
    mesh.agents.iter().map(|agent| Ok(agent.status()?.control.failovers)).collect()
}

/// A call has 5 s, of which a busy machine may leave too little, now and then.
fn rename_in_time(server: &Server, node: &str, name: &str) -> Result<()> {
    for _ in 0..2 {
        match rename(server, node, name)? {
            Change::NotMade(said) if said.contains("did not answer in time") => {}
            Change::Made => return Ok(()),
            Change::NotMade(said) => bail!("a rename: {said}"),
        }
    }
    must_change(server, &["node", "rename", node, name])
}

/// For a minute connections to the database are reset at random while things change: what was acknowledged is there, everywhere.
pub(crate) fn connections_killed(s: &mut Scenario) -> Result<()> {
    s.expect_warning(FROM_MEMORY);
    let mut mesh = Mesh::plan(2, 4).behind_proxy().start(s)?;
    let pings = mesh.ping_pairs()?;
    settled(&mesh)?;
    let begun = Instant::now();
    let newcomer = mesh.add_agent(4)?;
    newcomer.launch()?;
    let (stop, killed) = (AtomicBool::new(false), AtomicUsize::new(0));
    let made = std::thread::scope(|scope| {
        scope.spawn(|| kill_at_random(&mesh, &stop, &killed));
        let made = change_for_a_minute(&mesh);
        stop.store(true, Ordering::Relaxed);
        made
    })?;
    mesh.agents[4].follow()?;
    s.note(format!(
        "{} connections reset (seed {SEED}); of {} changes {} were acknowledged",
        killed.into_inner(),
        made.tried,
        made.acknowledged.len()
    ));
    nothing_is_lost(s, &mesh, &made)?;
    mesh.agents.truncate(4);
    never_backwards(s, &mesh, begun)?;
    s.none_lost(pings)
}

fn kill_at_random(mesh: &Mesh, stop: &AtomicBool, killed: &AtomicUsize) {
    let mut random = Pcg32::seed_from_u64(SEED);
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(random.random_range(20..=150)));
        let choice = random.random_range(0..1000);
        let is_one = mesh.proxy().is_ok_and(|proxy| proxy.end_one(choice));
        killed.fetch_add(usize::from(is_one), Ordering::Relaxed);
    }
}

/// The changes of a minute.
#[derive(Default)]
struct Made {
    tried: usize,
    acknowledged: Vec<String>,
    /// By the node's address, where the last try was acknowledged.
    last: BTreeMap<String, String>,
}

fn change_for_a_minute(mesh: &Mesh) -> Result<Made> {
    let (begun, mut made) = (Instant::now(), Made::default());
    while begun.elapsed() < MINUTE {
        let (agent, server) = (&mesh.agents[made.tried % 4], &mesh.servers[made.tried % 2]);
        let address = agent.status()?.address()?.to_string();
        let name = format!("{}-{}", agent.name, made.tried);
        made.tried += 1;
        match rename(server, &address, &name)? {
            Change::Made => {
                made.acknowledged.push(name.clone());
                made.last.insert(address, name);
            }
            // It may have been made all the same.
            Change::NotMade(_) => drop(made.last.remove(&address)),
        }
    }
    Ok(made)
}

fn nothing_is_lost(s: &mut Scenario, mesh: &Mesh, made: &Made) -> Result<()> {
    let log = mesh.postgres()?.sql("select ops from changes")?;
    let lost: Vec<_> =
        made.acknowledged.iter().filter(|name| !log.contains(&format!("\"{name}\""))).collect();
    s.require(lost.is_empty(), format!("acknowledged and not in the log: {lost:?}"));
    s.require(made.acknowledged.len() >= 20, "too few changes were made to say anything");
    let rows = mesh.postgres()?.sql("select address_v4 || ' ' || name from nodes")?;
    let named: BTreeMap<&str, &str> = rows.lines().filter_map(|row| row.split_once(' ')).collect();
    for (address, name) in &made.last {
        let found = named.get(address.as_str());
        s.require(
            found == Some(&name.as_str()),
            format!("{address} is {name}, and the database has {found:?}"),
        );
    }
    s.require(named.len() == mesh.agents.len(), format!("{} nodes in the database: {rows}", named.len()));
    for agent in &mesh.agents {
        agent.wait_now(TIMEOUT, "has what the database has", |status| {
            let others =
                named.iter().filter(|(address, _)| status.own.addresses.iter().all(|own| own != *address));
            others.clone().count() == status.peers.len()
                && others.clone().all(|(_, name)| status.peer(name).is_some())
        })?;
    }
    Ok(())
}
