//! Alive is not enough: claims that are withdrawn while a check fails, and commands that are told who uses them.
//!
//! ```text
//!   s1 ─┐         ┌─ a1, a2: claim 10.99.0.1, where a service listens on port 8080
//!       ├ switch ─┤
//!       ┘         └─ a3, a client
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netns_tests::agent::Agent;
use netns_tests::figures::ms;
use netns_tests::mesh::{FIVE_MS, Mesh};
use netns_tests::ping::Pinger;
use netns_tests::scenario::Scenario;
use netns_tests::topology::Host;
use netns_tests::wait::{hold_for, wait_until};

use crate::shared::{claimers, grant};

const SHARED: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const CLAIM: &str = "10.99.0.1/32";
const PORT: u16 = 8080;
const TIMEOUT: Duration = Duration::from_secs(15);
const CHECKED: &[&str] = &[
    "--claim",
    "10.99.0.1",
    "--claim-check",
    "tcp:8080",
    "--claim-check-interval",
    "200ms",
    "--claim-check-timeout",
    "500ms",
];
/// Three failures, and how long a busy machine may take to notice and to move.
const MOVED: Duration = Duration::from_secs(4);

/// A service that is stopped is served by the other node within the fall count, with no ping lost; restored, it is a newcomer. All of that also with no server; and where all have withdrawn, nobody serves.
pub(crate) fn move_clients_from_what_is_broken(s: &mut Scenario) -> Result<()> {
    s.expect_warning("claims are withdrawn");
    let mut mesh = claimers(s, CHECKED, &[])?;
    allow(&mesh, &["a1", "a2"])?;
    for claimer in &mesh.agents[..2] {
        let reason = withdrawn(claimer, "check tcp:8080 failed 3 times: connection refused")?;
        s.note(format!("{} without its service: {reason}", claimer.name));
    }
    let mut services =
        [Some(Service::start(&mesh.agents[0].host)?), Some(Service::start(&mesh.agents[1].host)?)];
    mesh.agents[..2].iter().try_for_each(restored)?;
    let first = answering(&mesh, TIMEOUT)?.0;
    let pinger = Pinger::start("client", &mesh.agents[2].host.namespace, SHARED, FIVE_MS)?;
    pinger.first_reply_after(Instant::now(), TIMEOUT)?;
    mesh.agents[first].wait_now(TIMEOUT, "knows its user", |status| status.own.claims[0].users == 1)?;
    for (round, victim) in [first, 1 - first].into_iter().enumerate() {
        if round == 1 {
            mesh.servers[0].kill()?;
        }
        let stopped = Instant::now();
        services[victim] = None;
        let (other, at) = answering(&mesh, MOVED)?;
        ensure!(other != victim, "the node whose service was stopped answers");
        s.note(format!(
            "service stopped{}: the other one answers after {}",
            ["", ", no server"][round],
            ms(at - stopped)
        ));
        withdrawn(&mesh.agents[victim], "failed 3 times")?;
        services[victim] = Some(Service::start(&mesh.agents[victim].host)?);
        restored(&mesh.agents[victim])?;
        let switches = mesh.agents[2].status()?.claims[0].switches;
        hold_for(Duration::from_millis(500), || {
            let status = mesh.agents[2].status()?;
            ensure!(status.claims[0].switches == switches, "the client went back to one that was restored");
            Ok(())
        })?;
    }
    let lost = pinger.finish()?.lost();
    s.note(format!("{lost} pings lost on both moves"));
    s.require(lost == 0, "moving from a node that withdrew loses nothing");
    services = [None, None];
    mesh.agents[2]
        .wait_now(TIMEOUT, "knows that nobody serves", |status| status.claims[0].active.is_none())?;
    services[1] = Some(Service::start(&mesh.agents[1].host)?);
    let back = answering(&mesh, TIMEOUT)?.0;
    ensure!(back == 1, "only the second node is well, and a{} answers", back + 1);
    drop(services);
    Ok(())
}

/// What one node holds for all clients is another's, once its check fails; restored, it stands by.
pub(crate) fn hand_an_exclusive_claim_over(s: &mut Scenario) -> Result<()> {
    s.expect_warning("claims are withdrawn");
    let mesh = claimers(s, &[CHECKED, &["--exclusive"]].concat(), &[])?;
    allow(&mesh, &["a1", "a2"])?;
    let mut services =
        [Some(Service::start(&mesh.agents[0].host)?), Some(Service::start(&mesh.agents[1].host)?)];
    for claimer in &mesh.agents[..2] {
        claimer.wait_now(TIMEOUT, "is well", |status| {
            ["served", "standby"].contains(&&*status.own.claims[0].state)
        })?;
    }
    let holder = answering(&mesh, TIMEOUT)?.0;
    let stopped = Instant::now();
    services[holder] = None;
    let (other, at) = wait_until("the other one answers", TIMEOUT, || {
        let (found, at) = answering(&mesh, TIMEOUT)?;
        Ok((found != holder).then_some((found, at)))
    })?;
    s.note(format!("service of the holder stopped: the other one answers after {}", ms(at - stopped)));
    services[holder] = Some(Service::start(&mesh.agents[holder].host)?);
    mesh.agents[holder].wait_now(TIMEOUT, "stands by", |status| status.own.claims[0].state == "standby")?;
    restored(&mesh.agents[other])
}

/// A command that hangs, floods, forks or is missing is a check that fails, with the reason; nothing of it is left. What is set holds after a restart.
pub(crate) fn by_commands_that_misbehave(s: &mut Scenario) -> Result<()> {
    s.expect_warning("claims are withdrawn");
    let mut mesh = claimers(
        s,
        &["--claim", "10.99.0.1", "--claim-check-interval", "100ms", "--claim-check-timeout", "200ms"],
        &[],
    )?;
    grant(&mesh, CLAIM)?;
    let flag = s.directory.join("is-well");
    let marker = "86397";
    for (line, reason) in [
        (format!("trap '' TERM; sleep {marker} & sleep {marker}"), "did not end within 200ms and was killed"),
        ("yes; true".to_owned(), "was killed"),
        ("/nowhere/is-well".to_owned(), "exit code 127"),
        (format!("test -e {}", flag.display()), "exit code 1"),
    ] {
        mesh.agents[0].ask(&["set", "--claim-check", &format!("cmd:{line}"), "--claim-check-fall", "2"])?;
        withdrawn(&mesh.agents[0], reason)?;
    }
    wait_until("nothing of the checks is left", TIMEOUT, || Ok((!runs(marker)?).then_some(())))?;
    let warned = mesh.agents[0].wait_now(TIMEOUT, "warns", |status| {
        status.warnings.iter().any(|warning| warning.contains("cmd:test .."))
    })?;
    ensure!(!warned.warnings[0].contains("is-well"), "arguments are shown: {:?}", warned.warnings);
    mesh.agents[0].stop()?;
    mesh.agents[0].start()?;
    withdrawn(&mesh.agents[0], "cmd:test ..")?;
    std::fs::write(&flag, "")?;
    restored(&mesh.agents[0])?;
    let refused = mesh.agents[0].command(&["set", "--claim-check", "http:80"])?;
    ensure!(refused.status.code() == Some(2), "a check that is none: {}", refused.status);
    mesh.agents[0].ask(&["set", "--claim-check", "cmd:false"])?;
    withdrawn(&mesh.agents[0], "exit code 1")?;
    mesh.agents[0].ask(&["set", "--claim-check", "none"])?;
    restored(&mesh.agents[0])?;
    Ok(())
}

/// Commands run in order with the right numbers, also at the end of the agent and after its restart, and another one is told of users that are there; one that fails is shown and harms nothing.
pub(crate) fn hooks_are_told_of_users(s: &mut Scenario) -> Result<()> {
    s.expect_warning("the command of --on-serving failed");
    let file = s.directory.join("told");
    let tell = |word: &str| {
        format!("echo {word} $HOLDFAST_CLAIM $HOLDFAST_USERS $HOLDFAST_INTERFACE >> {}", file.display())
    };
    let (serving, idle) = (tell("serving"), tell("idle"));
    let mut mesh = claimers(s, &["--claim", "10.99.0.1", "--on-serving", &serving, "--on-idle", &idle], &[])?;
    // The other one is not granted its claim: where there are two, clients may begin with either.
    allow(&mesh, &["a1"])?;
    restored(&mesh.agents[0])?;
    let begun = Instant::now();
    let _pinger = use_it(&mesh)?;
    lines(&file, &["serving 10.99.0.1/32 1 hf0"])?;
    s.note(format!("the first user is told after {}", ms(begun.elapsed())));
    mesh.agents[2].stop()?;
    lines(&file, &["serving 10.99.0.1/32 1 hf0", "idle 10.99.0.1/32 0 hf0"])?;
    mesh.agents[2].start()?;
    mesh.settle()?;
    let _pinger = use_it(&mesh)?;
    let told = ["serving 10.99.0.1/32 1 hf0", "idle 10.99.0.1/32 0 hf0", "serving 10.99.0.1/32 1 hf0"];
    lines(&file, &told)?;
    mesh.agents[0].stop()?;
    lines(&file, &[&told[..], &["idle 10.99.0.1/32 0 hf0"]].concat())?;
    mesh.agents[0].start()?;
    lines(&file, &[&told[..], &["idle 10.99.0.1/32 0 hf0", "serving 10.99.0.1/32 1 hf0"]].concat())?;
    let other = tell("other");
    mesh.agents[0].ask(&["set", "--on-serving", &other])?;
    let mut again = vec!["idle 10.99.0.1/32 0 hf0", "serving 10.99.0.1/32 1 hf0", "other 10.99.0.1/32 1 hf0"];
    lines(&file, &[&told[..], &again].concat())?;
    // The same again is no other.
    mesh.agents[0].ask(&["set", "--on-serving", &other])?;
    mesh.agents[0].ask(&["set", "--on-serving", "exit 3"])?;
    mesh.agents[0].wait_now(TIMEOUT, "shows the command that failed", |status| {
        status.warnings.iter().any(|warning| warning.contains("failed for 10.99.0.1/32: exit code 3"))
    })?;
    mesh.agents[2].stop()?;
    mesh.agents[0].wait_now(TIMEOUT, "shows no failure of the past", |status| {
        status.own.users == 0 && status.warnings.is_empty()
    })?;
    again.push("idle 10.99.0.1/32 0 hf0");
    lines(&file, &[&told[..], &again].concat())
}

/// Pings every 5 ms from the client, answered.
fn use_it(mesh: &Mesh) -> Result<Pinger> {
    let pinger = Pinger::start("client", &mesh.agents[2].host.namespace, SHARED, FIVE_MS)?;
    pinger.first_reply_after(Instant::now(), TIMEOUT)?;
    Ok(pinger)
}

/// Exactly these are told, by and by.
fn lines(file: &Path, expected: &[&str]) -> Result<()> {
    let read = || -> Result<Vec<String>> {
        match std::fs::read_to_string(file) {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    };
    let told = wait_until("a command tells", TIMEOUT, || {
        let found = read()?;
        Ok((found.len() >= expected.len()).then_some(found))
    });
    let told = told.with_context(|| format!("{:?} was told", read()))?;
    ensure!(told == expected, "{told:?} was told");
    Ok(())
}

/// Grants the claim without waiting for anybody to serve it.
fn allow(mesh: &Mesh, claimers: &[&str]) -> Result<()> {
    for claimer in claimers {
        let output = mesh.servers[0].command(&["node", "allow-claim", claimer, CLAIM])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Why its claim is withdrawn, once it is for this reason.
fn withdrawn(claimer: &Agent, reason: &str) -> Result<String> {
    let status = claimer.wait_now(TIMEOUT, &format!("has withdrawn its claim: {reason}"), |status| {
        let is_it = |claim: &netns_tests::status::OwnClaim| {
            claim.state == "withdrawn" && claim.reason.as_ref().is_some_and(|found| found.contains(reason))
        };
        status.own.claims.iter().any(is_it)
    })?;
    status.own.claims[0].reason.clone().context("it was just there")
}

fn restored(claimer: &Agent) -> Result<()> {
    claimer.wait_now(TIMEOUT, "serves its claim", |status| status.own.claims[0].state == "served")?;
    Ok(())
}

/// Which of the first two agents answers the client at the shared address, and when it did.
fn answering(mesh: &Mesh, timeout: Duration) -> Result<(usize, Instant)> {
    let client = &mesh.agents[2].host.namespace;
    let answer = wait_until("the service answers at the shared address", timeout, || {
        Ok(client.run(|| ask(SocketAddr::from((SHARED, PORT))))?.ok().map(|name| (name, Instant::now())))
    })?;
    match mesh.agents.iter().position(|agent| agent.name == answer.0) {
        Some(place) => Ok((place, answer.1)),
        None => bail!("{:?} answers", answer.0),
    }
}

fn ask(service: SocketAddr) -> std::io::Result<String> {
    let mut connection = TcpStream::connect_timeout(&service, Duration::from_millis(200))?;
    connection.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut name = String::new();
    connection.read_to_string(&mut name)?;
    match name.is_empty() {
        true => Err(ErrorKind::UnexpectedEof.into()),
        false => Ok(name),
    }
}

/// Whether any process has this word on its command line.
fn runs(word: &str) -> Result<bool> {
    let all = std::fs::read_dir("/proc")?.flatten();
    let lines = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    Ok(lines.into_iter().any(|line| line.split(|byte| *byte == 0).any(|found| found == word.as_bytes())))
}

/// Tells everybody who connects the name of its host, on every address; gone when it is dropped.
struct Service {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    fn start(host: &Host) -> Result<Self> {
        let listener = host.namespace.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)))??;
        listener.set_nonblocking(true)?;
        let (stop, name) = (Arc::new(AtomicBool::new(false)), host.name.clone());
        let until = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                match listener.accept() {
                    // Who hung up need not be told.
                    Ok((mut connection, _)) => drop(connection.write_all(name.as_bytes())),
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}
