//! Control connections: ordered, reliable byte streams, as TCP gives them. While nothing passes, what is said waits and is tried again; a reset arrives only
//! over a path that works, so a cut link, a frozen process and a silent drop all look the same from the other end: silence.

use crate::{
    event::Event,
    network::{Host, RETRANSMISSION},
    world::World,
};
use agent_core::{
    BootTime, ConnId,
    io::{Closed, Connected, Dial},
};
use proto::{
    map::Delta,
    session::{AgentMessage, Refused, ServerId, ServerMessage},
    wire::{self, ObjectRef},
};
use std::{collections::VecDeque, net::SocketAddr, time::Duration};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StreamId(pub(crate) u64);

/// One direction. A fetched map travels beside the session's messages and may overtake them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Up,
    Down,
    Fetch,
}

/// What a stream carries.
#[derive(Debug, Clone)]
pub(crate) enum Said {
    /// TLS is done by the agent's side; with a wish to enrol or not.
    Open {
        enrol: bool,
    },
    Message(Box<AgentMessage>),
    FetchMap(Vec<ObjectRef>),
    /// The agent closed.
    Fin,
    Enrolled(Box<wire::Enrolled>),
    Opened(ServerId),
    /// The server's certificate is not under a root that the agent knows.
    Foreign,
    Answer(Box<ServerMessage>),
    Fetched(Box<Delta>),
    /// The server refuses, and closes.
    Refused(Box<Refused>),
    /// The server closed.
    Ended,
}

#[derive(Debug, Default)]
struct Flow {
    sent: VecDeque<Said>,
    stalled: VecDeque<Said>,
    last_arrival: BootTime,
    attempts: u32,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) agent: usize,
    pub(crate) agent_life: u32,
    pub(crate) conn: ConnId,
    /// Which machine answered, and which start of its process.
    pub(crate) server: usize,
    pub(crate) server_life: u32,
    /// How often the agent had moved: packets from an earlier address are lost.
    pub(crate) moves: u32,
    pub(crate) addr: SocketAddr,
    enrol: bool,
    connected: bool,
    pub(crate) agent_open: bool,
    pub(crate) server_open: bool,
    up: Flow,
    down: Flow,
    fetch: Flow,
}

impl Stream {
    fn flow(&mut self, lane: Lane) -> &mut Flow {
        match lane {
            Lane::Up => &mut self.up,
            Lane::Down => &mut self.down,
            Lane::Fetch => &mut self.fetch,
        }
    }
}

impl World {
    pub(crate) fn dial(&mut self, agent: usize, dial: &Dial) {
        self.next_stream += 1;
        let (id, node) = (StreamId(self.next_stream), &mut self.nodes[agent]);
        node.streams.insert(dial.conn, id);
        let stream = Stream {
            agent,
            agent_life: node.life,
            conn: dial.conn,
            server: usize::MAX,
            server_life: 0,
            moves: node.moves,
            addr: dial.addr,
            enrol: dial.enrol,
            connected: false,
            agent_open: true,
            server_open: false,
            up: Flow::default(),
            down: Flow::default(),
            fetch: Flow::default(),
        };
        self.streams.insert(id, stream);
        self.queue.push(self.now, Event::Syn(id, 0));
        self.queue.push(self.now + dial.connect_timeout, Event::DialTimeout(id));
    }

    /// Lost SYNs are repeated after 1 s, 3 s and 7 s.
    pub(crate) fn on_syn(&mut self, id: StreamId, attempt: u32) {
        let Some(stream) = self.streams.get(&id).filter(|s| s.agent_open && !s.connected) else { return };
        let host = Host::Agent(stream.agent);
        let addr = stream.addr;
        if self.is_agent_stale(id) || self.nodes[stream.agent].asleep {
            return;
        }
        let target = self.choose_machine(addr);
        if let (Some(stream), Some(target)) = (self.streams.get_mut(&id), target) {
            stream.server = target;
        }
        let arrives = target.and_then(|server| self.network.datagram(host, Host::Server(server)));
        match arrives {
            Some(delay) => self.queue.push(self.now + delay, Event::Accept(id)),
            None if attempt < 3 => {
                self.queue.push(self.now + Duration::from_secs(1 << attempt), Event::Syn(id, attempt + 1));
            }
            None => {}
        }
    }

    /// The kernel answers for a process that is frozen, and with a reset where there is none.
    pub(crate) fn on_accept(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id).filter(|s| s.agent_open && !s.connected) else { return };
        let Some(server) = self.routes.now_at(stream.addr, stream.server) else { return };
        let (host, enrol) = (Host::Agent(stream.agent), stream.enrol);
        stream.server = server;
        stream.server_life = self.servers[server].life;
        if !self.servers[server].is_alive() {
            return self.reset(id, server);
        }
        let Some(back) = self.network.datagram(Host::Server(server), host) else { return };
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.connected = true;
        stream.server_open = true;
        // The rest of TCP's and of TLS's handshakes: the agent's next words come a round trip later.
        let next = self.network.segment(host, Host::Server(server)).unwrap_or(back);
        stream.up.last_arrival = self.now + back + next;
        self.say(id, Lane::Up, Said::Open { enrol });
    }

    pub(crate) fn on_dial_timeout(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get(&id).filter(|s| s.agent_open && !s.connected) else { return };
        match self.nodes[stream.agent].asleep {
            true => self.queue.push(self.now + Duration::from_secs(1), Event::DialTimeout(id)),
            false => self.on_closed(id, &Closed::TimedOut),
        }
    }

    /// A reset on its way to the agent, by `server`, if that can reach it.
    pub(crate) fn reset(&mut self, id: StreamId, server: usize) {
        let Some(stream) = self.streams.get(&id) else { return };
        if let Some(delay) = self.network.datagram(Host::Server(server), Host::Agent(stream.agent)) {
            self.queue.push(self.now + delay, Event::Reset(id));
        }
    }

    pub(crate) fn on_reset(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get(&id).filter(|stream| stream.agent_open) else { return };
        if self.is_agent_stale(id) || self.nodes[stream.agent].asleep {
            return;
        }
        let why = match stream.connected {
            true => Closed::Ended("connection reset".to_owned()),
            false => Closed::Connect("connection refused".to_owned()),
        };
        self.on_closed(id, &why);
    }

    /// Puts words on the way.
    pub(crate) fn say(&mut self, id: StreamId, lane: Lane, said: Said) {
        let route = self.route(id, lane);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let flow = stream.flow(lane);
        if !flow.stalled.is_empty() {
            return flow.stalled.push_back(said);
        }
        let delay = match route {
            Route::Path(from, to) => self.network.segment(from, to),
            Route::Elsewhere(server) => return self.reset(id, server),
            Route::Nowhere => None,
            Route::Gone => return,
        };
        match delay {
            Some(delay) => {
                flow.attempts = 0;
                flow.last_arrival = flow.last_arrival.max(self.now + delay);
                flow.sent.push_back(said);
                self.queue.push(flow.last_arrival, Event::Arrive(id, lane));
            }
            None => {
                flow.stalled.push_back(said);
                let again = RETRANSMISSION * 2u32.pow(flow.attempts.min(5));
                flow.attempts += 1;
                self.queue.push(self.now + again, Event::Retry(id, lane));
            }
        }
    }

    pub(crate) fn on_retry(&mut self, id: StreamId, lane: Lane) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let waiting = std::mem::take(&mut stream.flow(lane).stalled);
        for said in waiting {
            self.say(id, lane, said);
        }
    }

    fn route(&self, id: StreamId, lane: Lane) -> Route {
        let Some(stream) = self.streams.get(&id) else { return Route::Gone };
        let (agent, server) = (Host::Agent(stream.agent), Host::Server(stream.server));
        let node = &self.nodes[stream.agent];
        if node.moves != stream.moves || node.life != stream.agent_life {
            return Route::Gone;
        }
        match lane {
            _ if node.asleep => Route::Nowhere,
            Lane::Up => match self.routes.now_at(stream.addr, stream.server) {
                Some(now) if now == stream.server => Route::Path(agent, server),
                Some(other) if self.network.passes(agent, Host::Server(other)) => Route::Elsewhere(other),
                Some(_) | None => Route::Nowhere,
            },
            Lane::Down | Lane::Fetch => Route::Path(server, agent),
        }
    }

    pub(crate) fn on_arrive(&mut self, id: StreamId, lane: Lane) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let Some(said) = stream.flow(lane).sent.pop_front() else { return };
        match lane {
            Lane::Up => self.hear_at_server(id, said),
            Lane::Down | Lane::Fetch => self.hear_at_agent(id, said),
        }
        self.forget_closed(id);
    }

    pub(crate) fn forget_closed(&mut self, id: StreamId) {
        if self.streams.get(&id).is_some_and(|stream| !stream.agent_open && !stream.server_open) {
            self.streams.remove(&id);
        }
    }

    fn hear_at_server(&mut self, id: StreamId, said: Said) {
        let Some(stream) = self.streams.get(&id) else { return };
        let server = stream.server;
        let gone = !stream.server_open || self.servers[server].life != stream.server_life;
        if gone || !self.servers[server].is_alive() {
            return self.reset(id, server);
        }
        match self.servers[server].frozen {
            true => self.servers[server].inbox.push((id, said)),
            false => self.on_said(server, id, said),
        }
    }

    fn is_agent_stale(&self, id: StreamId) -> bool {
        let current = |agent: usize| (self.nodes[agent].life, self.nodes[agent].moves);
        self.streams.get(&id).is_none_or(|s| current(s.agent) != (s.agent_life, s.moves))
    }

    fn hear_at_agent(&mut self, id: StreamId, said: Said) {
        let Some(stream) = self.streams.get(&id) else { return };
        if !stream.agent_open || self.is_agent_stale(id) || self.nodes[stream.agent].asleep {
            return;
        }
        let (agent, conn) = (stream.agent, stream.conn);
        self.trace.note(self.now, || format!("agent {agent} hears on {conn:?}: {said:?}"));
        match said {
            Said::Enrolled(enrolled) => self.input(agent, |a, now| a.handle_enrolled(conn, &enrolled, now)),
            Said::Opened(server) => {
                self.input(agent, |a, now| a.handle_connected(conn, Connected { server }, now));
            }
            Said::Answer(message) => self.input(agent, |a, now| a.handle_message(conn, *message, now)),
            Said::Fetched(delta) => self.input(agent, |a, now| a.handle_fetched(conn, *delta, now)),
            Said::Refused(refused) => self.on_closed(id, &Closed::Refused(*refused)),
            Said::Foreign => {
                self.on_closed(id, &Closed::NotOurs("under no root that is known here".to_owned()));
            }
            Said::Ended => self.on_closed(id, &Closed::Ended("end of stream".to_owned())),
            Said::Open { .. } | Said::Message(_) | Said::FetchMap(_) | Said::Fin => {}
        }
    }

    /// The connection is over for the agent, not by its own will.
    fn on_closed(&mut self, id: StreamId, why: &Closed) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.agent_open = false;
        let (agent, conn) = (stream.agent, stream.conn);
        self.nodes[agent].streams.remove(&conn);
        self.forget_closed(id);
        self.input(agent, |a, now| a.handle_closed(conn, why, now));
    }

    /// The agent closes.
    pub(crate) fn close(&mut self, agent: usize, conn: ConnId) {
        let Some(id) = self.nodes[agent].streams.remove(&conn) else { return };
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.agent_open = false;
        if stream.connected {
            self.say(id, Lane::Up, Said::Fin);
        }
        self.forget_closed(id);
    }

    /// The server closes, with last words.
    pub(crate) fn hang_up(&mut self, id: StreamId, last: Said) {
        self.say(id, Lane::Down, last);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.server_open = false;
        }
    }
}

enum Route {
    Path(Host, Host),
    /// Another machine has the address now: it knows nothing of this connection.
    Elsewhere(usize),
    /// Not now.
    Nowhere,
    /// Never again: the agent's end is at an address that it left.
    Gone,
}
