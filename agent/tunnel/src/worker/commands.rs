//! What the owner orders.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{
        atomic::Ordering,
        mpsc::{Receiver, TryRecvError},
    },
};

use ipnet::IpNet;

use super::{Stop, Worker, inbound::ROAMING_HOLD};
use crate::{
    Command, Counters, Drops, MAX_ENDPOINTS, Peer, PublicKey,
    capture::{Direction, Fate},
    device::Reader,
    packet::udp_packet,
    peer::{PeerId, PeerState},
    routes::NOBODY,
    socket::{Path, Sockets, leads_somewhere},
    team::Team,
    tunnel::Request,
};

/// Per turn, so that a long list of peers does not hold up packets.
const MAX_REQUESTS: usize = 256;

impl Worker {
    /// Whether there was anything.
    pub(super) fn handle_requests(
        &mut self,
        inbox: &Receiver<Request>,
        reader: &mut Reader,
    ) -> Result<bool, Stop> {
        for handled in 0..MAX_REQUESTS {
            if !self.handshakes.may_begin() {
                break;
            }
            match inbox.try_recv() {
                Ok(request) => self.handle_request(request, reader)?,
                Err(TryRecvError::Empty) if handled == 0 => return Ok(false),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Err(Stop::Ordered),
            }
        }
        self.steer(reader);
        Ok(true)
    }

    fn handle_request(&mut self, request: Request, reader: &mut Reader) -> Result<(), Stop> {
        match request {
            Request::Command(command) => {
                return self.handle_command(command);
            }
            Request::Configure(changes, reply) => {
                let done = self.configure(*changes);
                // Whoever asked may send at once.
                self.steer(reader);
                let _ = reply.send(done);
            }
            Request::Describe(reply) => {
                let _ = reply.send(self.describe());
            }
            Request::Link(link) => self.handle_link(link),
            // Whoever asked may have gone.
            Request::Stats(reply) => {
                let _ = reply.send(self.peers.iter().map(|state| state.stats(self.now)).collect());
            }
            Request::Counters(reply) => {
                let _ = reply.send(self.counters());
            }
            Request::Capture(tap) => self.taps.add(tap),
            Request::TidyCaptures => self.taps.tidy(),
        }
        Ok(())
    }

    pub(super) fn handle_command(&mut self, command: Command) -> Result<(), Stop> {
        match command {
            Command::Upsert(peer) => self.upsert(peer),
            Command::Remove(key) => self.with(&key, Self::remove),
            Command::Initiate { peer, endpoints } => self.with(&peer, |worker, id| {
                worker.initiate(id, endpoints);
            }),
            Command::Forget { peer } => self.with(&peer, |worker, id| {
                worker.put_to_rest(id);
            }),
            Command::SetKeepalive { peer, interval } => self.with(&peer, |worker, id| {
                if let Some(state) = worker.peers.get(id) {
                    state.keepalive = interval;
                }
            }),
            Command::Watch { peer, silence } => self.with(&peer, |worker, id| {
                if let Some(state) = worker.peers.get(id) {
                    worker.watches.set(id, silence, state.live.as_deref_mut());
                }
            }),
            Command::Reset { prefix, from } => self.with(&from, |worker, id| worker.reset(prefix, id)),
            Command::Withhold { prefix, withheld } => self.withhold(prefix, withheld),
            Command::SetEndpoint { peer, endpoint } => self.with(&peer, |worker, id| {
                if worker.is_endpoint(endpoint) {
                    worker.set_endpoint(id, canonical(endpoint));
                }
            }),
            Command::SendMessage { peer, payload, via } => self.with(&peer, |worker, id| {
                let is_way = via.is_none_or(|via| worker.is_endpoint(via));
                if is_way && worker.send_message(id, &payload, via.map(canonical)).is_none() {
                    worker.drops.message_unsent += 1;
                }
            }),
            Command::SetRules(rules) => {
                if let Some(filter) = &mut self.filter {
                    filter.replace_rules(rules);
                }
            }
            Command::Rebind => return self.rebind(),
            Command::Shutdown => return Err(Stop::Ordered),
        }
        Ok(())
    }

    fn with(&mut self, key: &PublicKey, action: impl FnOnce(&mut Self, PeerId)) {
        if let Some(id) = self.peers.find(key) {
            action(self, id);
        }
    }

    /// Counts what is none.
    fn is_endpoint(&mut self, endpoint: SocketAddr) -> bool {
        let is_one = leads_somewhere(endpoint);
        self.drops.bad_endpoint += u64::from(!is_one);
        is_one
    }

    fn upsert(&mut self, peer: Peer) {
        let mut robbed = BTreeSet::new();
        let id = match self.peers.find(&peer.key) {
            Some(id) => {
                if self.update(id, peer) {
                    robbed.insert(id);
                }
                id
            }
            None => self.peers.insert(PeerState::new(peer)),
        };
        for &prefix in self.peers.allowed_ips(id).iter().flat_map(|list| list.iter()) {
            robbed.extend(self.routes.insert(prefix, id).filter(|former| *former != id));
        }
        for former in robbed {
            self.send_elsewhere(former);
        }
    }

    fn withhold(&mut self, prefix: IpNet, withheld: bool) {
        if !withheld {
            return self.routes.remove(prefix, NOBODY);
        }
        if let Some(former) = self.routes.insert(prefix, NOBODY) {
            self.send_elsewhere(former);
        }
    }

    /// Whether it has a prefix less.
    fn update(&mut self, id: PeerId, peer: Peer) -> bool {
        let Some(list) = self.peers.allowed_ips(id) else { return false };
        let mut has_lost = false;
        for &prefix in list.iter().filter(|prefix| !peer.allowed_ips.contains(prefix)) {
            has_lost |= self.routes.owner(prefix) == Some(id);
            self.routes.remove(prefix, id);
        }
        *list = peer.allowed_ips.into();
        let Some(state) = self.peers.get(id) else { return has_lost };
        state.sources = peer.sources.into();
        if state.preshared_key.as_deref() != peer.preshared_key.as_ref() {
            state.preshared_key = peer.preshared_key.map(Box::new);
            if state.live.is_some() {
                self.lose(id);
            }
        }
        has_lost
    }

    pub(super) fn counters(&self) -> Counters {
        let drops = Drops { send_failed: self.outbox.refused, ..self.drops };
        let mut counters = Counters {
            traffic: self.retired,
            drops,
            sessions: 0,
            workers: 1,
            reset_connections: self.reset_connections,
            handed_over: self.team.as_deref().map_or(0, Team::handed_over),
        };
        for state in self.peers.iter() {
            counters.traffic += state.traffic();
            counters.sessions += u64::from(state.live.as_ref().is_some_and(|live| live.is_established));
        }
        counters
    }

    pub(super) fn remove(&mut self, id: PeerId) {
        self.put_to_rest(id);
        self.watches.set(id, None, None);
        for prefix in self.peers.allowed_ips(id).map(std::mem::take).unwrap_or_default() {
            self.routes.remove(prefix, id);
        }
        if let Some(state) = self.peers.remove(id) {
            self.retired += state.traffic();
        }
    }

    fn set_endpoint(&mut self, id: PeerId, endpoint: SocketAddr) {
        let roams_from = self.now + ROAMING_HOLD;
        let Some(state) = self.peers.get(id) else { return };
        state.path = Some(state.path_to(endpoint));
        if let Some(live) = state.live.as_deref_mut() {
            live.roams_from = roams_from;
        }
    }

    fn initiate(&mut self, id: PeerId, mut endpoints: Vec<SocketAddr>) {
        endpoints.retain(|&endpoint| self.is_endpoint(endpoint));
        endpoints.truncate(MAX_ENDPOINTS);
        endpoints.iter_mut().for_each(|endpoint| *endpoint = canonical(*endpoint));
        let Some(live) = self.wake(id) else { return };
        live.trying = endpoints;
        if let Some(state) = self.peers.get(id) {
            state.is_announced = false;
        }
        self.send_initiation(id);
    }

    /// Sends a fresh initiation to where they go at present.
    pub(super) fn send_initiation(&mut self, id: PeerId) {
        let Some(live) = self.peers.get(id).and_then(|state| state.live.as_deref_mut()) else { return };
        if let Some(len) = live.noise.initiate(&mut self.scratch) {
            self.spread_initiation(id, len);
        }
    }

    /// Sends the initiation in the scratch buffer.
    pub(super) fn spread_initiation(&mut self, id: PeerId, len: usize) {
        let Some(state) = self.peers.get(id) else { return };
        let Some(live) = state.live.as_deref_mut() else { return };
        live.is_initiating = true;
        live.is_answer_due = true;
        live.retry_at = None;
        self.handshakes.note_begun();
        let message = &self.scratch[..len];
        let copies = if live.trying.is_empty() { state.path.iter().len() } else { live.trying.len() };
        state.record.get_or_insert_default().tx_datagram_bytes += (copies * len) as u64;
        if live.trying.is_empty() {
            state.path.iter().for_each(|&path| self.outbox.send(Some(id), message, path));
        } else {
            live.trying.iter().for_each(|&to| self.outbox.send(Some(id), message, Path::to(to)));
        }
    }

    fn send_message(&mut self, id: PeerId, payload: &[u8], via: Option<SocketAddr>) -> Option<()> {
        let port = self.message_port?;
        let state = self.peers.get(id)?;
        let to = state.own_address()?;
        let path = via.map(|via| state.path_to(via)).or(state.path)?;
        let is_endpoint = state.path.is_some_and(|current| current.to == path.to);
        let live = state.established()?;
        if is_endpoint {
            live.on_sent(self.now);
        }
        let from = self.addresses.iter().find(|own| own.is_ipv4() == to.is_ipv4())?;
        let packet = udp_packet((*from, port).into(), (to, port).into(), payload)?;
        if !self.taps.is_empty() {
            self.taps.note(state.key, Direction::Outbound, Fate::Passed, &packet);
        }
        self.seal_copy(id, packet, path);
        Some(())
    }

    fn rebind(&mut self) -> Result<(), Stop> {
        self.outbox.flush();
        let (port, mark) = (self.outbox.sockets.port(), self.fwmark);
        match self.team.as_deref() {
            None => self.outbox.sockets.renew(mark).map_err(|error| Stop::Fault(error.to_string()))?,
            Some(team) => {
                self.outbox.sockets.close();
                let renewed = team.renew_sockets(|workers| Sockets::renew_group(port, mark, workers));
                // Without one it is the first worker that tells why.
                let renewed = renewed.map_err(|error| Stop::Fault(error.to_string()))?;
                self.outbox.sockets = renewed.ok_or(Stop::Ordered)?;
            }
        }
        self.listen_port.store(self.outbox.sockets.port(), Ordering::Relaxed);
        // After a sleep, sessions may have ended without a tick.
        self.next_tick_at = self.now;
        Ok(())
    }
}

/// IPv4 in IPv6's clothes is IPv4: its packets go through the IPv4 socket.
pub(super) fn canonical(endpoint: SocketAddr) -> SocketAddr {
    match endpoint.ip().to_canonical() {
        ip @ IpAddr::V4(_) => (ip, endpoint.port()).into(),
        IpAddr::V6(_) => endpoint,
    }
}
