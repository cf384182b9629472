//! A node is removed while some of its peers reach no server.
//!
//! ```text
//!   tunnels: a1 ─ a2 ─ a3, and all of them with a4        a1 ── s1, s2        a2, a3, a4: no server
//! ```

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns_tests::agent::Agent;
use netns_tests::figures::ms;
use netns_tests::mesh::{FIVE_MS, Mesh, overlay_address, ping};
use netns_tests::ping::Pinger;
use netns_tests::scenario::Scenario;
use netns_tests::wait::hold_for;

const TIMEOUT: Duration = Duration::from_secs(20);
/// From the start of `server node remove` until a served peer has let go.
const SERVED_BOUND: Duration = Duration::from_secs(1);
/// The same for who hears it from a peer, or from a peer's peer.
const TOLD_BOUND: Duration = Duration::from_secs(5);
/// From then until the last answer of the removed.
const ANSWERS_BOUND: Duration = Duration::from_millis(500);
const REMOVED: usize = 3;

pub(crate) fn reaches_all_by_servers_or_tunnels(s: &mut Scenario) -> Result<()> {
    s.expect_warning("servers refuse this node");
    let mut mesh = Mesh::plan(2, 4).start(s)?;
    for (agent, peer) in [(0, 1), (1, 2), (0, REMOVED), (1, REMOVED), (2, REMOVED)] {
        ping(&mesh.agents[agent], &mesh.agents[peer])?.finish()?;
    }
    for agent in 1..=REMOVED {
        without_servers(&mesh, agent, "add blackhole")?;
    }
    for agent in &mesh.agents[1..] {
        agent.wait_now(TIMEOUT, "reaches no server", |status| status.served_by().is_none())?;
    }
    let kept = vec![ping(&mesh.agents[0], &mesh.agents[1])?, ping(&mesh.agents[1], &mesh.agents[2])?];
    let (last, removed) = (&mesh.agents[2], &mesh.agents[REMOVED]);
    let target = overlay_address(last, removed)?;
    let meter = Pinger::start("a3 to a4", &last.host.namespace, target, FIVE_MS)?;
    let at = meter.first_reply_after(Instant::now(), TIMEOUT)?;
    remove(&mesh)?;
    for (agent, (how, bound)) in mesh.agents[..REMOVED].iter().zip([
        ("by its server", SERVED_BOUND),
        ("by a tunnel", TOLD_BOUND),
        ("by two tunnels", TOLD_BOUND),
    ]) {
        let (gone, _) =
            agent.wait(at, TIMEOUT, "forgets the removed", |status| status.peer("a4").is_none())?;
        s.note(format!("{} knows {how} after {}", agent.name, ms(gone - at)));
        s.require(
            gone - at <= s.widened(bound),
            format!("{} took {}, above {}", agent.name, ms(gone - at), ms(bound)),
        );
        if agent.name == "a3" {
            // Longer than what any machine is allowed: a tunnel that lives on is seen to.
            hold_for(3 * ANSWERS_BOUND, || Ok(()))?;
            let answered = meter.so_far().echoes.iter().filter_map(|echo| echo.replied_at).max();
            let late = answered.is_some_and(|last| last > gone + s.widened(ANSWERS_BOUND));
            s.require(!late, "the removed node answers pings still");
        }
    }
    drop(meter);
    s.none_lost(kept)?;
    a_restart_brings_it_not_back(&mut mesh)?;
    everybody_can_reach_servers_again(s, &mut mesh)
}

fn remove(mesh: &Mesh) -> Result<()> {
    let output = mesh.servers[0].command(&["node", "remove", "a4"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Takes the way to all servers from a host, or gives it back.
fn without_servers(mesh: &Mesh, agent: usize, how: &str) -> Result<()> {
    for server in &mesh.servers {
        mesh.agents[agent].host.route(&format!("{how} {}/32", server.address()?))?;
    }
    Ok(())
}

/// What was told in a tunnel is kept: the map on disk is older than the removal.
fn a_restart_brings_it_not_back(mesh: &mut Mesh) -> Result<()> {
    let agent: &mut Agent = &mut mesh.agents[2];
    agent.kill()?;
    agent.start()?;
    let status = agent.wait_now(TIMEOUT, "has its map", |status| !status.peers.is_empty())?;
    ensure!(status.control.map_source == "cache", "{} was restarted without a server", agent.name);
    ensure!(status.peer("a4").is_none(), "the removed node is back after a restart of {}", agent.name);
    Ok(())
}

/// The removed one was proved to it by a peer or a server, and has nothing left to run for; the others are served again.
fn everybody_can_reach_servers_again(s: &mut Scenario, mesh: &mut Mesh) -> Result<()> {
    for agent in 1..=REMOVED {
        without_servers(mesh, agent, "del blackhole")?;
    }
    let removed = mesh.agents[REMOVED].process()?;
    let status = removed.wait_end(TIMEOUT)?;
    let said = removed.log_tail(1);
    s.require(
        !status.success() && said.contains("removed"),
        format!("the removed node ended ({status}) with: {said}"),
    );
    for agent in &mesh.agents[..REMOVED] {
        let status = agent.wait_now(TIMEOUT, "is served again", |status| status.served_by().is_some())?;
        ensure!(status.peer("a4").is_none(), "{} has the removed node back", agent.name);
    }
    Ok(())
}
