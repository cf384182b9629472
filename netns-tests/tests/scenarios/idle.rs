//! Tunnels that nobody uses, and peers that are to be connected always.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::agent::Agent;
use netns_tests::capture::{Capture, Frame};
use netns_tests::figures::{Bound, Samples};
use netns_tests::mesh::{Mesh, overlay_address, ping};
use netns_tests::ping::Pinger;
use netns_tests::scenario::Scenario;
use netns_tests::status::Peer;
use netns_tests::wait::hold_for;

/// The shortest there is.
const IDLE_TIMEOUT: Duration = Duration::from_secs(240);
/// A tunnel goes with its last session, which lives so long: the other side might still use it.
const SESSION_LIFE: Duration = Duration::from_secs(180);
const SLACK: Duration = Duration::from_secs(20);
const SECOND: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(10);

/// `a1 ⇄ a2` and `a3 ⇄ a4` are used once, then left alone.
pub(crate) fn an_idle_tunnel_is_silent_and_wakes_with_its_next_packet(s: &mut Scenario) -> Result<()> {
    let mesh = Mesh::plan(2, 4).options(&["--idle-timeout", "240"]).start(s)?;
    for pair in mesh.agents.chunks_exact(2) {
        ping(&pair[0], &pair[1])?.finish()?;
    }
    let used = Instant::now();
    for pair in mesh.agents.chunks_exact(2) {
        let (at, _) =
            pair[0].wait(used, IDLE_TIMEOUT + SESSION_LIFE + SLACK, "its tunnel idles", |status| {
                status.peer(&pair[1].name).is_some_and(|peer| peer.tunnel == "idle")
            })?;
        s.note(format!(
            "{} forgot the tunnel {:.0} s after the last data",
            pair[0].name,
            (at - used).as_secs_f64()
        ));
        s.require(at - used >= IDLE_TIMEOUT - SECOND, "it idled before its timeout");
        pair[1].wait(used, IDLE_TIMEOUT + SESSION_LIFE + SLACK, "its tunnel idles", |status| {
            status.peer(&pair[0].name).is_some_and(|peer| peer.tunnel == "idle")
        })?;
    }
    let captures = mesh.agents.iter().map(tunnel_frames).collect::<Result<Vec<_>>>()?;
    let quiet = Instant::now();
    hold_for(Duration::from_secs(40), || Ok(()))?;
    let frames: usize = captures.iter().map(|(port, capture)| count(capture, quiet, *port)).sum();
    s.require(frames == 0, format!("{frames} frames of idle tunnels in 40 s"));
    let mut woken = Samples::new("first packet through an idle tunnel");
    for pair in mesh.agents.chunks_exact(2) {
        let at = Instant::now();
        let target = overlay_address(&pair[0], &pair[1])?;
        let once = Pinger::start("once", &pair[0].host.namespace, target, IDLE_TIMEOUT)?;
        woken.push(once.first_reply_after(at, TIMEOUT)? - at);
    }
    s.figure(&woken, &[Bound::Worst(SECOND)]);
    let woke: usize = captures.iter().map(|(port, capture)| count(capture, quiet, *port)).sum();
    s.require(woke > 0, "the capture saw nothing of the waking either, so its silence shows nothing");
    Ok(())
}

/// Without any traffic: `always` connects, `lazy` keeps what is there until the idle timeout.
pub(crate) fn a_peer_made_always_connects_and_one_made_lazy_stays_until_its_timeout(
    s: &mut Scenario,
) -> Result<()> {
    let mesh = Mesh::plan(1, 2).options(&["--idle-timeout", "240"]).start(s)?;
    let a1 = &mesh.agents[0];
    ensure!(!a1.status()?.peer("a2").context("a1 knows a2")?.is_connected(), "connected without a reason");
    let at = Instant::now();
    a1.ask(&["set", "--peer-mode", "always=a2"])?;
    let (connected, _) = a1.wait(at, TIMEOUT, "is connected to a peer it never used", |status| {
        status.peer("a2").is_some_and(Peer::is_connected)
    })?;
    s.note(format!("connected {:?} after `set --peer-mode always=a2`", connected - at));
    // A session that nobody renews ends after three minutes; `always` goes on.
    hold_for(SESSION_LIFE + SLACK, || {
        let status = a1.status()?;
        ensure!(status.peer("a2").is_some_and(Peer::is_connected), "`always` lost its tunnel");
        Ok(())
    })?;
    let lazy = Instant::now();
    a1.ask(&["set", "--peer-mode", "lazy=a2"])?;
    hold_for(Duration::from_secs(5), || {
        let status = a1.status()?;
        ensure!(status.peer("a2").is_some_and(Peer::is_connected), "`lazy` dropped the tunnel");
        Ok(())
    })?;
    let (idle, _) = a1.wait(lazy, IDLE_TIMEOUT + SESSION_LIFE + SLACK, "its tunnel idles", |status| {
        status.peer("a2").is_some_and(|peer| peer.tunnel == "idle")
    })?;
    s.note(format!("idle {:.0} s after it was made lazy", (idle - lazy).as_secs_f64()));
    Ok(())
}

/// `a1` wants everybody connected; `a3` has expired.
pub(crate) fn an_expired_peer_is_never_dialled(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 3).options(&["--peer-mode", "always"]).start(s)?;
    for agent in &mesh.agents[..2] {
        agent.wait_now(TIMEOUT, "is connected to everybody", |status| {
            status.peers.iter().all(Peer::is_connected)
        })?;
    }
    let (port, capture) = tunnel_frames(&mesh.agents[2])?;
    mesh.agents[2].kill()?;
    let expired = mesh.servers[0].command(&["node", "expire", "a3"])?;
    ensure!(expired.status.success(), "{}", String::from_utf8_lossy(&expired.stderr));
    let at = Instant::now();
    mesh.agents[0].wait(at, TIMEOUT, "gives the expired peer up", |status| {
        status.peer("a3").is_none_or(|peer| peer.tunnel == "idle")
    })?;
    let quiet = Instant::now();
    hold_for(Duration::from_secs(30), || Ok(()))?;
    let frames = count(&capture, quiet, port);
    s.require(frames == 0, format!("{frames} frames to an expired peer in 30 s"));
    Ok(())
}

fn tunnel_frames(agent: &Agent) -> Result<(u16, Capture)> {
    Ok((agent.status()?.own.listen_port, Capture::start(&agent.host.namespace, "eth0")?))
}

fn count(capture: &Capture, since: Instant, port: u16) -> usize {
    capture.since(since, |frame: &Frame| frame.is_tunnel(port)).len()
}
