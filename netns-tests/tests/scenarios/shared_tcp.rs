//! TCP connections to what several nodes serve, when another serves it: those that cannot go on are reset at both ends, and the others are left alone.
//!
//! ```text
//!   s1 ─┐         ┌─ a1 ─ 10.1.0.1 ─┐
//!       ├ switch ─┼─ a2 ─ 10.1.0.2 ─┴ lan ─ h1 10.1.0.10
//!       ┘         └─ a3, a client
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use netns_tests::agent::Agent;
use netns_tests::figures::ms;
use netns_tests::mesh::{FIVE_MS, Mesh};
use netns_tests::namespace::Namespace;
use netns_tests::ping::Pinger;
use netns_tests::scenario::Scenario;
use netns_tests::topology::{Host, Switch};
use netns_tests::wait::wait_until;

use crate::shared::{CLAIM, MOVED, SHARED, SUBNET, TIMEOUT, claimers, grant, masquerades, served};

const PORT: u16 = 8080;
const BEHIND: [u8; 4] = [10, 1, 0, 10];
const RESET_LINE: &str = "connections that cannot go on were reset";

/// An idle connection of a program, and what serves it. The active node is killed, then the other is told to go: each time the program sees a reset, and so does the one at the node that lives.
pub(crate) fn idle_connection_is_reset_and_made_again(s: &mut Scenario) -> Result<()> {
    let mut mesh = claimers(s, &["--claim", CLAIM], &[])?;
    grant(&mesh, CLAIM)?;
    let listeners: Vec<TcpListener> =
        mesh.agents[..2].iter().map(|agent| listen(&agent.host.namespace)).collect::<Result<_>>()?;
    // Somebody uses the address: that its node is gone is noticed by what is sent.
    let pinger = Pinger::start("client", &mesh.agents[2].host.namespace, SHARED.into(), FIVE_MS)?;
    pinger.first_reply_after(Instant::now(), TIMEOUT)?;
    mesh.agents[2].wait_now(TIMEOUT, "keeps one ready", |status| status.claims[0].standby.is_some())?;

    let victim = served(&mesh, CLAIM)?;
    let client = mesh.agents[2].host.namespace.clone();
    let (ours, _theirs) = connection(&client, SHARED.into(), &listeners[victim])?;
    let killed = mesh.agents[victim].kill()?;
    let seen = is_reset(&ours)? - killed;
    let again = connection(&client, SHARED.into(), &listeners[1 - victim])?;
    s.note(format!(
        "killed: the program saw a reset after {}, and was connected again after {}",
        ms(seen),
        ms(killed.elapsed())
    ));
    s.require(seen <= MOVED, "the program was not told that its connection is dead");

    mesh.agents[victim].start()?;
    mesh.settle()?;
    mesh.agents[2].wait_now(TIMEOUT, "knows both", |status| status.claims[0].candidates.len() == 2)?;
    let (ours, theirs) = again;
    let (seen, seen_there) = are_reset(&ours, &theirs, || mesh.agents[1 - victim].stop())?;
    connection(&client, SHARED.into(), &listeners[victim])?;
    s.note(format!(
        "told to go: the client saw a reset after {}, the server after {}",
        ms(seen),
        ms(seen_there)
    ));
    pinger.finish()?;
    let lines = reset_lines(&mesh.agents[2])?;
    ensure!(lines == 2, "{lines} lines tell of resets, not 2");
    Ok(())
}

/// Behind routers that masquerade, a connection ends with its router.
pub(crate) fn connection_through_masquerading_routers_is_reset(s: &mut Scenario) -> Result<()> {
    let (mut mesh, _lan, host) = routers(s, &["--claim", SUBNET, "--masquerade"])?;
    for router in &mesh.agents[..2] {
        wait_until("the router masquerades", TIMEOUT, || Ok(masquerades(router)?.then_some(())))?;
    }
    let listener = listen(&host.namespace)?;
    let client = mesh.agents[2].host.namespace.clone();
    let pinger = Pinger::start("client", &client, BEHIND.into(), FIVE_MS)?;
    pinger.first_reply_after(Instant::now(), TIMEOUT)?;
    mesh.agents[2].wait_now(TIMEOUT, "keeps one ready", |status| status.claims[0].standby.is_some())?;
    let (ours, theirs) = connection(&client, BEHIND.into(), &listener)?;
    let victim = served(&mesh, SUBNET)?;
    let (seen, seen_there) = are_reset(&ours, &theirs, || mesh.agents[victim].stop())?;
    connection(&client, BEHIND.into(), &listener)?;
    s.note(format!(
        "masqueraded: the client saw a reset after {}, the host behind after {}",
        ms(seen),
        ms(seen_there)
    ));
    pinger.finish()?;
    Ok(())
}

/// Behind routers that do not, both ends stay what they were.
pub(crate) fn connection_through_plain_routers_goes_on(s: &mut Scenario) -> Result<()> {
    let (mut mesh, _lan, host) = routers(s, &["--claim", SUBNET])?;
    let victim = served(&mesh, SUBNET)?;
    host.route(&format!("add 100.64.0.0/10 via 10.1.0.{}", victim + 1))?;
    let listener = listen(&host.namespace)?;
    let client = mesh.agents[2].host.namespace.clone();
    let pinger = Pinger::start("client", &client, BEHIND.into(), FIVE_MS)?;
    pinger.first_reply_after(Instant::now(), TIMEOUT)?;
    mesh.agents[2].wait_now(TIMEOUT, "keeps one ready", |status| status.claims[0].standby.is_some())?;
    let (ours, theirs) = connection(&client, BEHIND.into(), &listener)?;
    let killed = mesh.agents[victim].kill()?;
    wait_until("the other serves", TIMEOUT, || Ok((served(&mesh, SUBNET)? != victim).then_some(())))?;
    host.route(&format!("replace 100.64.0.0/10 via 10.1.0.{}", 2 - victim))?;
    carries(&ours, &theirs)?;
    carries(&theirs, &ours)?;
    s.note(format!("routed: a word crossed again {} after its router was killed", ms(killed.elapsed())));
    pinger.finish()?;
    ensure!(reset_lines(&mesh.agents[2])? == 0, "connections that could go on were reset");
    Ok(())
}

/// Two with a network behind them.
fn routers(s: &Scenario, options: &[&str]) -> Result<(Mesh, Switch, Host)> {
    let lan = Switch::new()?;
    let mesh = claimers(s, options, &["--accept-routes"])?;
    for (number, router) in mesh.agents[..2].iter().enumerate() {
        lan.attach(&router.host, &format!("10.1.0.{}/24", number + 1))?;
    }
    let host = Host::new("h1")?;
    lan.attach(&host, "10.1.0.10/24")?;
    grant(&mesh, SUBNET)?;
    Ok((mesh, lan, host))
}

fn listen(namespace: &Namespace) -> Result<TcpListener> {
    Ok(namespace.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)))??)
}

/// Both ends of one that has carried something each way.
fn connection(client: &Namespace, to: Ipv4Addr, listener: &TcpListener) -> Result<(TcpStream, TcpStream)> {
    let to = SocketAddr::from((to, PORT));
    let ours = client.run(|| TcpStream::connect_timeout(&to, TIMEOUT))?.context("no connection")?;
    let (theirs, _) = listener.accept()?;
    for end in [&ours, &theirs] {
        end.set_read_timeout(Some(TIMEOUT))?;
    }
    carries(&ours, &theirs)?;
    carries(&theirs, &ours)?;
    Ok((ours, theirs))
}

fn carries(mut from: &TcpStream, mut to: &TcpStream) -> Result<()> {
    from.write_all(b"word")?;
    let mut bytes = [0; 4];
    to.read_exact(&mut bytes).context("nothing came")?;
    Ok(())
}

/// When a program that only waits was told.
fn is_reset(mut stream: &TcpStream) -> Result<Instant> {
    let outcome = stream.read(&mut [0; 64]);
    let seen_at = Instant::now();
    ensure!(
        outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset),
        "no reset: {outcome:?}"
    );
    Ok(seen_at)
}

/// How long after a node was told to go each end saw it.
fn are_reset(
    ours: &TcpStream,
    theirs: &TcpStream,
    stop: impl FnOnce() -> Result<Instant>,
) -> Result<(Duration, Duration)> {
    std::thread::scope(|scope| {
        let seen = [ours, theirs].map(|end| scope.spawn(|| is_reset(end)));
        let told = Instant::now();
        stop()?;
        let [here, there] = seen.map(|seen| seen.join().map_err(|_| anyhow!("the program panicked")));
        Ok((here?? - told, there?? - told))
    })
}

fn reset_lines(agent: &Agent) -> Result<usize> {
    let log = std::fs::read_to_string(agent.log())?;
    Ok(log.lines().filter(|line| line.contains(RESET_LINE)).count())
}
