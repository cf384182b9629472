//! A database that proves who it is: the wrong one is named and not believed, at the start and later.
//!
//! ```text
//!   s1 ── switch ── a1 ⇄ a2
//!             └── db, TLS and a password
//! ```

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns_tests::authority::{Authority, Identity};
use netns_tests::figures::ms;
use netns_tests::mesh::{Database, Mesh};
use netns_tests::postgres::Stop;
use netns_tests::scenario::Scenario;
use netns_tests::wait::hold_for;

use crate::database::{
    FROM_MEMORY, TIMEOUT, change, change_at_last, database_is, knows, never_backwards, refusal,
};

const PASSWORD: &str = "correct-horse";
const AUTHORITY: &str = "192.0.2.5:5432";

pub(crate) fn who_it_should_be(s: &mut Scenario) -> Result<()> {
    s.expect_warning(FROM_MEMORY);
    let (ours, theirs) = (Authority::new("ours")?, Authority::new("theirs")?);
    let mut mesh = Mesh::plan(0, 0).database(Database::Postgres).database_only(s)?;
    let directory = mesh.cluster.directory.clone();
    let (our_root, their_root) = (directory.join("ours.pem"), directory.join("theirs.pem"));
    ours.write(&our_root)?;
    theirs.write(&their_root)?;
    let address = mesh.postgres()?.address;
    let right = ours.issue(address, &directory, "right")?;
    let elsewhere = ours.issue("192.0.2.99".parse()?, &directory, "elsewhere")?;
    let stranger = theirs.issue(address, &directory, "stranger")?;
    mesh.postgres()?.sql(&format!("alter role holdfast password '{PASSWORD}'"))?;

    shown(&mut mesh, &right)?;
    mesh.cluster.database = url("verify-full", PASSWORD, &their_root);
    refused(s, &mut mesh, 5, "a root that did not sign", &["certificate"])?;
    mesh.cluster.database = url("verify-full", "wrong-horse", &our_root);
    refused(s, &mut mesh, 6, "a wrong password", &["password authentication failed"])?;
    mesh.cluster.database = url("verify-full", PASSWORD, &our_root);
    shown(&mut mesh, &elsewhere)?;
    refused(s, &mut mesh, 7, "another host's certificate", &["certificate"])?;
    mesh.cluster.database = url("verify-ca", PASSWORD, &their_root);
    refused(s, &mut mesh, 8, "verify-ca and a root that did not sign", &["certificate"])?;
    mesh.cluster.database = url("verify-ca", PASSWORD, &our_root);
    mesh.add_server(9)?.start()?;
    s.note("verify-ca takes another host's certificate under the right root");
    mesh.servers.clear();

    shown(&mut mesh, &right)?;
    mesh.cluster.database = url("verify-full", PASSWORD, &our_root);
    mesh.start_servers(1)?;
    for number in 0..2 {
        mesh.add_agent(number)?;
    }
    mesh.start_agents()?;
    let pings = mesh.ping_pairs()?;
    let begun = Instant::now();
    replaced(s, &mut mesh, [&stranger, &right])?;
    never_backwards(s, &mesh, begun)?;
    s.none_lost(pings)
}

/// While a server runs, somebody else answers at the database's address.
fn replaced(s: &mut Scenario, mesh: &mut Mesh, [stranger, right]: [&Identity; 2]) -> Result<()> {
    shown(mesh, stranger)?;
    database_is(&mesh.servers[0], false)?;
    let said = refusal(&mesh.servers[0], &["node", "rename", "a1", "other"], AUTHORITY)?;
    s.note(format!("a stranger answers at its address: {said}"));
    s.require(said.contains("certificate"), "the reason is not told");
    hold_for(Duration::from_secs(2), || {
        for agent in &mesh.agents {
            ensure!(agent.status()?.served_by().is_some(), "{} is not served", agent.name);
        }
        Ok(())
    })?;
    let back = shown(mesh, right)?;
    let well = database_is(&mesh.servers[0], true)? - back;
    let tried = change_at_last(&mesh.servers[0], &["node", "rename", "a1", "a1-again"])?;
    knows(&mesh.agents[1], tried, "a1-again")?;
    s.note(format!("the right one again: all is well after {}", ms(well)));
    s.require(well < s.widened(Duration::from_secs(2)), "it took its time");
    told_nowhere(s, mesh)
}

fn url(mode: &str, password: &str, root: &Path) -> String {
    let root = root.display();
    format!("postgres://holdfast:{password}@{AUTHORITY}/holdfast?sslmode={mode}&sslrootcert={root}")
}

/// Starts Postgres with this certificate; returns when it takes connections.
fn shown(mesh: &mut Mesh, identity: &Identity) -> Result<Instant> {
    let postgres = mesh.postgres_mut()?;
    postgres.stop(Stop::Fast)?;
    postgres.use_tls(identity)?;
    postgres.run()
}

/// A server that is started so ends, and says why.
fn refused(s: &mut Scenario, mesh: &mut Mesh, number: u8, what: &str, words: &[&str]) -> Result<()> {
    let server = mesh.add_server(number)?;
    server.launch()?;
    let status = server.process()?.wait_end(TIMEOUT)?;
    let said = server.process()?.log_tail(3);
    s.note(format!("{what}: {said}"));
    ensure!(status.code() == Some(1), "{what}: it ended with {status}");
    for word in words.iter().chain(&[AUTHORITY]) {
        ensure!(said.contains(word), "{what}: nothing is said of {word:?}: {said}");
    }
    mesh.servers.clear();
    Ok(())
}

/// Neither logs nor health nor the command line show the password.
fn told_nowhere(s: &mut Scenario, mesh: &Mesh) -> Result<()> {
    let server = &mesh.servers[0];
    let mut told = std::fs::read_to_string(server.log())?;
    for path in ["/healthz", "/readyz", "/metrics"] {
        told += &server.admin(path)?.1;
    }
    told += &server.json(&["status"])?.to_string();
    told += &format!("{:?}", change(server, &["node", "rename", "nobody", "x"])?);
    s.require(!told.contains("horse"), "the password is told");
    Ok(())
}
