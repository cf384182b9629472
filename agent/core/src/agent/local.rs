//! What a person asks for: settings, pings, draining, leaving, status; and the passing of time for certificates.

use super::{Agent, rules::Told};
use crate::{
    cache::Source,
    config::{PeerConfig, PeerMode},
    io::{ConnId, Output, TunnelCommand},
    netmap::Member,
    peer::Peer,
    status,
    time::BootTime,
};
use proto::{key::PublicKey, server_url::ServerUrl, session::AgentMessage, time::UnixTime};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

impl Agent {
    /// The wall clock's time: told at start and now and then, used where no server told a better one.
    pub fn handle_wall_clock(&mut self, wall: UnixTime, now: BootTime) {
        self.advance(now);
        self.time.on_wall_clock(wall, self.now);
        self.judge_members();
    }

    /// The list of servers that a person gave.
    pub fn set_servers(&mut self, servers: Vec<ServerUrl>, now: BootTime) {
        self.advance(now);
        self.control.set_servers(&servers, self.now);
        self.config.servers = servers;
        if self.membership.is_some() || self.identity.can_enrol {
            self.control.start(self.now);
        }
        self.save_state_soon();
        self.drain_control();
    }

    /// How often servers are asked for life, and when a silent one is dead.
    pub fn set_timing(&mut self, keepalive: Duration, peer_timeout: Duration, now: BootTime) {
        self.advance(now);
        self.config.control.keepalive = keepalive;
        self.config.control.peer_timeout = peer_timeout;
        self.control.set_timing(keepalive, peer_timeout, self.now);
        self.drain_control();
    }

    /// A setup key was given to an agent that runs.
    pub fn set_can_enrol(&mut self, now: BootTime) {
        self.advance(now);
        self.identity.can_enrol = true;
        if self.membership.is_none() {
            self.control.set_enrol(true);
            self.control.start(self.now);
            self.control.handle_network_changed(self.now);
            self.drain_control();
        }
    }

    /// Peer modes and the idle timeout.
    pub fn set_peer_config(&mut self, config: PeerConfig, now: BootTime) {
        self.advance(now);
        let keys: Vec<PublicKey> = self.peers.keys().copied().collect();
        // Deadlines are indexed under the old timeout: they are taken out before it changes.
        self.peer_deadlines.clear();
        self.config.peer = config;
        for key in keys {
            let (mode, config) = (self.mode_of(&key), self.config.peer.clone());
            self.with_peer(&key, |peer, now| peer.set_mode(mode, &config, now));
        }
    }

    /// Asks a peer's agent for an answer, waking the tunnel if need be; reports [`Notice::Pong`](crate::Notice::Pong).
    pub fn ping(&mut self, peer: &PublicKey, id: u64, now: BootTime) {
        self.advance(now);
        self.pings.start(id, *peer, self.now);
        if self.peers.get(peer).is_some_and(Peer::is_connected) {
            return self.send_pings(*peer);
        }
        self.with_peer(peer, |peer, now| peer.on_packet_waiting(now));
    }

    /// Leaves the network: the servers are told, membership and map go.
    pub fn logout(&mut self, now: BootTime) {
        self.advance(now);
        self.leave(true);
        self.forget_network();
        self.drain_control();
    }

    pub(super) fn leave(&mut self, logout: bool) {
        let sessions: Vec<_> = self.control.sessions().collect();
        for conn in sessions {
            self.outputs.push_back(Output::Send { conn, message: AgentMessage::Leave { logout } });
        }
        self.control.stop();
        self.drain_control();
        // The process ends: what waited to be written is written now, and how old the map is by then.
        self.save_state_soon();
        self.save(|_, _| true);
    }

    /// We are no member any more: every tunnel goes.
    pub(super) fn forget_network(&mut self) {
        let keys: Vec<PublicKey> = self.peers.keys().copied().collect();
        keys.iter().for_each(|key| self.remove_peer(key));
        self.membership = None;
        self.netmap = crate::netmap::NetMap::new(self.identity.key, None);
        self.rules = Told::default();
        self.online.clear();
        self.serving.clear();
        self.tell_users();
        self.outputs.push_back(Output::Configure {
            addresses: Vec::new(),
            overlay: Vec::new(),
            served: Vec::new(),
        });
        self.outputs.push_back(Output::SaveState);
        self.outputs.push_back(Output::SaveMap);
    }

    /// Looks at every certificate and login: some may have ended, or be good again.
    pub(super) fn judge_members(&mut self) {
        let time = self.time.at(self.now);
        // What a wrong clock had us forget would not come back.
        if self.time.told_at(self.now).is_some_and(|time| self.netmap.forget_ended_removals(time)) {
            self.save_map_soon();
        }
        let usable = |member: &Member| member.is_usable(time);
        let members: Vec<(PublicKey, bool)> =
            self.netmap.members().map(|(key, member)| (*key, usable(member))).collect();
        for (key, usable) in members {
            if self.peers.get(&key).is_some_and(|peer| peer.is_usable() == usable) {
                continue;
            }
            self.hear_claims(&key, usable);
            match usable {
                true => self.upsert(&key),
                false => {
                    self.drain_claims();
                    self.tunnel(TunnelCommand::Remove { peer: key });
                }
            }
            let config = self.config.peer.clone();
            self.with_peer(&key, |peer, now| peer.set_usable(usable, &config, now));
        }
        self.drain_claims();
        self.follow_members();
        self.judge_expiry();
    }

    /// When the next certificate or login ends.
    pub(super) fn judge_expiry(&mut self) {
        self.judge_own();
        let Some(time) = self.time.at(self.now) else { return };
        let ends = self.netmap.members().filter_map(|(_, member)| member.ends_at()).filter(|end| *end > time);
        let ends = ends.min().map(|end| end.since(time)).into_iter().chain(self.own_deadline(time));
        self.expiry_at = ends.min().map(|wait| self.now + wait.max(Duration::from_secs(1)));
    }

    /// Whether a removal of this key was proven to us.
    pub fn knows_removal(&self, key: &PublicKey) -> bool {
        self.netmap.removals().signed(key).is_some()
    }

    /// A peer by its name, one of its addresses, or its key.
    pub fn find_peer(&self, text: &str) -> Option<PublicKey> {
        if let Ok(key) = text.parse::<PublicKey>() {
            return self.netmap.member(&key).map(|_| key);
        }
        let address = text.parse::<IpAddr>().ok();
        let is_it = |member: &Member| {
            member.peer.name.eq_ignore_ascii_case(text)
                || address.is_some_and(|address| member.membership.addresses.contains(&address))
        };
        self.netmap.members().find(|(_, member)| is_it(member)).map(|(key, _)| *key)
    }

    /// A peer's name.
    pub fn name_of(&self, key: &PublicKey) -> Option<&str> {
        self.netmap.member(key).map(|member| member.peer.name.as_str())
    }

    /// The session that serves us, as far as we know.
    pub fn serving(&self) -> Option<ConnId> {
        self.control.serving()
    }

    /// The number of this start, as servers know it by now: to be kept, so that later starts count on from it.
    pub fn boot(&self) -> u64 {
        self.control.boot()
    }

    pub fn is_enrolled(&self) -> bool {
        self.membership.is_some()
    }

    /// Whether there is a map, live or kept.
    pub fn has_map(&self) -> bool {
        !self.netmap.objects().is_empty()
    }

    /// The whole status; the driver adds what it knows.
    pub fn status(&self, now: BootTime) -> status::Status {
        let now = self.now.max(now);
        status::Status {
            state: match self.membership {
                Some(_) => status::RunState::Running,
                None => status::RunState::NeedsEnrolment,
            },
            own: self.own_status(now),
            control: self.control_status(now),
            peers: self.netmap.members().map(|(key, member)| self.peer_status(key, member, now)).collect(),
            claims: self.claims_status(),
            traffic: None,
            drops: BTreeMap::new(),
            warnings: [self.warnings(now), self.warnings_of_claims()].concat(),
        }
    }

    fn own_status(&self, now: BootTime) -> status::Own {
        let membership = self.membership.as_ref().map(|(_, membership)| membership);
        status::Own {
            name: self.config.facts.hostname.clone(),
            public_key: self.identity.key,
            addresses: membership.map_or_else(Vec::new, |membership| membership.addresses.clone()),
            interface: String::new(),
            listen_port: self.listen_port,
            certificate_not_after: membership.and_then(|m| m.not_after).map(|end| end.0),
            certificate: self.own_certificate_status(now),
            root: self.newest_root(),
            clock_ahead_seconds: self.time.wall_ahead(now),
            draining: self.draining,
            claims: self.own_claims_status(),
            users: self.users.counted(now) as u64,
        }
    }

    fn control_status(&self, now: BootTime) -> status::Control {
        let control = self.control.status(now);
        let version = self.netmap.state().version;
        let live =
            control.server.is_some() && self.fetching.is_none() && self.level_at.is_some() && self.has_map();
        let age = match (self.level_at, self.restored_level, self.time.at(now)) {
            (Some(at), _, _) => Some(now.since(at).as_secs()),
            (None, Some(level), Some(time)) => Some(time.since(level).as_secs()),
            (None, _, _) => None,
        };
        status::Control {
            state: control.state,
            server: control.server,
            standby: control.standby,
            connected_since: control.connected_since.map(|span| span.as_secs_f64()),
            epoch: version.epoch,
            revision: version.revision,
            failovers: self.control.failovers(),
            map_source: match (live, self.has_map()) {
                (true, _) => Source::Live,
                (false, true) => Source::Cache,
                (false, false) => Source::None,
            },
            map_age_seconds: age,
            servers: control.servers,
            refused: control.refused.map(|refused| refused.detail),
        }
    }

    fn peer_status(&self, key: &PublicKey, member: &Member, now: BootTime) -> status::Peer {
        let peer = self.peers.get(key);
        let endpoint = peer.and_then(|peer| peer.paths.current());
        status::Peer {
            name: member.peer.name.clone(),
            public_key: *key,
            addresses: member.membership.addresses.clone(),
            os: member.peer.os.clone(),
            online: self.online.contains(&member.peer.node_id),
            expired: !member.is_usable(self.time.at(now)),
            mode: peer.map_or(PeerMode::Lazy, Peer::mode),
            tunnel: match peer {
                Some(peer) if peer.is_connected() => status::TunnelState::Connected,
                Some(peer) if peer.is_waking() => status::TunnelState::Connecting,
                Some(_) | None => status::TunnelState::Idle,
            },
            path: status::Path {
                kind: if endpoint.is_some() { status::PathKind::Direct } else { status::PathKind::None },
                endpoint,
                rtt_ms: peer.and_then(|peer| peer.paths.rtt()).map(|rtt| rtt.as_secs_f64() * 1e3),
            },
            last_handshake_seconds: None,
            rx_bytes: 0,
            tx_bytes: 0,
            rx_packets: 0,
            tx_packets: 0,
            handshakes: 0,
            drops: BTreeMap::new(),
            claims: member.granted_claims().iter().map(|claim| claim.prefix).collect(),
        }
    }
}
