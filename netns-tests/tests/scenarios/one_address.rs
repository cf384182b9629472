//! One address with two machines behind it.
//!
//! ```text
//!   agents ── switch 192.0.2.0/24 ── router ── switch 198.51.100.0/24 ── s1, s2: both have 203.0.113.10
//! ```
//!
//! Anycast: the router's route moves. Shared IP: the address moves between two servers on the agents' own switch. In
//! both there is no other address to go to, so that no standby helps.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netns_tests::agent::Agent;
use netns_tests::capture::announce_address;
use netns_tests::figures::{Bound, Samples};
use netns_tests::mesh::ping;
use netns_tests::scenario::Scenario;
use netns_tests::server::{Cluster, Server};
use netns_tests::topology::{Host, Switch};

const ANYCAST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const SHARED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const ROUNDS: usize = 6;
const AGENTS: u8 = 4;
const BOUND: Duration = Duration::from_millis(1500);
const TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) fn anycast(s: &mut Scenario) -> Result<()> {
    let (near, far) = (Switch::new()?, Switch::new()?);
    let router = Host::router("router")?;
    let _ports = [near.attach(&router, "192.0.2.1/24")?, far.attach(&router, "198.51.100.1/24")?];
    let cluster = cluster(s);
    let mut servers = Vec::new();
    for number in 1..=2 {
        let host = Host::new(format!("s{number}"))?;
        let port = far.attach(&host, &format!("198.51.100.1{number}/24"))?;
        host.route("add default via 198.51.100.1")?;
        host.namespace.ip(&format!("addr add {ANYCAST}/32 dev lo"))?;
        servers.push(Server::new(&cluster, host, port, ANYCAST));
    }
    let to = |server: usize| router.route(&format!("replace {ANYCAST}/32 via 198.51.100.1{}", server + 1));
    to(0)?;
    servers.iter_mut().try_for_each(|server| server.start().map(drop))?;
    let agents = agents(s, &servers[0], &near, Some("192.0.2.1"))?;
    rounds(s, &agents, |round| to((round + 1) % 2))
}

pub(crate) fn shared_ip(s: &mut Scenario) -> Result<()> {
    let switch = Switch::new()?;
    let cluster = cluster(s);
    let mut servers = Vec::new();
    for number in 1..=2 {
        let host = Host::new(format!("s{number}"))?;
        let port = switch.attach(&host, &format!("192.0.2.1{number}/24"))?;
        // Listening on an address that is elsewhere for now, as keepalived's users do.
        host.namespace.sysctl("net/ipv4/ip_nonlocal_bind", "1")?;
        servers.push(Server::new(&cluster, host, port, SHARED));
    }
    let holds =
        |server: &Server, verb: &str| server.host.namespace.ip(&format!("addr {verb} {SHARED}/32 dev eth0"));
    holds(&servers[0], "add")?;
    servers.iter_mut().try_for_each(|server| server.start().map(drop))?;
    let agents = agents(s, &servers[0], &switch, None)?;
    rounds(s, &agents, |round| {
        holds(&servers[round % 2], "del")?;
        let next = &servers[(round + 1) % 2];
        holds(next, "add")?;
        announce_address(&next.host.namespace, "eth0", SHARED)
    })
}

fn cluster(s: &Scenario) -> Cluster {
    let database = format!("sqlite:{}", s.directory.join("cluster.db").display());
    Cluster { program: s.binaries.server.clone(), directory: s.directory.clone(), database }
}

fn agents(s: &Scenario, server: &Server, switch: &Switch, gateway: Option<&str>) -> Result<Vec<Agent>> {
    let key = server.first_setup_key()?;
    let mut agents = Vec::new();
    for number in 1..=AGENTS {
        let address = Ipv4Addr::new(192, 0, 2, 100 + number);
        let host = Host::new(format!("a{number}"))?;
        let port = switch.attach(&host, &format!("{address}/24"))?;
        if let Some(gateway) = gateway {
            host.route(&format!("add default via {gateway}"))?;
        }
        let mut agent = Agent::new(&s.binaries.agent, &s.directory, host, port, address);
        agent.options = ["--servers", &server.url, "--setup-key", &key].map(str::to_owned).to_vec();
        agent.start()?;
        agents.push(agent);
    }
    for agent in &agents {
        agent.wait_now(TIMEOUT, "is served and knows every peer", |status| {
            status.served_by().is_some() && status.peers.len() + 1 == usize::from(AGENTS)
        })?;
    }
    Ok(agents)
}

fn rounds(s: &mut Scenario, agents: &[Agent], move_address: impl Fn(usize) -> Result<()>) -> Result<()> {
    let pings = agents.chunks_exact(2).map(|pair| ping(&pair[0], &pair[1])).collect::<Result<_>>()?;
    let mut served_again = Samples::new("served by the other machine");
    for round in 0..ROUNDS {
        let before: Vec<String> = agents.iter().map(server_id).collect::<Result<_>>()?;
        let at = Instant::now();
        move_address(round)?;
        for (agent, before) in agents.iter().zip(&before) {
            let (moved, _) = agent.wait(at, TIMEOUT, "is served by the other machine", |status| {
                status.served_by().is_some_and(|server| server.id != *before)
            })?;
            served_again.push(moved - at);
        }
    }
    s.figure(&served_again, &[Bound::P99(BOUND)]);
    s.require(served_again.len() >= 20, "fewer than 20 rounds were measured");
    s.none_lost(pings)
}

fn server_id(agent: &Agent) -> Result<String> {
    let status = agent.wait_now(TIMEOUT, "is served", |status| status.served_by().is_some())?;
    Ok(status.served_by().context("it is served")?.id.clone())
}
