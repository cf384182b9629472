//! A reference model of a server: what it knows of the database, who is connected, and what it tells them. It follows the server program in what agents can
//! notice: its maps lag behind its version, its version behind the database, and a session that another server took over is told nothing.

use crate::{
    atlas::{Atlas, Change},
    database::Seat,
    event::Event,
    faults::Fault,
    members,
    network::Host,
    session::{Progress, Serving, Session},
    stream::{Lane, Said, StreamId},
    world::World,
};
use agent_core::BootTime;
use proto::{
    map::parse_refs,
    server_url::ServerUrl,
    session::{
        AgentMessage, Hello, HeartbeatAck, MapState, Reason, Refused, ServerId, ServerMessage, SessionNumber,
        Signal, Welcome,
    },
    statement::NodeId,
    wire,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

const SERVING_SILENCE: Duration = Duration::from_secs(10);
const STANDBY_SILENCE: Duration = Duration::from_secs(40);
/// Between a change and the maps that show it.
const PUBLISH_DELAY: Duration = Duration::from_millis(15);
const REPORT_DELAY: Duration = Duration::from_millis(50);
/// How long a draining server waits for its agents.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Process {
    Running,
    Draining,
    Dead,
}

#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) id: ServerId,
    pub(crate) url: ServerUrl,
    pub(crate) life: u32,
    pub(crate) process: Process,
    pub(crate) frozen: bool,
    /// What arrived while it was frozen.
    pub(crate) inbox: Vec<(StreamId, Said)>,
    /// The database is away for this one.
    pub(crate) cut_off: bool,
    pub(crate) level_at: BootTime,
    pub(crate) state: Rc<Atlas>,
    pub(crate) atlas: Rc<Atlas>,
    pub(crate) seats: BTreeMap<NodeId, Seat>,
    pub(crate) sessions: BTreeMap<StreamId, Session>,
    pub(crate) reports: BTreeMap<usize, Vec<SocketAddr>>,
    pub(crate) spread: Duration,
}

impl Server {
    pub(crate) fn new(at: usize, url: ServerUrl, state: &Rc<Atlas>) -> Self {
        Self {
            id: ServerId([at as u8 + 1; 16]),
            url,
            life: 0,
            process: Process::Running,
            frozen: false,
            inbox: Vec::new(),
            cut_off: false,
            level_at: BootTime::default(),
            state: state.clone(),
            atlas: state.clone(),
            seats: BTreeMap::new(),
            sessions: BTreeMap::new(),
            reports: BTreeMap::new(),
            spread: Duration::ZERO,
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.process != Process::Dead
    }

    /// It would take in whoever comes.
    pub(crate) fn is_healthy(&self) -> bool {
        self.process == Process::Running && !self.frozen
    }

    /// The session that serves this agent here.
    pub(crate) fn serving(&self, agent: usize) -> Option<StreamId> {
        let serves = |session: &Session| session.agent == agent && session.serving.is_some();
        self.sessions.iter().find(|(_, session)| serves(session)).map(|(id, _)| *id)
    }
}

fn refused(reason: Reason, retry_after: Option<Duration>, removal: &[u8]) -> Said {
    let detail = format!("{reason:?}");
    Said::Refused(Box::new(Refused { reason, detail, retry_after, removal: removal.to_vec() }))
}

impl World {
    pub(crate) fn start_server(&mut self, server: usize) {
        if self.database_away || self.servers[server].is_alive() {
            return;
        }
        let head = self.database.head.clone();
        let it = &mut self.servers[server];
        let fresh = Server { life: it.life + 1, spread: it.spread, ..Server::new(server, it.url.clone(), &head) };
        *it = Server { level_at: self.now, ..fresh };
        self.database.renew(server, self.now);
        self.queue.push(self.now, Event::ServerTick { server, life: self.servers[server].life });
    }

    /// The process ends; the kernel resets its connections.
    pub(crate) fn kill_server(&mut self, server: usize) {
        let it = &mut self.servers[server];
        it.process = Process::Dead;
        it.frozen = false;
        it.inbox.clear();
        it.sessions.clear();
        let open = |(id, stream): (&StreamId, &crate::stream::Stream)| {
            (stream.server == server && stream.server_open).then_some(*id)
        };
        let streams: Vec<StreamId> = self.streams.iter().filter_map(open).collect();
        for id in streams {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.server_open = false;
            }
            self.reset(id, server);
            self.forget_closed(id);
        }
    }

    pub(crate) fn freeze_server(&mut self, server: usize, frozen: bool) {
        self.servers[server].frozen = frozen;
        if !frozen {
            for (id, said) in std::mem::take(&mut self.servers[server].inbox) {
                self.on_said(server, id, said);
            }
            let life = self.servers[server].life;
            self.queue.push(self.now, Event::Follow { server, life });
        }
    }

    pub(crate) fn drain_server(&mut self, server: usize) {
        let it = &mut self.servers[server];
        if it.process != Process::Running {
            return;
        }
        it.process = Process::Draining;
        let life = it.life;
        self.queue.push(self.now + DRAIN_TIMEOUT, Event::DrainEnd { server, life });
        self.tell_news(server);
    }

    fn runs(&self, server: usize, life: u32) -> bool {
        let it = &self.servers[server];
        it.life == life && it.is_alive() && !it.frozen
    }

    pub(crate) fn has_database(&self, server: usize) -> bool {
        !self.database_away && !self.servers[server].cut_off
    }

    pub(crate) fn on_drain_end(&mut self, server: usize, life: u32) {
        if self.servers[server].life == life && self.servers[server].process == Process::Draining {
            self.apply(&Fault::Kill(server));
        }
    }

    /// Once a second: leases, silence, what hints missed.
    pub(crate) fn on_server_tick(&mut self, server: usize, life: u32) {
        if self.servers[server].life != life || !self.servers[server].is_alive() {
            return;
        }
        self.queue.push(self.now + Duration::from_secs(1), Event::ServerTick { server, life });
        if self.servers[server].frozen {
            return;
        }
        if self.has_database(server) {
            self.database.renew(server, self.now);
            self.save_seats(server);
        }
        self.end_silent(server);
        self.on_follow(server, life);
        self.on_report(server, life);
        if self.servers[server].process == Process::Draining && self.servers[server].sessions.is_empty() {
            self.on_drain_end(server, life);
        }
    }

    fn end_silent(&mut self, server: usize) {
        let now = self.now;
        let silent = |session: &Session| {
            let limit = if session.serving.is_some() { SERVING_SILENCE } else { STANDBY_SILENCE };
            now.since(session.heard_at) >= limit
        };
        let over: Vec<StreamId> = self.servers[server]
            .sessions
            .iter()
            .filter(|(_, session)| silent(session))
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            self.end_session(server, id, Said::Ended);
        }
    }

    /// What was not written while the database was away is.
    fn save_seats(&mut self, server: usize) {
        for session in self.servers[server].sessions.values().filter(|s| s.serving.is_some()) {
            let seat = Seat { server, number: session.number };
            self.database.take_seat(members::of(session.agent).node, seat);
        }
    }

    /// Reads the log and the seats; steps back where another server has a newer session.
    pub(crate) fn on_follow(&mut self, server: usize, life: u32) {
        if !self.runs(server, life) || !self.has_database(server) {
            return;
        }
        let (now, seats) = (self.now, self.database.live_seats(self.now));
        let it = &mut self.servers[server];
        it.level_at = now;
        if !Rc::ptr_eq(&it.state, &self.database.head) {
            it.state = self.database.head.clone();
            self.queue.push(now + PUBLISH_DELAY, Event::Publish { server, life });
        }
        for session in it.sessions.values_mut() {
            let seat = seats.get(&members::of(session.agent).node);
            if seat.is_some_and(|seat| seat.server != server && seat.number > session.number) {
                session.serving = None;
            }
        }
        it.seats = seats;
        self.tell_news(server);
    }

    pub(crate) fn on_publish(&mut self, server: usize, life: u32) {
        if self.runs(server, life) {
            self.servers[server].atlas = self.servers[server].state.clone();
            self.tell_news(server);
        }
    }

    /// Everyone who can hears of a change a little later.
    pub(crate) fn notify_servers(&mut self) {
        for server in 0..self.servers.len() {
            let delay = self.jitter(Duration::from_millis(20));
            let life = self.servers[server].life;
            self.queue.push(self.now + delay, Event::Follow { server, life });
        }
    }

    pub(crate) fn write(&mut self, change: &Change) {
        self.database.write(change);
        self.notify_servers();
    }

    pub(crate) fn on_said(&mut self, server: usize, id: StreamId, said: Said) {
        if !self.streams.get(&id).is_some_and(|stream| stream.server_open) {
            return;
        }
        let now = self.now;
        if let Some(session) = self.servers[server].sessions.get_mut(&id) {
            session.heard_at = now;
        }
        match said {
            Said::Open { enrol } => self.on_open(server, id, enrol),
            Said::Message(AgentMessage::Hello(hello)) => self.on_hello(server, id, hello),
            Said::Message(message) => self.on_message(server, id, message),
            Said::FetchMap(have) => self.on_fetch_map(server, id, have),
            Said::Fin => self.end_session(server, id, Said::Ended),
            Said::Enrolled(_)
            | Said::Opened(_)
            | Said::Answer(_)
            | Said::Fetched(_)
            | Said::Refused(_)
            | Said::Ended => {}
        }
        self.tell_news(server);
    }

    fn on_open(&mut self, server: usize, id: StreamId, enrol: bool) {
        let Some(agent) = self.streams.get(&id).map(|stream| stream.agent) else { return };
        let member = members::of(agent);
        if enrol {
            if !self.servers[server].state.is_member(&member.key) {
                if !self.has_database(server) {
                    return self.hang_up(id, refused(Reason::Database, Some(Duration::from_secs(2)), &[]));
                }
                self.write(&Change::Enrol(agent));
                // The server that wrote it need not hear of it first.
                let head = self.database.head.clone();
                self.servers[server].state = head;
                self.publish_soon(server);
            }
            let enrolled = wire::Enrolled {
                root: members::root().to_bytes().to_vec(),
                membership: member.certificate.clone(),
                node_id: member.node.0,
                servers: Vec::new(),
            };
            self.say(id, Lane::Down, Said::Enrolled(Box::new(enrolled)));
        }
        self.say(id, Lane::Down, Said::Opened(self.servers[server].id));
    }

    fn publish_soon(&mut self, server: usize) {
        let life = self.servers[server].life;
        self.queue.push(self.now + PUBLISH_DELAY, Event::Publish { server, life });
    }

    fn on_hello(&mut self, server: usize, id: StreamId, hello: Hello) {
        let Some(agent) = self.streams.get(&id).map(|stream| stream.agent) else { return };
        let (member, it) = (members::of(agent), &mut self.servers[server]);
        if it.process == Process::Draining {
            return self.hang_up(id, refused(Reason::Draining, Some(Duration::from_secs(1)), &[]));
        }
        if !it.state.is_member(&member.key) {
            let last = match it.state.removal(&member.key) {
                Some(removal) => refused(Reason::Removed, None, removal),
                None => refused(Reason::UnknownNode, None, &[]),
            };
            return self.hang_up(id, last);
        }
        let session = Session {
            agent,
            number: hello.number,
            since: self.now,
            serving: None,
            floor: hello.map.version,
            endpoints: hello.endpoints,
            heard_at: self.now,
            drain_told: false,
            judged: it.state.version,
        };
        it.sessions.insert(id, session);
        let welcome = self.welcome(server, agent);
        self.answer(id, ServerMessage::Welcome(welcome));
        if hello.activate {
            self.on_activate(server, id, hello.number, hello.map);
        }
    }

    fn welcome(&self, server: usize, agent: usize) -> Welcome {
        let (it, node) = (&self.servers[server], &self.nodes[agent]);
        Welcome {
            server: it.id,
            server_name: String::new(),
            servers: self.servers.iter().map(|server| server.url.clone()).collect(),
            heartbeat_interval: Duration::ZERO,
            at: it.state.version,
            unix_ms: self.unix_ms(),
            observed_address: Some(node.endpoint().ip()),
            membership: members::of(agent).certificate.clone(),
        }
    }

    fn answer(&mut self, id: StreamId, message: ServerMessage) {
        self.say(id, Lane::Down, Said::Answer(Box::new(message)));
    }

    fn on_activate(&mut self, server: usize, id: StreamId, number: SessionNumber, map: MapState) {
        let it = &self.servers[server];
        let Some(session) = it.sessions.get(&id) else { return };
        let (agent, node) = (session.agent, members::of(session.agent).node);
        if it.process == Process::Draining {
            return self.end_session(server, id, refused(Reason::Draining, Some(Duration::from_secs(1)), &[]));
        }
        let elsewhere = it.seats.get(&node).is_some_and(|seat| seat.server != server && seat.number > number);
        let here = it.serving(agent).filter(|other| *other != id);
        let newer_here =
            here.is_some_and(|here| it.sessions.get(&here).is_some_and(|session| session.number > number));
        if elsewhere || newer_here {
            return self.end_session(server, id, refused(Reason::StaleSession, None, &[]));
        }
        let it = &mut self.servers[server];
        if let Some(other) = here.and_then(|here| it.sessions.get_mut(&here)) {
            other.serving = None;
        }
        let version = it.state.version;
        if let Some(session) = it.sessions.get_mut(&id) {
            session.number = number;
            session.floor = session.floor.max(map.version);
            session.serving = Some(Serving::resuming(map));
            let endpoints = session.endpoints.clone();
            it.reports.insert(agent, endpoints);
        }
        let life = it.life;
        self.queue.push(self.now + REPORT_DELAY, Event::Report { server, life });
        if self.has_database(server) {
            self.database.take_seat(node, Seat { server, number });
            self.notify_servers();
        }
        self.answer(id, ServerMessage::Activated { number, version });
    }

    fn on_message(&mut self, server: usize, id: StreamId, message: AgentMessage) {
        let Some(session) = self.servers[server].sessions.get_mut(&id) else { return };
        let agent = session.agent;
        match message {
            AgentMessage::Hello(_) => {}
            AgentMessage::Heartbeat { sequence, .. } => {
                let ack = self.ack(server, sequence);
                self.answer(id, ServerMessage::Heartbeat(ack));
            }
            AgentMessage::Activate { number, map } => self.on_activate(server, id, number, map),
            AgentMessage::Deactivate => self.step_back(server, id),
            AgentMessage::Signal(signal) => self.forward(server, agent, signal),
            AgentMessage::Update { endpoints, .. } => {
                session.endpoints.clone_from(&endpoints);
                if session.serving.is_some() {
                    self.servers[server].reports.insert(agent, endpoints);
                    let life = self.servers[server].life;
                    self.queue.push(self.now + REPORT_DELAY, Event::Report { server, life });
                }
            }
            AgentMessage::Leave { .. } => self.end_session(server, id, Said::Ended),
        }
    }

    fn ack(&self, server: usize, sequence: u64) -> HeartbeatAck {
        let it = &self.servers[server];
        HeartbeatAck {
            sequence,
            server: it.id,
            at: it.state.version,
            revision_age: self.now.since(it.level_at),
            database_ok: self.has_database(server),
            spread: it.spread,
            heartbeat_interval: Duration::ZERO,
            unix_ms: self.unix_ms(),
        }
    }

    fn forward(&mut self, server: usize, sender: usize, signal: Signal) {
        let receiver = members::agent_of(&signal.peer);
        let node = members::of(receiver).node;
        let signal = Signal { peer: members::of(sender).key, ..signal };
        if let Some(id) = self.servers[server].serving(receiver) {
            return self.answer(id, ServerMessage::Signal(signal));
        }
        let elsewhere = self.servers[server].seats.get(&node).map(|seat| seat.server);
        if let Some(other) = elsewhere.filter(|_| self.has_database(server)) {
            let delay = self.jitter(Duration::from_millis(20));
            self.queue.push(self.now + delay, Event::Mail { server: other, node, signal });
        }
    }

    pub(crate) fn on_mail(&mut self, server: usize, node: NodeId, signal: Signal) {
        let it = &self.servers[server];
        let serving = it.serving(members::agent_of_node(node)).filter(|_| it.is_alive() && !it.frozen);
        if let Some(id) = serving.filter(|_| self.has_database(server)) {
            self.answer(id, ServerMessage::Signal(signal));
        }
    }

    fn step_back(&mut self, server: usize, id: StreamId) {
        let Some(session) = self.servers[server].sessions.get_mut(&id) else { return };
        let (number, node) = (session.number, members::of(session.agent).node);
        if session.serving.take().is_some() && self.has_database(server) {
            self.database.leave_seat(node, Seat { server, number });
            self.notify_servers();
        }
    }

    fn end_session(&mut self, server: usize, id: StreamId, last: Said) {
        self.step_back(server, id);
        self.servers[server].sessions.remove(&id);
        self.hang_up(id, last);
        self.forget_closed(id);
    }

    fn on_fetch_map(&mut self, server: usize, id: StreamId, have: Vec<wire::ObjectRef>) {
        let it = &mut self.servers[server];
        let Some(session) = it.sessions.get_mut(&id) else { return };
        let Ok(have) = parse_refs(have) else { return };
        let atlas = it.atlas.clone();
        if atlas.version < session.floor {
            return;
        }
        session.floor = atlas.version;
        if let Some(serving) = &mut session.serving {
            serving.map = Progress::Level(atlas.clone());
        }
        let mut whole = atlas.step(&members::of(session.agent).key, &have);
        // Large maps come in parts.
        if whole.put.len() > 1 {
            let rest = whole.put.split_off(whole.put.len() / 2);
            let part = proto::map::Delta { last: false, ..whole.clone() };
            self.say(id, Lane::Fetch, Said::Fetched(Box::new(part)));
            whole.put = rest;
            whole.drop.clear();
        }
        self.say(id, Lane::Fetch, Said::Fetched(Box::new(whole)));
    }

    /// Writes endpoints that differ from the row.
    pub(crate) fn on_report(&mut self, server: usize, life: u32) {
        if !self.runs(server, life) || !self.has_database(server) {
            return;
        }
        for (agent, endpoints) in std::mem::take(&mut self.servers[server].reports) {
            let key = &members::of(agent).key;
            if self.database.head.endpoints(key).is_some_and(|held| held != endpoints) {
                self.write(&Change::Endpoints(agent, endpoints));
            }
        }
    }

    /// Tells every session what is news to it.
    pub(crate) fn tell_news(&mut self, server: usize) {
        if !self.servers[server].is_alive() || self.servers[server].frozen {
            return;
        }
        let sessions: Vec<StreamId> = self.servers[server].sessions.keys().copied().collect();
        for id in sessions {
            if self.tell_general(server, id) {
                self.tell_map(server, id);
                self.tell_presence(server, id);
            }
        }
    }

    /// Removal and draining; whether the session goes on.
    fn tell_general(&mut self, server: usize, id: StreamId) -> bool {
        let it = &mut self.servers[server];
        let (draining, state) = (it.process == Process::Draining, it.state.clone());
        let Some(session) = it.sessions.get_mut(&id) else { return false };
        let key = members::of(session.agent).key;
        if session.judged != state.version && !state.is_member(&key) {
            let last = match state.removal(&key) {
                Some(removal) => refused(Reason::Removed, None, removal),
                None => refused(Reason::UnknownNode, None, &[]),
            };
            self.end_session(server, id, last);
            return false;
        }
        session.judged = state.version;
        if draining && !std::mem::replace(&mut session.drain_told, true) {
            self.answer(id, ServerMessage::Drain { reason: "sim".to_owned() });
        }
        true
    }

    fn tell_map(&mut self, server: usize, id: StreamId) {
        let it = &mut self.servers[server];
        let atlas = it.atlas.clone();
        let Some(session) = it.sessions.get_mut(&id) else { return };
        let (key, floor) = (members::of(session.agent).key, session.floor);
        let Some(serving) = &mut session.serving else { return };
        let message = match &serving.map {
            Progress::Resuming(_) if atlas.version < floor => return,
            Progress::Resuming(held) if held.digest == atlas.digest_for(&key) => None,
            Progress::Resuming(_) => {
                serving.map = Progress::Fetching;
                return self.answer(id, ServerMessage::Fetch(atlas.version));
            }
            Progress::Fetching => return,
            Progress::Level(told) if Rc::ptr_eq(told, &atlas) || atlas.version < told.version => return,
            Progress::Level(told) => {
                let delta = atlas.step(&key, &told.objects_for(&key));
                (!delta.put.is_empty() || !delta.drop.is_empty()).then_some(delta)
            }
        };
        serving.map = Progress::Level(atlas.clone());
        if let Some(delta) = message {
            session.floor = atlas.version;
            self.answer(id, ServerMessage::Map(delta));
        }
    }

    fn tell_presence(&mut self, server: usize, id: StreamId) {
        let it = &mut self.servers[server];
        let here = it.sessions.values().filter(|s| s.serving.is_some()).map(|s| members::of(s.agent).node);
        let seated = it.seats.keys().copied().filter(|node| it.state.is_node(*node));
        let online: BTreeSet<NodeId> = seated.chain(here).collect();
        let Some(serving) = it.sessions.get_mut(&id).and_then(|session| session.serving.as_mut()) else { return };
        let told = serving.presence.replace(online.clone());
        let news = match told {
            Some(told) if told == online => return,
            Some(told) => proto::session::Presence {
                whole: false,
                online: online.difference(&told).copied().collect(),
                offline: told.difference(&online).copied().collect(),
            },
            None => proto::session::Presence {
                whole: true,
                online: online.into_iter().collect(),
                offline: Vec::new(),
            },
        };
        self.answer(id, ServerMessage::Presence(news));
    }

    /// Whether this server would serve this agent: healthy, and nothing between them is lost.
    pub(crate) fn is_good(&self, server: usize, agent: usize) -> bool {
        let addr_is_its = self.routes.get(&members::server_addr(server)) == Some(&server);
        let clean = self.network.is_clean(Host::Agent(agent), Host::Server(server));
        self.servers[server].is_healthy() && clean && addr_is_its
    }
}
