//! An agent as the tests need one: real TLS and gRPC over loopback, and every message by hand.

use crate::session::tests::server::TestServer;
use hyper_util::rt::TokioIo;
use proto::{
    auth::{ChannelBinding, prove},
    key::{NodeSecret, PublicKey},
    map::{Delta, Map},
    session::{
        AgentMessage, Facts, HeartbeatAck, Hello, MapState, Presence, Refused, ServerMessage, SessionNumber,
        Welcome,
    },
    tls::{client_binding, client_config, server_facts, server_name},
    wire::{self, control_client::ControlClient, enrol_response::Outcome},
};
use std::{net::SocketAddr, sync::Mutex, time::Duration};
use tokio::{net::TcpStream, sync::mpsc, time::timeout};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

/// Nothing here takes so long, however busy the machine is.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Of whoever was dialled.
pub(super) const AUTHORITY: &str = "http://server";

pub(super) struct Agent {
    pub(super) secret: NodeSecret,
    pub(super) name: String,
}

/// A connection to a server.
pub(super) struct Line {
    pub(super) client: ControlClient<Channel>,
    binding: ChannelBinding,
    server_key: PublicKey,
    agent: NodeSecret,
}

/// A session.
pub(super) struct Talk {
    pub(super) line: Line,
    say: mpsc::UnboundedSender<wire::AgentMessage>,
    hear: Streaming<wire::ServerMessage>,
}

/// A server, and a member that it has let in.
pub(super) async fn one_agent() -> (TestServer, Agent) {
    let server = TestServer::alone().await;
    let agent = Agent::enrolled("a", &server).await;
    (server, agent)
}

impl Agent {
    pub(super) fn new(name: &str) -> Self {
        Self { secret: NodeSecret::generate().unwrap(), name: name.to_owned() }
    }

    /// A new agent that is a member.
    pub(super) async fn enrolled(name: &str, server: &TestServer) -> Self {
        let agent = Self::new(name);
        let outcome = agent.dial(server).await.enrol(&server.setup_key, agent.facts()).await;
        assert!(matches!(outcome, Outcome::Enrolled(_)), "{outcome:?}");
        agent
    }

    pub(super) fn key(&self) -> PublicKey {
        self.secret.public()
    }

    pub(super) fn facts(&self) -> Facts {
        Facts { hostname: self.name.clone(), os: "linux".to_owned(), ..Facts::default() }
    }

    pub(super) async fn dial(&self, server: &TestServer) -> Line {
        self.dial_by(server, Endpoint::from_static(AUTHORITY)).await
    }

    /// With HTTP/2 as `endpoint` says.
    pub(super) async fn dial_by(&self, server: &TestServer, endpoint: Endpoint) -> Line {
        let tls = TlsConnector::from(client_config(vec![server.fingerprint()]).unwrap());
        let tcp = TcpStream::connect(server.addr).await.unwrap();
        let stream = tls.connect(server_name(), tcp).await.unwrap();
        let connection = stream.get_ref().1;
        let binding = client_binding(connection).unwrap();
        let facts = server_facts(connection.peer_certificates().unwrap()).unwrap();
        assert_eq!(facts.id, server.running.server.id);
        let one_shot = Mutex::new(Some(TokioIo::new(stream)));
        let connector = tower::service_fn(move |_uri| {
            let stream = one_shot.lock().unwrap().take();
            std::future::ready(stream.ok_or_else(|| std::io::Error::other("one connection only")))
        });
        let channel = endpoint.connect_with_connector(connector).await.unwrap();
        let client = ControlClient::new(channel);
        Line { client, binding, server_key: facts.session_key, agent: self.secret.clone() }
    }

    pub(super) fn hello(&self, counter: u64) -> Hello {
        Hello {
            number: number(counter),
            facts: self.facts(),
            endpoints: vec![],
            map: MapState::default(),
            activate: false,
            heartbeat_interval: Duration::from_secs(1),
            membership: vec![],
            root: None,
        }
    }

    /// A welcomed standby.
    pub(super) async fn standby(&self, server: &TestServer, counter: u64) -> Talk {
        let mut talk = self.dial(server).await.open(self.hello(counter)).await;
        talk.welcome().await;
        talk
    }

    /// A session that serves, for an agent that holds `map`.
    pub(super) async fn serving(&self, server: &TestServer, counter: u64, map: MapState) -> Talk {
        let hello = Hello { activate: true, map, ..self.hello(counter) };
        let mut talk = self.dial(server).await.open(hello).await;
        talk.welcome().await;
        let activated = talk.next().await;
        assert!(
            matches!(activated, ServerMessage::Activated { number: n, .. } if n == number(counter)),
            "{activated:?}"
        );
        talk
    }
}

pub(super) fn number(counter: u64) -> SessionNumber {
    SessionNumber { boot: 1, counter }
}

impl Line {
    pub(super) fn proof(&self) -> wire::Proof {
        prove(&self.agent, &self.server_key, &self.binding).unwrap()
    }

    pub(super) async fn enrol(mut self, setup_key: &str, facts: Facts) -> Outcome {
        let request = wire::EnrolRequest {
            version: Some(proto::session::own_version("test")),
            proof: Some(self.proof()),
            setup_key_secret: setup_key.to_owned(),
            facts: Some(facts.into()),
            endpoints: vec![],
        };
        self.client.enrol(request).await.unwrap().into_inner().outcome.unwrap()
    }

    pub(super) async fn open(self, hello: Hello) -> Talk {
        let proof = self.proof();
        self.open_with(AgentMessage::Hello(hello).into_wire(Some(proof), "test")).await
    }

    pub(super) async fn open_with(mut self, first: wire::AgentMessage) -> Talk {
        let (say, said) = mpsc::unbounded_channel();
        say.send(first).unwrap();
        let hear = self.client.session(UnboundedReceiverStream::new(said)).await.unwrap().into_inner();
        Talk { line: self, say, hear }
    }

    /// What FetchMap gives for an agent that holds `map`.
    pub(super) async fn fetch(&mut self, map: &mut Map) -> Result<Delta, Status> {
        let request = wire::FetchMapRequest { have: map.refs() };
        let mut chunks = self.client.fetch_map(request).await?.into_inner();
        loop {
            let chunk: Delta = chunks.message().await?.unwrap().try_into().unwrap();
            apply(map, &chunk);
            if chunk.last {
                assert!(chunks.message().await?.is_none());
                return Ok(chunk);
            }
        }
    }
}

pub(super) fn apply(map: &mut Map, delta: &Delta) {
    delta.put.iter().for_each(|object| {
        map.put(object.clone());
    });
    delta.drop.iter().for_each(|id| {
        map.drop(id);
    });
}

impl Talk {
    pub(super) fn say(&self, message: AgentMessage) {
        self.say.send(message.into_wire(None, "test")).unwrap();
    }

    /// Of a session that may have ended.
    pub(super) fn say_if_open(&self, message: AgentMessage) {
        let _ended = self.say.send(message.into_wire(None, "test"));
    }

    pub(super) fn say_raw(&self, message: wire::AgentMessage) {
        self.say.send(message).unwrap();
    }

    /// The next message; `None` at the end of the session.
    pub(super) async fn try_next(&mut self) -> Option<ServerMessage> {
        let message = timeout(PATIENCE, self.hear.message()).await.expect("the server says nothing");
        ServerMessage::from_wire(message.ok().flatten()?).unwrap()
    }

    pub(super) async fn next(&mut self) -> ServerMessage {
        self.try_next().await.expect("the session ended")
    }

    pub(super) async fn welcome(&mut self) -> Welcome {
        let first = self.next().await;
        let ServerMessage::Welcome(welcome) = first else { panic!("instead of a welcome: {first:?}") };
        welcome
    }

    pub(super) async fn refused(&mut self) -> Refused {
        match self.find(|message| if let ServerMessage::Refused(r) = message { Some(r) } else { None }).await
        {
            Some(refused) => {
                assert_eq!(self.try_next().await, None, "a refused session ends");
                refused
            }
            None => panic!("the session ended without a refusal"),
        }
    }

    /// The first message that `pick` takes, passing by the others; `None` at the end.
    pub(super) async fn find<T>(&mut self, mut pick: impl FnMut(ServerMessage) -> Option<T>) -> Option<T> {
        while let Some(message) = self.try_next().await {
            if let Some(found) = pick(message) {
                return Some(found);
            }
        }
        None
    }

    pub(super) async fn presence(&mut self) -> Presence {
        let presence =
            self.find(|message| if let ServerMessage::Presence(p) = message { Some(p) } else { None });
        presence.await.expect("the session ended")
    }

    pub(super) async fn delta(&mut self) -> Delta {
        let delta =
            self.find(|message| if let ServerMessage::Map(delta) = message { Some(delta) } else { None });
        delta.await.expect("the session ended")
    }

    pub(super) async fn heartbeat(&mut self, sequence: u64) -> HeartbeatAck {
        self.say(AgentMessage::Heartbeat { sequence, standby: false, interval: Duration::ZERO });
        let ack = self.find(|message| {
            let ServerMessage::Heartbeat(ack) = message else { return None };
            (ack.sequence == sequence).then_some(ack)
        });
        ack.await.expect("the session ended")
    }

    /// Everything said until the server answers a heartbeat: so what it does not say is known too.
    pub(super) async fn said_so_far(&mut self) -> Vec<ServerMessage> {
        let mut said = Vec::new();
        self.say(AgentMessage::Heartbeat { sequence: u64::MAX, standby: false, interval: Duration::ZERO });
        loop {
            let message = self.next().await;
            if matches!(&message, ServerMessage::Heartbeat(ack) if ack.sequence == u64::MAX) {
                return said;
            }
            said.push(message);
        }
    }

    /// Fetches the whole map, as after a FetchHint.
    pub(super) async fn fetched_map(&mut self) -> (Map, MapState) {
        let hint = self
            .find(|message| if let ServerMessage::Fetch(version) = message { Some(version) } else { None });
        hint.await.expect("the session ended");
        let mut map = Map::default();
        let last = self.line.fetch(&mut map).await.unwrap();
        assert_eq!(map.digest(), last.digest);
        (map, MapState { version: last.version, digest: last.digest, receipt: last.receipt })
    }
}

/// Connects without speaking TLS.
pub(super) async fn raw(addr: SocketAddr) -> TcpStream {
    TcpStream::connect(addr).await.unwrap()
}
