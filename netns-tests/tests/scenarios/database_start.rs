//! Servers that start, or go on, with a database that is away, full, or not whom it should be; and strangers who notify.
//!
//! ```text
//!   s1 s2 ── switch ── a1 ⇄ a2   a3 ⇄ a4
//!                └── db
//! ```

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns_tests::figures::{Bound, Samples, ms};
use netns_tests::mesh::{Database, Mesh};
use netns_tests::postgres::Stop;
use netns_tests::scenario::Scenario;
use netns_tests::server::Server;
use netns_tests::wait::{hold_for, wait_until};

use crate::database::{
    FROM_MEMORY, TIMEOUT, all_know, change_at_last, must_change, never_backwards, refusal,
};

const NOT_READY: &str = "not ready";
const SERVES: Duration = Duration::from_secs(2);

/// One server, then all of them, start while the database is away.
pub(crate) fn away(s: &mut Scenario) -> Result<()> {
    s.expect_warning(FROM_MEMORY);
    s.expect_warning(NOT_READY);
    let mut mesh = Mesh::plan(2, 4).database(Database::Postgres).start(s)?;
    let pings = mesh.ping_pairs()?;
    mesh.settle()?;
    let begun = Instant::now();
    mesh.servers[1].kill()?;
    mesh.postgres_mut()?.stop(Stop::Fast)?;
    mesh.servers[1].launch()?;
    says_not_ready(s, &mut mesh.servers[1])?;
    hold_for(Duration::from_secs(3), || {
        for agent in &mesh.agents {
            let status = agent.status()?;
            let on_second = status
                .control
                .standby
                .iter()
                .chain(status.served_by())
                .any(|server| server.url.contains(&mesh.servers[1].url));
            ensure!(!on_second, "{} has a session with a server that is not ready", agent.name);
        }
        Ok(())
    })?;
    mesh.add_server(2)?.launch()?;
    says_not_ready(s, &mut mesh.servers[2])?;
    let at = mesh.servers[2].drain()?;
    s.require(
        at.elapsed() < s.widened(Duration::from_secs(1)),
        format!("not ready, it took {:.1?} to end", at.elapsed()),
    );
    mesh.servers.truncate(2);
    mesh.servers[0].kill()?;
    mesh.servers[0].launch()?;
    for server in &mut mesh.servers {
        says_not_ready(s, server)?;
    }
    let back = mesh.postgres_mut()?.run()?;
    let mut serves = Samples::new("database back: a server that waited for it listens after");
    for server in &mut mesh.servers {
        serves.push(server.wait_listening()?.saturating_duration_since(back));
    }
    s.figure(&serves, &[Bound::Worst(SERVES)]);
    let mut served = Samples::new("database back: agents are served again after");
    for agent in &mesh.agents {
        let (at, _) = agent.wait(back, TIMEOUT, "is served again", |status| status.served_by().is_some())?;
        served.push(at - back);
    }
    s.figure(&served, &[Bound::Worst(2 * SERVES)]);
    mesh.settle()?;
    never_backwards(s, &mesh, begun)?;
    s.none_lost(pings)
}

fn says_not_ready(s: &mut Scenario, server: &mut Server) -> Result<()> {
    let (text, name) = wait_until("the server says that it is not ready", TIMEOUT, || {
        if let Some(status) = server.process()?.ended()? {
            anyhow::bail!("{} ended ({status})", server.name);
        }
        Ok(server
            .admin("/readyz")
            .ok()
            .filter(|(code, _)| *code == 503)
            .map(|(_, text)| (text, server.name.clone())))
    })?;
    ensure!(text.contains("192.0.2.5"), "/readyz does not name the database: {text}");
    s.note(format!("{name} says: {}", text.trim()));
    ensure!(!server.is_listening()?, "it listens on the control port without a database");
    Ok(())
}

/// Others hold all of its connections: what there is goes on, what is new says why it does not.
pub(crate) fn full(s: &mut Scenario) -> Result<()> {
    s.expect_warning(NOT_READY);
    s.expect_warning(FROM_MEMORY);
    let mut mesh = Mesh::plan(2, 2).database(Database::Postgres).start(s)?;
    let pings = mesh.ping_pairs()?;
    mesh.settle()?;
    let begun = Instant::now();
    mesh.servers[1].kill()?;
    let strangers = mesh.postgres()?.occupy()?;
    s.require(strangers.len() >= 20, format!("only {} connections were free", strangers.len()));
    let said = refusal(&mesh.servers[0], &["node", "rename", "a1", "other"], "192.0.2.5:5432")?;
    s.note(format!("full: {said}"));
    s.require(said.contains("too many clients"), "the reason is not told");
    mesh.servers[1].launch()?;
    says_not_ready(s, &mut mesh.servers[1])?;
    hold_for(Duration::from_secs(3), || {
        for agent in &mesh.agents {
            ensure!(agent.status()?.served_by().is_some(), "{} is not served", agent.name);
        }
        Ok(())
    })?;
    let free = Instant::now();
    drop(strangers);
    let listens = mesh.servers[1].wait_listening()?.saturating_duration_since(free);
    let tried = change_at_last(&mesh.servers[1], &["node", "rename", "a1", "a1-again"])?;
    all_know(&mesh, tried, "a1-again", "a1")?;
    s.note(format!("room again: the server that waited listens after {}", ms(listens)));
    s.require(listens < s.widened(SERVES), "it took its time");
    mesh.settle()?;
    never_backwards(s, &mesh, begun)?;
    s.none_lost(pings)
}

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
