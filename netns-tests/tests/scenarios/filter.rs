//! What may be opened on a node is what its map says, with servers or without.
//!
//! ```text
//!   s1 ── switch ─┬─ a1   its map says who may open what
//!                 └─ a2   who tries
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use agent_core::cache;
use anyhow::{Context, Result, ensure};
use netns_tests::agent::Agent;
use netns_tests::mesh::{FIVE_MS, Mesh, overlay_address, ping};
use netns_tests::ping::Pinger;
use netns_tests::scenario::Scenario;
use netns_tests::wait::wait_until;
use proto::map::{Content, Map};
use proto::wire::ObjectKind;

const TIMEOUT: Duration = Duration::from_secs(10);
const REFUSED_AFTER: Duration = Duration::from_secs(1);

/// By the servers' default everything flows. A map without rules lets nothing in that was not asked for, also at a start without servers; what
/// the node opened before it goes on. The server's next word counts again.
pub(crate) fn what_a_map_does_not_allow_is_refused(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 2).start(s)?;
    let (to_a1, to_a2) = (address(&mesh, 1, 0)?, address(&mesh, 0, 1)?);
    ping(&mesh.agents[1], &mesh.agents[0])?.finish()?;
    let (theirs, own) = (listen(&mesh.agents[1], to_a2)?, listen(&mesh.agents[0], to_a1)?);
    let kept = dial(&mesh.agents[0], &theirs)?;
    carries(&kept)?;
    carries(&dial(&mesh.agents[1], &own)?)?;

    wait_until("a1 keeps rules and the way to a2", TIMEOUT, || keeps_rules_and_peer(&mesh.agents[0]))?;
    mesh.servers[0].kill()?;
    mesh.agents[0].stop()?;
    forget_rules(&mesh.agents[0])?;
    mesh.agents[0].start()?;
    ping(&mesh.agents[0], &mesh.agents[1])?.finish()?;
    carries(&kept).context("the connection that a1 opened before its restart")?;
    carries(&dial(&mesh.agents[0], &theirs)?)?;
    let tries = Pinger::start("a2 to a1", &mesh.agents[1].host.namespace, to_a1, 10 * FIVE_MS)?;
    let refused = dial(&mesh.agents[1], &own).err().context("a1 let a2 in")?;
    let timed_out = refused.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    ensure!(timed_out == Some(ErrorKind::TimedOut), "a2's dial: {refused:#}");
    let tries = tries.finish()?;
    ensure!(tries.sent() > 10 && tries.lost() == tries.sent(), "{} of {} lost", tries.lost(), tries.sent());

    let since = mesh.servers[0].start()?;
    let again = Pinger::start("a2 to a1", &mesh.agents[1].host.namespace, to_a1, FIVE_MS)?;
    let allowed = again.first_reply_after(since, TIMEOUT).context("a2 is let in again")?;
    s.note(format!("let in again {:?} after the server's start", allowed - since));
    carries(&dial(&mesh.agents[1], &own)?)?;
    carries(&kept)
}

/// Of `to`, as `from` knows it.
fn address(mesh: &Mesh, from: usize, to: usize) -> Result<Ipv4Addr> {
    overlay_address(&mesh.agents[from], &mesh.agents[to])
}

/// What changes is written to disk with a delay that gathers changes.
pub(crate) fn keeps_rules_and_peer(agent: &Agent) -> Result<Option<()>> {
    let Ok(bytes) = std::fs::read(agent.state_directory.join("map.cache")) else { return Ok(None) };
    let objects = cache::decode(&bytes)?.objects;
    let kept = objects.iter().map(|object| Content::decode(&object.id, &object.content));
    let kept = kept.collect::<Result<Vec<_>, _>>()?;
    let has_rule = kept.iter().any(|content| matches!(content, Content::Rule(_)));
    let has_way = |content: &Content| matches!(content, Content::Peer(peer) if !peer.endpoints.is_empty());
    Ok((has_rule && kept.iter().any(has_way)).then_some(()))
}

/// As if the agent's last server had allowed nothing.
fn forget_rules(agent: &Agent) -> Result<()> {
    let path = agent.state_directory.join("map.cache");
    let cached = cache::decode(&std::fs::read(&path)?)?;
    let mut map = Map::default();
    let (rules, rest): (Vec<_>, Vec<_>) =
        cached.objects.into_iter().partition(|object| object.id.kind == ObjectKind::Rule as u32);
    ensure!(!rules.is_empty(), "the server told no rules");
    for object in rest {
        map.put(object);
    }
    let bytes = cache::encode(cached.version, cached.receipt, &map, cached.removals);
    std::fs::write(&path, bytes).with_context(|| path.display().to_string())
}

fn listen(agent: &Agent, address: Ipv4Addr) -> Result<TcpListener> {
    Ok(agent.host.namespace.run(|| TcpListener::bind((address, 0)))??)
}

/// A connection from the agent's host, and its accepted end.
fn dial(agent: &Agent, listener: &TcpListener) -> Result<(TcpStream, TcpStream)> {
    let to = listener.local_addr()?;
    let near = agent.host.namespace.run(|| TcpStream::connect_timeout(&to, REFUSED_AFTER))??;
    Ok((near, listener.accept()?.0))
}

/// A word each way, the far end's first.
fn carries((near, far): &(TcpStream, TcpStream)) -> Result<()> {
    for (mut from, mut to) in [(far, near), (near, far)] {
        to.set_read_timeout(Some(TIMEOUT))?;
        from.write_all(b"word")?;
        let mut word = [0; 4];
        to.read_exact(&mut word)?;
        ensure!(&word == b"word", "it says {word:?}");
    }
    Ok(())
}
