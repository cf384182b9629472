//! Messages survive the wire, and foreign ones are survived.

use super::*;
use crate::root::RootSecret;
use proptest::prelude::*;
use prost::Message;

const SERVER: ServerId = ServerId([3; 16]);
const VERSION: MapVersion = MapVersion { epoch: 2, revision: 77 };
const RECEIPT: Receipt = Receipt([5; 24]);

fn signal() -> Signal {
    Signal { peer: PublicKey([9; 32]), id: 5, endpoints: vec!["[2001:db8::1]:51820".parse().unwrap()] }
}

fn from_agent() -> Vec<AgentMessage> {
    let number = SessionNumber { boot: 4, counter: 2 };
    let facts = Facts { hostname: "laptop".into(), os: "linux".into(), ..Facts::default() };
    let map = MapState { version: VERSION, digest: MapDigest::default(), receipt: RECEIPT };
    let endpoints = vec!["192.0.2.1:51820".parse().unwrap()];
    vec![
        AgentMessage::Hello(Hello {
            number,
            facts: facts.clone(),
            endpoints: endpoints.clone(),
            map,
            activate: true,
            heartbeat_interval: Duration::from_millis(1500),
            membership: vec![7, 8],
            root: Some(Fingerprint([6; 16])),
        }),
        AgentMessage::Heartbeat { sequence: 8, standby: true, interval: Duration::from_secs(15) },
        AgentMessage::Activate { number, map },
        AgentMessage::Deactivate,
        AgentMessage::Signal(signal()),
        AgentMessage::Update { facts, endpoints },
        AgentMessage::Leave { logout: true },
        AgentMessage::Removal(vec![9]),
        AgentMessage::Root(Fingerprint([5; 16])),
    ]
}

fn roots() -> RootList {
    let first = RootSecret::from_seed(&[1; 32]).public();
    RootList { first, next: vec![vec![1], vec![2]], after: VERSION }
}

fn from_server() -> Vec<ServerMessage> {
    let refused = |reason| {
        let retry_after = Some(Duration::from_secs(2));
        ServerMessage::Refused(Refused { reason, detail: "why".into(), retry_after, removal: vec![1] })
    };
    vec![
        ServerMessage::Welcome(Welcome {
            server: SERVER,
            server_name: "s1".into(),
            servers: ServerList { urls: vec!["a:1".parse().unwrap()], ids: vec![SERVER] },
            heartbeat_interval: Duration::from_secs(1),
            at: VERSION,
            unix_ms: 1_700_000_000_123,
            observed_address: Some("192.0.2.7".parse().unwrap()),
            membership: vec![1, 2, 3],
            roots: Some(roots()),
        }),
        refused(Reason::UnknownNode),
        ServerMessage::Roots(roots()),
        refused(Reason::Database),
        refused(Reason::StaleSession),
        ServerMessage::Heartbeat(HeartbeatAck {
            sequence: 8,
            server: SERVER,
            at: VERSION,
            revision_age: Duration::from_millis(12),
            database_ok: true,
            spread: Duration::from_millis(200),
            heartbeat_interval: Duration::ZERO,
            unix_ms: 1,
            receipt: RECEIPT,
            map: VERSION,
        }),
        ServerMessage::Activated {
            number: SessionNumber { boot: 1, counter: 2 },
            version: VERSION,
            receipt: RECEIPT,
        },
        ServerMessage::Map(Delta { version: VERSION, last: true, receipt: RECEIPT, ..Delta::default() }),
        ServerMessage::Fetch(VERSION),
        ServerMessage::Presence(Presence { whole: true, online: vec![NodeId(4)], offline: vec![NodeId(5)] }),
        ServerMessage::Signal(signal()),
        ServerMessage::Drain { reason: "restart".into() },
        ServerMessage::Membership(vec![4]),
        ServerMessage::Servers(ServerList {
            urls: vec!["b:2".parse().unwrap()],
            ids: vec![SERVER, ServerId([9; 16])],
        }),
    ]
}

#[test]
fn every_message_survives_the_wire() {
    for message in from_agent() {
        let wire =
            wire::AgentMessage::decode(message.clone().into_wire(None, "1").encode_to_vec().as_slice());
        assert_eq!(AgentMessage::from_wire(wire.unwrap()), Ok(Some(message)));
    }
    for message in from_server() {
        let wire = wire::ServerMessage::decode(message.clone().into_wire("1").encode_to_vec().as_slice());
        assert_eq!(ServerMessage::from_wire(wire.unwrap()), Ok(Some(message)));
    }
}

#[test]
fn a_message_kind_of_a_newer_program_is_survived() {
    // Field 99, length-delimited, 2 bytes: no kind that this program knows.
    let newer = [0x9a, 0x06, 0x02, 0x08, 0x01];
    assert_eq!(ServerMessage::from_wire(wire::ServerMessage::decode(newer.as_slice()).unwrap()), Ok(None));
    assert_eq!(AgentMessage::from_wire(wire::AgentMessage::decode(newer.as_slice()).unwrap()), Ok(None));
}

#[test]
fn fields_that_cannot_be_are_refused_by_name() {
    let wire = signal().into_agent_wire(|signal| signal.peer = vec![1]);
    assert_eq!(AgentMessage::from_wire(wire).unwrap_err().field, "peer");
    let wire = signal().into_agent_wire(|signal| signal.endpoints = vec!["1.2.3.4:5".into(); 99]);
    assert_eq!(AgentMessage::from_wire(wire).unwrap_err().field, "endpoint");
}

#[test]
fn texts_for_people_lose_control_characters_and_length() {
    let drain = ServerMessage::Drain { reason: format!("\x1b[31m{}", "x".repeat(5000)) };
    let Ok(Some(ServerMessage::Drain { reason })) = ServerMessage::from_wire(drain.into_wire("1")) else {
        unreachable!()
    };
    assert!(reason.len() < MAX_TEXT && !reason.contains('\x1b'));
}

impl Signal {
    fn into_agent_wire(self, spoil: impl FnOnce(&mut wire::Signal)) -> wire::AgentMessage {
        let mut signal = self.into();
        spoil(&mut signal);
        wire::AgentMessage { kind: Some(wire::agent_message::Kind::Signal(signal)) }
    }
}

proptest! {
    #[test]
    fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(wire) = wire::AgentMessage::decode(bytes.as_slice()) {
            let _either = AgentMessage::from_wire(wire);
        }
        if let Ok(wire) = wire::ServerMessage::decode(bytes.as_slice()) {
            let _either = ServerMessage::from_wire(wire);
        }
    }
}
