//! The database comes back from yesterday, or another takes its place.
//!
//! ```text
//!   s1 s2 ── switch ── a1 ⇄ a2   a3 (removed after the copy)   a4   a5 (enrolled after the copy) ⇄ a1
//!                └── db, and in the last scenario db2, which follows it
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::figures::{Bound, Samples, ms};
use netns_tests::mesh::{Database, Mesh, ping};
use netns_tests::postgres::{Postgres, Stop};
use netns_tests::scenario::Scenario;
use netns_tests::wait::{hold_for, wait_until};

use crate::database::{
    FROM_MEMORY, TIMEOUT, all_know, change_at_last, database_is, must_change, never_backwards, nodes,
};

const WENT_BACK: &str = "went back in time";
const RESUMED: Duration = Duration::from_secs(2);
/// Until all know of it: whoever follows the log looks for the new primary by itself.
const KNOWN: Duration = Duration::from_secs(4);
const ROUNDS: usize = 4;

pub(crate) fn restored_under_running_servers(s: &mut Scenario) -> Result<()> {
    restored(s, Memory::OfServers)
}

pub(crate) fn restored_and_nobody_remembers(s: &mut Scenario) -> Result<()> {
    restored(s, Memory::OfAgentsAlone)
}

/// Who still knows what the copy lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    OfServers,
    OfAgentsAlone,
}

fn restored(s: &mut Scenario, memory: Memory) -> Result<()> {
    s.expect_warning(FROM_MEMORY);
    s.expect_warning(WENT_BACK);
    let mut mesh = Mesh::plan(2, 4).database(Database::Postgres).start(s)?;
    let mut pings = vec![ping(&mesh.agents[0], &mesh.agents[1])?];
    let copy = mesh.postgres_mut()?.copy("copy")?;
    after_the_copy(&mut mesh)?;
    pings.push(ping(&mesh.agents[0], &mesh.agents[3])?);
    let holders = addresses(&mesh)?;
    let epoch = epoch(&mesh, 0)?;
    let begun = Instant::now();
    if memory == Memory::OfAgentsAlone {
        mesh.servers.iter_mut().try_for_each(|server| server.kill().map(drop))?;
    }
    mesh.postgres_mut()?.stop(Stop::Killed)?;
    mesh.postgres_mut()?.put_back(&copy)?;
    let back = mesh.postgres_mut()?.run()?;
    if memory == Memory::OfAgentsAlone {
        mesh.servers.iter_mut().try_for_each(|server| server.start().map(drop))?;
    }
    let raised = (0..2).map(|server| raised(&mesh, server, epoch)).collect::<Result<Vec<_>>>()?;
    let raised = raised.into_iter().max().context("two servers")?;
    converged(&mesh)?;
    s.note(format!(
        "an older copy put back: the epoch rises after {}, all agents agree after {}",
        ms(raised.saturating_duration_since(back)),
        ms(back.elapsed())
    ));
    s.require(addresses(&mesh)? == holders, "a node has another address than before");
    newcomers_get_addresses_of_their_own(s, &mut mesh, &holders)?;
    never_backwards(s, &mesh, begun)?;
    s.none_lost(pings)
}

/// What the copy lacks: a node, a name, and a removal. The removed agent is gone from the mesh.
fn after_the_copy(mesh: &mut Mesh) -> Result<()> {
    mesh.agents[2].kill()?;
    must_change(&mesh.servers[0], &["node", "remove", "a3"])?;
    mesh.agents.remove(2);
    let at = Instant::now();
    must_change(&mesh.servers[1], &["node", "rename", "a4", "a4-late"])?;
    all_know(mesh, at, "a4-late", "a4")?;
    mesh.add_agent(4)?.start()?;
    all_know(mesh, at, "a5", "a5")?;
    mesh.settle()?;
    converged(mesh)
}

fn epoch(mesh: &Mesh, server: usize) -> Result<u64> {
    mesh.servers[server].admin_json("/readyz")?.1["epoch"].as_u64().context("/readyz tells the epoch")
}

fn raised(mesh: &Mesh, server: usize, before: u64) -> Result<Instant> {
    let what = format!("s{} begins an epoch above {before}", server + 1);
    wait_until(&what, TIMEOUT, || {
        Ok(epoch(mesh, server).ok().filter(|epoch| *epoch > before).map(|_| Instant::now()))
    })
}

fn addresses(mesh: &Mesh) -> Result<BTreeMap<String, String>> {
    let own =
        mesh.agents.iter().map(|agent| Ok((agent.name.clone(), agent.status()?.address()?.to_string())));
    own.collect()
}

/// Every agent is served with a live map and sees exactly the others, at their addresses; the removed one is not there.
fn converged(mesh: &Mesh) -> Result<()> {
    let all: BTreeSet<String> = addresses(mesh)?.into_values().collect();
    for agent in &mesh.agents {
        let own = agent.status()?.address()?.to_string();
        agent.wait_now(TIMEOUT, "sees exactly the others", |status| {
            let peers = status.peers.iter().filter_map(|peer| Some(peer.address().ok()?.to_string()));
            let mut seen: BTreeSet<String> = peers.collect();
            seen.insert(own.clone());
            status.served_by().is_some() && status.control.map_source == "live" && seen == all
        })?;
    }
    Ok(())
}

fn newcomers_get_addresses_of_their_own(
    s: &mut Scenario,
    mesh: &mut Mesh,
    holders: &BTreeMap<String, String>,
) -> Result<()> {
    for number in 5..8 {
        mesh.add_agent(number)?.launch()?;
    }
    for agent in &mut mesh.agents[holders.len()..] {
        agent.follow()?;
        agent.wait_now(TIMEOUT, "is served", |status| status.served_by().is_some())?;
    }
    let now = addresses(mesh)?;
    let different: BTreeSet<&String> = now.values().collect();
    s.require(different.len() == now.len(), format!("an address was given out twice: {now:?}"));
    converged(mesh)?;
    let listed = nodes(&mesh.servers[0])?;
    s.require(listed.len() == now.len(), format!("the database has {listed:?}, and there are {now:?}"));
    Ok(())
}

/// The primary is killed and the standby promoted, over and over; in every second round the machine of the dead one swallows what is sent to it.
pub(crate) fn promoted(s: &mut Scenario) -> Result<()> {
    s.expect_warning(FROM_MEMORY);
    let mut mesh = Mesh::plan(2, 2).database(Database::Postgres).database_only(s)?;
    let mut standby = mesh.add_standby()?;
    mesh.postgres()?.replicate_synchronously()?;
    mesh.cluster.database = format!(
        "postgres://holdfast@{},{}/holdfast?target_session_attrs=read-write",
        mesh.postgres()?.authority(),
        standby.authority()
    );
    mesh.start_servers(2)?;
    for number in 0..2 {
        mesh.add_agent(number)?;
    }
    mesh.start_agents()?;
    let pings = mesh.ping_pairs()?;
    let begun = Instant::now();
    let mut written = Samples::new("standby promoted: a change is made after");
    let mut known = Samples::new("standby promoted: a change is known to all after");
    let mut well = Samples::new("standby promoted: both servers are well after");
    for round in 0..ROUNDS {
        let is_black_hole = round % 2 == 1;
        if is_black_hole {
            swallow(mesh.postgres()?)?;
        }
        mesh.postgres_mut()?.stop(Stop::Killed)?;
        let promoted = standby.promote()?;
        std::mem::swap(mesh.postgres_mut()?, &mut standby);
        let name = format!("a2-{round}");
        let address = mesh.agents[1].status()?.address()?.to_string();
        let tried = change_at_last(&mesh.servers[round % 2], &["node", "rename", &address, &name])?;
        written.push(Instant::now() - promoted);
        known.push(tried - promoted + all_know(&mesh, tried, &name, "a2")?);
        for server in &mesh.servers {
            well.push(database_is(server, true)?.saturating_duration_since(promoted));
        }
        if is_black_hole {
            standby.host.namespace.nft("delete table inet hole")?;
        }
        standby.follow(mesh.postgres()?)?;
        mesh.postgres()?.replicate_synchronously()?;
    }
    for (samples, bound) in [(&written, RESUMED), (&known, KNOWN), (&well, KNOWN)] {
        s.figure(samples, &[Bound::Worst(bound)]);
    }
    hold_for(Duration::from_secs(1), || Ok(()))?;
    for agent in &mesh.agents {
        ensure!(agent.status()?.control.failovers == 0, "{} left its server", agent.name);
    }
    never_backwards(s, &mesh, begun)?;
    s.none_lost(pings)
}

/// The machine takes nothing any more, and says nothing.
fn swallow(postgres: &Postgres) -> Result<()> {
    postgres.host.namespace.nft(
        "table inet hole { chain in { type filter hook input priority 0; iifname \"eth0\" drop; }; \
         chain out { type filter hook output priority 0; oifname \"eth0\" drop; }; }",
    )
}
