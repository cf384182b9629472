//! The agent as a whole: composes the machines, and passes facts between them.
//!
//! `session` has what servers say, `tunnels` what the data plane reports, `local` what a person asks for. Peers' deadlines are indexed, so that ten thousand idle peers cost a
//! step nothing.

mod claims;
mod gossip;
mod holding;
mod leaving;
mod local;
mod pings;
mod roots;
mod rules;
mod saved;
mod serving;
mod session;
mod standing;
#[cfg(test)]
mod tests;
mod tunnels;
mod users;
mod withdrawing;

pub use saved::Saved;

use crate::{
    cache::{self, Cached},
    claims::Claims,
    config::{Config, PeerConfig},
    control::{self, Control},
    io::{ConnId, Notice, Output, TunnelCommand},
    netmap::NetMap,
    path::Paths,
    peer::Peer,
    time::{BootTime, Cause, Deadline, earliest},
    trusted_time::TrustedTime,
};
use gossip::Gossip;
use holding::Held;
use ipnet::IpNet;
use leaving::Leaving;
use pings::Pings;
use proto::{
    key::PublicKey,
    map::MapVersion,
    session::{AgentMessage, Hello, MapState},
    statement::{Membership, NodeId},
    time::UnixTime,
};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;
use roots::Confirmed;
use rules::Told;
use standing::Standing;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use users::Users;
use withdrawing::Withdrawn;

/// Between two writes of the same file.
const SAVE_INTERVAL: Duration = Duration::from_millis(200);
/// Signals are told over both sessions of the sender, and taken once: so many ids are remembered.
const REMEMBERED_SIGNALS: usize = 1024;

/// Who we are.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    pub key: PublicKey,
    /// Counts our starts; persisted by the driver, so that a later start's sessions replace an earlier one's.
    pub boot: u64,
    /// A setup key is at hand.
    pub can_enrol: bool,
}

/// A FetchMap under way.
#[derive(Debug, Clone, Copy)]
struct Fetching {
    conn: ConnId,
    /// How many before it left us diverged.
    diverged: u32,
    /// The newest step that the session told meanwhile.
    told: MapVersion,
    /// Unless a part comes that brings something ..
    give_up_at: BootTime,
    /// .. and at the latest.
    ends_at: BootTime,
}

/// The agent.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    identity: Identity,
    now: BootTime,
    rng: Pcg32,
    control: Control,
    netmap: NetMap,
    time: TrustedTime,
    /// Our own certificate, as signed.
    membership: Option<(Vec<u8>, Membership)>,
    peers: BTreeMap<PublicKey, Peer>,
    peer_deadlines: BTreeSet<(BootTime, PublicKey)>,
    own_endpoints: Vec<SocketAddr>,
    listen_port: u16,
    /// Our address as servers see it.
    observed: Option<IpAddr>,
    /// Counts the changes of where we may be reached, and which of them each session was told last.
    endpoints_changes: u64,
    endpoints_told: BTreeMap<ConnId, u64>,
    online: BTreeSet<NodeId>,
    fetching: Option<Fetching>,
    /// When a server last confirmed the map, and whether it was in this start.
    level_at: Option<BootTime>,
    restored_level: Option<UnixTime>,
    seen_signals: VecDeque<u64>,
    pings: Pings,
    gossip: Gossip,
    next_probe: u64,
    claims: Claims,
    kept_for_claims: BTreeSet<PublicKey>,
    /// The machine's addresses, with their networks.
    networks: Vec<IpNet>,
    /// For our own uptime, which ranks our claims: since the start, or since they were restored.
    serving_since: BootTime,
    expiry_at: Option<BootTime>,
    state_saving: Saving,
    map_saving: Saving,
    users: Users,
    /// As the machine was last told to.
    serving: Vec<IpNet>,
    draining: bool,
    /// Until those who use us have moved.
    leaving: Option<Leaving>,
    withdrawn: Withdrawn,
    standing: Standing,
    confirmed: Confirmed,
    rules: Told,
    held: Held,
    outputs: VecDeque<Output>,
}

impl Agent {
    /// An agent with what it kept from earlier. Its tunnels come up from that: no server is waited for.
    pub fn new(
        config: Config,
        identity: Identity,
        saved: Saved,
        cached: Option<Cached>,
        seed: u64,
        now: BootTime,
    ) -> Self {
        let membership = saved.membership();
        let netmap = NetMap::new(identity.key, saved.trust());
        let known = saved.known_servers();
        let control =
            Control::new(config.control.clone(), &config.servers, &known, (identity.boot, seed), now);
        let claims = Claims::new(NodeId(0), config.claims.clone());
        let mut agent = Self {
            config,
            identity,
            now,
            rng: Pcg32::seed_from_u64(seed.rotate_left(32)),
            control,
            netmap,
            time: TrustedTime::default(),
            membership,
            peers: BTreeMap::new(),
            peer_deadlines: BTreeSet::new(),
            own_endpoints: Vec::new(),
            listen_port: 0,
            observed: None,
            endpoints_changes: 0,
            endpoints_told: BTreeMap::new(),
            online: BTreeSet::new(),
            fetching: None,
            level_at: None,
            restored_level: saved.level_at(),
            seen_signals: VecDeque::new(),
            pings: Pings::default(),
            gossip: Gossip::default(),
            next_probe: 0,
            claims,
            kept_for_claims: BTreeSet::new(),
            networks: Vec::new(),
            serving_since: now,
            expiry_at: None,
            state_saving: Saving::default(),
            map_saving: Saving::default(),
            users: Users::default(),
            serving: Vec::new(),
            draining: false,
            leaving: None,
            withdrawn: Withdrawn::default(),
            standing: Standing::default(),
            confirmed: Confirmed::default(),
            rules: Told::default(),
            held: Held::new(now),
            outputs: VecDeque::new(),
        };
        if let Some((_, own)) = &agent.membership {
            agent.time.on_signed(own.issued_at);
        }
        agent.control.set_enrol(agent.membership.is_none() && identity.can_enrol);
        agent.next_probe = agent.rng.random();
        agent.configure_interface();
        agent.restore_peers(&saved, cached);
        if agent.membership.is_some() || identity.can_enrol {
            agent.control.start(now);
        }
        agent.drain_control();
        agent
    }

    fn restore_peers(&mut self, saved: &Saved, cached: Option<Cached>) {
        for peer in saved.peers() {
            self.peers.insert(peer.key, Peer::new(Paths::restored(&peer.endpoints)));
        }
        let changes = cached.map(|cached| self.netmap.restore(cached));
        // Before anything is routed to those that the map names.
        self.netmap.restore_heard(saved.heard(), self.now);
        if let Some(changes) = changes {
            self.on_rules_changed(changes.rules);
            self.tell_rules();
            self.on_map_changes(changes);
        }
        self.peers.retain(|key, _| self.netmap.member(key).is_some());
        for peer in saved.peers().filter(|peer| peer.live) {
            self.with_peer(&peer.key, |peer, now| peer.greet(now));
        }
    }

    /// The next thing to do; drained after every input.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), and why.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let at = |at: Option<BootTime>, cause| at.map(|at| Deadline { at, cause });
        let peer = self.peer_deadlines.first().map(|(at, _)| Deadline { at: *at, cause: Cause::Handshake });
        earliest([
            self.control.poll_timeout(),
            peer,
            at(self.fetching.map(|fetching| fetching.give_up_at), Cause::Fetch),
            at(self.expiry_at, Cause::Expiry),
            at(self.state_saving.due_at, Cause::Save),
            at(self.map_saving.due_at, Cause::Save),
            at(self.pings.deadline(), Cause::Probe),
            at(self.gossip.deadline(), Cause::Gossip),
            at(self.leaving_deadline(), Cause::Leaving),
            at(self.withdrawing_deadline(), Cause::Withdrawing),
            at(self.users.deadline(), Cause::Users),
            at(self.holding_deadline(), Cause::Claim),
            self.claims.poll_timeout(),
        ])
    }

    pub fn handle_timeout(&mut self, now: BootTime) {
        self.advance(now);
        self.look_at_holdings();
        self.control.handle_timeout(self.now);
        self.drain_control();
        self.expire_fetch();
        if self.expiry_at.is_some_and(|at| self.now >= at) {
            self.judge_members();
        }
        self.claims.handle_timeout(&mut self.next_probe, self.now);
        self.drain_claims();
        // After what may want a tunnel now.
        while let Some((at, key)) = self.peer_deadlines.first().copied().filter(|(at, _)| *at <= self.now) {
            self.peer_deadlines.remove(&(at, key));
            let config = self.config.peer.clone();
            let mut rng = self.rng.clone();
            self.with_peer(&key, |peer, now| peer.handle_timeout(&config, &mut rng, now));
            self.rng = rng;
        }
        self.save(|due_at, now| due_at <= now);
        self.pings.expire(self.now);
        self.repeat_removals();
        self.look_at_leaving();
        self.repeat_withdrawal();
        self.look_at_users();
    }

    /// The map as it is to be written to disk.
    pub fn map_cache(&self) -> Vec<u8> {
        let MapState { version, receipt, digest: _ } = self.netmap.state();
        let removals = self.netmap.removals().all().map(<[u8]>::to_vec).collect();
        cache::encode(version, receipt, self.netmap.objects(), removals)
    }

    /// How much is held: for the simulation's bound on memory.
    pub fn load(&self) -> usize {
        self.control.load()
            + self.peers.len()
            + self.peer_deadlines.len()
            + self.seen_signals.len()
            + self.endpoints_told.len()
            + self.roots_load()
            + self.outputs.len()
            + self.pings.len()
            + self.gossip.len()
            + self.claims.load()
            + self.users.len()
            + self.netmap.removals().len()
    }

    /// Time never runs backwards inside.
    fn advance(&mut self, now: BootTime) {
        self.now = self.now.max(now);
    }

    fn drain_control(&mut self) {
        while let Some(output) = self.control.poll_output() {
            self.on_control(output);
        }
        self.tell_endpoints();
    }

    fn on_control(&mut self, output: control::Output) {
        let output = match output {
            control::Output::Resolve(url) => Output::Resolve(url),
            control::Output::Dial(dial) => Output::Dial(dial),
            control::Output::Hello { conn, number, activate } => {
                self.endpoints_told.insert(conn, self.endpoints_changes);
                self.on_root_told(conn);
                let hello = Hello {
                    number,
                    facts: self.told_facts(),
                    endpoints: self.published_endpoints(),
                    map: self.netmap.state(),
                    activate,
                    heartbeat_interval: self.config.control.keepalive,
                    membership: self.membership.as_ref().map_or_else(Vec::new, |(signed, _)| signed.clone()),
                    root: self.kept_root(),
                };
                Output::Send { conn, message: AgentMessage::Hello(hello) }
            }
            control::Output::Heartbeat { conn, sequence, standby } => {
                let interval = self.config.control.keepalive;
                Output::Send { conn, message: AgentMessage::Heartbeat { sequence, standby, interval } }
            }
            control::Output::Activate { conn, number } => {
                Output::Send { conn, message: AgentMessage::Activate { number, map: self.netmap.state() } }
            }
            control::Output::Deactivate { conn } => Output::Send { conn, message: AgentMessage::Deactivate },
            control::Output::Close { conn } => {
                self.fetching = self.fetching.filter(|fetching| fetching.conn != conn);
                self.endpoints_told.remove(&conn);
                self.forget_root_told(conn);
                Output::Close { conn }
            }
            control::Output::Served(served) => {
                self.save_state_soon();
                Output::Notice(Notice::Served(served))
            }
            control::Output::Unserved => {
                self.on_unconfirmed();
                Output::Notice(Notice::Unserved)
            }
            control::Output::Refused(refused) => {
                self.on_refused(&refused);
                Output::Notice(Notice::Refused(refused))
            }
        };
        self.outputs.push_back(output);
    }

    fn tunnel(&mut self, command: TunnelCommand) {
        self.outputs.push_back(Output::Tunnel(command));
    }

    fn peer_config(&self) -> &PeerConfig {
        &self.config.peer
    }

    fn save_state_soon(&mut self) {
        self.state_saving.want(self.now);
    }

    fn save_map_soon(&mut self) {
        self.map_saving.want(self.now);
    }

    /// Saves what is wanted and may be saved by this rule.
    fn save(&mut self, may: impl Fn(BootTime, BootTime) -> bool) {
        if self.state_saving.take(self.now, &may) {
            self.outputs.push_back(Output::SaveState);
        }
        if self.map_saving.take(self.now, &may) {
            self.outputs.push_back(Output::SaveMap);
        }
    }
}

/// When something is written: at once, but not again before [`SAVE_INTERVAL`], so that a burst of changes is two writes.
#[derive(Debug, Clone, Copy, Default)]
struct Saving {
    due_at: Option<BootTime>,
    not_before: BootTime,
}

impl Saving {
    fn want(&mut self, now: BootTime) {
        self.due_at.get_or_insert(now.max(self.not_before));
    }

    fn take(&mut self, now: BootTime, may: impl Fn(BootTime, BootTime) -> bool) -> bool {
        let taken = self.due_at.take_if(|due_at| may(*due_at, now)).is_some();
        if taken {
            self.not_before = now + SAVE_INTERVAL;
        }
        taken
    }
}
