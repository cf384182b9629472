//! One agent's machine: the process, which may be down; its disk, which stays; its data plane.

use crate::{
    exclusive::Learnt,
    members,
    stream::StreamId,
    tunnel::{Body, Tunnel},
};
use agent_core::{Agent, BootTime, Config, ConnId, Saved};
use ipnet::IpNet;
use proto::{key::PublicKey, map::MapVersion, server_url::ServerUrl};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
};

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) at: usize,
    pub(crate) config: Config,
    pub(crate) agent: Option<Agent>,
    /// When its machine started: then its clock did.
    pub(crate) booted_at: BootTime,
    /// Counts its starts.
    pub(crate) life: u32,
    pub(crate) saved: Saved,
    pub(crate) cache: Vec<u8>,
    pub(crate) asleep: bool,
    /// What waits in the socket of a process that stands still.
    pub(crate) backlog: Option<VecDeque<(SocketAddr, SocketAddr, Body)>>,
    pub(crate) moves: u32,
    /// Its wall clock less the truth, seconds.
    pub(crate) clock_ahead_s: i64,
    pub(crate) tunnel: Tunnel,
    pub(crate) is_ticking: bool,
    /// When its data plane looks at those that it watches, at the latest.
    pub(crate) look_at: Option<BootTime>,
    pub(crate) wake_at: Option<BootTime>,
    pub(crate) streams: BTreeMap<ConnId, StreamId>,
    /// Servers refuse it, and it believes them.
    pub(crate) is_refused: bool,
    /// It told its peers that it goes.
    pub(crate) is_leaving: bool,
    /// What it serves is found wrong by its own check.
    pub(crate) is_failing: bool,
    /// What its machine cannot serve.
    pub(crate) unserved: BTreeSet<IpNet>,
    pub(crate) told: Told,
    pub(crate) watch: Watch,
}

/// What its notices said.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) failovers: u64,
    pub(crate) server: Option<proto::session::ServerId>,
    pub(crate) tunnels_up: u64,
    pub(crate) tunnels_down: u64,
    /// Who serves which prefix, and how often that changed, since it started.
    pub(crate) active: BTreeMap<IpNet, PublicKey>,
    pub(crate) switches: u64,
    /// To other agents, since it started.
    pub(crate) messages: u64,
    /// Handshakes that it began, and signals that it sent for one, since it started.
    pub(crate) initiations: u64,
    pub(crate) signals: u64,
    /// Sent to other agents and taken from them, of every kind, since it started.
    pub(crate) datagrams: u64,
}

/// What the invariants remember of it.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// The virtual second, and what was done in it.
    pub(crate) second: u64,
    pub(crate) steps: u32,
    pub(crate) version: MapVersion,
    /// Since when its process runs, awake, at one address.
    pub(crate) steady_since: BootTime,
    pub(crate) served_since: Option<BootTime>,
    /// Served by a server that has the database.
    pub(crate) synced_since: Option<BootTime>,
    pub(crate) last_synced_at: BootTime,
    pub(crate) last_served_at: BootTime,
    pub(crate) launched_at: BootTime,
    /// Since when it serves what it claims, and since when its agent knows that it must not.
    pub(crate) serving_since: BootTime,
    pub(crate) withdrawn_since: Option<BootTime>,
    /// The same of single claims.
    pub(crate) restored_at: BTreeMap<IpNet, BootTime>,
    pub(crate) unserved_since: BTreeMap<IpNet, BootTime>,
    /// Per server: since when it would serve this agent.
    pub(crate) good_since: Vec<Option<BootTime>>,
    /// What it followed and held of what is claimed exclusively.
    pub(crate) followed: BTreeMap<IpNet, Learnt>,
    pub(crate) held: BTreeMap<IpNet, Learnt>,
}

impl Node {
    pub(crate) fn new(at: usize, config: Config, servers: usize) -> Self {
        Self {
            at,
            config,
            agent: None,
            booted_at: BootTime::default(),
            life: 0,
            saved: Saved::default(),
            cache: Vec::new(),
            asleep: false,
            backlog: None,
            moves: 0,
            clock_ahead_s: 0,
            tunnel: Tunnel::new(members::of(at).key, 0),
            is_ticking: false,
            look_at: None,
            wake_at: None,
            streams: BTreeMap::new(),
            is_refused: false,
            is_leaving: false,
            is_failing: false,
            unserved: BTreeSet::new(),
            told: Told::default(),
            watch: Watch { good_since: vec![None; servers], ..Watch::default() },
        }
    }

    pub(crate) fn endpoint(&self) -> SocketAddr {
        members::endpoint(self.at, self.moves)
    }

    /// What its clock shows.
    pub(crate) fn clock(&self, now: BootTime) -> BootTime {
        BootTime::from_duration(now.since(self.booted_at))
    }

    pub(crate) fn is_awake(&self) -> bool {
        self.agent.is_some() && !self.asleep
    }

    pub(crate) fn save_map(&mut self) {
        self.cache = self.agent.as_ref().map_or_else(Vec::new, Agent::map_cache);
    }

    pub(crate) fn save_state(&mut self) {
        self.saved = self.agent.as_ref().map_or_else(Saved::default, Agent::saved);
    }

    pub(crate) fn knows(&self, url: &ServerUrl) -> bool {
        self.config.servers.contains(url)
    }
}
