//! kill -9 of everything, at any moment.
//!
//! ```text
//!   crowd, a1, a2, a newcomer ── s1, s2 ── database      commands on the database
//! ```
//!
//! In each round somebody enrols, a node is renamed and another removed, all at once; at a random moment of that some of the
//! servers, agents and commands are killed, and started again. What was acknowledged must be there, what was not must
//! be there or not, and nothing in between. `HOLDFAST_LAB_SEED` replays the decisions of a run.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::client::{Member, within};
use netns_tests::figures::{Bound, Samples};
use netns_tests::mesh::{Database, Mesh};
use netns_tests::process::Process;
use netns_tests::scenario::Scenario;
use netns_tests::topology::Host;
use proto::setup_key::SetupKey;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;

const SEED_VARIABLE: &str = "HOLDFAST_LAB_SEED";
const ROUNDS: usize = 100;
/// Every so many rounds a newcomer's first start is one of those killed.
const NEWCOMER_EVERY: usize = 5;
/// Every so many rounds all agents' maps are compared with the database.
const COMPARED_EVERY: usize = 20;
/// How many changes are timed, undisturbed, to know how long one takes on this machine at this time.
const TIMED_CHANGES: usize = 3;
const TIMEOUT: Duration = Duration::from_secs(20);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);
const LASTING: u8 = 2;

pub(crate) fn everything_on_sqlite(s: &mut Scenario) -> Result<()> {
    rounds(s, Database::Sqlite)
}

pub(crate) fn everything_on_postgres(s: &mut Scenario) -> Result<()> {
    rounds(s, Database::Postgres)
}

fn rounds(s: &mut Scenario, database: Database) -> Result<()> {
    let seed = seed()?;
    s.note(format!("{SEED_VARIABLE}={seed}"));
    let mut lab = Lab::start(s, database, seed)?;
    let (mut took, mut first_start) = (Samples::new("a round"), Samples::new("a round with a newcomer"));
    for number in 1..=ROUNDS {
        let begun = Instant::now();
        lab.round(number).with_context(|| format!("round {number} of seed {seed}"))?;
        if number.is_multiple_of(NEWCOMER_EVERY) { &mut first_start } else { &mut took }
            .push(begun.elapsed());
    }
    s.figure(&took, &[Bound::None]);
    s.figure(&first_start, &[Bound::None]);
    s.note(lab.tally.to_string());
    s.require(lab.tally.is_telling(), "the kills came too early or too late to show anything");
    log_is_whole(s, &lab.mesh)
}

fn seed() -> Result<u64> {
    match std::env::var(SEED_VARIABLE) {
        Ok(text) => text.parse().with_context(|| format!("{SEED_VARIABLE}={text:?} is no number")),
        Err(_) => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
            Ok(u64::from(now.subsec_nanos()))
        }
    }
}

struct Lab {
    mesh: Mesh,
    crowd: Host,
    key: SetupKey,
    rng: Pcg32,
    /// The nodes that must be there, and their names.
    nodes: BTreeMap<u64, String>,
    /// As long as what happens in a round takes, measured now and then.
    latest_kill: Duration,
    tally: Tally,
}

/// A change that was asked for, and what it does when it comes true.
struct Change {
    command: Process,
    node: u64,
    /// `None`: the node is removed.
    new_name: Option<String>,
    acknowledged: bool,
}

#[derive(Default)]
struct Tally {
    servers: usize,
    agents: usize,
    commands: usize,
    acknowledged: usize,
    /// Not acknowledged, and done.
    done: usize,
    undone: usize,
}

impl Tally {
    fn is_telling(&self) -> bool {
        let all = self.acknowledged + self.done + self.undone;
        all > 0 && [self.acknowledged, self.undone].iter().all(|part| *part >= all.div_ceil(50))
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { servers, agents, commands, acknowledged, done, undone } = self;
        write!(f, "killed: {servers} servers, {agents} agents, {commands} commands; ")?;
        write!(f, "changes: {acknowledged} acknowledged, {done} done unheard, {undone} not done")
    }
}

impl Lab {
    fn start(s: &Scenario, database: Database, seed: u64) -> Result<Self> {
        let mesh = Mesh::plan(2, LASTING).database(database).start(s)?;
        let crowd = mesh.bystander("crowd", 0)?;
        let key: SetupKey = mesh.setup_key.parse()?;
        let rng = Pcg32::seed_from_u64(seed);
        let (nodes, latest_kill, tally) = (BTreeMap::new(), Duration::ZERO, Tally::default());
        let mut lab = Self { mesh, crowd, key, rng, nodes, latest_kill, tally };
        lab.mesh.add_agent(LASTING)?;
        for number in 0..4 {
            let member = Member::new(format!("first-{number}"))?;
            lab.join(&member, 0)?;
        }
        lab.nodes = lab.listed()?.into_iter().map(|(id, node)| (id, node.name)).collect();
        lab.time_changes()?;
        Ok(lab)
    }

    /// Renames the newest node, which is no agent, a few times with nobody killed, so that kills come while changes are made, on any machine.
    fn time_changes(&mut self) -> Result<()> {
        let id = *self.nodes.keys().next_back().context("nobody to rename")?;
        let mut took = Vec::new();
        for number in 0..TIMED_CHANGES {
            let (begun, name) = (Instant::now(), format!("timed-{id}-{number}"));
            let renamed = self.mesh.servers[0].command(&["node", "rename", &id.to_string(), &name])?;
            ensure!(renamed.status.success(), "{}", String::from_utf8_lossy(&renamed.stderr));
            took.push(begun.elapsed());
            self.nodes.insert(id, name);
        }
        took.sort_unstable();
        self.latest_kill = took[TIMED_CHANGES / 2];
        Ok(())
    }

    fn round(&mut self, number: usize) -> Result<()> {
        let has_newcomer = number.is_multiple_of(NEWCOMER_EVERY);
        if has_newcomer {
            let newcomer = &mut self.mesh.agents[usize::from(LASTING)];
            newcomer.state_directory.set_file_name(format!("newcomer-{number}"));
            newcomer.launch()?;
        }
        let member = Member::new(format!("joins-{number}"))?;
        let (server, moment) =
            (self.rng.random_range(0..2), self.rng.random_range(Duration::ZERO..self.latest_kill));
        let mut changes = self.begin_changes(number)?;
        let (crowd, key, address) = (self.crowd.clone(), self.key.clone(), self.address(server)?);
        let heard = std::thread::scope(|scope| {
            let joining =
                scope.spawn(|| within(&crowd.namespace, || async { member.join(address, &key).await }));
            // Not a wait for anything: the moment of the kill.
            std::thread::sleep(moment);
            self.kill_some(&mut changes, has_newcomer)?;
            joining.join().map_err(|_| anyhow::anyhow!("the enrolment panicked")).map(Result::ok)
        })?;
        let node = self.join(&member, 1 - server)?;
        ensure!(heard.is_none_or(|heard| heard.0 == node), "an acknowledged enrolment became another node");
        self.settle_changes(changes)?;
        if has_newcomer {
            self.newcomer_is_one_node()?;
        }
        if number.is_multiple_of(COMPARED_EVERY) {
            self.agents_know_what_the_database_does()?;
            self.time_changes()?;
        }
        Ok(())
    }

    fn address(&self, server: usize) -> Result<SocketAddr> {
        Ok(self.mesh.servers[server].url.parse()?)
    }

    /// Enrols somebody, for the first time or again.
    fn join(&mut self, member: &Member, server: usize) -> Result<u64> {
        let (address, key) = (self.address(server)?, &self.key);
        let node = within(&self.crowd.namespace, || async { member.join(address, key).await })?.0;
        self.nodes.insert(node, member.hostname.clone());
        Ok(node)
    }

    /// A rename and a removal, of nodes that no agent is.
    fn begin_changes(&mut self, number: usize) -> Result<Vec<Change>> {
        let lasting: Vec<String> = self.mesh.agents.iter().map(|agent| agent.name.clone()).collect();
        let mut free: Vec<u64> =
            self.nodes.iter().filter(|(_, name)| !lasting.contains(name)).map(|(id, _)| *id).collect();
        let mut pick = || {
            let chosen = self.rng.random_range(0..free.len());
            free.swap_remove(chosen)
        };
        let (renamed, removed) = (pick(), pick());
        let (server, new_name) = (&self.mesh.servers[0], format!("named-{number}"));
        let rename = server.begin(&["node", "rename", &renamed.to_string(), &new_name])?;
        let remove = server.begin(&["node", "remove", &removed.to_string()])?;
        let change = |command, node, new_name| Change { command, node, new_name, acknowledged: false };
        Ok(vec![change(rename, renamed, Some(new_name)), change(remove, removed, None)])
    }

    /// Kills at least one of all, then starts again what is to run.
    fn kill_some(&mut self, changes: &mut [Change], has_newcomer: bool) -> Result<()> {
        let (servers, agents) = (self.mesh.servers.len(), usize::from(LASTING));
        let all = servers + agents + changes.len();
        let mut chosen: BTreeSet<usize> = (0..all).filter(|_| self.rng.random_bool(0.3)).collect();
        chosen.insert(self.rng.random_range(0..all));
        let killed = |range: std::ops::Range<usize>| -> Vec<usize> {
            range
                .clone()
                .filter(|victim| chosen.contains(victim))
                .map(|victim| victim - range.start)
                .collect()
        };
        let (killed_servers, mut killed_agents) = (killed(0..servers), killed(servers..servers + agents));
        if has_newcomer {
            killed_agents.push(agents);
        }
        // First what ends by itself soon.
        for victim in killed(servers + agents..all) {
            self.tally.commands += usize::from(changes[victim].command.kill_unless_ended()?);
        }
        for victim in &killed_servers {
            self.mesh.servers[*victim].kill()?;
        }
        for victim in &killed_agents {
            self.mesh.agents[*victim].kill()?;
        }
        self.tally.servers += killed_servers.len();
        self.tally.agents += killed_agents.len();
        self.start_again(&killed_servers, &killed_agents)
    }

    fn start_again(&mut self, servers: &[usize], agents: &[usize]) -> Result<()> {
        for server in servers {
            self.mesh.servers[*server].launch()?;
        }
        for agent in agents {
            self.mesh.agents[*agent].launch()?;
        }
        for server in servers {
            self.mesh.servers[*server].wait_listening()?;
        }
        for agent in agents.iter().filter(|agent| **agent < usize::from(LASTING)) {
            let agent = &mut self.mesh.agents[*agent];
            agent.follow()?;
            agent.wait_now(TIMEOUT, "has its map at once", |status| !status.peers.is_empty())?;
        }
        Ok(())
    }

    /// Waits for the commands to end, and compares what they said with the database.
    fn settle_changes(&mut self, mut changes: Vec<Change>) -> Result<()> {
        for change in &mut changes {
            let status = change.command.wait_end(COMMAND_TIMEOUT)?;
            change.acknowledged = status.success();
            ensure!(status.code().is_none_or(|code| code == 0), "{}: {status}", change.command.log_tail(3));
        }
        let listed = self.listed()?;
        for change in changes {
            let now = listed.get(&change.node).map(|node| node.name.clone());
            let is_done = now == change.new_name;
            ensure!(
                is_done || !change.acknowledged,
                "{} was acknowledged and is not so",
                change.command.name
            );
            match (change.acknowledged, is_done) {
                (true, _) => self.tally.acknowledged += 1,
                (false, true) => self.tally.done += 1,
                (false, false) => self.tally.undone += 1,
            }
            match change.new_name {
                Some(name) if is_done => drop(self.nodes.insert(change.node, name)),
                None if is_done => drop(self.nodes.remove(&change.node)),
                Some(_) | None => {}
            }
        }
        self.compare(&listed)
    }

    fn compare(&self, listed: &BTreeMap<u64, Listed>) -> Result<()> {
        let newcomer = &self.mesh.agents[usize::from(LASTING)].name;
        let names: BTreeMap<u64, String> = listed
            .iter()
            .filter(|(id, node)| self.nodes.contains_key(id) || !node.name.starts_with(newcomer.as_str()))
            .map(|(id, node)| (*id, node.name.clone()))
            .collect();
        ensure!(names == self.nodes, "the database has {names:?}, and acknowledged was {:?}", self.nodes);
        let addresses: BTreeSet<&String> = listed.values().flat_map(|node| &node.addresses).collect();
        ensure!(
            addresses.len() == 2 * listed.len(),
            "{} nodes have {} addresses",
            listed.len(),
            addresses.len()
        );
        let different: BTreeSet<&String> = listed.values().map(|node| &node.name).collect();
        ensure!(different.len() == listed.len(), "two nodes have one name: {listed:?}");
        Ok(())
    }

    /// Whose first start was killed becomes one node, under one key.
    fn newcomer_is_one_node(&mut self) -> Result<()> {
        let newcomer = &mut self.mesh.agents[usize::from(LASTING)];
        newcomer.follow()?;
        let status = newcomer.wait_now(TIMEOUT, "is a member", |status| !status.own.addresses.is_empty())?;
        newcomer.kill()?;
        let name = newcomer.name.clone();
        let listed = self.listed()?;
        let new: Vec<_> = listed.iter().filter(|(id, _)| !self.nodes.contains_key(id)).collect();
        let [(id, node)] = new[..] else {
            anyhow::bail!("{name} was killed in its first start and became {new:?}")
        };
        ensure!(node.key == status.own.public_key, "{name} is another node than it says: {node:?}");
        self.nodes.insert(*id, node.name.clone());
        let id = id.to_string();
        let removed = self.mesh.servers[0].command(&["node", "remove", &id])?;
        ensure!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
        self.nodes.retain(|node, _| node.to_string() != id);
        Ok(())
    }

    fn agents_know_what_the_database_does(&self) -> Result<()> {
        let names: BTreeSet<&String> = self.nodes.values().collect();
        for agent in &self.mesh.agents[..usize::from(LASTING)] {
            agent.wait_now(TIMEOUT, "is served and knows every node by its name", |status| {
                let own = [&status.own.name];
                let known: BTreeSet<&String> =
                    status.peers.iter().map(|peer| &peer.name).chain(own).collect();
                status.served_by().is_some() && known == names
            })?;
        }
        Ok(())
    }

    fn listed(&self) -> Result<BTreeMap<u64, Listed>> {
        let nodes = self.mesh.servers[0].json(&["node", "list"])?;
        let nodes: Vec<Listed> = serde_json::from_value(nodes)?;
        Ok(nodes.into_iter().map(|node| (node.id, node)).collect())
    }
}

/// What `server node list --json` says of a node.
#[derive(Debug, serde::Deserialize)]
struct Listed {
    id: u64,
    name: String,
    #[serde(rename = "public_key")]
    key: String,
    addresses: Vec<String>,
}

/// No revision is missing, and the file is sound.
fn log_is_whole(s: &mut Scenario, mesh: &Mesh) -> Result<()> {
    const REVISIONS: &str = "select count(*) = max(revision) - min(revision) + 1 from changes";
    let (whole, sound) = match &mesh.postgres {
        Some(postgres) => (postgres.psql("holdfast", REVISIONS)? == "t", true),
        None => {
            let file = rusqlite::Connection::open(s.directory.join("cluster.db"))?;
            let sound: String = file.query_row("pragma integrity_check", [], |row| row.get(0))?;
            (file.query_row(REVISIONS, [], |row| row.get(0))?, sound == "ok")
        }
    };
    s.require(whole, "a revision is missing in the log");
    s.require(sound, "the database file is damaged");
    Ok(())
}
