//! Who becomes a member, and who is where, when two servers are asked at once.
//!
//! ```text
//!   a1 a2 .. a6, crowd ── s1, s2 ── Postgres
//! ```
//!
//! The crowd speaks the protocol and has no tunnel. Everybody asks for the same name.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use netns_tests::client::{Enrolment, Member, Talk, within};
use netns_tests::figures::ms;
use netns_tests::mesh::{Database, Mesh};
use netns_tests::scenario::Scenario;
use netns_tests::topology::Host;
use proto::session::{AgentMessage, Reason};
use proto::setup_key::SetupKey;

const TIMEOUT: Duration = Duration::from_secs(20);
const NAME: &str = "twin";
const REAL: u8 = 6;
const CROWD: usize = 44;
const ALL: usize = CROWD + REAL as usize;
const RACES: usize = 10;
const RACERS: usize = 16;

/// Fifty newcomers with one setup key, half of them at each server: nobody gets what another has.
pub(crate) fn one_setup_key_on_both_servers_at_once(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(2, 0).database(Database::Postgres).start(s)?;
    let crowd = mesh.bystander("crowd", 0)?;
    for number in 0..REAL {
        let url = mesh.servers[usize::from(number % 2)].url.clone();
        let agent = mesh.add_agent(number)?;
        agent.name = NAME.to_owned();
        agent.options[1] = url;
    }
    let at = Instant::now();
    mesh.agents.iter_mut().try_for_each(|agent| agent.launch().map(drop))?;
    let key: SetupKey = mesh.setup_key.parse()?;
    let servers = addresses(&mesh)?;
    within(&crowd.namespace, || async {
        let joining = (0..CROWD).map(|number| {
            let (server, key) = (servers[number % 2], &key);
            async move { Member::new(NAME)?.join(server, key).await }
        });
        try_join_all(joining).await
    })?;
    mesh.agents.iter_mut().try_for_each(|agent| agent.follow())?;
    for agent in &mesh.agents {
        agent.wait_now(TIMEOUT, "knows the other 49", |status| status.peers.len() == ALL - 1)?;
    }
    s.note(format!("{ALL} newcomers on two servers, all known to all agents after {}", ms(at.elapsed())));
    for server in &mesh.servers {
        let nodes = server.json(&["node", "list"])?;
        for field in ["id", "name", "public_key", "addresses"] {
            let values = distinct(&nodes, field)?;
            s.require(values == ALL, format!("{}: {values} different {field} of {ALL}", server.name));
        }
    }
    for agent in &mesh.agents {
        let status = agent.status()?;
        let peers = status.peers.iter().flat_map(|peer| peer.addresses.iter());
        let addresses: BTreeSet<_> = peers.chain(&status.own.addresses).collect();
        s.require(addresses.len() == 2 * ALL, format!("an agent sees {} addresses", addresses.len()));
    }
    races(s, &mesh, &crowd)
}

/// A one-off key tried on both servers at once by many; then one node key enrolling on both at once.
fn races(s: &mut Scenario, mesh: &Mesh, crowd: &Host) -> Result<()> {
    let servers = addresses(mesh)?;
    let before = node_count(mesh)?;
    let mut one_off_keys = Vec::new();
    for _ in 0..RACES {
        one_off_keys.push(mesh.servers[0].setup_key(&[])?.parse()?);
    }
    within(&crowd.namespace, || async {
        for key in &one_off_keys {
            one_gets_in(&servers, key).await?;
        }
        Ok(())
    })?;
    let after_keys = node_count(mesh)?;
    s.note(format!("{RACES} one-off keys, each tried {RACERS} times at once: {} nodes", after_keys - before));
    s.require(after_keys - before == RACES, "a one-off key did not let exactly one in");
    let key: SetupKey = mesh.setup_key.parse()?;
    within(&crowd.namespace, || async {
        for _ in 0..RACES {
            one_node_it_is(&servers, &key).await?;
        }
        Ok(())
    })?;
    let after_nodes = node_count(mesh)?;
    s.note(format!(
        "{RACES} node keys, each enrolled on both servers at once: {} nodes",
        after_nodes - after_keys
    ));
    s.require(after_nodes - after_keys == RACES, "a node key did not become exactly one node");
    Ok(())
}

/// The winner asks again at the other server, as one does whose answer was lost.
async fn one_gets_in(servers: &[SocketAddr], key: &SetupKey) -> Result<()> {
    let racers: Vec<Member> = (0..RACERS).map(|_| Member::new(NAME)).collect::<Result<_>>()?;
    let tried = racers.iter().enumerate().map(|(number, racer)| racer.enrol(servers[number % 2], key));
    let outcomes = try_join_all(tried).await?;
    let mut winners = Vec::new();
    for (number, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Enrolment::Member(node) => winners.push((number, *node)),
            Enrolment::Refused(refused) => {
                ensure!(refused.reason == Reason::SetupKeyUsed, "refused for another reason: {refused:?}");
            }
        }
    }
    let [(number, node)] = winners[..] else { anyhow::bail!("a one-off key let {} in", winners.len()) };
    let again = racers[number].join(servers[(number + 1) % 2], key).await?;
    ensure!(again == node, "the same node with the same key became node {again} and node {node}");
    Ok(())
}

async fn one_node_it_is(servers: &[SocketAddr], key: &SetupKey) -> Result<()> {
    let member = Member::new(NAME)?;
    let nodes = try_join_all(servers.iter().map(|server| member.join(*server, key))).await?;
    ensure!(nodes.windows(2).all(|pair| pair[0] == pair[1]), "one node key became the nodes {nodes:?}");
    Ok(())
}

/// Each member moves from s1 to s2; then its session on s1 ends: without a word, or with a late goodbye. Nobody may see it offline.
/// At the end the sessions on s2 end too, and everybody sees that.
pub(crate) fn a_stale_disconnect_changes_nothing(s: &mut Scenario) -> Result<()> {
    const MEMBERS: usize = 8;
    /// Longer than a server waits before it calls somebody offline whose connection broke.
    const GRACE: Duration = Duration::from_secs(4);
    let mesh = Mesh::plan(2, 2).database(Database::Postgres).start(s)?;
    let crowd = mesh.bystander("crowd", 0)?;
    let servers = addresses(&mesh)?;
    let key: SetupKey = mesh.setup_key.parse()?;
    let all = |status: &netns_tests::status::Status, online: bool| {
        let moved = status.peers.iter().filter(|peer| peer.name.starts_with("moved"));
        moved.filter(|peer| peer.online == Some(online)).count() == MEMBERS
    };
    within(&crowd.namespace, || async {
        let mut moved: Vec<(Talk, Talk)> = Vec::new();
        for number in 0..MEMBERS {
            let member = Member::new(format!("moved-{number}"))?;
            member.join(servers[0], &key).await?;
            let old = member.serving(servers[0], key.fingerprint, 1).await?;
            moved.push((old, member.serving(servers[1], key.fingerprint, 2).await?));
        }
        let mut serving = Vec::new();
        // Half of them at once, half when the move is known everywhere.
        for (number, (old, new)) in moved.into_iter().enumerate() {
            if number == MEMBERS / 2 {
                for agent in &mesh.agents {
                    agent.wait_now(TIMEOUT, "sees all that moved online", |status| all(status, true))?;
                }
            }
            if number % 2 == 1 {
                // The session may have ended by itself by now: then there is nobody to take leave of.
                old.say(AgentMessage::Leave { logout: false }).ok();
                tokio::task::yield_now().await;
            }
            drop(old);
            serving.push(new);
        }
        let since = Instant::now();
        while since.elapsed() < GRACE {
            for talk in &mut serving {
                talk.said_so_far().await?;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for agent in &mesh.agents {
            for (at, status) in agent.watch()?.states_since(since) {
                let off = status.peers.iter().find(|peer| peer.online == Some(false));
                let name = off.map(|peer| peer.name.clone()).unwrap_or_default();
                ensure!(
                    off.is_none(),
                    "{} saw {name} offline {}, who had only moved",
                    agent.name,
                    ms(at - since)
                );
            }
            ensure!(all(agent.status()?.as_ref(), true), "{} does not see all online", agent.name);
        }
        Ok(())
    })?;
    let ended = Instant::now();
    for agent in &mesh.agents {
        agent.wait(ended, TIMEOUT, "sees them offline when they are", |status| all(status, false))?;
    }
    s.note(format!(
        "{MEMBERS} moved; the ends of their old sessions were not seen, those of the new after {}",
        ms(ended.elapsed())
    ));
    Ok(())
}

fn addresses(mesh: &Mesh) -> Result<Vec<SocketAddr>> {
    mesh.servers.iter().map(|server| server.url.parse().context("a server's address")).collect()
}

fn node_count(mesh: &Mesh) -> Result<usize> {
    Ok(mesh.servers[0].json(&["node", "list"])?.as_array().context("node list prints an array")?.len())
}

fn distinct(nodes: &serde_json::Value, field: &str) -> Result<usize> {
    let nodes = nodes.as_array().context("node list prints an array")?;
    Ok(nodes.iter().map(|node| node[field].to_string()).collect::<BTreeSet<_>>().len())
}
