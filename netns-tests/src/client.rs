//! A member without a tunnel: the control protocol over real TLS, every message by hand.
//!
//! For what a scenario needs many of, or what no agent would do. All of it runs on a runtime of one thread inside a
//! namespace ([`within`]).

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use futures_util::stream;
use hyper_util::rt::TokioIo;
use proto::auth::{ChannelBinding, prove};
use proto::key::{NodeSecret, PublicKey};
use proto::root::Fingerprint;
use proto::session::{
    AgentMessage, Facts, Hello, MapState, Refused, ServerMessage, SessionNumber, Welcome, own_version,
};
use proto::setup_key::SetupKey;
use proto::statement::NodeId;
use proto::tls;
use proto::wire;
use proto::wire::control_client::ControlClient;
use proto::wire::enrol_response::Outcome;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::namespace::Namespace;

mod slow;

const SOFTWARE: &str = "lab";
/// Never looked up.
const AUTHORITY: &str = "http://holdfast.invalid";
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs `work` to its end inside `namespace`.
pub fn within<T: Send, F: Future<Output = Result<T>>>(
    namespace: &Namespace,
    work: impl FnOnce() -> F + Send,
) -> Result<T> {
    namespace.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(work())
    })?
}

/// Somebody with a node key.
#[derive(Clone)]
pub struct Member {
    pub secret: NodeSecret,
    pub hostname: String,
}

/// What became of an enrolment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enrolment {
    Member(NodeId),
    Refused(Refused),
}

impl Member {
    pub fn new(hostname: impl Into<String>) -> Result<Self> {
        Ok(Self { secret: NodeSecret::generate()?, hostname: hostname.into() })
    }

    pub fn key(&self) -> PublicKey {
        self.secret.public()
    }

    /// Enrols over a connection of its own.
    pub async fn enrol(&self, server: SocketAddr, key: &SetupKey) -> Result<Enrolment> {
        Line::dial(server, key.fingerprint).await?.enrol(self, key).await
    }

    /// Enrols, and takes nothing but a membership for an answer.
    pub async fn join(&self, server: SocketAddr, key: &SetupKey) -> Result<NodeId> {
        match self.enrol(server, key).await? {
            Enrolment::Member(node) => Ok(node),
            Enrolment::Refused(refused) => bail!("{} was not enrolled: {refused:?}", self.hostname),
        }
    }

    /// A session that serves, by the number `counter` of the member's first start.
    pub async fn serving(&self, server: SocketAddr, root: Fingerprint, counter: u64) -> Result<Talk> {
        let line = Line::dial(server, root).await?;
        line.open(self, self.hello(counter, true)).await?.activated().await
    }

    /// A welcomed session that stands by.
    pub async fn standby(&self, server: SocketAddr, root: Fingerprint, counter: u64) -> Result<Talk> {
        Line::dial(server, root).await?.open(self, self.hello(counter, false)).await
    }

    fn hello(&self, counter: u64, activate: bool) -> Hello {
        Hello {
            number: SessionNumber { boot: 1, counter },
            facts: self.facts(),
            endpoints: Vec::new(),
            map: MapState::default(),
            activate,
            heartbeat_interval: Duration::from_secs(1),
            membership: Vec::new(),
            root: None,
        }
    }

    fn facts(&self) -> Facts {
        Facts {
            hostname: self.hostname.clone(),
            os: "linux".into(),
            os_version: "12".into(),
            agent_version: "0.1.0".into(),
            claims: Vec::new(),
        }
    }
}

/// One TLS connection. Proofs are bound to it, so it is never replaced behind our back.
#[derive(Clone)]
pub struct Line {
    client: ControlClient<Channel>,
    binding: ChannelBinding,
    server_key: PublicKey,
}

impl Line {
    /// Connects to a server under the root with this fingerprint.
    pub async fn dial(server: SocketAddr, root: Fingerprint) -> Result<Self> {
        let tcp = TcpStream::connect(server).await.context("cannot reach the server")?;
        Self::over(tcp, root, Endpoint::from_static(AUTHORITY)).await
    }

    async fn over(
        tcp: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        root: Fingerprint,
        endpoint: Endpoint,
    ) -> Result<Self> {
        let config = tls::client_config(vec![root])?;
        let stream = tokio_rustls::TlsConnector::from(config).connect(tls::server_name(), tcp).await?;
        let connection = stream.get_ref().1;
        let binding = tls::client_binding(connection)?;
        let chain = connection.peer_certificates().context("a server shows its certificate")?;
        let server_key = tls::server_facts(chain)?.session_key;
        let once = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
        let connector = tower::service_fn(move |_| {
            let stream = once.lock().ok().and_then(|mut stream| stream.take());
            async move { stream.ok_or_else(|| std::io::Error::other("the connection is used up")) }
        });
        let channel = endpoint.connect_with_connector(connector).await?;
        Ok(Self { client: ControlClient::new(channel), binding, server_key })
    }

    pub async fn enrol(&self, member: &Member, key: &SetupKey) -> Result<Enrolment> {
        let request = wire::EnrolRequest {
            version: Some(own_version(SOFTWARE)),
            proof: Some(self.proof(member)?),
            setup_key_secret: key.secret.expose(),
            facts: Some(member.facts().into()),
            endpoints: vec!["198.51.100.1:51820".into()],
        };
        match self.client.clone().enrol(request).await?.into_inner().outcome {
            Some(Outcome::Enrolled(enrolled)) => Ok(Enrolment::Member(NodeId(enrolled.node_id))),
            Some(Outcome::Refused(refused)) => Ok(Enrolment::Refused(refused.into())),
            None => Err(anyhow!("an enrolment without an outcome")),
        }
    }

    async fn open(mut self, member: &Member, hello: Hello) -> Result<Talk> {
        let (say, said) = mpsc::unbounded_channel::<wire::AgentMessage>();
        let proof = self.proof(member)?;
        say.send(AgentMessage::Hello(hello).into_wire(Some(proof), SOFTWARE))?;
        let said = stream::unfold(said, |mut said| async { said.recv().await.map(|next| (next, said)) });
        let mut hear = self.client.session(said).await?.into_inner();
        let first = read(&mut hear).await?;
        let ServerMessage::Welcome(welcome) = first else {
            bail!("{} got no welcome: {first:?}", member.hostname)
        };
        Ok(Talk { welcome, say, hear })
    }

    fn proof(&self, member: &Member) -> Result<wire::Proof> {
        Ok(prove(&member.secret, &self.server_key, &self.binding)?)
    }
}

/// A session. Dropped, its connection ends without a word.
pub struct Talk {
    pub welcome: Welcome,
    say: mpsc::UnboundedSender<wire::AgentMessage>,
    hear: Streaming<wire::ServerMessage>,
}

impl Talk {
    async fn activated(mut self) -> Result<Self> {
        let activated = |said: &ServerMessage| matches!(said, ServerMessage::Activated { .. }).then_some(());
        self.find("is activated", activated).await?;
        Ok(self)
    }

    pub fn say(&self, message: AgentMessage) -> Result<()> {
        self.say.send(message.into_wire(None, SOFTWARE)).map_err(|_| anyhow!("the session ended"))
    }

    pub async fn next(&mut self) -> Result<ServerMessage> {
        read(&mut self.hear).await
    }

    /// Waits for the message that `pick` takes; others are passed by, but for a refusal.
    pub async fn find<T>(
        &mut self,
        what: &str,
        mut pick: impl FnMut(&ServerMessage) -> Option<T>,
    ) -> Result<T> {
        loop {
            let said = self.next().await.with_context(|| format!("waiting until a session {what}"))?;
            match (pick(&said), &said) {
                (Some(found), _) => return Ok(found),
                (None, ServerMessage::Refused(refused)) => bail!("refused where it {what}: {refused:?}"),
                (None, _) => {}
            }
        }
    }

    /// All that was said until the server answers a heartbeat sent now: so what it does not say is known too.
    pub async fn said_so_far(&mut self) -> Result<Vec<ServerMessage>> {
        const LAST: u64 = u64::MAX;
        self.say(AgentMessage::Heartbeat { sequence: LAST, standby: false, interval: Duration::ZERO })?;
        let mut said = Vec::new();
        loop {
            let message = self.next().await?;
            if matches!(&message, ServerMessage::Heartbeat(ack) if ack.sequence == LAST) {
                return Ok(said);
            }
            said.push(message);
        }
    }
}

/// The next message of a kind that this program knows.
async fn read(hear: &mut Streaming<wire::ServerMessage>) -> Result<ServerMessage> {
    loop {
        let message = tokio::time::timeout(PATIENCE, hear.message()).await;
        let message = message.context("the server says nothing")??;
        if let Some(known) = ServerMessage::from_wire(message.context("the session ended")?)? {
            return Ok(known);
        }
    }
}
