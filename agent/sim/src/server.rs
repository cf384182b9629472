//! A reference model of a server: what it knows of the database, who is connected, and what it tells them. It follows the server program in what agents can
//! notice: its maps lag behind its version, its version behind the database, and a session that another server took over is told nothing.

use crate::{
    atlas::{Atlas, Change},
    database::Seat,
    event::Event,
    faults::Fault,
    holders::Rounds,
    members,
    network::Host,
    session::Session,
    stream::{Said, StreamId},
    world::World,
};
use agent_core::BootTime;
use proto::{
    map::MapVersion,
    receipt::Mark,
    server_url::ServerUrl,
    session::{MapState, ServerId},
    statement::NodeId,
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
pub(crate) const PUBLISH_DELAY: Duration = Duration::from_millis(15);
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
    pub(crate) reports: BTreeMap<usize, (Vec<SocketAddr>, bool)>,
    pub(crate) spread: Duration,
    /// The newest version that an agent has proved, and what it was.
    pub(crate) proved: Option<(MapVersion, Mark)>,
    /// What it knew when the database knew it no more.
    pub(crate) past: Option<Rc<Atlas>>,
    /// The servers that live, as last read.
    pub(crate) live: Vec<usize>,
    pub(crate) rounds: Rounds,
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
            proved: None,
            past: None,
            live: vec![at],
            rounds: Rounds::default(),
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

impl World {
    pub(crate) fn start_server(&mut self, server: usize) {
        if self.database_away || self.servers[server].is_alive() {
            return;
        }
        let head = self.database.head.clone();
        let it = &mut self.servers[server];
        let fresh =
            Server { life: it.life + 1, spread: it.spread, ..Server::new(server, it.url.clone(), &head) };
        *it = Server { level_at: self.now, ..fresh };
        self.database.renew(server, self.now);
        let life = self.servers[server].life;
        self.queue.push(self.now, Event::ServerTick { server, life });
        if self.claims.iter().any(|claimed| claimed.claim.exclusive) {
            self.queue.push(self.now, Event::Round { server, life });
        }
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

    pub(crate) fn runs(&self, server: usize, life: u32) -> bool {
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
            self.renew_holders(server);
            self.keep_certificates(server);
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

    /// What was not written while the database was away is: who came, and who went.
    fn save_seats(&mut self, server: usize) {
        let here: BTreeSet<NodeId> =
            self.servers[server].sessions.values().map(|session| members::of(session.agent).node).collect();
        self.database.seats.retain(|node, seat| seat.server != server || here.contains(node));
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
        self.recover(server);
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
        it.live = self.database.live_servers(now);
        self.tell_news(server);
    }

    /// The database may have gone back in time: by what this server knows, or by what agents have proved.
    fn recover(&mut self, server: usize) {
        let it = &mut self.servers[server];
        if !self.database.holds(it.state.version, it.state.mark) {
            it.past = Some(it.state.clone());
        }
        let known = it.past.as_ref().map(|past| (past.version, past.mark));
        let lacks = |(version, mark): &(MapVersion, Mark)| {
            self.database.head.version.epoch <= version.epoch && !self.database.holds(*version, *mark)
        };
        let seen =
            [known, it.proved.take()].into_iter().flatten().filter(lacks).map(|(version, _)| version).max();
        let past = it.past.take();
        let has_changed = match (seen, past) {
            (Some(seen), past) => {
                self.database.begin_epoch(seen, past.as_deref());
                true
            }
            (None, Some(past)) => self.database.put_back(&past),
            (None, None) => false,
        };
        if has_changed {
            self.notify_servers();
        }
    }

    /// An agent shows what it holds.
    pub(crate) fn show(&mut self, server: usize, held: &MapState) {
        let (it, (version, receipt)) = (&mut self.servers[server], (held.version, held.receipt));
        if members::receipts().verifies(version, &receipt)
            && it.proved.is_none_or(|proved| proved.0 < version)
        {
            it.proved = Some((version, receipt.mark()));
            self.on_follow(server, self.servers[server].life);
        }
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
        self.database.write(change, self.time());
        self.notify_servers();
    }

    /// Writes endpoints and what else a node says of itself where the row has something else.
    pub(crate) fn on_report(&mut self, server: usize, life: u32) {
        if !self.runs(server, life) || !self.has_database(server) {
            return;
        }
        for (agent, (endpoints, yields)) in std::mem::take(&mut self.servers[server].reports) {
            let key = &members::of(agent).key;
            if self.database.head.endpoints(key).is_some_and(|held| held != endpoints) {
                self.write(&Change::Endpoints(agent, endpoints));
            }
            if self.database.head.yields(agent) != yields {
                self.write(&Change::Yield(agent, yields));
            }
        }
    }

    /// Whether this server would serve this agent: healthy, and nothing between them is lost.
    pub(crate) fn is_good(&self, server: usize, agent: usize) -> bool {
        let addr_is_its = self.routes.leads_to(self.routes.addr_of(server), server);
        let clean = self.network.is_clean(Host::Agent(agent), Host::Server(server));
        self.servers[server].is_healthy() && clean && addr_is_its
    }
}
