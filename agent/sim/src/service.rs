//! What a server makes of what agents say: enrolment, sessions, signals, fetched maps.

use crate::{
    atlas::Change,
    database::Seat,
    event::Event,
    members,
    server::{PUBLISH_DELAY, Process},
    session::{Progress, Serving, Session},
    stream::{Lane, Said, StreamId},
    world::World,
};
use proto::{
    map::{Delta, parse_refs},
    session::{
        AgentMessage, Facts, HeartbeatAck, Hello, MapState, Reason, Refused, ServerList, ServerMessage,
        SessionNumber, Signal, Welcome,
    },
    statement::{NodeId, Statement},
    wire,
};
use std::time::Duration;

const REPORT_DELAY: Duration = Duration::from_millis(50);

pub(crate) fn refused(reason: Reason, retry_after: Option<Duration>, removal: &[u8]) -> Said {
    let detail = format!("{reason:?}");
    Said::Refused(Box::new(Refused { reason, detail, retry_after, removal: removal.to_vec() }))
}

fn yields(facts: &Facts) -> bool {
    facts.claims.iter().any(|claim| claim.yields)
}

impl World {
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
            Said::Message(message) => self.on_message(server, id, *message),
            Said::FetchMap(have) => self.on_fetch_map(server, id, have),
            Said::Fin => self.end_session(server, id, Said::Ended),
            Said::Enrolled(_)
            | Said::Opened(_)
            | Said::Foreign
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
        if !self.shows_known_root(server, agent) {
            return self.hang_up(id, Said::Foreign);
        }
        if enrol {
            if !self.servers[server].state.is_member(&member.key) {
                if !self.has_database(server) {
                    return self.hang_up(id, refused(Reason::Database, Some(Duration::from_secs(2)), &[]));
                }
                self.enrol(agent);
                // The server that wrote it need not hear of it first.
                let head = self.database.head.clone();
                self.servers[server].state = head;
                self.publish_soon(server);
            }
            let enrolled = wire::Enrolled {
                root: members::root(self.servers[server].state.newest_root).to_bytes().to_vec(),
                membership: self.own_certificate(server, agent),
                node_id: member.node.0,
                servers: Vec::new(),
                roots: self.root_list(server).map(Into::into),
            };
            self.say(id, Lane::Down, Said::Enrolled(Box::new(enrolled)));
        }
        self.say(id, Lane::Down, Said::Opened(self.servers[server].id));
    }

    /// With what it says that it claims now.
    fn enrol(&mut self, agent: usize) {
        self.write(&Change::Enrol(agent));
        let claims_nothing = self.nodes[agent].config.facts.claims.is_empty();
        if claims_nothing && !self.database.head.claims_of(agent).is_empty() {
            self.write(&Change::Withdraw(agent, true));
        }
    }

    fn publish_soon(&mut self, server: usize) {
        let life = self.servers[server].life;
        self.queue.push(self.now + PUBLISH_DELAY, Event::Publish { server, life });
    }

    fn on_hello(&mut self, server: usize, id: StreamId, hello: Hello) {
        let Some(agent) = self.streams.get(&id).map(|stream| stream.agent) else { return };
        self.show(server, &hello.map);
        let member = members::of(agent);
        self.take_in_again(server, agent, &hello);
        let it = &mut self.servers[server];
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
            yields: yields(&hello.facts),
            heard_at: self.now,
            drain_told: false,
            judged: it.state.version,
            kept_root: None,
            roots_told: it.state.roots(),
            certificate_told: it.state.certificate(agent),
            servers_told: it.live.clone(),
        };
        it.sessions.insert(id, session);
        self.on_root_kept(server, id, hello.root);
        let welcome = self.welcome(server, agent);
        self.answer(id, ServerMessage::Welcome(welcome));
        if hello.activate {
            self.on_activate(server, id, hello.number, hello.map);
        }
    }

    /// By its own certificate, where the database lost it.
    fn take_in_again(&mut self, server: usize, agent: usize, hello: &Hello) {
        let (key, head) = (members::of(agent).key, &self.database.head);
        let outside = head.is_member(&key) || head.removal(&key).is_some() || hello.membership.is_empty();
        if self.has_database(server) && self.database.recovered && !outside {
            self.enrol(agent);
            self.servers[server].state = self.database.head.clone();
            self.publish_soon(server);
        }
    }

    fn welcome(&self, server: usize, agent: usize) -> Welcome {
        let (it, node) = (&self.servers[server], &self.nodes[agent]);
        Welcome {
            server: it.id,
            server_name: String::new(),
            servers: self.server_list(server),
            heartbeat_interval: Duration::ZERO,
            at: it.state.version,
            unix_ms: self.unix_ms(),
            observed_address: Some(node.endpoint().ip()),
            membership: self.own_certificate(server, agent),
            roots: self.root_list(server),
        }
    }

    pub(crate) fn server_list(&self, server: usize) -> ServerList {
        let mut urls: Vec<_> = self.servers.iter().map(|server| server.url.clone()).collect();
        urls.dedup();
        let ids = self.servers[server].live.iter().map(|live| self.servers[*live].id);
        ServerList { urls, ids: ids.collect() }
    }

    pub(crate) fn answer(&mut self, id: StreamId, message: ServerMessage) {
        self.say(id, Lane::Down, Said::Answer(Box::new(message)));
    }

    fn on_activate(&mut self, server: usize, id: StreamId, number: SessionNumber, map: MapState) {
        self.show(server, &map);
        let it = &self.servers[server];
        let Some(session) = it.sessions.get(&id) else { return };
        let (agent, node) = (session.agent, members::of(session.agent).node);
        if it.process == Process::Draining {
            return self.end_session(
                server,
                id,
                refused(Reason::Draining, Some(Duration::from_secs(1)), &[]),
            );
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
        let (version, receipt) = (it.state.version, it.state.receipt());
        if let Some(session) = it.sessions.get_mut(&id) {
            session.number = number;
            session.floor = session.floor.max(map.version);
            session.serving = Some(Serving::resuming(map));
            let told = (session.endpoints.clone(), session.yields);
            it.reports.insert(agent, told);
        }
        let life = it.life;
        self.queue.push(self.now + REPORT_DELAY, Event::Report { server, life });
        if self.has_database(server) {
            self.database.take_seat(node, Seat { server, number });
            self.notify_servers();
        }
        self.answer(id, ServerMessage::Activated { number, version, receipt });
    }

    fn on_message(&mut self, server: usize, id: StreamId, message: AgentMessage) {
        if let AgentMessage::Hello(hello) = message {
            return self.on_hello(server, id, hello);
        }
        let Some(session) = self.servers[server].sessions.get_mut(&id) else { return };
        let agent = session.agent;
        match message {
            AgentMessage::Hello(_) => {}
            AgentMessage::Root(root) => self.on_root_kept(server, id, Some(root)),
            AgentMessage::Heartbeat { sequence, .. } => {
                let ack = self.ack(server, id, sequence);
                self.answer(id, ServerMessage::Heartbeat(ack));
            }
            AgentMessage::Activate { number, map } => self.on_activate(server, id, number, map),
            AgentMessage::Deactivate => self.step_back(server, id),
            AgentMessage::Signal(signal) => self.forward(server, agent, signal),
            AgentMessage::Update { endpoints, facts } => {
                session.endpoints.clone_from(&endpoints);
                session.yields = yields(&facts);
                if session.serving.is_some() {
                    self.servers[server].reports.insert(agent, (endpoints, yields(&facts)));
                    let life = self.servers[server].life;
                    self.queue.push(self.now + REPORT_DELAY, Event::Report { server, life });
                }
            }
            AgentMessage::Leave { .. } => {
                self.end_session(server, id, Said::Ended);
                self.release(server, agent);
            }
            AgentMessage::Removal(signed) => self.on_removal_told(server, &signed),
        }
    }

    /// Agents remember what the database may have lost.
    fn on_removal_told(&mut self, server: usize, signed: &[u8]) {
        let mut roots = self.servers[server].state.roots().map(members::root);
        let told = roots.find_map(|root| Statement::verify(signed, members::NETWORK, &root).ok());
        let Some(Statement::Removal(removal)) = told else { return };
        if self.has_database(server) && self.database.head.is_member(&removal.node_key) {
            self.write(&Change::Remove(members::agent_of(&removal.node_key)));
        }
    }

    fn ack(&self, server: usize, id: StreamId, sequence: u64) -> HeartbeatAck {
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
            receipt: it.state.receipt(),
            map: it.sessions.get(&id).map(Session::told).unwrap_or_default(),
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

    pub(crate) fn end_session(&mut self, server: usize, id: StreamId, last: Said) {
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
            let part = Delta { last: false, ..whole.clone() };
            self.say(id, Lane::Fetch, Said::Fetched(Box::new(part)));
            whole.put = rest;
            whole.drop.clear();
        }
        self.say(id, Lane::Fetch, Said::Fetched(Box::new(whole)));
    }
}
