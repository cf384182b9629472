//! The world: everything there is, one clock, one queue.

use crate::{
    callers::Caller,
    check::CHECK_INTERVAL,
    claims::Claimed,
    database::Database,
    event::{Event, Queue},
    faults::Fault,
    gossip::Gossip,
    members,
    network::{Host, Network},
    node::Node,
    routes::Routes,
    server::Server,
    stream::{Stream, StreamId},
    trace::Trace,
    traffic::Flow,
};
use agent_core::{
    BootTime, Config,
    claims::ClaimsConfig,
    config::{ControlConfig, PeerConfig, PeerMode},
};
use proto::{
    server_url::ServerUrl,
    session::{Facts, ServerId},
    time::UnixTime,
};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;
use std::{collections::BTreeMap, time::Duration};

/// How the world is at its start.
#[derive(Debug, Clone)]
pub struct Setup {
    pub agents: usize,
    pub servers: usize,
    /// Between a machine and the core, on average; each machine's own is a half to one and a half of it.
    pub latency: Duration,
    /// Servers are named, and names must be looked up.
    pub named: bool,
    /// Servers are known by the address of a balancer alone.
    pub balanced: bool,
    pub peer_mode: PeerMode,
    /// Servers ask for failovers to be spread over this.
    pub spread: Duration,
    /// How long a certificate lives; `None`: for ever.
    pub lifetime: Option<Duration>,
    /// What nodes claim, and how clients choose among them.
    pub claims: Vec<Claimed>,
    pub choosing: ClaimsConfig,
    /// Keeps the last events as text. Slow.
    pub traced: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            agents: 2,
            servers: 3,
            latency: Duration::from_millis(4),
            named: false,
            balanced: false,
            peer_mode: PeerMode::Lazy,
            spread: Duration::ZERO,
            lifetime: None,
            claims: Vec::new(),
            choosing: ClaimsConfig::default(),
            traced: true,
        }
    }
}

/// See the crate's documentation.
#[derive(Debug)]
pub struct World {
    pub(crate) seed: u64,
    pub(crate) now: BootTime,
    pub(crate) queue: Queue,
    pub(crate) rng: Pcg32,
    pub(crate) network: Network,
    pub(crate) database: Database,
    pub(crate) database_away: bool,
    pub(crate) names_away: bool,
    /// When the root was last changed.
    pub(crate) rotated_at: BootTime,
    /// When the cluster's policy was.
    pub(crate) policy_changed_at: BootTime,
    pub(crate) routes: Routes,
    pub(crate) servers: Vec<Server>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) streams: BTreeMap<StreamId, Stream>,
    pub(crate) next_stream: u64,
    pub(crate) flows: Vec<Flow>,
    pub(crate) claims: Vec<Claimed>,
    pub(crate) callers: Vec<Caller>,
    pub(crate) gossip: Gossip,
    pub(crate) trace: Trace,
}

fn url(server: usize, setup: &Setup) -> ServerUrl {
    let literal = ServerUrl::from(Routes::new(setup.servers, setup.balanced).addr_of(server));
    let name = if setup.balanced { "balancer".to_owned() } else { format!("server{server}") };
    match setup.named {
        true => format!("{name}.example").parse().unwrap_or(literal),
        false => literal,
    }
}

/// Each agent prefers another server.
fn servers(agent: usize, setup: &Setup) -> Vec<ServerUrl> {
    let mut urls: Vec<ServerUrl> =
        (0..setup.servers).map(|server| url((server + agent) % setup.servers, setup)).collect();
    urls.dedup();
    urls
}

fn config(at: usize, setup: &Setup) -> Config {
    let claims = setup.claims.iter().filter(|claimed| claimed.agent == at).map(|claimed| claimed.claim);
    Config {
        servers: servers(at, setup),
        facts: Facts { hostname: format!("agent{at}"), claims: claims.collect(), ..Facts::default() },
        control: ControlConfig::default(),
        peer: PeerConfig { mode: setup.peer_mode, ..PeerConfig::default() },
        claims: setup.choosing.clone(),
    }
}

impl World {
    /// All servers and agents start; no agent is a member yet.
    pub fn new(setup: &Setup, seed: u64) -> Self {
        let database = Database::new(setup.servers, setup.lifetime, &setup.claims);
        let server = |at: usize| Server {
            spread: setup.spread,
            process: crate::server::Process::Dead,
            ..Server::new(at, url(at, setup), &database.head)
        };
        let servers: Vec<Server> = (0..setup.servers).map(server).collect();
        let mut world = Self {
            seed,
            // Nothing may depend on the clock beginning at zero.
            now: BootTime::from_duration(Duration::from_secs(1000)),
            queue: Queue::default(),
            rng: Pcg32::seed_from_u64(seed ^ 0xc0de),
            network: Network::new(setup.agents, setup.servers, setup.latency, seed),
            database,
            database_away: false,
            names_away: false,
            rotated_at: BootTime::default(),
            policy_changed_at: BootTime::default(),
            routes: Routes::new(setup.servers, setup.balanced),
            servers,
            nodes: (0..setup.agents).map(|at| Node::new(at, config(at, setup), setup.servers)).collect(),
            streams: BTreeMap::new(),
            next_stream: 0,
            flows: Vec::new(),
            claims: setup.claims.clone(),
            callers: Vec::new(),
            gossip: Gossip::default(),
            trace: Trace::new(setup.traced),
        };
        (0..setup.servers).for_each(|server| world.apply(&Fault::Start(server)));
        (0..setup.agents).for_each(|agent| world.apply(&Fault::Launch(agent)));
        world.queue.push(world.now + CHECK_INTERVAL, Event::Check);
        world
    }

    /// A world in which everyone is served, has a standby where there can be one, and holds the newest map.
    pub fn settled(setup: &Setup, seed: u64) -> Self {
        let mut world = Self::new(setup, seed);
        world.until("everyone is served", Duration::from_secs(20), |world| {
            (0..world.nodes.len()).all(|agent| world.is_served(agent) && world.has_newest_map(agent))
        });
        world.run_for(Duration::from_secs(2));
        world
    }

    pub fn now(&self) -> BootTime {
        self.now
    }

    /// Everything that happens within `span`.
    pub fn run_for(&mut self, span: Duration) {
        let end = self.now + span;
        while self.queue.next_at().is_some_and(|at| at <= end) {
            self.step();
        }
        self.now = end;
    }

    /// Runs until it holds; returns after how long.
    ///
    /// # Panics
    /// It does not within `limit`.
    pub fn until(&mut self, what: &str, limit: Duration, mut holds: impl FnMut(&Self) -> bool) -> Duration {
        let start = self.now;
        while !holds(self) {
            if self.now.since(start) > limit || !self.step() {
                let agents: Vec<String> = (0..self.nodes.len()).map(|agent| self.describe(agent)).collect();
                self.fail(&format!("not within {limit:?}: {what}; {}", agents.join("; ")));
            }
        }
        self.now.since(start)
    }

    fn describe(&self, agent: usize) -> String {
        let (server, newest) = (self.server_of(agent), self.has_newest_map(agent));
        format!("agent {agent} is served by {server:?}, newest map: {newest}")
    }

    /// The same seed and inputs have the same.
    pub fn trace_hash(&self) -> u64 {
        self.trace.hash()
    }

    fn step(&mut self) -> bool {
        let Some((at, event)) = self.queue.pop() else { return false };
        self.now = self.now.max(at);
        self.handle(event);
        true
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Wake { agent, life } => self.on_wake(agent, life),
            Event::Tick { agent, life } => self.on_tick(agent, life),
            Event::Tunnel { agent, life, event } => self.on_tunnel_event(agent, life, event),
            Event::Resolved { agent, life, url } => self.on_resolved(agent, life, &url),
            Event::Kept { agent, life, root } => self.on_kept(agent, life, root),
            Event::Datagram { from, to, body } => self.on_datagram(from, to, body),
            Event::Syn(stream, attempt) => self.on_syn(stream, attempt),
            Event::Accept(stream) => self.on_accept(stream),
            Event::DialTimeout(stream) => self.on_dial_timeout(stream),
            Event::Reset(stream) => self.on_reset(stream),
            Event::Arrive(stream, lane) => self.on_arrive(stream, lane),
            Event::Retry(stream, lane) => self.on_retry(stream, lane),
            Event::ServerTick { server, life } => self.on_server_tick(server, life),
            Event::Follow { server, life } => self.on_follow(server, life),
            Event::Publish { server, life } => self.on_publish(server, life),
            Event::Report { server, life } => self.on_report(server, life),
            Event::Mail { server, node, signal } => self.on_mail(server, node, signal),
            Event::Round { server, life } => self.on_round(server, life),
            Event::DrainEnd { server, life } => self.on_drain_end(server, life),
            Event::Flow(flow) => self.on_flow(flow),
            Event::Call(caller) => self.on_call(caller),
            Event::Look { agent, life } => self.on_look(agent, life),
            Event::Fault(fault) => self.apply(&fault),
            Event::Check => self.on_check(),
        }
    }

    pub(crate) fn jitter(&mut self, span: Duration) -> Duration {
        span.mul_f64(self.rng.random_range(0.1..=1.0))
    }

    /// The true wall-clock time.
    pub(crate) fn unix_ms(&self) -> u64 {
        members::EPOCH_S * 1000 + self.now.since_boot().as_millis() as u64
    }

    pub(crate) fn time(&self) -> UnixTime {
        UnixTime(self.unix_ms() / 1000)
    }

    /// The session that an agent takes for the one that serves it.
    fn serving_stream(&self, agent: usize) -> Option<StreamId> {
        let node = &self.nodes[agent];
        node.agent.as_ref()?.serving().and_then(|conn| node.streams.get(&conn).copied())
    }

    /// The server that serves an agent, if both say so and nothing between them is broken.
    pub fn server_of(&self, agent: usize) -> Option<usize> {
        let id = self.serving_stream(agent)?;
        let stream = self.streams.get(&id)?;
        let server = &self.servers[stream.server];
        let agrees = server.sessions.get(&id).is_some_and(|session| session.serving.is_some());
        let passes = |from, to| self.network.passes(from, to);
        let (one, other) = (Host::Agent(agent), Host::Server(stream.server));
        let sound = server.is_alive() && !server.frozen && passes(one, other) && passes(other, one);
        let routed = self.routes.leads_to(stream.addr, stream.server);
        let node = &self.nodes[agent];
        let current = node.is_awake() && stream.moves == node.moves;
        (agrees && sound && routed && current).then_some(stream.server)
    }

    pub fn is_served(&self, agent: usize) -> bool {
        self.server_of(agent).is_some()
    }

    /// Times that an agent moved from one server to another.
    pub fn failovers(&self, agent: usize) -> u64 {
        self.nodes[agent].told.failovers
    }

    /// Whether an agent has a standby.
    pub fn has_standby(&self, agent: usize) -> bool {
        let serving = self.serving_stream(agent);
        let is_standby = |(id, session): (&StreamId, &crate::session::Session)| {
            session.agent == agent && Some(*id) != serving && session.serving.is_none()
        };
        let healthy = self.servers.iter().filter(|server| server.is_healthy());
        healthy.flat_map(|server| &server.sessions).any(is_standby)
    }

    /// How many servers there are, running or not.
    pub fn servers(&self) -> usize {
        self.servers.len()
    }

    /// Whether the data plane of one agent has a session with the other's.
    pub fn has_tunnel(&self, one: usize, other: usize) -> bool {
        self.nodes[one].tunnel.has_session(&members::of(other).key)
    }

    /// Whether an agent learnt that it is a member no more.
    pub fn is_removed(&self, agent: usize) -> bool {
        self.nodes[agent].agent.as_ref().is_some_and(|agent| !agent.is_enrolled())
            && self.nodes[agent].is_refused
    }

    /// Whether an agent knows the other as a peer.
    pub fn knows(&self, one: usize, other: usize) -> bool {
        let agent = self.nodes[one].agent.as_ref();
        agent.is_some_and(|agent| agent.name_of(&members::of(other).key).is_some())
    }

    /// Sets how an agent keeps its peers, as a person would.
    pub fn set_peer_mode(&mut self, agent: usize, mode: PeerMode) {
        let config = PeerConfig { mode, ..self.nodes[agent].config.peer.clone() };
        self.nodes[agent].config.peer = config.clone();
        self.input(agent, |agent, now| agent.set_peer_config(config, now));
    }

    /// What a server calls itself.
    pub fn server_id(&self, server: usize) -> ServerId {
        self.servers[server].id
    }
}
