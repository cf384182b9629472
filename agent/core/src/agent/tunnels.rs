//! What the data plane reports, and what peers' machines want done.

use super::Agent;
use crate::{
    config::inside,
    io::{ConnId, Notice, Output, TunnelCommand, TunnelEvent},
    path::Paths,
    peer::{Action, Peer},
    time::BootTime,
};
use proto::{
    key::PublicKey,
    peer_message::{Body, PeerMessage, Probe},
    session::{AgentMessage, Signal},
    statement::NodeId,
};
use rand::RngExt;
use std::net::SocketAddr;

impl Agent {
    pub fn handle_tunnel(&mut self, event: TunnelEvent, now: BootTime) {
        self.advance(now);
        match event {
            TunnelEvent::PacketWaiting { peer } => {
                self.with_peer(&peer, |peer, now| peer.on_packet_waiting(now));
                self.claims.handle_silent(&peer, self.now, self.now);
            }
            TunnelEvent::HandshakeDone { peer, endpoint } => {
                let known = self.peers.get(&peer).and_then(|peer| peer.paths.current());
                let was_connected = self.peers.get(&peer).is_some_and(Peer::is_connected);
                if known != Some(endpoint) {
                    self.save_state_soon();
                }
                self.with_peer(&peer, |peer, now| peer.on_handshake(endpoint, now));
                self.claims.handle_heard(&peer, self.now);
                if was_connected {
                    self.on_session_replaced(peer);
                }
            }
            TunnelEvent::EndpointChanged { peer, endpoint } => {
                self.with_peer(&peer, |peer, _| {
                    peer.on_endpoint_changed(endpoint);
                    Vec::new()
                });
                self.save_state_soon();
            }
            TunnelEvent::Active(peers) => {
                for peer in &peers {
                    self.with_peer(peer, |peer, now| {
                        peer.on_active(now);
                        Vec::new()
                    });
                }
                self.claims.handle_data(&peers, self.now);
            }
            TunnelEvent::Unanswered { peer } => self.with_peer(&peer, |peer, now| peer.on_unanswered(now)),
            TunnelEvent::Silent { peer, elapsed } => {
                let patience = self.claims.repair_patience(&peer);
                self.with_peer(&peer, |peer, now| {
                    peer.on_silent(patience, now);
                    Vec::new()
                });
                self.claims.handle_silent(&peer, self.now - elapsed, self.now);
            }
            TunnelEvent::Heard { peer } => {
                self.with_peer(&peer, |peer, _| {
                    peer.on_heard();
                    Vec::new()
                });
                self.claims.handle_heard(&peer, self.now);
            }
            TunnelEvent::Reset { prefix, from, connections } => {
                let to = self.claims.active(&prefix);
                self.outputs.push_back(Output::Notice(Notice::Reset { prefix, from, to, connections }));
            }
            TunnelEvent::SessionLost { peer } => self.with_peer(&peer, |peer, now| peer.on_session_lost(now)),
            TunnelEvent::UnknownIndex { from } => self.on_unknown_index(from),
            TunnelEvent::StaleInitiation { peer, from } => {
                self.with_peer(&peer, |peer, now| peer.on_stale_initiation(from, now));
            }
            TunnelEvent::Message { peer, payload, from } => self.on_peer_message(peer, &payload, from),
        }
        self.drain_claims();
    }

    /// Interface addresses (with the listen port) or the listen port changed.
    pub fn handle_endpoints(&mut self, endpoints: Vec<SocketAddr>, listen_port: u16, now: BootTime) {
        self.advance(now);
        if self.own_endpoints != endpoints || self.listen_port != listen_port {
            self.own_endpoints = endpoints;
            self.listen_port = listen_port;
            self.publish_endpoints();
        }
    }

    /// The machine has other addresses than before, or slept.
    pub fn handle_network_changed(&mut self, now: BootTime) {
        self.advance(now);
        self.tunnel(TunnelCommand::Rebind);
        let live: Vec<PublicKey> =
            self.peers.iter().filter(|(_, p)| p.is_connected() || p.is_waking()).map(|(k, _)| *k).collect();
        for key in live {
            self.with_peer(&key, |peer, _| peer.on_network_changed());
        }
        self.control.handle_network_changed(self.now);
        self.drain_control();
    }

    /// Where others may reach us.
    pub(super) fn published_endpoints(&self) -> Vec<SocketAddr> {
        let mut endpoints = self.own_endpoints.clone();
        if let Some(observed) = self.observed.filter(|_| self.listen_port != 0) {
            let reflexive = SocketAddr::new(observed, self.listen_port);
            if !self.is_overlay(reflexive) {
                // First, since peers try eight, and a host may have more bridges than that.
                endpoints.retain(|endpoint| *endpoint != reflexive);
                endpoints.insert(0, reflexive);
            }
        }
        endpoints.truncate(proto::map::MAX_ENDPOINTS);
        endpoints
    }

    /// Where we may be reached changed.
    pub(super) fn publish_endpoints(&mut self) {
        self.endpoints_changes += 1;
        self.tell_endpoints();
        let endpoints = self.published_endpoints();
        let connected: Vec<PublicKey> =
            self.peers.iter().filter(|(_, p)| p.is_connected()).map(|(k, _)| *k).collect();
        for peer in connected {
            self.send_to_peer(peer, Body::Endpoints(endpoints.clone()), None);
        }
    }

    /// What this node says of itself changed.
    pub(super) fn tell_facts(&mut self) {
        self.endpoints_changes += 1;
        self.tell_endpoints();
    }

    /// Every session hears it, since a standby's word counts once it serves; one that was still greeting hears it when it is welcomed.
    pub(super) fn tell_endpoints(&mut self) {
        let behind = |conn: &ConnId| self.endpoints_told.get(conn) != Some(&self.endpoints_changes);
        let sessions: Vec<ConnId> = self.control.sessions().filter(behind).collect();
        for conn in sessions {
            self.endpoints_told.insert(conn, self.endpoints_changes);
            let (facts, endpoints) = (self.told_facts(), self.published_endpoints());
            let message = AgentMessage::Update { facts, endpoints };
            self.outputs.push_back(Output::Send { conn, message });
        }
    }

    fn is_overlay(&self, endpoint: SocketAddr) -> bool {
        let network = self.netmap.network();
        network.is_some_and(|network| inside(&[network.overlay_v4, network.overlay_v6], endpoint))
    }

    fn on_unknown_index(&mut self, from: SocketAddr) {
        // An address may have belonged to another peer before: each that it is known for is asked.
        let known = self.peers.iter().filter(|(_, peer)| peer.paths.knows(from));
        let owners: Vec<PublicKey> = known.map(|(key, _)| *key).collect();
        for key in owners {
            self.with_peer(&key, |peer, now| peer.on_unknown_index(now));
        }
    }

    fn on_peer_message(&mut self, key: PublicKey, payload: &[u8], from: SocketAddr) {
        if !self.peers.contains_key(&key) {
            return;
        }
        let Ok(message) = PeerMessage::decode(payload) else { return };
        self.on_peer_heard(key);
        match message.body {
            // By the path it came on: that is what is measured.
            Body::Probe(Probe { id, uses }) => {
                self.on_use_told(key, uses);
                self.send_to_peer(key, self.reply(id), Some(from));
            }
            Body::ProbeReply(reply) => {
                self.on_probe_reply(key, reply.id);
                self.on_claimant_told(&key, message.boot, reply);
            }
            Body::Endpoints(endpoints) => {
                let now = self.now;
                if let Some(peer) = self.peers.get_mut(&key) {
                    peer.paths.on_signal(&endpoints, now);
                }
            }
            Body::Removed { removals, id } => self.on_removed_told(key, &removals, id),
            Body::RemovedSeen(id) => self.on_removed_seen(key, id),
            Body::RemovalSummary(digest) => self.on_removal_summary(key, digest),
            Body::Roots(links) => self.on_roots_told(key, &links),
            Body::RootsWanted => self.on_roots_wanted(key),
            Body::Holdings(held) => self.on_held_told(key, &held),
            Body::Leaving => self.on_leaving_told(key),
            Body::Unknown => {}
        }
    }

    fn on_probe_reply(&mut self, key: PublicKey, id: u64) {
        let now = self.now;
        let endpoint = self.peers.get_mut(&key).and_then(|peer| {
            peer.paths.on_probe_reply(id, now);
            peer.paths.current()
        });
        if let Some((id, rtt)) = self.pings.answer(&key, id, now) {
            self.outputs.push_back(Output::Notice(Notice::Pong { id, rtt, endpoint }));
        }
    }

    pub(super) fn send_to_peer(&mut self, peer: PublicKey, body: Body, via: Option<SocketAddr>) {
        let payload = PeerMessage { boot: self.identity.boot, body }.encode();
        self.tunnel(TunnelCommand::Message { peer, payload, via });
    }

    /// Sends what waited for this peer's tunnel.
    pub(super) fn send_pings(&mut self, key: PublicKey) {
        for probe in self.pings.send(&key, &mut self.next_probe, self.now) {
            let probe = self.probe(&key, probe);
            self.send_to_peer(key, probe, None);
        }
    }

    /// Gives the data plane a peer of the map, or takes an unusable one from it.
    pub(super) fn configure_peer(&mut self, key: &PublicKey) {
        let Some(member) = self.netmap.member(key) else { return };
        self.time.on_signed(member.membership.issued_at);
        let usable = member.is_usable(self.time.at(self.now));
        let published: Vec<SocketAddr> = member.peer.endpoints.clone();
        self.hear_claims(key, usable);
        let mode = self.mode_of(key);
        let config = self.config.peer.clone();
        let peer = self.peers.entry(*key).or_insert_with(|| Peer::new(Paths::default()));
        // It has new endpoints, and one of them may be the one that works; or it left the one that we use, and could not say so.
        let moved = peer.paths.set_published(&published) && !peer.paths.is_published();
        let initiate = peer.is_waking() || (peer.is_connected() && moved);
        match usable {
            true => self.upsert(key),
            false => {
                // What waits for it goes to who serves in its place.
                self.drain_claims();
                self.tunnel(TunnelCommand::Remove { peer: *key });
            }
        }
        self.with_peer(key, |peer, now| {
            let mut actions = peer.set_usable(usable, &config, now);
            actions.extend(peer.set_mode(mode, &config, now));
            if initiate {
                actions.push(Action::Initiate);
            }
            actions
        });
        self.drain_claims();
    }

    pub(super) fn remove_peer(&mut self, key: &PublicKey) {
        let config = self.config.peer.clone();
        if let Some(peer) = self.peers.remove(key) {
            if let Some(deadline) = peer.deadline(&config) {
                self.peer_deadlines.remove(&(deadline.at, *key));
            }
            if peer.is_connected() {
                self.outputs.push_back(Output::Notice(Notice::Peer { key: *key, up: false }));
            }
            self.gossip.forget(key);
            self.forget_user(key);
        }
        // What waits for it goes to who serves in its place.
        self.claims.handle_claims(*key, NodeId(0), Vec::new(), self.now);
        self.drain_claims();
        self.tunnel(TunnelCommand::Remove { peer: *key });
    }

    /// Runs a step of a peer's machine, does what it asks, and indexes its deadline.
    pub(super) fn with_peer(
        &mut self,
        key: &PublicKey,
        step: impl FnOnce(&mut Peer, BootTime) -> Vec<Action>,
    ) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(key) else { return };
        let before = peer.deadline(&self.config.peer);
        let actions = step(peer, now);
        for action in actions {
            self.on_action(*key, action);
        }
        let after = self.peers.get(key).and_then(|peer| peer.deadline(&self.config.peer));
        if let Some(before) = before {
            self.peer_deadlines.remove(&(before.at, *key));
        }
        if let Some(after) = after {
            self.peer_deadlines.insert((after.at, *key));
        }
    }

    fn on_action(&mut self, key: PublicKey, action: Action) {
        match action {
            Action::Initiate => {
                let endpoints = self.candidates(&key);
                if !endpoints.is_empty() {
                    self.tunnel(TunnelCommand::Initiate { peer: key, endpoints });
                }
            }
            Action::Signal => self.signal(key),
            Action::Forget => self.tunnel(TunnelCommand::Forget { peer: key }),
            Action::SetKeepalive(interval) => {
                self.tunnel(TunnelCommand::SetKeepalive { peer: key, interval })
            }
            Action::SetEndpoint(endpoint) => self.tunnel(TunnelCommand::SetEndpoint { peer: key, endpoint }),
            Action::Probe => self.probe_paths(key),
            Action::Up(up) => {
                self.outputs.push_back(Output::Notice(Notice::Peer { key, up }));
                self.save_state_soon();
                match up {
                    true => {
                        self.send_pings(key);
                        self.tell_standing(key);
                        self.sum_up_removals(key);
                    }
                    false => self.gossip.forget(&key),
                }
            }
        }
    }

    fn candidates(&self, key: &PublicKey) -> Vec<SocketAddr> {
        let usable = |endpoint| !self.is_overlay(endpoint) && is_a_hosts(endpoint);
        self.peers.get(key).map_or_else(Vec::new, |peer| peer.paths.candidates(self.now, usable))
    }

    fn probe_paths(&mut self, key: PublicKey) {
        let candidates = self.candidates(&key);
        let (timeout, now, first) =
            (self.config.peer.probe_timeout, self.now, self.next_probe.wrapping_add(1));
        self.next_probe = self.next_probe.wrapping_add(candidates.len() as u64);
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let round: Vec<(u64, SocketAddr)> =
            peer.paths.start_round(&candidates, first, timeout, now).into_iter().collect();
        for (id, endpoint) in round {
            let probe = self.probe(&key, id);
            self.send_to_peer(key, probe, Some(endpoint));
        }
    }

    /// Over both sessions: the peer may share a server with either.
    fn signal(&mut self, peer: PublicKey) {
        let sessions: Vec<_> = self.control.sessions().collect();
        if sessions.is_empty() {
            return;
        }
        let signal = Signal { peer, id: self.rng.random(), endpoints: self.published_endpoints() };
        for conn in sessions {
            let message = AgentMessage::Signal(signal.clone());
            self.outputs.push_back(Output::Send { conn, message });
        }
    }
}

/// An address of one other machine. What a peer says must not make us send to ourselves or to many.
fn is_a_hosts(endpoint: SocketAddr) -> bool {
    let ip = endpoint.ip().to_canonical();
    let is_broadcast = matches!(ip, std::net::IpAddr::V4(ip) if ip.is_broadcast());
    endpoint.port() != 0 && !(ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || is_broadcast)
}
