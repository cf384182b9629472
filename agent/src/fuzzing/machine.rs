//! `agent-core` with a clock of the fuzzer's: whatever servers and peers say and whatever was kept, the machine comes to rest after each step, no deadline stays in the past,
//! and what it holds stays bounded.

use super::decode_state;
use agent_core::{
    Agent, BootTime, Config, ConnId, Identity, Output, Saved,
    cache::{self, Cached},
    claims::ClaimsConfig,
    config::{ControlConfig, PeerConfig},
    io::{Closed, Connected, TunnelEvent},
};
use proto::{
    fuzzing::steps,
    key::PublicKey,
    map::{Content, Delta, Map, MapVersion, Object, Peer},
    peer_message::{Body, PeerMessage},
    receipt::Receipt,
    root::RootSecret,
    server_url::ServerUrl,
    session::{Facts, ServerId, ServerList, ServerMessage, SessionNumber, Welcome},
    statement::{Membership, NetworkId, NodeId, Statement},
    time::UnixTime,
    wire,
};
use std::{
    net::{IpAddr, SocketAddr},
    sync::LazyLock,
    time::Duration,
};

const START: BootTime = BootTime::from_duration(Duration::from_secs(1000));
const NETWORK: NetworkId = NetworkId([3; 16]);
const NOW_S: u64 = 1_900_000_000;
const OWN: PublicKey = PublicKey([1; 32]);
const SERVER: ServerId = ServerId([1; 16]);
/// One step makes no more than this to do: a fetch, commands for each peer, and each of their messages.
const MAX_OUTPUTS: usize = 20_000;
/// Deadlines that come due at once, one after the other.
const MAX_TURNS: usize = 1000;

static ROOT: LazyLock<RootSecret> = LazyLock::new(|| RootSecret::from_seed(&[9; 32]));
/// Signing costs more than most steps do.
static CERTIFICATES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| (0..4).map(certificate).collect());

/// `map.cache`: as it is, and as if its checksum were right.
pub fn map_cache(bytes: &[u8]) {
    const HEADER: &[u8] = b"HFMAP\x01";
    let whole = [HEADER, &proto::checksum(bytes), bytes].concat();
    for bytes in [bytes, &whole] {
        let Ok(cached) = cache::decode(bytes) else { continue };
        let mut hand = Hand::started(enrolled().clone(), Some(cached));
        hand.rest();
        let again = hand.agent.map_cache();
        assert!(cache::decode(&again).is_ok(), "what is written cannot be read");
    }
}

/// `state.json`, and an agent that comes up from it.
pub fn state(bytes: &[u8]) {
    let Some(state) = decode_state(bytes) else { return };
    let mut hand = Hand::started(state.core, None);
    hand.rest();
    hand.let_pass(Duration::from_secs(60));
}

/// A member with two peers and a server, of which each says what it likes. The kinds of steps are below.
pub fn conversation(bytes: &[u8]) {
    let mut hand = Hand::served();
    for (kind, said) in steps(bytes) {
        hand.step(kind, said);
    }
    hand.let_pass(Duration::from_secs(600));
    let _status = hand.agent.status(hand.now);
}

fn key(node: u8) -> PublicKey {
    PublicKey([node; 32])
}

fn certificate(node: u8) -> Vec<u8> {
    let membership = Membership {
        node_id: NodeId(node.into()),
        node_key: key(node),
        addresses: vec![IpAddr::from([100, 64, 0, node])],
        claims: Vec::new(),
        issued_at: UnixTime(NOW_S - 1000),
        not_after: (node == 3).then_some(UnixTime(NOW_S + 300)),
    };
    Statement::Membership(membership).sign(NETWORK, &ROOT)
}

fn peer_object(node: u8) -> Option<Object> {
    let peer = Peer {
        node_id: NodeId(node.into()),
        name: format!("node-{node}"),
        membership: CERTIFICATES[usize::from(node)].clone(),
        endpoints: vec![SocketAddr::from(([192, 0, 2, node], 51820))],
        os: String::new(),
        agent_version: String::new(),
        expires_at: None,
        ephemeral: false,
        claims: Vec::new(),
    };
    Object::new(&Content::Peer(peer), key(node).0.to_vec())
}

/// What a member keeps.
fn enrolled() -> &'static Saved {
    static SAVED: LazyLock<Saved> = LazyLock::new(|| Hand::served().agent.saved());
    &SAVED
}

/// Plays server, peers, tunnel and time.
struct Hand {
    agent: Agent,
    now: BootTime,
    /// The newest connection that the agent asked for.
    dialled: Option<ConnId>,
    unresolved: Option<ServerUrl>,
}

impl Hand {
    fn started(saved: Saved, cached: Option<Cached>) -> Self {
        let config = Config {
            servers: "192.0.2.200:7443".parse().into_iter().collect(),
            facts: Facts::default(),
            control: ControlConfig::default(),
            peer: PeerConfig::default(),
            claims: ClaimsConfig::default(),
        };
        let identity = Identity { key: OWN, boot: 1, can_enrol: true };
        let agent = Agent::new(config, identity, saved, cached, 5, START);
        Self { agent, now: START, dialled: None, unresolved: None }
    }

    fn served() -> Self {
        let mut hand = Self::started(Saved::default(), None);
        hand.rest();
        let enrolled = wire::Enrolled {
            root: ROOT.public().to_bytes().to_vec(),
            membership: CERTIFICATES[1].clone(),
            node_id: 1,
            servers: Vec::new(),
            roots: None,
        };
        hand.agent.handle_enrolled(hand.conn(), &enrolled, hand.now);
        hand.connect();
        let mut map = Map::default();
        let put: Vec<Object> = [2, 3].into_iter().filter_map(peer_object).collect();
        put.iter().for_each(|object| {
            map.put(object.clone());
        });
        let (version, receipt) = (MapVersion { epoch: 1, revision: 2 }, Receipt([1; 24]));
        let delta = Delta { version, digest: map.digest(), put, drop: Vec::new(), last: true, receipt };
        hand.hear(ServerMessage::Map(delta));
        let endpoint = SocketAddr::from(([192, 0, 2, 2], 51820));
        hand.agent.handle_tunnel(TunnelEvent::HandshakeDone { peer: key(2), endpoint }, hand.now);
        hand.rest();
        hand
    }

    fn conn(&self) -> ConnId {
        self.dialled.unwrap_or(ConnId(0))
    }

    /// The newest connection is made, welcomed and activated.
    fn connect(&mut self) {
        self.agent.handle_connected(self.conn(), Connected { server: SERVER }, self.now);
        let version = MapVersion { epoch: 1, revision: 1 };
        self.hear(ServerMessage::Welcome(Welcome {
            server: SERVER,
            server_name: String::new(),
            servers: ServerList::default(),
            heartbeat_interval: Duration::ZERO,
            at: version,
            unix_ms: NOW_S * 1000,
            observed_address: None,
            membership: Vec::new(),
            roots: None,
        }));
        let number = SessionNumber { boot: 1, counter: 1 };
        self.hear(ServerMessage::Activated { number, version, receipt: Receipt([1; 24]) });
        self.rest();
    }

    fn hear(&mut self, message: ServerMessage) {
        self.agent.handle_message(self.conn(), message, self.now);
    }

    fn step(&mut self, kind: u8, said: &[u8]) {
        match kind % 10 {
            0 => self.hear_peer(2, said.to_vec()),
            1 => self.hear_peer(3, said.to_vec()),
            2 => {
                if let Ok(Ok(Some(message))) = proto::decode(said).map(ServerMessage::from_wire) {
                    self.hear(message);
                }
            }
            3 => {
                if let Ok(Ok(delta)) = proto::decode::<wire::MapDelta>(said).map(Delta::try_from) {
                    self.agent.handle_fetched(self.conn(), delta, self.now);
                }
            }
            4 => {
                let enrolled = proto::decode(said).unwrap_or_default();
                self.agent.handle_enrolled(self.conn(), &enrolled, self.now);
            }
            5 => self.hear_signed(said),
            6 => self.hear_tunnel(said),
            7 => self.agent.handle_closed(self.conn(), &Closed::Ended("fuzz".to_owned()), self.now),
            8 => self.connect(),
            _ => {
                let mut millis = [0; 4];
                millis.iter_mut().zip(said).for_each(|(to, from)| *to = *from);
                self.let_pass(Duration::from_millis(u32::from_le_bytes(millis).into()));
            }
        }
        self.resolve();
        self.rest();
    }

    fn hear_peer(&mut self, node: u8, payload: Vec<u8>) {
        let from = SocketAddr::from(([192, 0, 2, node], 51820));
        self.agent.handle_tunnel(TunnelEvent::Message { peer: key(node), payload, from }, self.now);
    }

    /// What the root did sign, told by a peer and by the server.
    fn hear_signed(&mut self, statement: &[u8]) {
        let Ok((network, statement)) = Statement::trust(statement) else { return };
        let signed = statement.sign(network, &ROOT);
        let body = Body::Removed { removals: vec![signed.clone()], id: 7 };
        self.hear_peer(2, PeerMessage { boot: 1, body }.encode());
        self.hear(ServerMessage::Membership(signed));
    }

    fn hear_tunnel(&mut self, said: &[u8]) {
        let Some((kind, rest)) = said.split_first() else { return };
        let node = rest.first().map_or(2, |node| node % 5);
        let octets = rest.get(1..5).and_then(|octets| <[u8; 4]>::try_from(octets).ok());
        let (peer, from) = (key(node), SocketAddr::from((octets.unwrap_or([192, 0, 2, 9]), 51820)));
        let event = match kind % 8 {
            0 => TunnelEvent::PacketWaiting { peer },
            1 => TunnelEvent::HandshakeDone { peer, endpoint: from },
            2 => TunnelEvent::EndpointChanged { peer, endpoint: from },
            3 => TunnelEvent::Active(vec![peer]),
            4 => TunnelEvent::Unanswered { peer },
            5 => TunnelEvent::SessionLost { peer },
            6 => TunnelEvent::UnknownIndex { from },
            _ => TunnelEvent::StaleInitiation { peer, from },
        };
        self.agent.handle_tunnel(event, self.now);
    }

    /// Names that a server told have addresses.
    fn resolve(&mut self) {
        if let Some(url) = self.unresolved.take() {
            let addresses = vec![SocketAddr::from(([192, 0, 2, 201], 7443))];
            self.agent.handle_resolved(&url, Ok(addresses), self.now);
        }
    }

    fn let_pass(&mut self, span: Duration) {
        let until = self.now + span;
        for _ in 0..MAX_TURNS {
            match self.agent.poll_timeout().filter(|deadline| deadline.at <= until) {
                Some(deadline) => self.now = self.now.max(deadline.at),
                None => break,
            }
            self.agent.handle_timeout(self.now);
            self.rest();
        }
        self.now = self.now.max(until);
        self.agent.handle_timeout(self.now);
        self.rest();
    }

    /// Does what is to be done, and all that is due by now.
    fn rest(&mut self) {
        let mut outputs = 0;
        for _ in 0..MAX_TURNS {
            while let Some(output) = self.agent.poll_output() {
                outputs += 1;
                assert!(outputs < MAX_OUTPUTS, "no end of outputs; the last is {output:?}");
                match output {
                    Output::Dial(dial) => self.dialled = Some(dial.conn),
                    Output::Resolve(url) => self.unresolved = Some(url),
                    Output::Send { message, .. } => drop(proto::encode(&message.into_wire(None, ""))),
                    Output::SaveMap => assert!(cache::decode(&self.agent.map_cache()).is_ok()),
                    Output::SaveState => {
                        let root = self.agent.saved().pins().map(|pins| pins.newest);
                        self.agent.handle_root_kept(root, self.now);
                    }
                    Output::Fetch { .. }
                    | Output::Close { .. }
                    | Output::Configure { .. }
                    | Output::Tunnel(_)
                    | Output::Notice(_) => {}
                }
            }
            assert!(self.agent.load() < MAX_OUTPUTS, "{} things are held", self.agent.load());
            match self.agent.poll_timeout() {
                Some(deadline) if deadline.at <= self.now => self.agent.handle_timeout(self.now),
                Some(_) | None => return,
            }
        }
        panic!("{:?} is due again and again", self.agent.poll_timeout());
    }
}
