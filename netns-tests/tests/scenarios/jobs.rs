//! Jobs that one server at a time does for all, and what becomes of one that is frozen over it.
//!
//! ```text
//!   s1 s2 ── px (proxy) ── db
//!    └── switch ── a1 ⇄ a2, a crowd of ephemeral nodes that never come
//! ```

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netns_tests::figures::ms;
use netns_tests::mesh::Mesh;
use netns_tests::scenario::Scenario;
use netns_tests::wait::{hold_for, wait_until};

use crate::database::{FROM_MEMORY, TIMEOUT, never_backwards};

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
