//! A server that is stopped for far longer than its lease, and goes on as if nothing had been.
//!
//! ```text
//!   s1 (stopped, continued)  s2 ── db
//!    └── switch ── a1 ⇄ a2 (a ping every 5 ms), members: one moves from s1 to s2, one on s2 signals it
//! ```

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns_tests::client::{Member, Talk, within};
use netns_tests::figures::ms;
use netns_tests::mesh::{Database, Mesh};
use netns_tests::scenario::Scenario;
use proto::key::PublicKey;
use proto::session::{AgentMessage, ServerMessage, Signal};
use proto::setup_key::SetupKey;

use crate::database::{TIMEOUT, must_change, never_backwards};

/// Of the servers, as of the option below.
const LEASE: Duration = Duration::from_secs(2);
/// Far beyond the lease, and beyond what a signal is worth.
const AGES: Duration = Duration::from_secs(30);
/// Longer than a server waits before it calls somebody offline whose connection broke.
const GRACE: Duration = Duration::from_secs(5);
/// Signals of before the move have ids below this.
const FRESH: u64 = 1000;

pub(crate) fn acts_on_nothing_old(s: &mut Scenario) -> Result<()> {
    s.expect_warning("held up past its lease");
    let mut mesh =
        Mesh::plan(2, 2).database(Database::Postgres).server_options(&["--lease", "2s"]).start(s)?;
    let pings = mesh.ping_pairs()?;
    let crowd = mesh.bystander("crowd", 0)?;
    let servers: Vec<SocketAddr> =
        mesh.servers.iter().map(|server| Ok(server.url.parse()?)).collect::<Result<_>>()?;
    let key: SetupKey = mesh.setup_key.parse()?;
    let begun = Instant::now();
    let (stopped, thawed) = within(&crowd.namespace, || async {
        let (mover, sender) = (Member::new("moved")?, Member::new("sender")?);
        mover.join(servers[0], &key).await?;
        sender.join(servers[1], &key).await?;
        let mut old = mover.serving(servers[0], key.fingerprint, 1).await?;
        let mut sender = sender.serving(servers[1], key.fingerprint, 1).await?;
        reaches(&mut sender, &mut old, mover.key()).await?;
        let stopped = mesh.servers[0].process()?.freeze()?;
        for id in 0..5 {
            sender.say(signal(mover.key(), id))?;
        }
        let mut new = mover.serving(servers[1], key.fingerprint, 2).await?;
        reaches(&mut sender, &mut new, mover.key()).await?;
        let moved = Instant::now();
        must_change(&mesh.servers[1], &["node", "rename", "sender", "renamed"])?;
        stay(&mut [&mut sender, &mut new], AGES).await?;
        let revision = mesh.postgres()?.sql("select revision from cluster")?;
        let thawed = mesh.servers[0].process()?.thaw()?;
        stay(&mut [&mut sender, &mut new], 2 * LEASE + GRACE).await?;
        let after = mesh.postgres()?.sql("select revision from cluster")?;
        ensure!(revision == after, "who was stopped past its lease changed something: {revision}, {after}");
        hears_no_old_signal(&mut old).await?;
        for agent in &mesh.agents {
            for (at, status) in agent.watch()?.states_since(moved) {
                let is_off =
                    status.peers.iter().any(|peer| peer.name == "moved" && peer.online == Some(false));
                ensure!(!is_off, "{} saw offline who had only moved, {}", agent.name, ms(at - moved));
            }
        }
        Ok((stopped, thawed))
    })?;
    s.note(format!(
        "stopped for {}: old signals were not told, who moved was online throughout, nothing was written",
        ms(thawed - stopped)
    ));
    for agent in &mesh.agents {
        agent.wait_now(TIMEOUT, "is served, with a standby again", |status| {
            status.served_by().is_some() && status.has_standby() && status.peer("renamed").is_some()
        })?;
    }
    never_backwards(s, &mesh, begun)?;
    s.none_lost(pings)
}

fn signal(peer: PublicKey, id: u64) -> AgentMessage {
    AgentMessage::Signal(Signal { peer, id, endpoints: Vec::new() })
}

/// Signals until one is heard: from then on the sender's server knows where the receiver is.
async fn reaches(sender: &mut Talk, receiver: &mut Talk, key: PublicKey) -> Result<()> {
    let begun = Instant::now();
    for id in FRESH.. {
        ensure!(begun.elapsed() < TIMEOUT, "no signal arrives");
        sender.say(signal(key, id))?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        if is_signalled(&receiver.said_so_far().await?)? {
            return Ok(());
        }
    }
    unreachable!("ids do not end")
}

/// Whether something was signalled; an old signal is an error.
fn is_signalled(said: &[ServerMessage]) -> Result<bool> {
    let mut ids = said.iter().filter_map(|said| {
        let ServerMessage::Signal(signal) = said else { return None };
        Some(signal.id)
    });
    let first = ids.next();
    ensure!(first.into_iter().chain(ids).all(|id| id >= FRESH), "an old signal was told");
    Ok(first.is_some())
}

/// Heartbeats for a while, and no old signal among what is said.
async fn stay(talks: &mut [&mut Talk], span: Duration) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < span {
        for talk in &mut *talks {
            is_signalled(&talk.said_so_far().await?)?;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

/// The session of before the move has ended, or tells nothing of that time.
async fn hears_no_old_signal(old: &mut Talk) -> Result<()> {
    while let Ok(Ok(said)) = tokio::time::timeout(Duration::from_secs(1), old.next()).await {
        is_signalled(&[said])?;
    }
    Ok(())
}
