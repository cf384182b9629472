//! The agent as a whole against one hand that plays the server.

mod broken_server;
mod holding;
mod removals;
mod roots;
mod rules;
mod serving;
mod standing;

use super::*;
use crate::{
    claims::ClaimsConfig,
    config::{ControlConfig, PeerMode},
    io::{Connected, TunnelEvent},
};
use proto::{
    map::{Content, Delta, Map, Object, ObjectId, Peer as MapPeer},
    receipt::Receipt,
    root::RootSecret,
    session::{Facts, HeartbeatAck, Reason, Refused, ServerId, ServerList, ServerMessage, Welcome},
    statement::{NetworkId, Removal, Statement},
    wire,
};

const START: BootTime = BootTime::from_duration(Duration::from_secs(1000));
const NETWORK: NetworkId = NetworkId([3; 16]);
const NOW_S: u64 = 1_900_000_000;

fn root() -> RootSecret {
    RootSecret::from_seed(&[9; 32])
}

fn key(node: u8) -> PublicKey {
    PublicKey([node; 32])
}

fn certificate(node: u8, not_after: Option<u64>) -> Vec<u8> {
    let membership = Membership {
        node_id: NodeId(node.into()),
        node_key: key(node),
        addresses: vec![[100, 64, 0, node].into()],
        claims: Vec::new(),
        issued_at: UnixTime(NOW_S - 1000),
        not_after: not_after.map(UnixTime),
    };
    Statement::Membership(membership).sign(NETWORK, &root())
}

fn peer_object(node: u8, name: &str, certificate: Vec<u8>) -> Object {
    let peer = MapPeer {
        node_id: NodeId(node.into()),
        name: name.to_owned(),
        membership: certificate,
        endpoints: vec![SocketAddr::from(([192, 0, 2, node], 51820))],
        os: String::new(),
        agent_version: String::new(),
        expires_at: None,
        ephemeral: false,
        claims: Vec::new(),
    };
    Object::new(&Content::Peer(peer), key(node).0.to_vec()).unwrap()
}

fn receipt(revision: u64) -> Receipt {
    Receipt([revision as u8; 24])
}

fn version(revision: u64) -> MapVersion {
    MapVersion { epoch: 1, revision }
}

struct Bench {
    agent: Agent,
    now: BootTime,
    /// The server's map.
    map: Map,
    /// Which of it heartbeats say the agent was told.
    told: MapVersion,
}

impl Bench {
    /// Enrolled and served over connection 0, whose server knows nobody else.
    fn served() -> Self {
        let mut bench = Self::started(Saved::default(), None);
        let dialled = |output: Output| {
            let Output::Dial(dial) = output else { return None };
            Some(dial.conn)
        };
        let conn = bench.outputs().into_iter().find_map(dialled).expect("a dial");
        let enrolled = wire::Enrolled {
            root: root().public().to_bytes().to_vec(),
            membership: certificate(1, None),
            node_id: 1,
            servers: Vec::new(),
            roots: None,
        };
        bench.agent.handle_enrolled(conn, &enrolled, bench.now);
        bench.connect(conn);
        bench.outputs();
        bench
    }

    fn started(saved: Saved, cached: Option<Cached>) -> Self {
        let config = Config {
            servers: vec!["192.0.2.200:7443".parse().unwrap()],
            facts: Facts::default(),
            control: ControlConfig::default(),
            peer: PeerConfig::default(),
            claims: ClaimsConfig::default(),
        };
        let identity = Identity { key: key(1), boot: 1, can_enrol: true };
        let agent = Agent::new(config, identity, saved, cached, 5, START);
        Self { agent, now: START, map: Map::default(), told: MapVersion::default() }
    }

    fn connect(&mut self, conn: ConnId) {
        self.agent.handle_connected(conn, Connected { server: ServerId([1; 16]) }, self.now);
        let welcome = Welcome {
            server: ServerId([1; 16]),
            server_name: String::new(),
            servers: ServerList::default(),
            heartbeat_interval: Duration::ZERO,
            at: version(1),
            unix_ms: NOW_S * 1000,
            observed_address: None,
            membership: Vec::new(),
            roots: None,
        };
        self.say(conn, ServerMessage::Welcome(welcome));
        let number = proto::session::SessionNumber { boot: 1, counter: 1 };
        self.say(conn, ServerMessage::Activated { number, version: version(1), receipt: receipt(1) });
    }

    fn say(&mut self, conn: ConnId, message: ServerMessage) {
        self.agent.handle_message(conn, message, self.now);
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.agent.poll_output()).collect()
    }

    /// Changes the server's map and gives the step to the new one.
    fn step(&mut self, revision: u64, put: Vec<Object>, drop: Vec<ObjectId>) -> Delta {
        put.iter().for_each(|object| {
            self.map.put(object.clone());
        });
        drop.iter().for_each(|id| {
            self.map.drop(id);
        });
        let receipt = receipt(revision);
        Delta { version: version(revision), digest: self.map.digest(), put, drop, last: true, receipt }
    }

    fn tell(&mut self, revision: u64, put: Vec<Object>, drop: Vec<ObjectId>) -> Vec<Output> {
        let delta = self.step(revision, put, drop);
        self.say(ConnId(0), ServerMessage::Map(delta));
        self.outputs()
    }

    fn at(&mut self, at: Duration) -> Vec<Output> {
        self.now = START + at;
        self.agent.handle_timeout(self.now);
        self.outputs()
    }

    fn heartbeat(&mut self, at: MapVersion, unix_s: u64) -> Vec<Output> {
        let ack = HeartbeatAck {
            sequence: 1,
            server: ServerId([1; 16]),
            at,
            revision_age: Duration::ZERO,
            database_ok: true,
            spread: Duration::ZERO,
            heartbeat_interval: Duration::ZERO,
            unix_ms: unix_s * 1000,
            receipt: receipt(at.revision),
            map: self.told,
        };
        self.say(ConnId(0), ServerMessage::Heartbeat(ack));
        self.outputs()
    }
}

fn upserts(outputs: &[Output]) -> Vec<PublicKey> {
    let upsert = |output: &Output| {
        let Output::Tunnel(TunnelCommand::Upsert { peer, .. }) = output else { return None };
        Some(*peer)
    };
    outputs.iter().filter_map(upsert).collect()
}

fn removals(outputs: &[Output]) -> Vec<PublicKey> {
    let removal = |output: &Output| {
        let Output::Tunnel(TunnelCommand::Remove { peer }) = output else { return None };
        Some(*peer)
    };
    outputs.iter().filter_map(removal).collect()
}

fn fetches(outputs: &[Output]) -> usize {
    outputs.iter().filter(|output| matches!(output, Output::Fetch { .. })).count()
}

#[test]
fn a_map_makes_peers_and_is_written_to_disk() {
    let mut bench = Bench::served();
    let outputs = bench.tell(2, vec![peer_object(2, "b", certificate(2, None))], Vec::new());
    assert_eq!(upserts(&outputs), [key(2)]);
    assert_eq!(bench.agent.find_peer("B"), Some(key(2)));
    assert!(bench.at(Duration::from_secs(1)).contains(&Output::SaveMap));
}

#[test]
fn an_agent_comes_up_from_its_disk_and_greets_who_it_had_a_tunnel_with() {
    let mut bench = Bench::served();
    let peers = [2, 3].map(|node| peer_object(node, "p", certificate(node, None)));
    bench.tell(7, peers.to_vec(), Vec::new());
    let endpoint = SocketAddr::from(([192, 0, 2, 77], 4000));
    bench.agent.handle_tunnel(TunnelEvent::HandshakeDone { peer: key(3), endpoint }, bench.now);
    let (saved, cache) = (bench.agent.saved(), bench.agent.map_cache());

    let mut again = Bench::started(saved, Some(cache::decode(&cache).unwrap()));
    let mut outputs = again.outputs();
    outputs.extend(again.at(Duration::ZERO));
    assert_eq!(upserts(&outputs), [key(2), key(3)]);
    let greeted = outputs.iter().find_map(|output| {
        let Output::Tunnel(TunnelCommand::Initiate { peer, endpoints }) = output else { return None };
        Some((*peer, endpoints[0]))
    });
    assert_eq!(greeted, Some((key(3), endpoint)), "where it was last, and nobody else");
    assert!(outputs.iter().any(|output| matches!(output, Output::Dial(dial) if !dial.enrol)));
}

#[test]
fn a_step_that_does_not_lead_to_the_servers_digest_brings_a_fetch() {
    let mut bench = Bench::served();
    let _missed = bench.step(2, vec![peer_object(2, "b", certificate(2, None))], Vec::new());
    let outputs = bench.tell(3, vec![peer_object(3, "c", certificate(3, None))], Vec::new());
    assert_eq!((upserts(&outputs), fetches(&outputs)), (vec![key(3)], 1));
    let whole = bench.step(3, vec![peer_object(2, "b", certificate(2, None))], Vec::new());
    bench.agent.handle_fetched(ConnId(0), whole, bench.now);
    let outputs = bench.outputs();
    assert_eq!((upserts(&outputs), fetches(&outputs)), (vec![key(2)], 0));
}

#[test]
fn a_step_that_overtakes_the_fetch_it_follows_is_not_lost() {
    let mut bench = Bench::served();
    bench.say(ConnId(0), ServerMessage::Fetch(version(2)));
    assert_eq!(fetches(&bench.outputs()), 1);
    let fetched = bench.step(2, vec![peer_object(2, "old", certificate(2, None))], Vec::new());
    let outputs = bench.tell(3, vec![peer_object(2, "new", certificate(2, None))], Vec::new());
    assert_eq!(outputs, [], "not before the map that it starts from");
    bench.agent.handle_fetched(ConnId(0), fetched, bench.now);
    assert_eq!(fetches(&bench.outputs()), 1, "asked again");
    let fetched = bench.step(3, vec![peer_object(2, "new", certificate(2, None))], Vec::new());
    bench.agent.handle_fetched(ConnId(0), fetched, bench.now);
    assert_eq!(bench.agent.name_of(&key(2)), Some("new"));
}

#[test]
fn a_map_that_does_not_come_or_never_adds_up_costs_the_server_the_session() {
    let mut bench = Bench::served();
    bench.say(ConnId(0), ServerMessage::Fetch(version(2)));
    bench.outputs();
    for _ in 0..3 {
        let mut wrong = bench.step(2, Vec::new(), Vec::new());
        wrong.digest = Map::default().digest();
        bench.map.put(peer_object(2, "b", certificate(2, None)));
        wrong.digest.add(peer_object(3, "c", Vec::new()).hash());
        bench.agent.handle_fetched(ConnId(0), wrong, bench.now);
    }
    assert!(bench.outputs().contains(&Output::Close { conn: ConnId(0) }));

    let mut bench = Bench::served();
    bench.say(ConnId(0), ServerMessage::Fetch(version(2)));
    bench.outputs();
    assert!(bench.at(Duration::from_secs(10)).contains(&Output::Close { conn: ConnId(0) }));
}

#[test]
fn an_older_map_changes_nothing() {
    let mut bench = Bench::served();
    bench.tell(5, vec![peer_object(2, "b", certificate(2, None))], Vec::new());
    let outputs = bench.tell(4, Vec::new(), vec![ObjectId::peer(key(2))]);
    assert_eq!(outputs, []);
    assert!(bench.agent.name_of(&key(2)).is_some());
}

#[test]
fn a_step_behind_what_a_heartbeat_told_is_taken() {
    let mut bench = Bench::served();
    bench.heartbeat(version(9), NOW_S);
    let outputs = bench.tell(8, vec![peer_object(2, "b", certificate(2, None))], Vec::new());
    assert_eq!(upserts(&outputs), [key(2)], "a server's maps follow its state");
    assert_eq!(bench.agent.status(bench.now).control.revision, 9, "what the next server must have reached");
}

#[test]
fn who_a_new_epoch_does_not_know_stays_until_a_removal_or_another_owner_of_the_address() {
    let mut hand = Bench::served();
    hand.tell(
        2,
        vec![peer_object(2, "b", certificate(2, None)), peer_object(3, "c", certificate(3, None))],
        vec![],
    );
    let gone = vec![ObjectId::peer(key(2)), ObjectId::peer(key(3))];
    let mut step = hand.step(3, vec![], gone);
    step.version.epoch += 1;
    let epoch = step.version.epoch;
    hand.say(ConnId(0), ServerMessage::Map(step));
    assert_eq!(removals(&hand.outputs()), []);
    assert!(hand.agent.netmap.member(&key(2)).is_some());
    // Node 4 has the address of node 3 now.
    let statement = Statement::Membership(Membership {
        node_id: NodeId(4),
        node_key: key(4),
        addresses: vec![[100, 64, 0, 3].into()],
        claims: Vec::new(),
        issued_at: UnixTime(NOW_S),
        not_after: None,
    });
    let mut step = hand.step(4, vec![peer_object(4, "d", statement.sign(NETWORK, &root()))], vec![]);
    step.version.epoch = epoch;
    hand.say(ConnId(0), ServerMessage::Map(step));
    assert_eq!(removals(&hand.outputs()), [key(3)]);
    let removal = Statement::Removal(Removal { node_key: key(2), removed_at: UnixTime(NOW_S), until: None });
    hand.agent.netmap.on_removal(&removal.sign(NETWORK, &root())).expect("under a known root");
    assert!(hand.agent.netmap.member(&key(2)).is_none());
}

#[test]
fn the_receipt_goes_with_the_version_and_over_a_restart_and_a_standby_gives_none() {
    let mut hand = Bench::served();
    hand.tell(2, vec![peer_object(2, "b", certificate(2, None))], vec![]);
    let shown = hand.agent.netmap.state();
    assert_eq!((shown.version, shown.receipt), (version(2), receipt(2)));
    let ack = HeartbeatAck {
        sequence: 1,
        server: ServerId([1; 16]),
        at: version(9),
        revision_age: Duration::ZERO,
        database_ok: true,
        spread: Duration::ZERO,
        heartbeat_interval: Duration::ZERO,
        unix_ms: NOW_S * 1000,
        receipt: receipt(9),
        map: MapVersion::default(),
    };
    hand.say(ConnId(77), ServerMessage::Heartbeat(ack));
    assert_eq!(hand.agent.netmap.state().version, version(2), "it does not serve us");
    let cached = cache::decode(&hand.agent.map_cache()).unwrap();
    assert_eq!((cached.version, cached.receipt), (version(2), receipt(2)));
}

#[test]
fn objects_of_unknown_kinds_stay_in_the_digest_and_in_the_cache() {
    let mut bench = Bench::served();
    let strange = Object { id: ObjectId { kind: 4711, id: vec![1] }, content: vec![1, 2, 3] };
    let outputs = bench.tell(2, vec![strange.clone()], Vec::new());
    assert_eq!(fetches(&outputs), 0);
    let cached = cache::decode(&bench.agent.map_cache()).unwrap();
    assert_eq!(cached.objects, [strange]);
}

#[test]
fn a_peer_without_a_certificate_under_the_root_is_no_peer() {
    let mut bench = Bench::served();
    let stranger = RootSecret::from_seed(&[1; 32]);
    let membership = Statement::trust(&certificate(2, None)).unwrap().1;
    let forged = membership.sign(NETWORK, &stranger);
    let outputs = bench.tell(2, vec![peer_object(2, "b", forged)], Vec::new());
    assert_eq!((upserts(&outputs), fetches(&outputs)), (vec![], 0));
}

#[test]
fn only_the_roots_signature_removes_us_and_then_everything_goes() {
    let refused = |removal: Vec<u8>| Refused {
        reason: Reason::Removed,
        detail: "removed".into(),
        retry_after: None,
        removal,
    };
    let removal =
        |at| Statement::Removal(Removal { node_key: key(1), removed_at: UnixTime(at), until: None });
    let (stranger, enrolled_at) = (RootSecret::from_seed(&[1; 32]), NOW_S - 1000);
    // The last one is from before we enrolled (again): a server that lags says it.
    let cases = [(stranger, NOW_S, false), (root(), NOW_S, true), (root(), enrolled_at - 1, false)];
    for (signer, removed_at, is_removed) in cases {
        let mut bench = Bench::served();
        bench.tell(2, vec![peer_object(2, "b", certificate(2, None))], Vec::new());
        let signed = removal(removed_at).sign(NETWORK, &signer);
        bench.say(ConnId(0), ServerMessage::Refused(refused(signed)));
        let outputs = bench.outputs();
        assert_eq!(!bench.agent.is_enrolled(), is_removed);
        assert_eq!(removals(&outputs).contains(&key(2)), is_removed);
    }
}

#[test]
fn a_removal_told_by_a_peer_ends_the_tunnel_of_the_removed() {
    let mut bench = Bench::served();
    let peers = [2, 3].map(|node| peer_object(node, "p", certificate(node, None)));
    bench.tell(2, peers.to_vec(), Vec::new());
    let removal = Statement::Removal(Removal { node_key: key(3), removed_at: UnixTime(NOW_S), until: None });
    let body = proto::peer_message::Body::Removed { removals: vec![removal.sign(NETWORK, &root())], id: 0 };
    let payload = proto::peer_message::PeerMessage { boot: 1, body }.encode();
    let from = SocketAddr::from(([192, 0, 2, 2], 51820));
    bench.agent.handle_tunnel(TunnelEvent::Message { peer: key(2), payload, from }, bench.now);
    assert_eq!(removals(&bench.outputs()), [key(3)]);
}

#[test]
fn a_certificate_that_ends_takes_its_peer_away_and_a_new_one_brings_it_back() {
    let mut bench = Bench::served();
    bench.tell(2, vec![peer_object(2, "b", certificate(2, Some(NOW_S + 60)))], Vec::new());
    assert_eq!(removals(&bench.at(Duration::from_secs(59))), []);
    assert_eq!(removals(&bench.at(Duration::from_secs(62))), [key(2)]);
    let outputs = bench.tell(3, vec![peer_object(2, "b", certificate(2, Some(NOW_S + 9999)))], Vec::new());
    assert_eq!(upserts(&outputs), [key(2)]);
}

#[test]
fn who_a_wrong_wall_clock_cut_off_is_back_when_a_server_tells_the_time() {
    let mut bench = Bench::served();
    bench.tell(2, vec![peer_object(2, "b", certificate(2, Some(NOW_S + 1000)))], Vec::new());
    let (saved, cache) = (bench.agent.saved(), bench.agent.map_cache());
    let mut again = Bench::started(saved, Some(cache::decode(&cache).unwrap()));
    again.agent.handle_wall_clock(UnixTime(NOW_S + 5000), again.now);
    assert_eq!(removals(&again.outputs()), [key(2)]);
    again.connect(ConnId(0));
    assert_eq!(upserts(&again.outputs()), [key(2)]);
}

#[test]
fn every_session_hears_where_we_are_once() {
    let mut bench = Bench::served();
    let updates = |outputs: &[Output]| {
        let update =
            |output: &&Output| matches!(output, Output::Send { message: AgentMessage::Update { .. }, .. });
        outputs.iter().filter(update).count()
    };
    let endpoint = SocketAddr::from(([203, 0, 113, 9], 51820));
    bench.agent.handle_endpoints(vec![endpoint], 51820, bench.now);
    assert_eq!(updates(&bench.outputs()), 1);
    bench.agent.handle_endpoints(vec![endpoint], 51820, bench.now);
    bench.heartbeat(version(1), NOW_S);
    assert_eq!(updates(&bench.outputs()), 0);
}

#[test]
fn a_peer_whose_published_endpoints_leave_the_one_in_use_is_sought_there() {
    let mut bench = Bench::served();
    bench.tell(2, vec![peer_object(2, "b", certificate(2, None))], Vec::new());
    let old = SocketAddr::from(([192, 0, 2, 2], 51820));
    bench.agent.handle_tunnel(TunnelEvent::HandshakeDone { peer: key(2), endpoint: old }, bench.now);
    bench.outputs();
    let moved = MapPeer {
        node_id: NodeId(2),
        name: "b".into(),
        membership: certificate(2, None),
        endpoints: vec![SocketAddr::from(([198, 51, 100, 2], 51820))],
        os: String::new(),
        agent_version: String::new(),
        expires_at: None,
        ephemeral: false,
        claims: Vec::new(),
    };
    let object = Object::new(&Content::Peer(moved), key(2).0.to_vec()).unwrap();
    let outputs = bench.tell(3, vec![object], Vec::new());
    let initiated = |output: &Output| matches!(output, Output::Tunnel(TunnelCommand::Initiate { .. }));
    assert!(outputs.iter().any(initiated), "{outputs:?}");
}

#[test]
fn time_that_runs_backwards_counts_as_the_last() {
    let mut bench = Bench::served();
    bench.at(Duration::from_secs(100));
    bench.agent.handle_network_changed(START);
    bench.outputs();
    assert!(
        bench.agent.poll_timeout().is_some_and(|deadline| deadline.at >= START + Duration::from_secs(100))
    );
}

#[test]
fn a_peer_made_always_is_dialled_at_once() {
    let mut bench = Bench::served();
    bench.tell(2, vec![peer_object(2, "b", certificate(2, None))], Vec::new());
    let config = PeerConfig { mode: PeerMode::Always, ..PeerConfig::default() };
    bench.agent.set_peer_config(config, bench.now);
    let mut outputs = bench.outputs();
    outputs.extend(bench.at(Duration::ZERO));
    let initiated = |output: &Output| matches!(output, Output::Tunnel(TunnelCommand::Initiate { .. }));
    assert!(outputs.iter().any(initiated));
}
