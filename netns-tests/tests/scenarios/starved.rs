//! A server that runs out of file descriptors, and a member that takes nothing of what it asks for.
//!
//! ```text
//!   s1 192.0.2.11 ── switch ── a1 ⇄ a2 (a ping every 5 ms)
//!                       │
//!                       x: connections that are turned away; a member that reads nothing
//! ```

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns_tests::client::{Member, Talk, within};
use netns_tests::crowd;
use netns_tests::figures::ms;
use netns_tests::mesh::Mesh;
use netns_tests::scenario::Scenario;
use netns_tests::server::Server;
use netns_tests::wait::hold_for;
use proto::session::AgentMessage;
use proto::setup_key::SetupKey;

const TIMEOUT: Duration = Duration::from_secs(20);
const KNOCKS: usize = 200;
/// A connection that is turned away costs two failed calls at most; one that nothing helps against, a call in 50 ms.
const CALLS_PER_KNOCK: usize = 2;
const PAUSE: Duration = Duration::from_millis(50);
/// Without anybody knocking.
const QUIET: Duration = Duration::from_secs(2);

pub(crate) fn of_descriptors(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 2).start(s)?;
    let pings = mesh.ping_pairs()?;
    let x = mesh.bystander("x", 0)?;
    let server: SocketAddr = mesh.servers[0].url.parse()?;
    let process = mesh.servers[0].process()?;
    let starved = process.limit_descriptors(process.next_descriptor()?)?;
    let knocking = Instant::now();
    let turned_away = x.namespace.run(|| knock(server))??;
    let took = knocking.elapsed();
    hold_for(QUIET, || {
        ensure!(mesh.agents.iter().all(|a| a.status().is_ok_and(|s| s.served_by().is_some())), "not served");
        Ok(())
    })?;
    mesh.servers[0].process()?.limit_descriptors(starved)?;
    let errors = mesh.servers[0].metric("holdfast_accept_errors_total")? as usize;
    let refused = mesh.servers[0].metric("holdfast_connections_refused_total{reason=\"descriptors\"}")?;
    let bound = KNOCKS * CALLS_PER_KNOCK + ((took + QUIET).as_millis() / PAUSE.as_millis()) as usize;
    s.note(format!(
        "{turned_away} of {KNOCKS} connections were turned away in {}, {refused} of them for want of descriptors; {errors} failed calls to accept",
        ms(took)
    ));
    s.require(refused >= 1.0, "nobody was turned away for want of descriptors");
    s.require(
        errors >= 1 && errors <= bound,
        format!("{errors} failed calls to accept, expected 1 to {bound}"),
    );
    let came = Instant::now();
    let late = mesh.add_agent(2)?;
    late.start()?;
    late.wait_now(TIMEOUT, "is served", |status| status.served_by().is_some())?;
    s.note(format!("with descriptors again a new agent was served after {}", ms(came.elapsed())));
    for agent in &mesh.agents {
        s.require(agent.status()?.control.failovers == 0, format!("{} lost its session", agent.name));
    }
    s.none_lost(pings)
}

/// Connects again and again; how many were closed. The first few may find a descriptor that was free.
fn knock(server: SocketAddr) -> Result<usize> {
    let mut held = Vec::new();
    for _ in 0..KNOCKS {
        let mut stream = TcpStream::connect(server)?;
        stream.set_read_timeout(Some(Duration::from_millis(100)))?;
        // Who is let in hears nothing: the server waits for a hello.
        if stream.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
            held.push(stream);
        }
    }
    Ok(KNOCKS - held.len())
}

/// Their map is more than the kernel's buffers hold.
const CROWD: usize = 1200;
/// A connection that takes nothing ends after 20 s.
const DEAF: Duration = Duration::from_secs(90);
const ENDED: &str = "holdfast_connections_timed_out_total{reason=\"reads-too-slowly\"}";
const MEMORY_BOUND: u64 = 64 << 20;

/// A member asks for its map, and then reads nothing of its connection any more, while it goes on with its session.
pub(crate) fn of_a_reader(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 2).start(s)?;
    let x = mesh.bystander("x", 0)?;
    let server: SocketAddr = mesh.servers[0].url.parse()?;
    crowd::enrol(&x.namespace, server, &mesh.setup_key, CROWD)?;
    let key: SetupKey = mesh.setup_key.parse()?;
    let before = mesh.servers[0].process()?.usage()?.0;
    let ended = within(&x.namespace, || async {
        let member = Member::new("deaf")?;
        member.join(server, &key).await?;
        until_ended(&mesh.servers[0], &member.deaf(server, key.fingerprint).await?).await
    })?;
    let process = mesh.servers[0].process()?;
    let peak = process.peak_memory()?;
    s.note(format!(
        "who read nothing was ended after {}; server memory: {} MB before, {} MB at most",
        ms(ended),
        before >> 20,
        peak >> 20
    ));
    s.require(peak.saturating_sub(before) < MEMORY_BOUND, "the server's memory grew beyond its bound");
    for agent in &mesh.agents {
        s.require(agent.status()?.control.failovers == 0, format!("{} lost its session", agent.name));
    }
    Ok(())
}

/// Says a heartbeat a second until the server has ended the connection for what it is; when it has.
async fn until_ended(server: &Server, deaf: &Talk) -> Result<Duration> {
    let begun = Instant::now();
    for sequence in 0.. {
        if server.metric(ENDED)? >= 1.0 {
            return Ok(begun.elapsed());
        }
        ensure!(begun.elapsed() < DEAF, "who reads nothing is kept for ever, or ended for something else");
        let beat = AgentMessage::Heartbeat { sequence, standby: false, interval: Duration::ZERO };
        // Fails once the connection is gone.
        deaf.say(beat).ok();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    unreachable!("sequences do not end")
}
