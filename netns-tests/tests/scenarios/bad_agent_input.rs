//! What an agent is told that cannot work: a clear error, the right exit code, and nothing left behind.
//!
//! ```text
//!   s1 ── switch ── spare (the agent that is told nonsense), x (a server of another cluster, or of something else)
//! ```

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::agent::{Agent, INTERFACE};
use netns_tests::mesh::{Mesh, ping};
use netns_tests::scenario::Scenario;
use netns_tests::server::{Cluster, Server};
use netns_tests::topology::Host;
use netns_tests::wait::wait_until;

use crate::life::nothing_left;

const TIMEOUT: Duration = Duration::from_secs(10);
const WRONG_USAGE: i32 = 2;
const FAILED: i32 = 1;
/// A well-formed setup key of no cluster.
const NO_KEY: &str = "hf1_none";

pub(crate) fn server_lists(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 0).start(s)?;
    let key = mesh.setup_key.clone();
    let spare = mesh.add_agent(0)?;
    refused(spare, &["--servers", "", "--setup-key", &key], WRONG_USAGE, &["server"])?;
    refused(spare, &["--servers", ",", "--setup-key", &key], WRONG_USAGE, &["server"])?;
    refused(spare, &["--servers", "192.0.2.11:99999", "--setup-key", &key], WRONG_USAGE, &["99999"])?;
    refused(spare, &["--servers", "ftp://192.0.2.11", "--setup-key", &key], WRONG_USAGE, &["ftp"])?;
    refused(spare, &["--servers", "a b:7443", "--setup-key", &key], WRONG_USAGE, &["a b"])?;
    refused(spare, &["--servers", "192.0.2.99:7443", "--setup-key", &key], FAILED, &["192.0.2.99:7443"])?;
    refused(spare, &["--servers", "192.0.2.11:7444", "--setup-key", &key], FAILED, &["192.0.2.11:7444"])?;
    refused(spare, &["--servers", "nowhere.invalid:7443", "--setup-key", &key], FAILED, &["nowhere.invalid"])
}

/// One good server among bad ones serves, and `status` says what is wrong with the others.
pub(crate) fn a_good_server_among_bad_ones_serves(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 0).start(s)?;
    let good = mesh.servers[0].url.clone();
    let agent = mesh.add_agent(0)?;
    agent.options[1] = format!("nowhere.invalid:7443,{good},192.0.2.99:7443,{good}");
    agent.start()?;
    agent.wait_now(TIMEOUT, "is served", |status| status.served_by().is_some())?;
    let status = agent.wait_now(TIMEOUT, "says what is wrong with the name", |status| {
        let line = status.control.servers.iter().find(|server| server.url.contains("nowhere.invalid"));
        line.is_some_and(|server| server.last_error.is_some())
    })?;
    let same = status.control.servers.iter().filter(|server| server.url.contains(&good)).count();
    ensure!(same == 1, "a server given twice is listed {same} times");
    Ok(())
}

/// Something else answers at the port, and a server of another cluster does.
pub(crate) fn strangers_at_the_port(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 0).start(s)?;
    let key = mesh.setup_key.clone();
    let other = Host::new("x1")?;
    let port = mesh.switch.attach(&other, "192.0.2.21/24")?;
    let directory = s.directory.join("other");
    std::fs::create_dir_all(&directory)?;
    let cluster = Cluster {
        program: s.binaries.server.clone(),
        database: format!("sqlite:{}", directory.join("cluster.db").display()),
        directory: s.directory.clone(),
    };
    let mut stranger = Server::new(&cluster, other.clone(), port, "192.0.2.21".parse()?);
    stranger.start()?;
    let listener = other.namespace.run(|| std::net::TcpListener::bind("192.0.2.21:7000"))??;
    std::thread::spawn(move || greet(&listener));
    let spare = mesh.add_agent(0)?;
    refused(spare, &["--servers", "192.0.2.21:7000", "--setup-key", &key], FAILED, &["192.0.2.21:7000"])?;
    refused(spare, &["--servers", "192.0.2.21:7443", "--setup-key", &key], FAILED, &["cluster"])?;
    // Behind a good one it does no harm.
    spare.options =
        ["--servers", "192.0.2.21:7443,192.0.2.11:7443", "--setup-key", &key].map(str::to_owned).into();
    spare.state_directory.set_extension("good");
    spare.start()?;
    let status = spare.wait_now(TIMEOUT, "is served", |status| status.served_by().is_some())?;
    let by = status.served_by().map(|server| server.url.clone()).unwrap_or_default();
    ensure!(by.contains("192.0.2.11"), "served by {by}, a server of another cluster");
    Ok(())
}

/// Speaks first, and not TLS.
fn greet(listener: &std::net::TcpListener) {
    for connection in listener.incoming().flatten() {
        std::io::Write::write_all(&mut &connection, b"220 mail.example ready\r\n").ok();
    }
}

pub(crate) fn setup_keys(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 0).start(s)?;
    let url = mesh.servers[0].url.clone();
    let server = &mesh.servers[0];
    let (once, short) = (server.setup_key(&[])?, server.setup_key(&["--reusable", "--expires", "1s"])?);
    let expired_at = Instant::now() + Duration::from_secs(2);
    let revoked = server.json(&["setup-key", "create", "--reusable"])?;
    let id = revoked["id"].as_str().map(str::to_owned).unwrap_or_else(|| revoked["id"].to_string());
    let done = server.command(&["setup-key", "revoke", &id])?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let revoked = revoked["key"].as_str().context("a created key has its text")?.to_owned();

    mesh.setup_key = once.clone();
    mesh.add_agent(1)?.start()?;
    mesh.settle()?;
    let spare = mesh.add_agent(0)?;
    refused(spare, &["--servers", &url, "--setup-key", &once], FAILED, &["used"])?;
    refused(spare, &["--servers", &url, "--setup-key", &revoked], FAILED, &["revoked"])?;
    wait_until("the short key has expired", TIMEOUT, || Ok((Instant::now() > expired_at).then_some(())))?;
    refused(spare, &["--servers", &url, "--setup-key", &short], FAILED, &["expired"])?;
    refused(spare, &["--servers", &url, "--setup-key", NO_KEY], WRONG_USAGE, &["setup key"])?;
    refused(spare, &["--servers", &url, "--setup-key", "file:/nonexistent"], WRONG_USAGE, &["/nonexistent"])?;
    let mut unknown = once.into_bytes();
    // Another secret of the same length under the same fingerprint.
    unknown[6] = if unknown[6] == b'a' { b'b' } else { b'a' };
    let unknown = String::from_utf8(unknown)?;
    refused(spare, &["--servers", &url, "--setup-key", &unknown], FAILED, &["setup key"])
}

pub(crate) fn timers(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 0).start(s)?;
    let (url, key) = (mesh.servers[0].url.clone(), mesh.setup_key.clone());
    let spare = mesh.add_agent(0)?;
    let base = ["--servers", &url, "--setup-key", &key];
    let with = |options: &[&'static str]| [&base[..], options].concat();
    refused(
        spare,
        &with(&["--peer-timeout", "1s", "--keepalive", "1s"]),
        WRONG_USAGE,
        &["peer-timeout", "keepalive"],
    )?;
    refused(spare, &with(&["--keepalive", "5"]), WRONG_USAGE, &["peer-timeout", "keepalive"])?;
    refused(spare, &with(&["--keepalive", "soon"]), WRONG_USAGE, &["keepalive"])?;
    // Below the minimum: the minimum is used, and a warning says so. A bare number is seconds.
    s.expect_warning("idle");
    spare
        .options
        .extend(["--idle-timeout", "10", "--keepalive", "2", "--peer-timeout", "5"].map(str::to_owned));
    spare.start()?;
    spare.wait_now(TIMEOUT, "is served", |status| status.served_by().is_some())?;
    let log = spare.process()?.log_tail(1000);
    ensure!(log.lines().any(|line| line.contains("WARN") && line.contains("idle")), "no warning in: {log}");
    Ok(())
}

pub(crate) fn a_host_that_refuses(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 1).start(s)?;
    let directory = mesh.agents[0].state_directory.clone();
    let url = mesh.servers[0].url.clone();
    let key = mesh.setup_key.clone();
    let options = ["--servers", &url, "--setup-key", &key];

    // Two agents with one state directory: the first goes on.
    let a1 = &mesh.agents[0];
    let second = a1.command(&[&["up", "--foreground"], &options[..]].concat())?;
    told(&second, FAILED, &["already uses"], "a second agent in one state directory")?;
    ensure!(a1.status()?.served_by().is_some(), "the first agent was disturbed");

    // An interface name in use.
    let spare = mesh.add_agent(1)?;
    spare.host.namespace.ip(&format!("link add {INTERFACE} type bridge"))?;
    let output = up(spare, &options)?;
    told(&output, FAILED, &[INTERFACE], "an interface name in use")?;
    let links = spare.host.namespace.output("ip", &["-d", "link", "show", INTERFACE])?;
    ensure!(links.contains("bridge"), "the interface of somebody else is gone: {links}");
    spare.host.namespace.ip(&format!("link del {INTERFACE}"))?;

    // No permission for TUN.
    let mut command = spare.host.namespace.command("setpriv");
    command.args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin", "timeout", "20"]);
    command.arg(&s.binaries.agent).arg("--state-dir").arg(s.directory.join("unprivileged"));
    let output = command.args(["up", "--timeout", "5"]).args(options).output()?;
    told(&output, FAILED, &["permission"], "no permission for TUN")?;
    nothing_left(spare)?;
    ensure!(directory.is_dir(), "the first agent's state is there");
    Ok(())
}

/// A key file that holds nonsense is refused and stays as it is; so is one that others may read.
pub(crate) fn a_corrupt_key_file(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 1).start(s)?;
    mesh.agents[0].stop()?;
    let key_file = file_like(&mesh.agents[0], "key")?;
    for nonsense in [&b"nonsense"[..], b"", &[0xff; 4096]] {
        std::fs::write(&key_file, nonsense)?;
        let agent = &mesh.agents[0];
        let output = up(agent, &["--servers", &mesh.servers[0].url, "--setup-key", &mesh.setup_key])?;
        told(&output, FAILED, &[&key_file.display().to_string()], "a corrupt key file")?;
        ensure!(std::fs::read(&key_file)? == nonsense, "the key file was overwritten");
        nothing_left(agent)?;
    }
    Ok(())
}

/// The newest map cache is damaged in every way: the previous one serves, with every server down.
pub(crate) fn a_damaged_map_cache(s: &mut Scenario) -> Result<()> {
    s.expect_warning("map");
    let mut mesh = Mesh::plan(1, 2).start(s)?;
    // A second change, so that there is a previous map.
    mesh.add_agent(2)?.start()?;
    for agent in &mesh.agents {
        agent.wait_now(TIMEOUT, "knows both others", |status| status.peers.len() == 2)?;
    }
    ping(&mesh.agents[0], &mesh.agents[1])?.finish()?;
    // And the previous one knows them, too.
    let cache = file_like(&mesh.agents[0], "map")?;
    for (name, next) in [("a3", "once"), ("once", "twice")] {
        let before = std::fs::read(&cache)?;
        let renamed = mesh.servers[0].command(&["node", "rename", name, next]);
        ensure!(renamed?.status.success(), "the node is not renamed");
        wait_until("the map on disk is another", TIMEOUT, || {
            Ok((std::fs::read(&cache)? != before).then_some(()))
        })?;
    }
    mesh.agents[0].stop()?;
    mesh.servers[0].kill()?;
    let whole = std::fs::read(&cache)?;
    let truncated = whole[..whole.len() / 2].to_vec();
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x40;
    for damaged in
        [truncated, flipped, b"{\"version\": 4000000000}".to_vec(), Vec::new(), vec![0; whole.len()]]
    {
        std::fs::write(&cache, &damaged)?;
        mesh.agents[0].start()?;
        let status = mesh.agents[0].wait_now(TIMEOUT, "has a map", |status| !status.peers.is_empty())?;
        ensure!(status.control.map_source == "cache", "the map is {:?}", status.control.map_source);
        ping(&mesh.agents[0], &mesh.agents[1])?.finish()?;
        mesh.agents[0].stop()?;
    }
    Ok(())
}

/// The file in the agent's state directory whose name begins with `word`; the shortest of them.
fn file_like(agent: &Agent, word: &str) -> Result<PathBuf> {
    let entries = std::fs::read_dir(&agent.state_directory)?.flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().contains(word));
    let path = named.map(|entry| entry.path()).min_by_key(|path| path.as_os_str().len());
    path.with_context(|| format!("no file like {word:?} in the state directory"))
}

/// `agent up` with a state directory that was never used, which must fail and leave nothing.
fn refused(agent: &mut Agent, options: &[&str], code: i32, words: &[&str]) -> Result<()> {
    static FRESH: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = FRESH.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let old = agent.state_directory.clone();
    agent.state_directory = old.with_extension(number.to_string());
    let output = up(agent, options)?;
    let judged = told(&output, code, words, &format!("up {}", options.join(" ")));
    judged.and_then(|()| nothing_left(agent))?;
    agent.state_directory = old;
    Ok(())
}

fn up(agent: &Agent, options: &[&str]) -> Result<Output> {
    agent.command(&[&["up", "--timeout", "5"], options].concat())
}

/// Failed with `code`, in words that name what is wrong, and without a panic.
fn told(output: &Output, code: i32, words: &[&str], what: &str) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr).to_lowercase();
    let status = output.status;
    ensure!(status.code() == Some(code), "{what}: ended with {status}, not {code}: {said}");
    ensure!(status.signal().is_none() && !said.contains("panicked"), "{what}: {said}");
    for word in words {
        ensure!(said.contains(&word.to_lowercase()), "{what}: the error does not name {word:?}: {said}");
    }
    Ok(())
}

/// A program of another kind holds the tunnel's port: another is taken.
pub(crate) fn a_taken_wireguard_port(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 1).start(s)?;
    let agent = mesh.add_agent(1)?;
    let taken = agent.host.namespace.run(|| std::net::UdpSocket::bind("0.0.0.0:51820"))??;
    agent.start()?;
    let status = agent.wait_now(TIMEOUT, "is served", |status| status.served_by().is_some())?;
    ensure!(status.own.listen_port != 51820, "two sockets on one port");
    drop(taken);
    Ok(())
}
