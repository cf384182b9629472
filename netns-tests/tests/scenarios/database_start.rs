//! Servers that start, or go on, with a database that is away, full, or not whom it should be; and strangers who notify.
//!
//! ```text
//!   s1 s2 ── switch ── a1 ⇄ a2   a3 ⇄ a4
//!                └── db
//! ```

use std::time::{Duration, Instant};

use anyhow::Result;
use netns_tests::mesh::{Database, Mesh};
use netns_tests::scenario::Scenario;

use crate::database::{all_know, must_change, never_backwards};

/// Whoever reaches the database can notify: nonsense, lies and floods change nothing and cost little.
pub(crate) fn forged_notifications(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(2, 2).database(Database::Postgres).start(s)?;
    let pings = mesh.ping_pairs()?;
    mesh.settle()?;
    let (begun, before) = (Instant::now(), mesh.servers[0].json(&["status"])?["revision"].clone());
    let usage = |mesh: &mut Mesh| {
        mesh.servers.iter_mut().map(|server| server.process()?.usage()).collect::<Result<Vec<_>>>()
    };
    let at_first = usage(&mut mesh)?;
    for payload in [
        "",
        "log",
        "presence",
        "leases",
        "anything",
        "proof",
        "signals:",
        "signals:00",
        "log:9999999",
        "\u{1F4A5}",
    ] {
        mesh.postgres()?.sql(&format!("select pg_notify('holdfast', '{payload}')"))?;
    }
    let flood = "select count(pg_notify('holdfast', kind || ':' || i)) from generate_series(1, 20000) i, (values ('log'), ('signals'), ('x')) k (kind)";
    for _ in 0..5 {
        mesh.postgres()?.sql(flood)?;
    }
    let address = mesh.agents[0].status()?.address()?.to_string();
    for round in 0..5 {
        let (at, name) = (Instant::now(), format!("a1-{round}"));
        must_change(&mesh.servers[0], &["node", "rename", &address, &name])?;
        all_know(&mesh, at, &name, "a1")?;
    }
    let spent: Vec<_> = usage(&mut mesh)?
        .iter()
        .zip(&at_first)
        .map(|(now, before)| (now.0 / 1024, now.1 - before.1))
        .collect();
    let after = mesh.servers[0].json(&["status"])?["revision"].clone();
    s.note(format!("300,000 forged notifications: revision {before}, and {after} after 5 changes; servers' memory in KB and CPU: {spent:?}"));
    s.require(after.as_u64() == before.as_u64().map(|before| before + 5), "the log is not what was changed");
    s.require(spent.iter().all(|(_, cpu)| *cpu < Duration::from_secs(10)), "the flood kept a server busy");
    let failovers: u64 =
        mesh.agents.iter().map(|agent| Ok(agent.status()?.control.failovers)).sum::<Result<u64>>()?;
    s.require(failovers == 0, "an agent left its server");
    never_backwards(s, &mesh, begun)?;
    s.none_lost(pings)
}
