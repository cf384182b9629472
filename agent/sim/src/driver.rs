//! The driver of the agents' machines, exactly by the contract of `agent-core`: an input, all its outputs, the deadline.

use crate::{
    event::Event,
    members,
    stream::{Lane, Said},
    tunnel::{Body, Effect, Tunnel},
    world::World,
};
use agent_core::{
    Agent, BootTime, Identity, Notice, Output, cache,
    io::{TunnelCommand, TunnelEvent},
};
use proto::{map::MapVersion, root::Fingerprint, server_url::ServerUrl, session::AgentMessage};
use std::{net::SocketAddr, time::Duration};

const NAME_DELAY: Duration = Duration::from_millis(8);
/// A state is on disk, and the agent hears of it, by then.
const DISK_DELAY: Duration = Duration::from_millis(300);
/// Datagrams that wait in a socket.
const BACKLOG: usize = 256;
/// Indices of one start of a data plane.
const INDICES: u32 = 1 << 16;

impl World {
    pub(crate) fn launch_agent(&mut self, at: usize) {
        let (now, wall) = (self.now, self.wall(at));
        let node = &mut self.nodes[at];
        if node.agent.is_some() {
            return;
        }
        self.disturb(at, false);
        let node = &mut self.nodes[at];
        // A start of the machine, as often as one of the process alone.
        if node.life > 0 && (self.seed + at as u64).is_multiple_of(2) {
            node.booted_at = now;
        }
        node.life += 1;
        let key = members::of(at).key;
        let identity = Identity { key, boot: node.life.into(), can_enrol: true };
        let cached = cache::decode(&node.cache).ok();
        let seed = self.seed.wrapping_mul(31).wrapping_add(u64::from(node.life) << 32 | at as u64);
        node.tunnel = Tunnel::new(key, (at as u32) << 24 | (node.life * INDICES));
        node.tunnel.clock_ahead_s = node.clock_ahead_s;
        let (config, clock) = (node.config.clone(), node.clock(now));
        node.agent = Some(Agent::new(config, identity, node.saved.clone(), cached, seed, clock));
        node.told.active.clear();
        (node.told.switches, node.told.messages, node.told.datagrams) = (0, 0, 0);
        (node.told.initiations, node.told.signals) = (0, 0);
        node.watch.steady_since = now;
        node.watch.launched_at = now;
        (node.watch.serving_since, node.watch.withdrawn_since) = (now, None);
        node.watch.restored_at.clear();
        node.watch.unserved_since.clear();
        // What was not written before the kill is seen anew.
        node.watch.version = MapVersion::default();
        let endpoint = node.endpoint();
        self.drain(at);
        self.tell_check(at);
        self.input(at, |agent, now| agent.handle_wall_clock(wall, now));
        self.input(at, |agent, now| agent.handle_endpoints(vec![endpoint], endpoint.port(), now));
    }

    /// The process is killed: what it had not written is gone.
    pub(crate) fn stop_agent(&mut self, at: usize) {
        self.disturb(at, false);
        self.forget_unsaved(at);
        let node = &mut self.nodes[at];
        node.agent = None;
        node.wake_at = None;
        node.is_ticking = false;
        node.look_at = None;
        node.is_leaving = false;
        node.life += 1;
        let (life, streams) = (node.life, std::mem::take(&mut node.streams));
        for id in streams.into_values() {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.agent_open = false;
                // The kernel says so in its place.
                stream.agent_life = life;
            }
            self.say(id, Lane::Up, Said::Fin);
            self.forget_closed(id);
        }
    }

    /// One input, if the process runs and the machine is awake.
    pub(crate) fn input(&mut self, at: usize, step: impl FnOnce(&mut Agent, BootTime)) {
        let clock = self.nodes[at].clock(self.now);
        if self.nodes[at].asleep {
            return;
        }
        if let Some(agent) = &mut self.nodes[at].agent {
            step(agent, clock);
            self.drain(at);
        }
    }

    pub(crate) fn on_wake(&mut self, at: usize, life: u32) {
        let node = &mut self.nodes[at];
        if node.life != life || node.wake_at != Some(self.now) || node.asleep {
            return;
        }
        node.wake_at = None;
        self.drain(at);
    }

    /// All outputs, and every deadline that has come.
    pub(crate) fn drain(&mut self, at: usize) {
        let mut was_late = false;
        loop {
            while let Some(output) = self.nodes[at].agent.as_mut().and_then(Agent::poll_output) {
                self.count_step(at);
                self.trace.note(self.now, || format!("agent {at}: {output:?}"));
                self.perform(at, output);
            }
            let clock = self.nodes[at].clock(self.now);
            let Some(agent) = &mut self.nodes[at].agent else { return };
            let deadline = agent.poll_timeout();
            match deadline {
                Some(deadline) if deadline.at <= clock => {
                    if was_late {
                        self.fail(&format!("agent {at}: {deadline:?} stays in the past"));
                    }
                    was_late = true;
                    agent.handle_timeout(clock);
                    self.count_step(at);
                }
                Some(deadline) => return self.wake_at(at, deadline.at.since(clock)),
                None => return self.nodes[at].wake_at = None,
            }
        }
    }

    fn wake_at(&mut self, at: usize, after: Duration) {
        let (deadline, node) = (self.now + after, &mut self.nodes[at]);
        if node.wake_at != Some(deadline) {
            node.wake_at = Some(deadline);
            self.queue.push(deadline, Event::Wake { agent: at, life: node.life });
        }
    }

    fn perform(&mut self, at: usize, output: Output) {
        match output {
            Output::Resolve(url) => {
                let life = self.nodes[at].life;
                self.queue.push(self.now + NAME_DELAY, Event::Resolved { agent: at, life, url });
            }
            Output::Dial(dial) => self.dial(at, &dial),
            Output::Send { conn, message } => {
                self.note_message(at, &message);
                if let Some(id) = self.nodes[at].streams.get(&conn).copied() {
                    self.say(id, Lane::Up, Said::Message(Box::new(message)));
                }
            }
            Output::Fetch { conn, have } => {
                if let Some(id) = self.nodes[at].streams.get(&conn).copied() {
                    self.say(id, Lane::Up, Said::FetchMap(have));
                }
            }
            Output::Close { conn } => self.close(at, conn),
            Output::Configure { .. } => {}
            Output::Tunnel(command) => {
                self.note_command(at, &command);
                self.check_prefixes(at, &command);
                let (now, node) = (self.now, &mut self.nodes[at]);
                node.told.messages += u64::from(matches!(command, TunnelCommand::Message { .. }));
                node.told.initiations += u64::from(matches!(command, TunnelCommand::Initiate { .. }));
                node.tunnel.command(command, now);
                self.effects(at);
            }
            Output::SaveMap => self.nodes[at].save_map(),
            Output::SaveState => self.save_state(at),
            Output::Notice(notice) => self.on_notice(at, &notice),
        }
    }

    fn save_state(&mut self, at: usize) {
        self.nodes[at].save_state();
        let delay = self.jitter(DISK_DELAY);
        let node = &self.nodes[at];
        let root = node.saved.pins().map(|pins| pins.newest);
        self.queue.push(self.now + delay, Event::Kept { agent: at, life: node.life, root });
    }

    pub(crate) fn on_kept(&mut self, at: usize, life: u32, root: Option<Fingerprint>) {
        let node = &self.nodes[at];
        if node.life != life {
            return;
        }
        if node.asleep {
            return self.queue.push(self.now + Duration::from_secs(1), Event::Kept { agent: at, life, root });
        }
        self.input(at, |agent, now| agent.handle_root_kept(root, now));
    }

    fn note_message(&mut self, at: usize, message: &AgentMessage) {
        self.nodes[at].told.signals += u64::from(matches!(message, AgentMessage::Signal(_)));
        let map = match message {
            AgentMessage::Hello(hello) => hello.map,
            AgentMessage::Activate { map, .. } => *map,
            AgentMessage::Heartbeat { .. }
            | AgentMessage::Deactivate
            | AgentMessage::Signal(_)
            | AgentMessage::Update { .. }
            | AgentMessage::Leave { .. }
            | AgentMessage::Removal(_)
            | AgentMessage::Root(_) => return,
        };
        let before = std::mem::replace(&mut self.nodes[at].watch.version, map.version);
        if map.version < before && !self.nodes[at].is_refused {
            self.fail(&format!("agent {at}: its map went back from {before:?} to {:?}", map.version));
        }
    }

    fn on_notice(&mut self, at: usize, notice: &Notice) {
        let told = &mut self.nodes[at].told;
        match notice {
            Notice::Served(served) => {
                let before = told.server.replace(served.server);
                told.failovers += u64::from(before.is_some_and(|before| before != served.server));
            }
            Notice::Peer { key, up } => {
                *(if *up { &mut told.tunnels_up } else { &mut told.tunnels_down }) += 1;
                if !up {
                    self.note_down(at, members::agent_of(key));
                }
            }
            Notice::Claim { prefix, active, before } => self.on_claim(at, *prefix, *active, *before),
            Notice::Held { .. } => self.check_exclusive(at),
            Notice::Refused(_) => self.nodes[at].is_refused = true,
            Notice::Unserved
            | Notice::MapChanged { .. }
            | Notice::Enrolled
            | Notice::Reset { .. }
            | Notice::Pong { .. }
            | Notice::Users { .. } => {}
        }
    }

    pub(crate) fn on_resolved(&mut self, at: usize, life: u32, url: &ServerUrl) {
        if self.nodes[at].life != life {
            return;
        }
        if self.nodes[at].asleep {
            let event = Event::Resolved { agent: at, life, url: url.clone() };
            return self.queue.push(self.now + Duration::from_secs(1), event);
        }
        let server = self.servers.iter().position(|server| server.url == *url);
        let result = match server.filter(|_| !self.names_away) {
            Some(server) => Ok(vec![self.routes.addr_of(server)]),
            None => Err("no such name".to_owned()),
        };
        self.input(at, |agent, now| agent.handle_resolved(url, result, now));
    }

    pub(crate) fn on_tunnel_event(&mut self, at: usize, life: u32, event: TunnelEvent) {
        if self.nodes[at].life == life {
            self.input(at, |agent, now| agent.handle_tunnel(event, now));
        }
    }

    /// Does what the data plane asks.
    pub(crate) fn effects(&mut self, at: usize) {
        let now = self.now;
        self.nodes[at].tunnel.look(now);
        for effect in std::mem::take(&mut self.nodes[at].tunnel.effects) {
            match effect {
                Effect::Send(datagram) => self.send_datagram(at, datagram.to, datagram.body),
                Effect::Event(event) => {
                    let life = self.nodes[at].life;
                    self.queue.push(self.now, Event::Tunnel { agent: at, life, event });
                }
                Effect::Deliver(from, packet) => self.on_delivered(at, members::agent_of(&from), packet),
            }
        }
        self.look_later(at);
        let node = &mut self.nodes[at];
        if !node.is_ticking && node.tunnel.is_busy() {
            node.is_ticking = true;
            let life = node.life;
            self.queue.push(self.now + Duration::from_secs(1), Event::Tick { agent: at, life });
        }
    }

    /// Every packet moves the deadline: one look stands for all until then.
    fn look_later(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let Some(look_at) = node.tunnel.look_at() else { return };
        if node.look_at.is_none_or(|known| look_at < known) {
            node.look_at = Some(look_at);
            self.queue.push(look_at, Event::Look { agent: at, life: node.life });
        }
    }

    pub(crate) fn on_look(&mut self, at: usize, life: u32) {
        let node = &mut self.nodes[at];
        if node.life == life && node.look_at == Some(self.now) {
            node.look_at = None;
            if !node.asleep {
                self.effects(at);
            }
        }
    }

    fn send_datagram(&mut self, at: usize, to: SocketAddr, body: Body) {
        use crate::network::Host;
        let from = self.nodes[at].endpoint();
        self.nodes[at].told.datagrams += 1;
        let Some(receiver) = self.nodes.iter().position(|node| node.endpoint() == to) else { return };
        if let Some(delay) = self.network.datagram(Host::Agent(at), Host::Agent(receiver)) {
            self.queue.push(self.now + delay, Event::Datagram { from, to, body });
        }
    }

    pub(crate) fn on_datagram(&mut self, from: SocketAddr, to: SocketAddr, body: Body) {
        let now = self.now;
        let Some(at) = self.nodes.iter().position(|node| node.endpoint() == to) else { return };
        let node = &mut self.nodes[at];
        if let Some(backlog) = node.backlog.as_mut().filter(|backlog| backlog.len() < BACKLOG) {
            return backlog.push_back((from, to, body));
        }
        if !node.is_awake() {
            return;
        }
        self.nodes[at].told.datagrams += 1;
        self.nodes[at].tunnel.receive(from, body, now);
        self.effects(at);
    }

    pub(crate) fn on_tick(&mut self, at: usize, life: u32) {
        let (now, node) = (self.now, &mut self.nodes[at]);
        if node.life != life {
            return;
        }
        node.is_ticking = false;
        if node.asleep {
            node.is_ticking = true;
            return self.queue.push(now + Duration::from_secs(1), Event::Tick { agent: at, life });
        }
        node.tunnel.tick(now);
        self.effects(at);
    }
}
