//! What a server is told that cannot work.

use std::process::Output;

use anyhow::{Result, ensure};
use netns_tests::mesh::Mesh;
use netns_tests::namespace::Namespace;
use netns_tests::scenario::Scenario;
use netns_tests::server::{Cluster, Server};
use netns_tests::topology::{Host, Switch};

const PATIENCE: &str = "30";
const A_WHILE: &str = "4";

/// No server runs yet: `server run` itself must end with a clear error.
pub(crate) fn database_urls(s: &mut Scenario) -> Result<()> {
    let switch = Switch::new()?;
    for (number, (url, words)) in [
        ("mysql://192.0.2.5/holdfast", &["mysql"][..]),
        ("nonsense", &["database"]),
        ("sqlite:/nonexistent/directory/cluster.db", &["/nonexistent"]),
    ]
    .into_iter()
    .enumerate()
    {
        let host = Host::new(format!("s{number}"))?;
        let _port = switch.attach(&host, "192.0.2.11/24")?;
        let output = run(s, &host.namespace, url, PATIENCE)?;
        told(&output, words, url)?;
    }
    waited_for(s, &switch)
}

/// A database that may come is named and waited for.
fn waited_for(s: &Scenario, switch: &Switch) -> Result<()> {
    for (number, database) in ["192.0.2.5", "db.invalid"].into_iter().enumerate() {
        let host = Host::new(format!("w{number}"))?;
        let _port = switch.attach(&host, "192.0.2.11/24")?;
        let output = run(s, &host.namespace, &format!("postgres://holdfast@{database}/holdfast"), A_WHILE)?;
        let said = String::from_utf8_lossy(&output.stderr);
        // SIGTERM by `timeout`, which says 124 where the program ends by it in order.
        ensure!(output.status.code() == Some(124), "{database}: ended with {}: {said}", output.status);
        ensure!(said.contains("not ready") && said.contains(database), "{database}: not told: {said}");
        ensure!(!said.contains("panicked"), "{database}: {said}");
    }
    Ok(())
}

/// A database that a newer version has migrated is left alone.
pub(crate) fn a_newer_schema(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 0).start(s)?;
    mesh.servers[0].drain()?;
    let path = s.directory.join("cluster.db");
    let database = rusqlite::Connection::open(&path)?;
    let future = "insert into refinery_schema_history values (4000, 'future', '2099-01-01T00:00:00Z', '1')";
    database.execute(future, [])?;
    drop(database);
    let output = run(s, &mesh.servers[0].host.namespace, &format!("sqlite:{}", path.display()), PATIENCE)?;
    told(&output, &["newer"], "a database of a newer schema")
}

/// `patience`: in seconds, for the program to end by itself.
fn run(s: &Scenario, namespace: &Namespace, url: &str, patience: &str) -> Result<Output> {
    let mut command = namespace.command("timeout");
    command.args(["-k", "1", patience]).arg(&s.binaries.server);
    command.args(["run", "--listen", "192.0.2.11:7443", "--admin-listen", "127.0.0.1:7480", "--data-dir"]);
    command.arg(s.directory.join("bad")).args(["--database", url]);
    Ok(command.output()?)
}

fn told(output: &Output, words: &[&str], what: &str) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code();
    ensure!(matches!(code, Some(1 | 2)), "{what}: ended with {}: {said}", output.status);
    ensure!(!said.contains("panicked"), "{what}: {said}");
    for word in words {
        ensure!(said.contains(word), "{what}: the error does not name {word:?}: {said}");
    }
    Ok(())
}

/// Two servers may not listen on one port of a host: the second says so, and the first goes on.
pub(crate) fn a_taken_port(s: &mut Scenario) -> Result<()> {
    let mesh = Mesh::plan(1, 1).start(s)?;
    let cluster: &Cluster = &mesh.cluster;
    let first: &Server = &mesh.servers[0];
    let output = run(s, &first.host.namespace, &cluster.database, PATIENCE)?;
    told(&output, &["192.0.2.11:7443"], "a port that is taken")?;
    ensure!(mesh.agents[0].status()?.served_by().is_some(), "the first server was disturbed");
    Ok(())
}
