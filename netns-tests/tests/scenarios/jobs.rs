//! Jobs that one server at a time does for all, and what becomes of one that is frozen over it, or cut from its database.
//!
//! ```text
//!   s1 s2 ── px (proxy) ── db                                           db ─X─ s1 ── a1 (ephemeral, reaches s1 alone) ⇄ a2
//!    └── switch ── a1 ⇄ a2, a crowd of ephemeral nodes that never come   db ─── s2 ── a2, a3 (ephemeral, killed)
//! ```

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netns_tests::figures::ms;
use netns_tests::mesh::{Database, Mesh, ping};
use netns_tests::scenario::Scenario;
use netns_tests::topology::Fault;
use netns_tests::wait::{hold_for, wait_until};

use crate::database::{FROM_MEMORY, TIMEOUT, database_is, never_backwards, nodes, pinned};

const CROWD: usize = 40;
/// As of the servers' options below.
const EPHEMERAL_TIMEOUT: Duration = Duration::from_secs(30);
const LEASE: Duration = Duration::from_secs(2);
/// So slow that a job takes a second, and its holder can be caught.
const SLOW: Duration = Duration::from_millis(150);
const MANY: Duration = Duration::from_secs(60);

/// The server that removes ephemeral nodes is frozen over it until another has done it, and goes on: each is removed once.
pub(crate) fn a_frozen_holder_acts_on_nothing(s: &mut Scenario) -> Result<()> {
    s.expect_warning(FROM_MEMORY);
    s.expect_warning("held up past its lease");
    let options = ["--lease", "2s", "--ephemeral-timeout", "30s"];
    let mut mesh = Mesh::plan(2, 2).behind_proxy().server_options(&options).start(s)?;
    let crowd = mesh.bystander("crowd", 0)?;
    let key = mesh.servers[0].setup_key(&["--ephemeral", "--reusable"])?;
    let pings = mesh.ping_pairs()?;
    mesh.settle()?;
    let begun = Instant::now();
    netns_tests::crowd::enrol(&crowd.namespace, mesh.servers[0].url.parse()?, &key, CROWD)?;
    hold_for(EPHEMERAL_TIMEOUT.saturating_sub(begun.elapsed()), || Ok(()))?;
    mesh.proxy()?.set(|manner| manner.delay = SLOW);
    let holder = holder(&mesh)?;
    let frozen = mesh.servers[holder].process()?.freeze()?;
    mesh.proxy()?.set(|manner| manner.delay = Duration::ZERO);
    let left = crowd_left(&mesh)?;
    s.require(left > 0, "all were removed before the holder was frozen, so nothing was tried");
    wait_until("the other server removes the rest", MANY, || Ok((crowd_left(&mesh)? == 0).then_some(())))?;
    let done = frozen.elapsed();
    let revision = mesh.postgres()?.sql("select revision from cluster")?;
    mesh.servers[holder].process()?.thaw()?;
    hold_for(2 * LEASE, || Ok(()))?;
    let after = mesh.postgres()?.sql("select revision from cluster")?;
    s.note(format!(
        "frozen over its job with {left} of {CROWD} nodes left; the other server has done it after {}; thawed: revision {revision}, and {after} {} later",
        ms(done),
        ms(2 * LEASE)
    ));
    s.require(revision == after, "who was frozen past its lease changed something");
    each_removed_once(s, &mesh)?;
    for agent in &mesh.agents {
        agent.wait_now(TIMEOUT, "sees its one living peer", |status| {
            status.served_by().is_some() && status.peers.len() == 1
        })?;
    }
    never_backwards(s, &mesh, begun)?;
    s.none_lost(pings)
}

/// An ephemeral node that sits at a server which the others take for dead is there all the same; one that went meanwhile is removed.
pub(crate) fn who_sits_at_a_server_without_its_database_stays(s: &mut Scenario) -> Result<()> {
    s.expect_warning(FROM_MEMORY);
    let options = ["--lease", "2s", "--ephemeral-timeout", "30s"];
    let mut mesh = Mesh::plan(2, 0).database(Database::Postgres).server_options(&options).servers_only(s)?;
    let (lasting, ephemeral) =
        (mesh.setup_key.clone(), mesh.servers[0].setup_key(&["--ephemeral", "--reusable"])?);
    for (number, server, key) in [(0, 0, &ephemeral), (1, 1, &lasting), (2, 1, &ephemeral)] {
        mesh.setup_key.clone_from(key);
        pinned(&mut mesh, number, server)?;
    }
    let other = mesh.servers[1].address()?;
    mesh.agents[0].port.fault(Fault::CutFrom(other))?;
    for agent in &mesh.agents {
        agent.wait_now(TIMEOUT, "knows all", |status| status.peers.len() == 2)?;
    }
    let pings = vec![ping(&mesh.agents[0], &mesh.agents[1])?];
    let own = mesh.agents[0].status()?.address()?.to_string();
    let database = mesh.postgres()?.address;
    let cut = Instant::now();
    mesh.servers[0].port.fault(Fault::CutFrom(database))?;
    wait_until("the lease of the server that was cut off ends", TIMEOUT, || {
        let live =
            mesh.postgres()?.sql("select count(*) from servers where lease_until > clock_timestamp()")?;
        Ok((live == "1").then_some(()))
    })?;
    // Gone for a shorter time than the first seems to be: when it is removed, the first would have been.
    mesh.agents[2].kill()?;
    wait_until("the one that went is removed", MANY, || {
        let listed = nodes(&mesh.servers[1])?;
        Ok(listed.iter().all(|(name, _)| name != "a3").then_some(()))
    })?;
    s.note(format!(
        "a3 was removed {} after the cut; there are {:?}",
        ms(cut.elapsed()),
        nodes(&mesh.servers[1])?
    ));
    mesh.servers[0].port.mend()?;
    database_is(&mesh.servers[0], true)?;
    hold_for(2 * LEASE, || Ok(()))?;
    let listed = nodes(&mesh.servers[1])?;
    s.require(listed.contains(&("a1".to_owned(), own)), format!("a1 was removed; there are {listed:?}"));
    let status = mesh.agents[0].wait_now(TIMEOUT, "is served", |status| status.served_by().is_some())?;
    s.require(status.control.failovers == 0, "a1 left the one server that it reaches");
    s.none_lost(pings)
}

/// The server that runs the job just now, while there is something for it to do.
fn holder(mesh: &Mesh) -> Result<usize> {
    let ids = mesh.servers.iter().map(|server| Ok(server.admin_json("/readyz")?.1["server"].clone()));
    let ids = ids.collect::<Result<Vec<_>>>()?;
    let held = "select encode(server_id, 'hex') from jobs where name = 'ephemeral' and held_until > clock_timestamp() \
                and exists (select from nodes where name like 'crowd-%')";
    wait_until("a server runs the job", MANY, || {
        let found = mesh.postgres()?.sql(held)?;
        Ok((!found.is_empty()).then_some(found))
    })
    .map(|id| ids.iter().position(|known| *known == id.as_str()))?
    .context("the holder is none of the servers")
}

fn crowd_left(mesh: &Mesh) -> Result<usize> {
    Ok(mesh.postgres()?.sql("select count(*) from nodes where name like 'crowd-%'")?.parse()?)
}

/// By the log, in which every end of a node stands.
fn each_removed_once(s: &mut Scenario, mesh: &Mesh) -> Result<()> {
    let ends = "select op -> 'delete' ->> 'node' as node, count(*) as times from changes, jsonb_array_elements(ops) op \
                where op -> 'delete' ? 'node' group by 1";
    let figures =
        mesh.postgres()?.sql(&format!("select count(*), coalesce(max(times), 0) from ({ends}) ends"))?;
    s.note(format!("nodes that ended, by the log, and how often one did at most: {figures}"));
    s.require(figures == format!("{CROWD}|1"), "a node was not removed exactly once");
    let removals = mesh.postgres()?.sql("select count(*) from removals")?;
    s.require(removals == CROWD.to_string(), format!("{removals} signed removals of {CROWD} nodes"));
    Ok(())
}
