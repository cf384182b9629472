//! Which server serves us, and when another does.
//!
//! ```text
//!            Dial            connected            Welcome
//! candidate ------> Dialling ---------> Greeting --------+---------> Standby <-------------+
//!     ^                |                   |             | (nobody      | elected:         | another serves:
//!     |  back-off      | refused, timeout  |             |  serves us)  | Activate         | Deactivate
//!     +----------------+-------------------+             +-------> Activating              |
//!     |                                                              | Activated           |
//!     |  closed, dead                                                v        answered     |
//!     +---------------------------------------------------------- Serving <---------- Suspect
//!                                                                    |  heartbeat late     ^
//!                                                                    +---------------------+
//! ```
//!
//! Wanted are one session that serves and one standby with another server. A session that ends, drains or has a late heartbeat makes `elect` activate the
//! standby at once; a suspect gets its last chance meanwhile, since being served twice for a moment is harmless. Nothing goes back to an earlier server
//! while the current one is healthy. Nothing here touches a tunnel.

mod candidate;
mod connection;
mod dial;
mod elect;
mod end;
mod heartbeat;
mod news;
mod redial;
mod status;
#[cfg(test)]
mod tests;

pub use heartbeat::Rtt;
pub use status::ControlStatus;

use crate::{
    config::ControlConfig,
    io::{Closed, ConnId, Dial},
    time::{BootTime, Cause, Deadline, earliest},
};
use candidate::{Candidate, Name, Resolution};
use connection::{Connection, State};
use news::BadNews;
use proto::{
    server_url::ServerUrl,
    session::{HeartbeatAck, Reason, Refused, ServerId, ServerList, SessionNumber, Welcome},
};
use rand::SeedableRng;
use rand_pcg::Pcg32;
use redial::Redial;
use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::Duration,
};

/// At most this many servers are kept of what servers tell.
const MAX_SERVERS: usize = 64;

/// A number that was refused as old leaps by two to this power, and each time in a row by one power more: a clock that is off by a year is overtaken in six.
const FIRST_LEAP: u32 = 20;
const LAST_LEAP: u32 = 60;

/// A failover is never spread over more than this, whatever a server says.
const MAX_SPREAD: Duration = Duration::from_secs(1);

/// A server began to serve us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    pub server: ServerId,
    pub url: ServerUrl,
    /// Since the last moment that a server served us without suspicion; `None` the first time.
    pub after: Option<Duration>,
}

/// What the owner of the machine must do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    Resolve(ServerUrl),
    Dial(Dial),
    Hello {
        conn: ConnId,
        number: SessionNumber,
        activate: bool,
    },
    Heartbeat {
        conn: ConnId,
        sequence: u64,
        standby: bool,
    },
    Activate {
        conn: ConnId,
        number: SessionNumber,
    },
    Deactivate {
        conn: ConnId,
    },
    Close {
        conn: ConnId,
    },
    Served(Served),
    Unserved,
    /// Believed: a second server said the same, or nobody contradicted in time.
    Refused(Refused),
}

/// The machine.
#[derive(Debug)]
pub struct Control {
    config: ControlConfig,
    rng: Pcg32,
    boot: u64,
    counter: u64,
    /// The newest number with which a server was asked to serve us.
    newest_asked: SessionNumber,
    /// Leaps of our numbers since a server last served us.
    stale_leaps: u32,
    next_conn: u64,
    names: Vec<Name>,
    connections: BTreeMap<ConnId, Connection>,
    /// No dial before this, so that dials are staggered.
    next_dial_at: BootTime,
    /// A failover waits until then, because servers asked to spread them.
    elect_at: Option<BootTime>,
    spread: Duration,
    served_by: Option<(ServerId, BootTime)>,
    /// Since when nobody serves us without suspicion.
    unserved_since: Option<BootTime>,
    told_unserved: bool,
    failovers: u64,
    bad_news: Option<BadNews>,
    redial: Redial,
    /// Whether a dial enrols first.
    enrol: bool,
    /// Between start and stop: else nothing is dialled and nothing is due.
    running: bool,
    outputs: VecDeque<Output>,
}

impl Control {
    /// `known` are addresses that worked before, used at once while names are resolved again.
    pub fn new(
        config: ControlConfig,
        servers: &[ServerUrl],
        known: &[(ServerUrl, Vec<SocketAddr>)],
        (boot, seed): (u64, u64),
        now: BootTime,
    ) -> Self {
        let mut control = Self {
            config,
            rng: Pcg32::seed_from_u64(seed),
            boot,
            counter: 0,
            newest_asked: SessionNumber::default(),
            stale_leaps: 0,
            next_conn: 0,
            names: Vec::new(),
            connections: BTreeMap::new(),
            next_dial_at: now,
            elect_at: None,
            spread: Duration::ZERO,
            served_by: None,
            unserved_since: None,
            told_unserved: false,
            failovers: 0,
            bad_news: None,
            redial: Redial::default(),
            enrol: false,
            running: false,
            outputs: VecDeque::new(),
        };
        control.set_servers(servers, now);
        for (url, addrs) in known {
            control.add_told(std::slice::from_ref(url), now);
            if let Some(name) = control.names.iter_mut().find(|name| name.url == *url) {
                addrs.iter().for_each(|addr| name.add(*addr));
            }
        }
        control
    }

    /// The list that a person gave, in their order, before what servers told.
    pub fn set_servers(&mut self, servers: &[ServerUrl], now: BootTime) {
        let mut old = std::mem::take(&mut self.names);
        for url in servers {
            let known = old.iter().position(|name| name.url == *url).map(|at| old.remove(at));
            let mut name = known.unwrap_or_else(|| Name::new(url.clone(), now));
            name.configured = true;
            self.names.push(name);
        }
        // Sessions with a server that was taken off the list go on until they end by themselves.
        old.retain(|name| !name.configured);
        self.names.append(&mut old);
        self.redial.retry_now(now);
    }

    /// The numbers a person may change while the agent runs.
    pub fn set_timing(&mut self, keepalive: Duration, peer_timeout: Duration, now: BootTime) {
        self.config.keepalive = keepalive;
        self.config.peer_timeout = peer_timeout;
        // The next heartbeat tells servers the interval: they measure our silence by it.
        for connection in self.connections.values_mut().filter(|c| c.has_session()) {
            connection.heartbeats.hasten(now);
        }
        self.run(now);
    }

    /// Whether dials enrol first: while we are not a member and have a setup key. A new key is a new question: earlier refusals say nothing about it.
    pub fn set_enrol(&mut self, enrol: bool) {
        self.enrol = enrol;
        if enrol {
            self.bad_news = None;
            let fresh = self.connections.iter().filter(|(_, c)| !c.has_session());
            let fresh: Vec<ConnId> = fresh.map(|(conn, _)| *conn).collect();
            fresh.into_iter().for_each(|conn| self.close(conn));
        }
    }

    /// Begins: the first dials and look-ups. Who is no member and cannot become one has nothing to say to a server.
    pub fn start(&mut self, now: BootTime) {
        self.running = true;
        self.run(now);
    }

    pub fn handle_resolved(
        &mut self,
        url: &ServerUrl,
        result: Result<Vec<SocketAddr>, String>,
        now: BootTime,
    ) {
        let again_at = now + self.config.resolve_interval;
        let hastened_at = now + self.config.backoff_early_cap;
        let retry_at = now + self.config.backoff_early_cap;
        let Some(name) = self.names.iter_mut().find(|name| name.url == *url) else { return };
        if name.resolution == Resolution::Literal {
            return;
        }
        let (at, error) = match result {
            Ok(addrs) if addrs.is_empty() => (retry_at, Some(format!("{} has no address", url.host()))),
            Ok(addrs) => {
                name.set_addresses(&addrs);
                (again_at, None)
            }
            Err(error) => (retry_at, Some(error)),
        };
        name.resolution = Resolution::Wanted { at, not_before: hastened_at };
        name.error = error;
        self.run(now);
    }

    /// TCP and TLS are there: nothing is said yet.
    pub fn handle_connected(&mut self, conn: ConnId, server: ServerId, now: BootTime) {
        if self.has_session_with(server, Some(conn)) {
            // Two addresses of one server: a second session with it would be no standby.
            let until = now + self.config.twin_recheck;
            if let Some(candidate) = self.candidate_of(conn) {
                candidate.on_twin(server, until);
            }
            self.close(conn);
            return self.run(now);
        }
        // A failover that is to be spread is spread for new sessions, too.
        let asked =
            self.is_served_or_activating() || self.is_greeting_to_activate() || self.elect_at.is_some();
        let activate = !asked;
        let number = self.next_number();
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let give_up_at = now + self.config.greeting_timeout;
        connection.on_hello(server, number, State::Greeting { give_up_at, activate }, now);
        if activate {
            self.newest_asked = number;
        }
        self.outputs.push_back(Output::Hello { conn, number, activate });
        self.run(now);
    }

    pub fn handle_welcome(&mut self, conn: ConnId, welcome: &Welcome, now: BootTime) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let State::Greeting { activate, .. } = connection.state else { return };
        connection.on_welcome(activate, welcome, &self.config, now);
        // A suspect is dialled beside its session.
        let is_twin = |(other, c): (&ConnId, &Connection)| *other != conn && c.server == Some(welcome.server);
        let is_other = !self.connections.iter().any(is_twin);
        if activate && self.is_served() {
            // A suspect answered meanwhile, and serves on.
            self.stand_by(conn, now);
        }
        if let Some(candidate) = self.candidate_of(conn) {
            candidate.on_success(welcome.server);
        }
        self.close_twins(welcome.server);
        self.bad_news = None;
        if is_other {
            self.redial.on_found(now);
        }
        self.handle_servers(&welcome.servers, now);
    }

    /// The servers' list changed while the session is up.
    pub fn handle_servers(&mut self, servers: &ServerList, now: BootTime) {
        self.take_told(&servers.urls, now);
        self.take_live(&servers.ids, now);
        self.run(now);
    }

    pub fn handle_activated(&mut self, conn: ConnId, now: BootTime) {
        let Some(connection) = self.connections.get(&conn) else { return };
        if let State::Activating { .. } = connection.state {
            self.on_serving(conn, now);
        }
        self.run(now);
    }

    pub fn handle_heartbeat(&mut self, conn: ConnId, ack: &HeartbeatAck, now: BootTime) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        if connection.server != Some(ack.server) {
            let error = "the server's id changed within a session: a proxy mixes connections".to_owned();
            return self.fail(conn, error, Duration::ZERO, now);
        }
        connection.on_heartbeat(ack, &self.config, now);
        let rtt = connection.heartbeats.rtt;
        if let Some(candidate) = self.candidate_of(conn) {
            candidate.rtt = rtt;
        }
        self.spread = ack.spread.min(MAX_SPREAD);
        self.on_life(conn, now);
        self.leave_stale(now);
        self.run(now);
    }

    /// The server asks to be left.
    pub fn handle_drain(&mut self, conn: ConnId, now: BootTime) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        connection.draining = true;
        let serving = matches!(connection.state, State::Serving);
        let alone = self.knows_one_server();
        if serving {
            self.on_unserved(now);
            self.redial_on_lost(now);
        }
        // Nobody to move to, or nothing to move: the server need not wait for us.
        if alone || !serving {
            return self.fail(conn, "the server drains".into(), Duration::ZERO, now);
        }
        self.run(now);
    }

    pub fn handle_closed(&mut self, conn: ConnId, why: &Closed, now: BootTime) {
        match why {
            Closed::Refused(refused) => self.handle_refused(conn, refused, now),
            Closed::Connect(_) | Closed::TimedOut | Closed::NotOurs(_) | Closed::Ended(_) => {
                self.fail(conn, why.to_string(), Duration::ZERO, now);
            }
            Closed::Broken(_) => self.fail(conn, why.to_string(), self.config.broken_patience, now),
        }
    }

    /// Whether the server says more than this machine should have to hear; called for each message.
    pub fn is_flood(&mut self, conn: ConnId, now: BootTime) -> bool {
        let flood = self.config.flood;
        self.connections.get_mut(&conn).is_some_and(|connection| connection.on_message(now) > flood)
    }

    pub fn handle_refused(&mut self, conn: ConnId, refused: &Refused, now: BootTime) {
        let about_us = refused.reason.is_about_the_agent();
        let patient = if about_us { self.config.backoff_early_cap } else { Duration::ZERO };
        let from = self.connections.get(&conn).map(|connection| (connection.server, connection.addr));
        if refused.reason == Reason::StaleSession {
            self.on_stale(conn);
        }
        self.fail(conn, refused.detail.clone(), refused.retry_after.unwrap_or(patient), now);
        if let (true, Some(from)) = (about_us, from) {
            self.on_bad_news(refused.clone(), from, now);
        }
        self.run(now);
    }

    /// Our newest number is older than one that the cluster knows: the count of our starts was lost, and the clock that stands in for it was set back. Ever longer
    /// leaps overtake whatever is known.
    fn on_stale(&mut self, conn: ConnId) {
        let is_newest = self.connections.get(&conn).is_some_and(|c| c.number >= self.newest_asked);
        if !is_newest || self.is_served() {
            return;
        }
        let leap = 1u64 << (FIRST_LEAP + self.stale_leaps).min(LAST_LEAP);
        self.stale_leaps += 1;
        self.boot = self.boot.saturating_add(leap).min(SessionNumber::LAST_LEAP);
        self.counter = 0;
    }

    /// The number of this start, as servers know it by now.
    pub fn boot(&self) -> u64 {
        self.boot
    }

    /// Addresses changed, or the machine slept: every session is asked for life, and every server may be dialled at once.
    pub fn handle_network_changed(&mut self, now: BootTime) {
        for name in &mut self.names {
            name.candidates.iter_mut().for_each(Candidate::retry_now);
            if let Resolution::Wanted { at, .. } = &mut name.resolution {
                *at = now;
            }
        }
        for connection in self.connections.values_mut().filter(|c| c.has_session()) {
            connection.heartbeats.hasten(now);
        }
        self.next_dial_at = now;
        self.redial.retry_now(now);
        self.run(now);
    }

    /// Ends all sessions: the agent goes.
    pub fn stop(&mut self) {
        self.running = false;
        let open: Vec<ConnId> = self.connections.keys().copied().collect();
        open.into_iter().for_each(|conn| self.close(conn));
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub fn poll_timeout(&self) -> Option<Deadline> {
        if !self.running {
            return None;
        }
        let elect = self.elect_at.map(|at| Deadline { at, cause: Cause::Spread });
        let news = self.bad_news.as_ref().and_then(|news| news.believe_at);
        let news = news.map(|at| Deadline { at, cause: Cause::BadNews });
        let connections = self.connections.values().map(|c| c.deadline(&self.config));
        earliest([elect, news, self.resolve_deadline(), self.dial_deadline()].into_iter().chain(connections))
    }

    pub fn handle_timeout(&mut self, now: BootTime) {
        if self.elect_at.is_some_and(|at| now >= at) {
            self.elect_at = None;
        }
        self.run(now);
    }

    /// The session that serves us, as far as we know.
    pub fn serving(&self) -> Option<ConnId> {
        let sure = |c: &Connection| matches!(c.state, State::Serving);
        let serving = self.connections.iter().filter(|(_, c)| sure(c) || matches!(c.state, State::Suspect));
        serving.max_by_key(|(_, c)| (sure(c), c.number)).map(|(conn, _)| *conn)
    }

    /// Every session on which a message may be sent.
    pub fn sessions(&self) -> impl Iterator<Item = ConnId> {
        self.connections.iter().filter(|(_, c)| c.has_session()).map(|(conn, _)| *conn)
    }

    /// Addresses that answered, per URL, to be kept on disk.
    pub fn known(&self) -> Vec<(ServerUrl, Vec<SocketAddr>)> {
        let answered =
            |name: &Name| name.candidates.iter().filter(|c| c.server.is_some()).map(|c| c.addr).collect();
        self.names.iter().map(|name| (name.url.clone(), answered(name))).collect()
    }

    /// Times that we moved from one server to another.
    pub fn failovers(&self) -> u64 {
        self.failovers
    }

    /// How much the machine holds: for the simulation's bound on memory.
    pub fn load(&self) -> usize {
        let candidates = self.names.iter().map(|name| 1 + name.candidates.len());
        self.connections.len() + self.outputs.len() + candidates.sum::<usize>() + self.redial.load()
    }

    /// Everything that follows from the current state, in order of urgency.
    fn run(&mut self, now: BootTime) {
        if !self.running {
            return;
        }
        self.expire(now);
        self.elect(now);
        self.renumber();
        self.release_surplus();
        self.beat(now);
        self.resolve(now);
        self.dial(now);
        self.believe(now);
        self.tell_unserved();
    }

    /// Late and dead sessions, dials that take too long.
    fn expire(&mut self, now: BootTime) {
        let open: Vec<ConnId> = self.connections.keys().copied().collect();
        for conn in open {
            let Some(connection) = self.connections.get_mut(&conn) else { continue };
            if connection.is_over(&self.config, now) {
                self.end(conn, "no answer in time".into(), Duration::ZERO, now);
                continue;
            }
            let late = connection.heartbeats.poll_late(now);
            match connection.state {
                State::Serving if late => {
                    connection.state = State::Suspect;
                    self.on_unserved(now);
                    self.redial_on_doubt(now);
                }
                State::Activating { late_at } if late || now >= late_at => {
                    connection.state = State::Suspect;
                    connection.heartbeats.hasten(now);
                }
                State::Dialling { .. }
                | State::Greeting { .. }
                | State::Standby
                | State::Activating { .. }
                | State::Serving
                | State::Suspect => {}
            }
        }
    }

    fn beat(&mut self, now: BootTime) {
        for (conn, connection) in &mut self.connections {
            if !connection.has_session() {
                continue;
            }
            if let Some(sequence) = connection.heartbeats.poll(&self.config, now) {
                let standby = matches!(connection.state, State::Standby);
                self.outputs.push_back(Output::Heartbeat { conn: *conn, sequence, standby });
            }
        }
    }

    /// Said once, and only when there is no session at all that might serve.
    fn tell_unserved(&mut self) {
        let hope = self.connections.values().any(Connection::has_session);
        if self.unserved_since.is_some() && !self.told_unserved && !hope {
            self.told_unserved = true;
            self.outputs.push_back(Output::Unserved);
        }
    }

    fn next_number(&mut self) -> SessionNumber {
        self.counter += 1;
        SessionNumber { boot: self.boot, counter: self.counter }
    }

    /// The cluster's list: servers that it names no more are forgotten once they fail, unless a person named them.
    fn take_told(&mut self, servers: &[ServerUrl], now: BootTime) {
        let connections = &self.connections;
        let in_use = |name: &Name| connections.values().any(|c| c.url == name.url);
        if !servers.is_empty() {
            self.names.retain(|name| {
                name.configured || servers.contains(&name.url) || !name.is_failing() || in_use(name)
            });
        }
        // Who is served dials a new one when its turn comes.
        let turn_at = if self.is_served() { now + self.join_delay() } else { now };
        let before = self.names.len();
        self.add_told(servers, now);
        self.names.iter_mut().skip(before).for_each(|name| name.turn_at = turn_at);
    }

    fn add_told(&mut self, servers: &[ServerUrl], now: BootTime) {
        for url in servers {
            if self.names.len() < MAX_SERVERS && !self.names.iter().any(|name| name.url == *url) {
                self.names.push(Name::new(url.clone(), now));
            }
        }
    }

    /// There is one address, and nobody else behind it.
    fn knows_one_server(&self) -> bool {
        let addresses: usize = self.names.iter().map(|name| name.candidates.len()).sum();
        addresses <= 1 && self.redial.is_single()
    }

    fn candidate_of(&mut self, conn: ConnId) -> Option<&mut Candidate> {
        let connection = self.connections.get(&conn)?;
        let name = self.names.iter_mut().find(|name| name.url == connection.url)?;
        name.candidates.iter_mut().find(|candidate| candidate.addr == connection.addr)
    }
}
