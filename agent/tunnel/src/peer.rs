//! One peer: what is configured and remembered, and, while it is live, its session.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use ipnet::IpNet;

use crate::{
    Peer, PeerDrops, PeerStats, PresharedKey, PublicKey, Traffic, initiation::Timestamp, noise::Noise,
    queue::Queue, socket::Path, uapi::PeerDescription, watch::Mark,
};

/// A peer's place in the table. Reused after removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PeerId(pub(crate) u32);

/// Paths remembered besides the one in use: as many as one initiation tries.
const MAX_TRIED: usize = crate::MAX_ENDPOINTS;

/// All that an idle peer costs, besides its routes and its entry in the table of keys.
pub(crate) struct PeerState {
    pub(crate) key: PublicKey,
    pub(crate) allowed_ips: Box<[IpNet]>,
    pub(crate) sources: Box<[IpNet]>,
    pub(crate) preshared_key: Option<Box<PresharedKey>>,
    pub(crate) path: Option<Path>,
    /// Guards against replayed initiations; outlives the session.
    pub(crate) newest_initiation: Timestamp,
    /// From the first handshake on.
    pub(crate) record: Option<Box<Record>>,
    /// From the first one on.
    drops: Option<Box<PeerDrops>>,
    pub(crate) keepalive: Option<Duration>,
    pub(crate) waiting: Queue,
    /// That a packet waits has been told.
    pub(crate) is_announced: bool,
    /// Is in the next report of active peers.
    pub(crate) is_active: bool,
    pub(crate) live: Option<Box<Live>>,
}

/// What a peer has carried; outlives its sessions.
#[derive(Default)]
pub(crate) struct Record {
    pub(crate) last_handshake_at: Option<Instant>,
    /// The same by the wall clock, for people.
    pub(crate) last_handshake_time: Option<SystemTime>,
    pub(crate) traffic: Traffic,
    /// Bytes of authentic datagrams, handshakes included.
    pub(crate) rx_datagram_bytes: u64,
    pub(crate) tx_datagram_bytes: u64,
}

/// A peer with a session, or on the way to one.
pub(crate) struct Live {
    pub(crate) noise: Noise,
    /// Made before the preshared key was changed.
    pub(crate) former: Option<Box<Former>>,
    /// The upper 24 bits of its sessions' indices.
    pub(crate) index: u32,
    /// In the table's list of the live, which keeps it.
    pub(crate) place: usize,
    /// There is a session to send with.
    pub(crate) is_established: bool,
    /// Whether we began the current session.
    pub(crate) is_initiator: bool,
    /// Our initiation is unanswered.
    pub(crate) is_initiating: bool,
    /// Since our last initiation nobody claimed to answer.
    pub(crate) is_answer_due: bool,
    /// When the unanswered initiation is repeated.
    pub(crate) retry_at: Option<Instant>,
    /// We answered an initiation with this session, which the other side has not used yet.
    pub(crate) answered: Option<(u32, Instant)>,
    /// Other paths that messages came by, newest last, for answers and for choosing one.
    pub(crate) tried: Vec<Path>,
    /// Where initiations go while they are ours to repeat; empty means to the peer's endpoint.
    pub(crate) trying: Vec<SocketAddr>,
    /// When the endpoint may follow the peer again.
    pub(crate) roams_from: Instant,
    /// When something authentic came last.
    pub(crate) heard_at: Instant,
    /// The last packet to the endpoint.
    pub(crate) sent_at: Instant,
    /// The first data since something came.
    pub(crate) unanswered_since: Option<Instant>,
    pub(crate) is_unanswered_told: bool,
    /// The first data since we sent something: the other side waits for a sign of life.
    pub(crate) owing_since: Option<Instant>,
    pub(crate) mark: Mark,
}

/// Sessions of another preshared key: they last until their time is over, as WireGuard's do.
pub(crate) struct Former {
    pub(crate) noise: Noise,
    pub(crate) index: u32,
    /// There is no newer session to send with.
    pub(crate) seals: bool,
}

/// Whether it is the own address of the peer that this is routed to: the first of its family.
pub(crate) fn is_own(allowed_ips: &[IpNet], address: IpAddr) -> bool {
    let mut of_family = allowed_ips.iter().filter(|prefix| prefix.addr().is_ipv4() == address.is_ipv4());
    of_family
        .next()
        .is_some_and(|prefix| prefix.addr() == address && prefix.prefix_len() == prefix.max_prefix_len())
}

impl PeerState {
    pub(crate) fn new(peer: Peer) -> Self {
        Self {
            key: peer.key,
            allowed_ips: peer.allowed_ips.into(),
            sources: peer.sources.into(),
            preshared_key: peer.preshared_key.map(Box::new),
            path: None,
            newest_initiation: Timestamp::default(),
            record: None,
            drops: None,
            keepalive: None,
            waiting: Queue::default(),
            is_announced: false,
            is_active: false,
            live: None,
        }
    }

    /// The peer's own address, which messages go to and come from.
    pub(crate) fn own_address(&self) -> Option<IpAddr> {
        self.allowed_ips.first().map(IpNet::addr)
    }

    pub(crate) fn may_send_from(&self, source: IpAddr) -> bool {
        self.sources.iter().any(|prefix| prefix.contains(&source))
    }

    pub(crate) fn established(&mut self) -> Option<&mut Live> {
        self.live.as_deref_mut().filter(|live| live.is_established)
    }

    /// The path to an endpoint, with our side of it if known: first the one that the last message asked for.
    pub(crate) fn path_to(&self, endpoint: SocketAddr) -> Path {
        let tried = self.live.iter().flat_map(|live| &live.tried);
        let known = tried.chain(&self.path).find(|path| path.to == endpoint);
        known.copied().unwrap_or(Path::to(endpoint))
    }

    /// What was dropped, to be counted up.
    pub(crate) fn drops(&mut self) -> &mut PeerDrops {
        self.drops.get_or_insert_default()
    }

    /// To be counted up.
    pub(crate) fn record(&mut self) -> &mut Record {
        self.record.get_or_insert_default()
    }

    pub(crate) fn last_handshake_at(&self) -> Option<Instant> {
        self.record.as_deref()?.last_handshake_at
    }

    pub(crate) fn traffic(&self) -> Traffic {
        self.record.as_deref().map(|record| record.traffic).unwrap_or_default()
    }

    pub(crate) fn describe(&self) -> PeerDescription {
        let record = self.record.as_deref();
        let traffic = self.traffic();
        PeerDescription {
            key: self.key,
            preshared_key: self.preshared_key.as_deref().cloned(),
            endpoint: self.path.map(|path| path.to),
            last_handshake_at: record.and_then(|record| record.last_handshake_time),
            rx_bytes: record.map_or(0, |record| record.rx_datagram_bytes),
            tx_bytes: record.map_or(0, |record| record.tx_datagram_bytes),
            rx_packets: traffic.rx_packets,
            tx_packets: traffic.tx_packets,
            drops: self.drops.as_deref().copied().unwrap_or_default(),
            keepalive: self.keepalive,
            allowed_ips: self.allowed_ips.to_vec(),
        }
    }

    pub(crate) fn stats(&self, now: Instant) -> PeerStats {
        let traffic = self.traffic();
        PeerStats {
            key: self.key,
            endpoint: self.path.map(|path| path.to),
            last_handshake: self.last_handshake_at().map(|at| now.saturating_duration_since(at)),
            rx_bytes: traffic.rx_bytes,
            tx_bytes: traffic.tx_bytes,
            rx_packets: traffic.rx_packets,
            tx_packets: traffic.tx_packets,
            handshakes: traffic.handshakes,
            drops: self.drops.as_deref().copied().unwrap_or_default(),
            live: self.live.as_ref().is_some_and(|live| live.is_established),
        }
    }
}

impl Live {
    /// What packets are sealed with.
    pub(crate) fn sealer(&mut self) -> &mut Noise {
        match self.former.as_deref_mut().filter(|former| former.seals) {
            Some(former) => &mut former.noise,
            None => &mut self.noise,
        }
    }

    /// What a session's packets are opened with.
    pub(crate) fn opener(&mut self, session: u32) -> &mut Noise {
        match self.former.as_deref_mut().filter(|former| former.index == session >> 8) {
            Some(former) => &mut former.noise,
            None => &mut self.noise,
        }
    }

    pub(crate) fn has_session(&self) -> bool {
        let former = self.former.as_deref().filter(|former| former.seals);
        former.map_or(&self.noise, |former| &former.noise).has_session()
    }

    /// A message came by this path.
    pub(crate) fn remember(&mut self, path: Path) {
        self.tried.retain(|other| other.to != path.to);
        if self.tried.len() >= MAX_TRIED {
            self.tried.remove(0);
        }
        self.tried.push(path);
    }

    /// Something went to the endpoint.
    pub(crate) fn on_sent(&mut self, now: Instant) {
        self.sent_at = now;
        self.owing_since = None;
    }

    /// Data went to the endpoint. Whether a watch is to be told that it is unanswered.
    pub(crate) fn on_data_sent(&mut self, now: Instant) -> bool {
        self.on_sent(now);
        self.unanswered_since.get_or_insert(now);
        let is_first = self.mark == Mark::Calm;
        if is_first {
            self.mark = Mark::Due;
        }
        is_first
    }

    /// Whether it was silent until something came. Asked once.
    pub(crate) fn is_back(&mut self) -> bool {
        let was_silent = self.mark == Mark::Silent;
        if was_silent {
            self.mark = Mark::Calm;
        }
        was_silent
    }

    /// Something authentic came.
    pub(crate) fn on_heard(&mut self, now: Instant) {
        self.heard_at = now;
        self.unanswered_since = None;
        self.is_unanswered_told = false;
    }

    pub(crate) fn new(noise: Noise, index: u32, now: Instant) -> Self {
        Self {
            noise,
            former: None,
            index,
            place: 0,
            retry_at: None,
            is_established: false,
            is_initiator: false,
            is_initiating: false,
            is_answer_due: false,
            answered: None,
            tried: Vec::new(),
            trying: Vec::new(),
            roams_from: now,
            heard_at: now,
            sent_at: now,
            unanswered_since: None,
            is_unanswered_told: false,
            owing_since: None,
            mark: Mark::Off,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(sources: &[&str]) -> PeerState {
        PeerState::new(Peer {
            key: PublicKey([1; 32]),
            allowed_ips: vec!["100.64.0.1/32".parse().unwrap(), "10.0.0.0/8".parse().unwrap()],
            sources: sources.iter().map(|source| source.parse().unwrap()).collect(),
            preshared_key: None,
        })
    }

    #[test]
    fn an_idle_peer_is_a_few_hundred_bytes() {
        assert!(size_of::<PeerState>() <= 192, "{}", size_of::<PeerState>());
    }

    #[test]
    fn a_peer_sends_from_its_sources_only_whatever_is_routed_to_it() {
        let state = peer(&["100.64.0.1/32", "192.168.1.0/24", "fd00::/64"]);
        for good in ["100.64.0.1", "192.168.1.77", "fd00::5"] {
            assert!(state.may_send_from(good.parse().unwrap()));
        }
        for bad in ["100.64.0.2", "192.168.2.1", "10.0.0.1", "fd00:0:0:1::1"] {
            assert!(!state.may_send_from(bad.parse().unwrap()));
        }
        assert!(!peer(&[]).may_send_from("100.64.0.1".parse().unwrap()));
    }

    #[test]
    fn messages_are_the_first_addresss() {
        assert_eq!(peer(&[]).own_address(), Some("100.64.0.1".parse().unwrap()));
    }
}
