//! A model of the data plane (`agent-tunnel`): handshakes of one round trip, sessions of 180 s renewed after 120 s by whoever began them, packets that wait,
//! roaming, prefixes and what may be sent from, watched peers, and the events that the real one reports. There is no cryptography: an index that the receiver knows
//! authenticates. There are no connections either: each request is judged by the rules of the moment, by its source, and replies pass.

use crate::{prefixes::Prefixes, watch::Watches};
use agent_core::{
    BootTime,
    io::{TunnelCommand, TunnelEvent},
    rules::Allow,
};
use ipnet::IpNet;
use proto::key::PublicKey;
use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

const REJECT_AFTER: Duration = Duration::from_secs(180);
const REKEY_AFTER: Duration = Duration::from_secs(120);
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
const UNANSWERED: Duration = Duration::from_secs(15);
const PASSIVE_KEEPALIVE: Duration = Duration::from_secs(10);
const UNKNOWN_INDEX_INTERVAL: Duration = Duration::from_millis(200);
const WAITING_LIMIT: usize = 64;
const SESSIONS: usize = 8;

/// What a tunnel carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Packet {
    Request(Header),
    Reply(Header),
    Keepalive,
    Message(Vec<u8>),
}

/// Whose request or reply it is, and its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) id: u64,
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
}

impl Packet {
    fn header(&self) -> Option<&Header> {
        match self {
            Self::Request(header) | Self::Reply(header) => Some(header),
            Self::Keepalive | Self::Message(_) => None,
        }
    }
}

/// What goes over the network between data planes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    Initiation {
        sender: PublicKey,
        receiver: PublicKey,
        index: u32,
        /// By the sender's wall clock, milliseconds.
        stamp: i64,
    },
    Response {
        sender: PublicKey,
        to: u32,
        index: u32,
    },
    Transport {
        to: u32,
        packet: Packet,
    },
}

/// A UDP datagram; its source is where the sender is when it leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Datagram {
    pub(crate) to: SocketAddr,
    pub(crate) body: Body,
}

/// What the model wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    Send(Datagram),
    Event(TunnelEvent),
    Deliver(PublicKey, Packet),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Keys {
    local: u32,
    remote: u32,
    since: BootTime,
    /// As responder: the other side has not proved yet that it has it.
    is_unproved: bool,
}

#[derive(Debug, Clone)]
struct Initiation {
    index: u32,
    /// The one before: an answer to it is taken too.
    earlier: Option<u32>,
    endpoints: Vec<SocketAddr>,
    since: BootTime,
    again_at: BootTime,
}

#[derive(Debug, Clone, Default)]
struct Peer {
    /// What goes to it.
    allowed_ips: Vec<IpNet>,
    /// What it may send from.
    sources: Vec<IpNet>,
    endpoint: Option<SocketAddr>,
    /// The one in use, by which we send.
    current: Option<Keys>,
    /// Every one that still opens packets, that one included; the oldest goes first.
    sessions: VecDeque<Keys>,
    initiation: Option<Initiation>,
    waiting: VecDeque<Packet>,
    /// The newest stamp of its initiations: none older counts.
    newest_stamp: Option<i64>,
    /// How far the wall clock was ahead when we first initiated, seconds: as long as anything is left of that, stamps go on from there.
    clock_ahead_s: Option<i64>,
    told_waiting: bool,
    keepalive: Option<Duration>,
    /// Of the last handshake, whichever session is in use.
    is_initiator: bool,
    sent_at: BootTime,
    unanswered_since: Option<BootTime>,
    told_unanswered: bool,
    owes_since: Option<BootTime>,
    active: bool,
}

/// One agent's data plane.
#[derive(Debug)]
pub(crate) struct Tunnel {
    own: PublicKey,
    peers: BTreeMap<PublicKey, Peer>,
    prefixes: Prefixes,
    /// Each peer's own address: the first that it is given.
    owns: BTreeMap<PublicKey, IpAddr>,
    watches: Watches,
    /// What a peer may ask unasked.
    rules: Vec<Allow>,
    next_index: u32,
    next_unknown_at: BootTime,
    next_stale_at: BootTime,
    /// The wall clock less the truth, seconds.
    pub(crate) clock_ahead_s: i64,
    pub(crate) effects: Vec<Effect>,
}

impl Tunnel {
    /// `first_index` differs between starts: an index of an earlier one is unknown.
    pub(crate) fn new(own: PublicKey, first_index: u32) -> Self {
        Self {
            own,
            peers: BTreeMap::new(),
            prefixes: Prefixes::default(),
            owns: BTreeMap::new(),
            watches: Watches::default(),
            rules: Vec::new(),
            next_index: first_index,
            next_unknown_at: BootTime::default(),
            next_stale_at: BootTime::default(),
            clock_ahead_s: 0,
            effects: Vec::new(),
        }
    }

    pub(crate) fn has_session(&self, peer: &PublicKey) -> bool {
        self.peers.get(peer).is_some_and(|peer| peer.current.is_some())
    }

    /// Anything that needs a tick.
    pub(crate) fn is_busy(&self) -> bool {
        self.peers.values().any(|p| !p.sessions.is_empty() || p.initiation.is_some())
    }

    pub(crate) fn command(&mut self, command: TunnelCommand, now: BootTime) {
        match command {
            TunnelCommand::Upsert { peer, allowed_ips, sources } => {
                self.upsert(peer, allowed_ips, sources, now);
            }
            TunnelCommand::Remove { peer } => {
                self.watches.set(peer, None);
                if let Some(removed) = self.peers.remove(&peer) {
                    self.prefixes.replace(peer, &removed.allowed_ips, &[]);
                    self.owns.remove(&peer);
                }
            }
            TunnelCommand::Initiate { peer, endpoints } => self.initiate(peer, endpoints, now),
            TunnelCommand::Forget { peer } => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    let allowed_ips = std::mem::take(&mut peer.allowed_ips);
                    let sources = std::mem::take(&mut peer.sources);
                    let Peer { endpoint, keepalive, newest_stamp, .. } = *peer;
                    *peer =
                        Peer { allowed_ips, sources, endpoint, keepalive, newest_stamp, ..Peer::default() };
                }
            }
            TunnelCommand::SetKeepalive { peer, interval } => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.keepalive = interval;
                }
            }
            TunnelCommand::SetEndpoint { peer, endpoint } => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.endpoint = Some(endpoint);
                }
            }
            TunnelCommand::Message { peer, payload, via } => {
                self.transport(peer, Packet::Message(payload), via, now);
            }
            TunnelCommand::SetRules(rules) => self.rules = rules,
            TunnelCommand::Watch { peer, silence } => {
                if self.peers.contains_key(&peer) {
                    self.watches.set(peer, silence);
                }
            }
            TunnelCommand::Withhold { prefix, withheld } => {
                if let Some(former) = self.prefixes.withhold(prefix, withheld) {
                    self.send_elsewhere(former, now);
                }
            }
            // There are no connections.
            TunnelCommand::Reset { .. } | TunnelCommand::Rebind => {}
        }
    }

    /// Whether a rule lets this address open something.
    pub(crate) fn allows(&self, address: IpAddr) -> bool {
        self.rules.iter().flat_map(|rule| &rule.sources).any(|source| source.contains(&address))
    }

    fn upsert(&mut self, key: PublicKey, allowed_ips: Vec<IpNet>, sources: Vec<IpNet>, now: BootTime) {
        let peer = self.peers.entry(key).or_default();
        if let Some(own) = allowed_ips.first() {
            self.owns.insert(key, own.addr());
        }
        let robbed = self.prefixes.replace(key, &peer.allowed_ips, &allowed_ips);
        (peer.allowed_ips, peer.sources) = (allowed_ips, sources);
        for former in robbed {
            self.send_elsewhere(former, now);
        }
    }

    /// What waits for a peer and would go to another by now goes there.
    fn send_elsewhere(&mut self, key: PublicKey, now: BootTime) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        for packet in std::mem::take(&mut peer.waiting) {
            self.send(packet, now);
        }
    }

    /// Who has packets to this address.
    pub(crate) fn owner(&self, destination: IpAddr) -> Option<PublicKey> {
        self.prefixes.lookup(destination)
    }

    /// Since when data to a peer is unanswered; `None`: it has no session.
    fn unanswered_since(&self, peer: &PublicKey) -> Option<Option<BootTime>> {
        Some(self.peers.get(peer).filter(|peer| peer.current.is_some())?.unanswered_since)
    }

    /// Tells of watched peers what is news.
    pub(crate) fn look(&mut self, now: BootTime) {
        let mut watches = std::mem::take(&mut self.watches);
        let news = watches.poll(now, |peer| self.unanswered_since(peer));
        self.watches = watches;
        self.effects.extend(news.into_iter().map(Effect::Event));
    }

    /// When to look again.
    pub(crate) fn look_at(&self) -> Option<BootTime> {
        self.watches.deadline(|peer| self.unanswered_since(peer))
    }

    /// A packet from the TUN side.
    pub(crate) fn send(&mut self, packet: Packet, now: BootTime) {
        let Some(key) = packet.header().and_then(|header| self.prefixes.lookup(header.to)) else { return };
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if peer.current.is_none() {
            // The oldest stay.
            if peer.waiting.len() < WAITING_LIMIT {
                peer.waiting.push_back(packet);
            }
            if !std::mem::replace(&mut peer.told_waiting, true) {
                self.effects.push(Effect::Event(TunnelEvent::PacketWaiting { peer: key }));
            }
            return;
        }
        peer.active = true;
        peer.unanswered_since.get_or_insert(now);
        self.transport(key, packet, None, now);
        self.renew(key, now);
    }

    fn transport(&mut self, key: PublicKey, packet: Packet, via: Option<SocketAddr>, now: BootTime) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let (Some(keys), Some(to)) = (peer.current, via.or(peer.endpoint)) else { return };
        peer.sent_at = now;
        peer.owes_since = None;
        let body = Body::Transport { to: keys.remote, packet };
        self.effects.push(Effect::Send(Datagram { to, body }));
    }

    /// Whoever began a session renews it when it sends after two minutes.
    fn renew(&mut self, key: PublicKey, now: BootTime) {
        let Some(peer) = self.peers.get(&key) else { return };
        let old = peer.current.is_some_and(|keys| now.since(keys.since) >= REKEY_AFTER) && peer.is_initiator;
        if let (true, None, Some(endpoint)) = (old, &peer.initiation, peer.endpoint) {
            self.initiate(key, vec![endpoint], now);
        }
    }

    fn initiate(&mut self, key: PublicKey, endpoints: Vec<SocketAddr>, now: BootTime) {
        let index = self.fresh_index();
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let ahead_s = *peer.clock_ahead_s.get_or_insert(self.clock_ahead_s);
        let stamp = now.since_boot().as_millis() as i64 + ahead_s * 1000;
        peer.told_waiting = false;
        let before = peer.initiation.as_ref();
        let (since, earlier) = (before.map_or(now, |before| before.since), before.map(|before| before.index));
        for to in &endpoints {
            let body = Body::Initiation { sender: self.own, receiver: key, index, stamp };
            self.effects.push(Effect::Send(Datagram { to: *to, body }));
        }
        peer.initiation =
            Some(Initiation { index, earlier, endpoints, since, again_at: now + REKEY_TIMEOUT });
    }

    fn fresh_index(&mut self) -> u32 {
        self.next_index += 1;
        self.next_index
    }

    pub(crate) fn receive(&mut self, from: SocketAddr, body: Body, now: BootTime) {
        match body {
            Body::Initiation { sender, receiver, index, stamp } if receiver == self.own => {
                self.on_initiation(sender, from, (index, stamp), now);
            }
            Body::Initiation { .. } => {}
            Body::Response { sender, to, index } => self.on_response(sender, from, (to, index), now),
            Body::Transport { to, packet } => self.on_transport(from, to, packet, now),
        }
    }

    fn on_initiation(
        &mut self,
        sender: PublicKey,
        from: SocketAddr,
        (remote, stamp): (u32, i64),
        now: BootTime,
    ) {
        let local = self.fresh_index();
        let Some(peer) = self.peers.get_mut(&sender) else { return };
        if peer.newest_stamp.is_some_and(|newest| stamp < newest) {
            if now >= self.next_stale_at {
                self.next_stale_at = now + UNKNOWN_INDEX_INTERVAL;
                let event = TunnelEvent::StaleInitiation { peer: sender, from };
                self.effects.push(Effect::Event(event));
            }
            return;
        }
        peer.newest_stamp = Some(stamp);
        peer.add(Keys { local, remote, since: now, is_unproved: true });
        peer.is_initiator = false;
        let body = Body::Response { sender: self.own, to: remote, index: local };
        self.effects.push(Effect::Send(Datagram { to: from, body }));
    }

    fn on_response(&mut self, key: PublicKey, from: SocketAddr, (to, remote): (u32, u32), now: BootTime) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if !peer.initiation.as_ref().is_some_and(|asked| asked.index == to || asked.earlier == Some(to)) {
            return;
        }
        peer.initiation = None;
        peer.is_initiator = true;
        let keys = Keys { local: to, remote, since: now, is_unproved: false };
        peer.add(keys);
        peer.take(keys, from);
        self.effects.push(Effect::Event(TunnelEvent::HandshakeDone { peer: key, endpoint: from }));
        self.flush(key, now);
    }

    /// What waited goes, else a keepalive, so that the other side knows the session is used.
    fn flush(&mut self, key: PublicKey, now: BootTime) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let waiting = std::mem::take(&mut peer.waiting);
        if waiting.is_empty() {
            return self.transport(key, Packet::Keepalive, None, now);
        }
        peer.active = true;
        peer.unanswered_since.get_or_insert(now);
        for packet in waiting {
            self.transport(key, packet, None, now);
        }
    }

    fn on_transport(&mut self, from: SocketAddr, to: u32, packet: Packet, now: BootTime) {
        let Some((key, peer)) = self.peers.iter_mut().find(|(_, peer)| peer.has_index(to)) else {
            if now >= self.next_unknown_at {
                self.next_unknown_at = now + UNKNOWN_INDEX_INTERVAL;
                self.effects.push(Effect::Event(TunnelEvent::UnknownIndex { from }));
            }
            return;
        };
        let key = *key;
        peer.unanswered_since = None;
        peer.told_unanswered = false;
        if let Some(keys) = peer.prove(to) {
            peer.take(keys, from);
            self.effects.push(Effect::Event(TunnelEvent::HandshakeDone { peer: key, endpoint: from }));
            if !peer.waiting.is_empty() {
                self.flush(key, now);
            }
        }
        self.on_packet(key, from, packet, now);
    }

    fn on_packet(&mut self, key: PublicKey, from: SocketAddr, packet: Packet, now: BootTime) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if let Packet::Message(payload) = packet {
            let event = TunnelEvent::Message { peer: key, payload, from };
            return self.effects.push(Effect::Event(event));
        }
        if peer.endpoint != Some(from) {
            peer.endpoint = Some(from);
            self.effects.push(Effect::Event(TunnelEvent::EndpointChanged { peer: key, endpoint: from }));
        }
        if packet != Packet::Keepalive {
            peer.owes_since.get_or_insert(now);
            let Some(Header { from: source, .. }) = packet.header() else { return };
            let owner = self.prefixes.lookup(*source).filter(|owner| *owner != key);
            let is_anothers = owner.is_some_and(|owner| self.owns.get(&owner) == Some(source));
            let may_send = !is_anothers && peer.sources.iter().any(|prefix| prefix.contains(source));
            let is_allowed = matches!(packet, Packet::Reply(_)) || self.allows(*source);
            if !may_send || !is_allowed {
                return;
            }
            let Some(peer) = self.peers.get_mut(&key) else { return };
            peer.active = true;
            self.effects.push(Effect::Deliver(key, packet));
        }
    }

    /// Once a second while busy.
    pub(crate) fn tick(&mut self, now: BootTime) {
        let keys: Vec<PublicKey> = self.peers.keys().copied().collect();
        let mut active = Vec::new();
        for key in keys {
            if self.peers.get_mut(&key).is_some_and(|peer| std::mem::take(&mut peer.active)) {
                active.push(key);
            }
            self.tick_initiation(key, now);
            self.tick_session(key, now);
        }
        if !active.is_empty() {
            self.effects.push(Effect::Event(TunnelEvent::Active(active)));
        }
    }

    fn tick_initiation(&mut self, key: PublicKey, now: BootTime) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let Some(initiation) = peer.initiation.clone() else { return };
        if now.since(initiation.since) >= REKEY_ATTEMPT_TIME {
            peer.initiation = None;
            peer.waiting.clear();
            peer.told_waiting = false;
            if peer.current.is_none() {
                peer.clock_ahead_s = None;
                self.effects.push(Effect::Event(TunnelEvent::SessionLost { peer: key }));
            }
        } else if now >= initiation.again_at {
            self.initiate(key, initiation.endpoints, now);
        }
    }

    fn tick_session(&mut self, key: PublicKey, now: BootTime) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let alive = |keys: &Keys| now.since(keys.since) < REJECT_AFTER;
        peer.sessions.retain(alive);
        if peer.current.is_some_and(|keys| !alive(&keys)) {
            peer.current = None;
            peer.clock_ahead_s = None;
            peer.unanswered_since = None;
            self.effects.push(Effect::Event(TunnelEvent::SessionLost { peer: key }));
            return;
        }
        if peer.current.is_none() {
            return;
        }
        if peer.unanswered_since.is_some_and(|at| now.since(at) >= UNANSWERED) && !peer.told_unanswered {
            peer.told_unanswered = true;
            self.effects.push(Effect::Event(TunnelEvent::Unanswered { peer: key }));
        }
        let kept = peer.keepalive.is_some_and(|interval| now.since(peer.sent_at) >= interval);
        if kept || peer.owes_since.is_some_and(|at| now.since(at) >= PASSIVE_KEEPALIVE) {
            self.transport(key, Packet::Keepalive, None, now);
            self.renew(key, now);
        }
    }
}

impl Peer {
    fn has_index(&self, index: u32) -> bool {
        self.sessions.iter().any(|keys| keys.local == index)
    }

    fn add(&mut self, keys: Keys) {
        self.sessions.push_back(keys);
        if self.sessions.len() > SESSIONS {
            self.sessions.pop_front();
        }
    }

    /// The first packet of a session that the other side began.
    fn prove(&mut self, index: u32) -> Option<Keys> {
        let keys = self.sessions.iter_mut().find(|keys| keys.local == index && keys.is_unproved)?;
        keys.is_unproved = false;
        Some(*keys)
    }

    fn take(&mut self, keys: Keys, endpoint: SocketAddr) {
        // The older of two sessions that were begun at once does not replace the newer.
        if self.current.is_none_or(|current| current.since <= keys.since) {
            self.current = Some(keys);
        }
        self.endpoint = Some(endpoint);
        self.told_waiting = false;
        self.unanswered_since = None;
        self.told_unanswered = false;
    }
}
