//! Servers and agents on one switch: what most scenarios start from.
//!
//! ```text
//!   s1 192.0.2.11 ─┐         ┌─ a1 192.0.2.101
//!   s2 192.0.2.12 ─┤ switch  ├─ a2 192.0.2.102
//!   s3 192.0.2.13 ─┤         ├─ ..
//!   db 192.0.2.5 ──┘         └─
//! ```
//!
//! The database is one SQLite file for all servers, or a Postgres on `db`; in front of that may be a proxy
//! (`px 192.0.2.6`), and beside it a standby (`db2 192.0.2.7`).

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::agent::Agent;
use crate::ping::Pinger;
use crate::postgres::Postgres;
use crate::proxy::Proxy;
use crate::scenario::Scenario;
use crate::server::{Cluster, Server};
use crate::topology::{Host, Switch, address_in};

const UNDERLAY: [u8; 3] = [192, 0, 2];
const DATABASE_HOST: u8 = 5;
const PROXY_HOST: u8 = 6;
const STANDBY_HOST: u8 = 7;
const FIRST_SERVER: u8 = 11;
const FIRST_BYSTANDER: u8 = 41;
const FIRST_AGENT: u8 = 101;
/// The pace at which open tunnels are watched.
pub const FIVE_MS: Duration = Duration::from_millis(5);
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Which database the servers share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Database {
    #[default]
    Sqlite,
    Postgres,
}

/// What to build.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    servers: u8,
    agents: u8,
    database: Database,
    options: Vec<String>,
    server_options: Vec<String>,
    has_proxy: bool,
}

/// A mesh that runs. Dropped, everything in it ends.
pub struct Mesh {
    pub agents: Vec<Agent>,
    pub servers: Vec<Server>,
    pub proxy: Option<Proxy>,
    pub postgres: Option<Postgres>,
    pub switch: Switch,
    pub cluster: Cluster,
    pub setup_key: String,
    agent_program: std::path::PathBuf,
    options: Vec<String>,
    server_options: Vec<String>,
}

impl Plan {
    pub fn database(mut self, database: Database) -> Self {
        self.database = database;
        self
    }

    /// More options for every agent's `up`.
    pub fn options(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(|option| (*option).to_owned()));
        self
    }

    /// More options for every server's `run`.
    pub fn server_options(mut self, options: &[&str]) -> Self {
        self.server_options.extend(options.iter().map(|option| (*option).to_owned()));
        self
    }

    /// A Postgres behind a proxy: servers are told of the proxy alone.
    pub fn behind_proxy(mut self) -> Self {
        self.has_proxy = true;
        self.database(Database::Postgres)
    }

    /// Builds the network, starts all servers, and then all agents; returns when everybody is served, has a standby
    /// where there is one to have, and knows everybody.
    pub fn start(self, scenario: &Scenario) -> Result<Mesh> {
        let mut mesh = self.servers_only(scenario)?;
        for number in 0..self.agents {
            mesh.add_agent(number)?;
        }
        mesh.start_agents()?;
        Ok(mesh)
    }

    /// The same without agents.
    pub fn servers_only(&self, scenario: &Scenario) -> Result<Mesh> {
        let mut mesh = self.database_only(scenario)?;
        mesh.start_servers(self.servers)?;
        Ok(mesh)
    }

    /// The network and the database, without any server.
    pub fn database_only(&self, scenario: &Scenario) -> Result<Mesh> {
        let switch = Switch::new()?;
        let directory = scenario.directory.clone();
        let postgres = match self.database {
            Database::Sqlite => None,
            Database::Postgres => {
                let (host, address) = host_at(&switch, "db", DATABASE_HOST)?;
                Some(Postgres::start(host, address, &directory.join("postgres"))?)
            }
        };
        let database = match &postgres {
            Some(postgres) => postgres.url(),
            None => format!("sqlite:{}", directory.join("cluster.db").display()),
        };
        let cluster = Cluster { program: scenario.binaries.server.clone(), directory, database };
        let mut mesh = Mesh {
            agents: Vec::new(),
            servers: Vec::new(),
            proxy: None,
            postgres,
            switch,
            cluster,
            setup_key: String::new(),
            agent_program: scenario.binaries.agent.clone(),
            options: self.options.clone(),
            server_options: self.server_options.clone(),
        };
        if self.has_proxy {
            mesh.add_proxy()?;
        }
        Ok(mesh)
    }
}

/// A host with the address of this number.
fn host_at(switch: &Switch, name: &str, last: u8) -> Result<(Host, Ipv4Addr)> {
    let (host, address) = (Host::new(name)?, address_in(UNDERLAY, last));
    switch.attach(&host, &format!("{address}/24"))?;
    Ok((host, address))
}

impl Mesh {
    pub fn plan(servers: u8, agents: u8) -> Plan {
        Plan { servers, agents, ..Plan::default() }
    }

    /// Starts as many servers, the first of which makes the cluster and a setup key.
    pub fn start_servers(&mut self, servers: u8) -> Result<()> {
        for number in 0..servers {
            self.add_server(number)?.start()?;
        }
        self.setup_key = self.servers.first().context("a mesh has a server")?.first_setup_key()?;
        Ok(())
    }

    /// Puts a proxy in front of the Postgres: servers that are added later know it alone.
    pub fn add_proxy(&mut self) -> Result<()> {
        let target = self.postgres()?.authority().parse()?;
        let (host, address) = host_at(&self.switch, "px", PROXY_HOST)?;
        let proxy = Proxy::start(&host, address, target)?;
        self.cluster.database =
            self.postgres()?.url().replace(&target.to_string(), &proxy.address.to_string());
        self.proxy = Some(proxy);
        Ok(())
    }

    /// A second Postgres that follows the first.
    pub fn add_standby(&self) -> Result<Postgres> {
        let (host, address) = host_at(&self.switch, "db2", STANDBY_HOST)?;
        Postgres::standby_of(self.postgres()?, host, address, &self.cluster.directory.join("postgres2"))
    }

    pub fn postgres(&self) -> Result<&Postgres> {
        self.postgres.as_ref().context("this mesh has no Postgres")
    }

    pub fn postgres_mut(&mut self) -> Result<&mut Postgres> {
        self.postgres.as_mut().context("this mesh has no Postgres")
    }

    pub fn proxy(&self) -> Result<&Proxy> {
        self.proxy.as_ref().context("this mesh has no proxy")
    }

    /// Adds server number `number` (from 0), without starting it.
    pub fn add_server(&mut self, number: u8) -> Result<&mut Server> {
        let address = address_in(UNDERLAY, FIRST_SERVER + number);
        let host = Host::new(format!("s{}", number + 1))?;
        let port = self.switch.attach(&host, &format!("{address}/24"))?;
        let mut server = Server::new(&self.cluster, host, port, address);
        server.add_options(&self.server_options);
        self.servers.push(server);
        self.servers.last_mut().context("just pushed")
    }

    /// Adds agent number `number` (from 0), without starting it.
    pub fn add_agent(&mut self, number: u8) -> Result<&mut Agent> {
        let agent = self.new_agent(number, &self.switch)?;
        self.push_agent(agent)
    }

    /// The same on a switch that somehow leads to the mesh's.
    pub fn add_agent_on(&mut self, switch: &Switch, number: u8) -> Result<&mut Agent> {
        let agent = self.new_agent(number, switch)?;
        self.push_agent(agent)
    }

    fn new_agent(&self, number: u8, switch: &Switch) -> Result<Agent> {
        let address = address_in(UNDERLAY, FIRST_AGENT + number);
        let host = Host::new(format!("a{}", number + 1))?;
        let port = switch.attach(&host, &format!("{address}/24"))?;
        let directory = &self.cluster.directory;
        let mut agent = Agent::new(&self.agent_program, directory, host, port, address);
        let urls: Vec<&str> = self.servers.iter().map(|server| server.url.as_str()).collect();
        let options = ["--servers", &urls.join(","), "--setup-key", &self.setup_key];
        agent.options.extend(options.map(str::to_owned));
        agent.options.extend(self.options.iter().cloned());
        Ok(agent)
    }

    fn push_agent(&mut self, agent: Agent) -> Result<&mut Agent> {
        self.agents.push(agent);
        self.agents.last_mut().context("just pushed")
    }

    /// A host on the switch for programs of the scenario's own; `number` from 0.
    pub fn bystander(&self, name: &str, number: u8) -> Result<Host> {
        Ok(host_at(&self.switch, name, FIRST_BYSTANDER + number)?.0)
    }

    /// A Postgres beside the SQLite file that the servers are on.
    pub fn add_postgres(&self) -> Result<Postgres> {
        let (host, address) = host_at(&self.switch, "db", DATABASE_HOST)?;
        Postgres::start(host, address, &self.cluster.directory.join("postgres"))
    }

    /// Starts the agents that were added, and waits until they are served and know each other.
    pub fn start_agents(&mut self) -> Result<()> {
        for agent in &mut self.agents {
            agent.launch()?;
        }
        for agent in &mut self.agents {
            agent.follow()?;
        }
        self.settle()?;
        let peers = self.agents.len().saturating_sub(1);
        for agent in &self.agents {
            agent.wait_now(SETTLE_TIMEOUT, "knows every peer", |status| status.peers.len() == peers)?;
        }
        Ok(())
    }

    /// Waits until every agent is served, with a standby where a second server runs.
    pub fn settle(&self) -> Result<()> {
        let running = self.servers.iter().filter(|server| server.is_running()).count();
        for agent in &self.agents {
            agent.wait_now(SETTLE_TIMEOUT, "is served and has a standby", |status| {
                status.served_by().is_some() && (running < 2 || status.has_standby())
            })?;
        }
        Ok(())
    }

    /// The server that serves most agents, once all are settled.
    pub fn busiest_server(&self) -> Result<usize> {
        self.settle()?;
        let mut count = vec![0; self.servers.len()];
        for agent in &self.agents {
            if let Some(server) = self.server_of(agent)? {
                count[server] += 1;
            }
        }
        let busiest = (0..count.len()).max_by_key(|server| count[*server]);
        busiest.context("a mesh has a server")
    }

    /// Which of our servers serves `agent` now.
    pub fn server_of(&self, agent: &Agent) -> Result<Option<usize>> {
        let status = agent.status()?;
        let url = status.served_by().map(|server| server.url.clone());
        Ok(url.and_then(|url| self.servers.iter().position(|server| url.contains(&server.url))))
    }

    /// The agents that server number `server` serves now.
    pub fn served_by(&self, server: usize) -> Result<Vec<Served>> {
        let mut served = Vec::new();
        for (agent, node) in self.agents.iter().enumerate() {
            if self.server_of(node)? == Some(server) {
                let status = node.status()?;
                let by = status.served_by().map(|server| server.id.clone()).unwrap_or_default();
                served.push(Served { agent, by });
            }
        }
        Ok(served)
    }

    /// How long after `fault` each of the agents was served by another server than before.
    pub fn moved(&self, served: &[Served], fault: Instant, timeout: Duration) -> Result<Vec<Duration>> {
        let span = |served: &Served| -> Result<Duration> {
            let agent = &self.agents[served.agent];
            let (at, _) = agent.wait(fault, timeout, "is served by another server", |status| {
                status.served_by().is_some_and(|server| server.id != served.by)
            })?;
            Ok(at - fault)
        };
        served.iter().map(span).collect()
    }

    /// Opens the tunnel between each pair of neighbours (a1 to a2, a3 to a4, ..) and pings across it from then on.
    pub fn ping_pairs(&self) -> Result<Vec<Pinger>> {
        self.agents.chunks_exact(2).map(|pair| ping(&pair[0], &pair[1])).collect()
    }
}

/// An agent (its place in [`Mesh::agents`]) and the id of the server that served it.
#[derive(Clone, Debug)]
pub struct Served {
    pub agent: usize,
    pub by: String,
}

/// The overlay address of `peer` as `agent`'s map has it, as soon as it has it.
pub fn overlay_address(agent: &Agent, peer: &Agent) -> Result<Ipv4Addr> {
    let status =
        agent.wait_now(SETTLE_TIMEOUT, "knows its peer", |status| status.peer(&peer.name).is_some())?;
    status.peer(&peer.name).context("it was just there")?.address()
}

/// Opens the tunnel from `agent` to `peer`, then starts a meter across it.
pub fn ping(agent: &Agent, peer: &Agent) -> Result<Pinger> {
    let target = overlay_address(agent, peer)?;
    let name = format!("{} to {}", agent.name, peer.name);
    let opening = Pinger::start(&name, &agent.host.namespace, target, Duration::from_millis(100))?;
    opening.first_reply_after(
        Instant::now().checked_sub(FIVE_MS).context("time began before")?,
        SETTLE_TIMEOUT,
    )?;
    opening.finish()?;
    Pinger::start(name, &agent.host.namespace, target, FIVE_MS)
}
