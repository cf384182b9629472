//! An address that one of those who claim it serves at a time, for everybody.
//!
//! ```text
//!   s1 ─┐         ┌─ a1 ─┐
//!       ├ switch ─┼─ a2 ─┴ claim 10.99.0.1 exclusively
//!   s2 ─┘ │       └─ a3, a client
//!         └─ db, where it is Postgres
//! ```

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::agent::{Agent, INTERFACE};
use netns_tests::figures::ms;
use netns_tests::mesh::{Database, FIVE_MS, Mesh};
use netns_tests::ping::Pinger;
use netns_tests::postgres::Stop;
use netns_tests::scenario::Scenario;
use netns_tests::status::{Holder, Status};
use netns_tests::wait::{hold_for, wait_until};

use crate::database::FROM_MEMORY;

const SHARED: [u8; 4] = [10, 99, 0, 1];
const CLAIM: &str = "10.99.0.1/32";
const TIMEOUT: Duration = Duration::from_secs(20);
const LEASE: Duration = Duration::from_secs(5);
/// After a holder died: the lease, and two seconds; one more where the machine is busy.
const MOVED: Duration = Duration::from_secs(8);

/// Killed, the holder is replaced when its lease is over, and comes back as standby. Frozen beyond its lease, it hears when it goes on that it is none any more. Told to go, it is
/// replaced at once.
pub(crate) fn address_has_one_holder(s: &mut Scenario) -> Result<()> {
    let mut mesh = claimers(s, Database::Sqlite)?;
    let first = holder(&mesh)?;
    let pinger = Pinger::start("client", &mesh.agents[2].host.namespace, SHARED.into(), FIVE_MS)?;
    pinger.first_reply_after(Instant::now(), TIMEOUT)?;
    let fence = known(&mesh.agents[2])?.fence;
    let killed = mesh.agents[first].kill()?;
    let back = pinger.first_reply_after(killed + Duration::from_millis(500), TIMEOUT)?;
    s.note(format!("the holder was killed: answered again after {}", ms(back - killed)));
    s.require(back - killed <= MOVED, "a dead holder's lease was not taken over in time");
    mesh.agents[2].wait_now(TIMEOUT, "knows the fence of another holder", |status| {
        status.claims.iter().filter_map(|claim| claim.holder.as_ref()).any(|holder| holder.fence > fence)
    })?;
    mesh.agents[first].start()?;
    mesh.settle()?;
    let second = holder(&mesh)?;
    ensure!(second != first, "who was killed has it again");
    one_has_the_address(&mesh)?;

    let frozen = mesh.agents[second].process()?.freeze()?;
    mesh.agents[first].wait_now(TIMEOUT, "takes over from one that is frozen", serves)?;
    pinger.first_reply_after(Instant::now(), TIMEOUT)?;
    s.note(format!("the holder was frozen: replaced after {}", ms(frozen.elapsed())));
    ensure!(has_address(&mesh.agents[second])?, "a frozen agent cannot take its address off");
    let thawed = mesh.agents[second].process()?.thaw()?;
    wait_until("it takes the address off", TIMEOUT, || {
        Ok((!has_address(&mesh.agents[second])?).then_some(()))
    })?;
    s.note(format!("it went on: its address was off after {}", ms(thawed.elapsed())));
    mesh.agents[second].wait_now(TIMEOUT, "is standby", |status| state(status) == "standby")?;
    one_has_the_address(&mesh)?;

    let lost = pinger.finish()?.lost();
    s.note(format!("{lost} pings lost in both"));
    let pinger = Pinger::start("client", &mesh.agents[2].host.namespace, SHARED.into(), FIVE_MS)?;
    pinger.first_reply_after(Instant::now(), TIMEOUT)?;
    let told = mesh.agents[first].stop()?;
    mesh.agents[second].wait_now(TIMEOUT, "takes over from one that goes", serves)?;
    s.note(format!("the holder was told to go: replaced after {}", ms(told.elapsed())));
    pinger.first_reply_after(Instant::now(), TIMEOUT)?;
    let lost = pinger.finish()?.lost();
    s.note(format!("{lost} pings lost, one every 5 ms"));
    s.require(lost < 200, "one that was told to go was missed for a second");
    Ok(())
}

/// The database is away, then every server: the holder serves, nobody takes over from one that died, and all say so. Once the database is back, it moves.
pub(crate) fn stays_while_nobody_can_know(s: &mut Scenario) -> Result<()> {
    s.expect_warning(FROM_MEMORY);
    let mut mesh = claimers(s, Database::Postgres)?;
    let first = holder(&mesh)?;
    let second = 1 - first;
    mesh.postgres_mut()?.stop(Stop::Fast)?;
    for agent in &mesh.agents {
        agent.wait_now(TIMEOUT, "says that the database is away", |status| {
            stuck(status).is_some_and(|why| why.contains("the database is away: nobody can take over"))
        })?;
    }
    ensure!(serves(&*mesh.agents[first].status()?), "the holder went although it lives");
    mesh.agents[first].kill()?;
    hold_for(LEASE + Duration::from_secs(3), || {
        ensure!(!has_address(&mesh.agents[second])?, "it took over while the database was away");
        Ok(())
    })?;
    let back = mesh.postgres_mut()?.run()?;
    mesh.agents[second].wait_now(TIMEOUT, "takes over once the database is back", serves)?;
    s.note(format!("the database is back: it moved after {}", ms(back.elapsed())));
    wait_until("it has the address", TIMEOUT, || Ok(has_address(&mesh.agents[second])?.then_some(())))?;
    let pinger = Pinger::start("client", &mesh.agents[2].host.namespace, SHARED.into(), FIVE_MS)?;
    pinger.first_reply_after(Instant::now(), TIMEOUT)?;
    for server in &mut mesh.servers {
        server.kill()?;
    }
    for agent in [&mesh.agents[second], &mesh.agents[2]] {
        agent.wait_now(TIMEOUT, "says that no server is reached", |status| {
            stuck(status).is_some_and(|why| why.contains("no server is reached"))
        })?;
    }
    mesh.agents[second].kill()?;
    let started = mesh.agents[second].launch()?;
    mesh.agents[second].follow()?;
    mesh.agents[second].wait_now(TIMEOUT, "serves again without any server", serves)?;
    s.note(format!("restarted without a server: it serves again after {}", ms(started.elapsed())));
    pinger.first_reply_after(Instant::now(), TIMEOUT)?;
    pinger.finish()?;
    Ok(())
}

/// Two servers, two who claim and may, and a client.
fn claimers(s: &Scenario, database: Database) -> Result<Mesh> {
    let mut mesh = Mesh::plan(2, 3).database(database).servers_only(s)?;
    for number in 0..3 {
        let agent = mesh.add_agent(number)?;
        if number < 2 {
            agent.options.extend(["--claim", CLAIM, "--exclusive"].map(str::to_owned));
        }
    }
    mesh.start_agents()?;
    for claimer in ["a1", "a2"] {
        let output = mesh.servers[0].command(&["node", "allow-claim", claimer, CLAIM])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(mesh)
}

/// Which agent holds it, once all agree.
fn holder(mesh: &Mesh) -> Result<usize> {
    let number = wait_until("one holds it and the other stands by", TIMEOUT, || {
        let states = [0, 1].map(|number| mesh.agents[number].status().map(|status| state(&status)));
        let [one, other] = states;
        Ok(match (one?.as_str(), other?.as_str()) {
            ("served", "standby") => Some(0),
            ("standby", "served") => Some(1),
            _ => None,
        })
    })?;
    let name = mesh.agents[number].name.clone();
    mesh.agents[2].wait_now(TIMEOUT, "sends to the holder", |status| {
        status.claims.iter().any(|claim| claim.active.as_ref() == Some(&name))
    })?;
    wait_until("the holder has the address", TIMEOUT, || {
        Ok(has_address(&mesh.agents[number])?.then_some(()))
    })?;
    one_has_the_address(mesh)?;
    Ok(number)
}

fn one_has_the_address(mesh: &Mesh) -> Result<()> {
    let having = [has_address(&mesh.agents[0])?, has_address(&mesh.agents[1])?];
    ensure!(having[0] != having[1], "who has the address: {having:?}");
    Ok(())
}

fn state(status: &Status) -> String {
    status.own.claims.first().map_or_else(String::new, |claim| claim.state.clone())
}

fn serves(status: &Status) -> bool {
    state(status) == "served"
}

fn stuck(status: &Status) -> Option<String> {
    let own = status.own.claims.iter().find_map(|claim| claim.holder.clone());
    own.or_else(|| status.claims.iter().find_map(|claim| claim.holder.clone()))?.stuck
}

fn known(client: &Agent) -> Result<Holder> {
    let status = client.status()?;
    status.claims.iter().find_map(|claim| claim.holder.clone()).context("the client knows no holder")
}

fn has_address(agent: &Agent) -> Result<bool> {
    Ok(agent.host.namespace.output("ip", &["addr", "show", "dev", INTERFACE])?.contains("inet 10.99.0.1/32"))
}
