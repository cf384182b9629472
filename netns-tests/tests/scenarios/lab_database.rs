//! The lab's databases and what is put between them and servers, on `psql` alone.
//!
//! ```text
//!   px 192.0.2.6 ── switch ── db 192.0.2.5, db2 192.0.2.7
//! ```

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::postgres::{Postgres, Stop};
use netns_tests::proxy::{Direction, Proxy, Whose};
use netns_tests::scenario::Scenario;
use netns_tests::topology::{Host, Switch};
use netns_tests::wait::wait_until;

const PROXY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 6);
const SOON: Duration = Duration::from_secs(10);

fn host(switch: &Switch, name: &str, address: Ipv4Addr) -> Result<Host> {
    let host = Host::new(name)?;
    switch.attach(&host, &format!("{address}/24"))?;
    Ok(host)
}

fn database(s: &Scenario, switch: &Switch) -> Result<Postgres> {
    let address = Ipv4Addr::new(192, 0, 2, 5);
    Postgres::start(host(switch, "db", address)?, address, &s.directory.join("postgres"))
}

/// Stopped, killed, frozen, put back to an earlier day; followed and replaced.
pub(crate) fn postgres_does_what_it_is_told(s: &mut Scenario) -> Result<()> {
    let switch = Switch::new()?;
    let mut postgres = database(s, &switch)?;
    postgres.sql("create table days (day int)")?;
    postgres.sql("insert into days values (1)")?;
    let at = Instant::now();
    let copy = postgres.copy("copy")?;
    s.note(format!("copied in {:.0?}", at.elapsed()));
    postgres.sql("insert into days values (2)")?;
    for how in [Stop::Fast, Stop::Immediate, Stop::Killed] {
        postgres.stop(how)?;
        ensure!(postgres.sql("select 1").is_err(), "{how:?}: it still answers");
        let at = Instant::now();
        let up = postgres.run()? - at;
        ensure!(postgres.sql("select max(day) from days")? == "2", "{how:?}: a commit was lost");
        s.note(format!("{how:?}: takes connections again {up:.0?} after its start"));
    }
    postgres.freeze()?;
    let mut asking = psql(&postgres.host, &postgres.authority(), "select 1")?;
    ensure!(ended_within(&mut asking, Duration::from_millis(300)).is_err(), "a frozen Postgres answers");
    postgres.thaw()?;
    ended_within(&mut asking, SOON)?;
    postgres.stop(Stop::Killed)?;
    postgres.put_back(&copy)?;
    postgres.run()?;
    ensure!(postgres.sql("select max(day) from days")? == "1", "the copy has what came after it");
    replaced(s, &switch, postgres)
}

fn replaced(s: &mut Scenario, switch: &Switch, mut first: Postgres) -> Result<()> {
    let address = Ipv4Addr::new(192, 0, 2, 7);
    let at = Instant::now();
    let directory = s.directory.join("postgres2");
    let mut second = Postgres::standby_of(&first, host(switch, "db2", address)?, address, &directory)?;
    s.note(format!("a standby is level {:.0?} after its beginning", at.elapsed()));
    first.replicate_synchronously()?;
    second.pause_replay()?;
    first.sql("insert into days values (3)")?;
    ensure!(second.sql("select max(day) from days")? == "1", "a paused replica goes on");
    second.resume_replay()?;
    first.stop(Stop::Killed)?;
    second.promote()?;
    second.sql("insert into days values (4)")?;
    first.follow(&second)?;
    ensure!(first.sql("select count(*) from days")? == "3", "a replaced primary follows");
    second.stop(Stop::Immediate).map(drop)
}

pub(crate) fn proxy_does_what_it_says(s: &mut Scenario) -> Result<()> {
    let switch = Switch::new()?;
    let postgres = database(s, &switch)?;
    let near = host(&switch, "px", PROXY)?;
    let proxy = Proxy::start(&near, PROXY, postgres.authority().parse()?)?;
    let authority = proxy.address.to_string();
    let mut asking = psql(&near, &authority, "select 1")?;
    ended_within(&mut asking, SOON)?;

    proxy.set(|manner| manner.delay = Duration::from_millis(200));
    let at = Instant::now();
    ended_within(&mut psql(&near, &authority, "select 1")?, SOON)?;
    s.note(format!("with 200 ms for each chunk a connection and its query take {:.0?}", at.elapsed()));
    ensure!(at.elapsed() >= Duration::from_millis(400), "it takes two round trips at least");
    proxy.set(|manner| manner.delay = Duration::ZERO);

    proxy.set(|manner| manner.holds = Some((Direction::FromDatabase, Whose::Everybody)));
    let mut asking = psql(&near, &authority, "select 1")?;
    ensure!(ended_within(&mut asking, Duration::from_millis(300)).is_err(), "an answer was not held back");
    proxy.set(|manner| manner.holds = None);
    ended_within(&mut asking, SOON)?;

    let mut sleeping = psql(&near, &authority, "select pg_sleep(60)")?;
    wait_until("the query is under way", SOON, || Ok((proxy.count() == 1).then_some(())))?;
    ensure!(proxy.end_one(7), "there was a connection to end");
    ensure!(ended_within(&mut sleeping, SOON).is_err(), "a query survived its connection");

    proxy.set(|manner| manner.refuses = true);
    ensure!(ended_within(&mut psql(&near, &authority, "select 1")?, SOON).is_err(), "it was not refused");
    proxy.set(|manner| manner.refuses = false);
    hears(s, &near, &postgres, &proxy)
}

/// Who listens hears nothing while notifications are lost, and all else.
fn hears(s: &mut Scenario, near: &Host, postgres: &Postgres, proxy: &Proxy) -> Result<()> {
    for (loses, expected) in [(false, true), (true, false)] {
        proxy.set(|manner| manner.loses_notifications = loses);
        // psql shows notifications after a statement's result.
        let script = "LISTEN days; select pg_sleep(0.5); select 'end'";
        let listening = psql(near, &proxy.address.to_string(), script)?;
        wait_until("somebody listens", SOON, || Ok((proxy.listeners() == 1).then_some(())))?;
        postgres.sql("notify days")?;
        let output = listening.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(text.contains("end"), "the statements did not end: {text}");
        let heard = text.contains("Asynchronous notification");
        ensure!(heard == expected, "notifications lost: {loses}, heard: {heard}: {text}");
        wait_until("it is gone", SOON, || Ok((proxy.count() == 0).then_some(())))?;
    }
    s.note("notifications pass, or are lost and nothing else is");
    Ok(())
}

/// psql from `host`, each statement in a call of its own.
fn psql(host: &Host, authority: &str, statements: &str) -> Result<std::process::Child> {
    let url = format!("postgres://holdfast@{authority}/holdfast?connect_timeout=20");
    let mut command: Command = host.namespace.command("timeout");
    command.args(["20", "psql", &url, "-XAt"]);
    statements.split(';').for_each(|statement| {
        command.args(["-c", statement]);
    });
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().context("cannot run psql")
}

fn ended_within(child: &mut std::process::Child, timeout: Duration) -> Result<()> {
    let status = wait_until("psql ends", timeout, || Ok(child.try_wait()?))?;
    ensure!(status.success(), "psql failed: {status}");
    Ok(())
}
