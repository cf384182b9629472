//! A server that holds the cluster's certificate, serves agents like any other, and at a sign does what none should.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, anyhow};
use futures_util::{Stream, StreamExt, stream};
use proto::map::{MapVersion, Object, ObjectId};
use proto::receipt::Receipt;
use proto::root::RootSecret;
use proto::session::{AgentMessage, HeartbeatAck, ServerId, ServerList, ServerMessage, Welcome};
use proto::tls::ServerIdentity;
use proto::wire;
use proto::wire::control_server::{Control, ControlServer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

use crate::server::CONTROL_PORT;
use crate::topology::Host;

const SOFTWARE: &str = "rogue";

/// What it does to an agent that it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mischief {
    /// A message that cannot be valid.
    Nonsense,
    /// Maps that never have the digest that they are said to have.
    WrongDigest,
    /// A map of ever more objects.
    EndlessMap,
    /// A map that is announced and does not come.
    SilentMap,
    /// As many heartbeats as the connection takes.
    Flood,
}

impl Mischief {
    pub const ALL: [Self; 5] =
        [Self::Nonsense, Self::WrongDigest, Self::EndlessMap, Self::SilentMap, Self::Flood];

    /// Which one befalls an agent: that of its number, counted from a1.
    fn of(hostname: &str) -> Option<Self> {
        let number: usize = hostname.strip_prefix('a')?.parse().ok()?;
        Self::ALL.get(number.checked_sub(1)?).copied()
    }
}

/// It runs until it is dropped.
pub struct Rogue {
    pub url: String,
    sign: watch::Sender<bool>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Rogue {
    pub fn start(host: &Host, address: Ipv4Addr, root: &RootSecret) -> Result<Self> {
        let identity = ServerIdentity::generate(root, ServerId([0xbb; 16]))?;
        let address = SocketAddr::from((address, CONTROL_PORT));
        let (sign, seen) = watch::channel(false);
        let (end, ended) = oneshot::channel();
        let (ready, listening) = std::sync::mpsc::channel();
        let namespace = host.namespace.clone();
        let thread = std::thread::spawn(move || {
            let serve = || -> Result<()> {
                namespace.enter()?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let listener = TcpListener::bind(address).await?;
                    ready.send(()).ok();
                    tokio::select! {
                        _ = ended => Ok(()),
                        result = accept(listener, identity, seen) => result,
                    }
                })
            };
            if let Err(error) = serve() {
                eprintln!("the rogue server ended: {error:#}");
            }
        });
        listening.recv().map_err(|_| anyhow!("the rogue server's thread ended"))?;
        Ok(Self { url: address.to_string(), sign, end: Some(end), thread: Some(thread) })
    }

    /// From now on it misbehaves to whom it serves.
    pub fn misbehave(&self) {
        self.sign.send_replace(true);
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

async fn accept(listener: TcpListener, identity: ServerIdentity, sign: watch::Receiver<bool>) -> Result<()> {
    let acceptor = TlsAcceptor::from(identity.tls.clone());
    loop {
        let (tcp, _) = listener.accept().await?;
        let (acceptor, sign) = (acceptor.clone(), sign.clone());
        tokio::spawn(async move {
            let Ok(tls) = acceptor.accept(tcp).await else { return };
            let service = Service { sign, mischief: Arc::default() };
            let incoming = stream::iter([Ok::<_, Infallible>(Wire(tls))]);
            let server = tonic::transport::Server::builder().add_service(ControlServer::new(service));
            // Agents end connections as they like.
            server.serve_with_incoming(incoming).await.ok();
        });
    }
}

/// One connection.
struct Service {
    sign: watch::Receiver<bool>,
    /// What befalls the agent at the other end, and the version of its map.
    mischief: Arc<Mutex<Option<(Mischief, MapVersion)>>>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Control for Service {
    type SessionStream = Answers<wire::ServerMessage>;
    type FetchMapStream = Answers<wire::MapDelta>;

    async fn enrol(&self, _: Request<wire::EnrolRequest>) -> Result<Response<wire::EnrolResponse>, Status> {
        Err(Status::unavailable("enrol elsewhere"))
    }

    async fn session(
        &self,
        request: Request<Streaming<wire::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (say, said) = mpsc::channel(16);
        let talk = Talk { say, sign: self.sign.clone(), mischief: self.mischief.clone() };
        tokio::spawn(talk.run(request.into_inner()));
        let answers = stream::unfold(said, |mut said| async { Some((Ok(said.recv().await?), said)) });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch_map(
        &self,
        _: Request<wire::FetchMapRequest>,
    ) -> Result<Response<Self::FetchMapStream>, Status> {
        let Some((mischief, version)) = *self.mischief.lock().await else {
            return Err(Status::unavailable("not now"));
        };
        let part = move |number: u32, last| {
            let delta = proto::map::Delta { version, put: junk(number), last, ..Default::default() };
            Ok(wire::MapDelta::from(delta))
        };
        Ok(Response::new(match mischief {
            Mischief::WrongDigest => stream::iter([part(0, true)]).boxed(),
            Mischief::EndlessMap => stream::iter(0..).map(move |number| part(number, false)).boxed(),
            Mischief::SilentMap | Mischief::Nonsense | Mischief::Flood => stream::pending().boxed(),
        }))
    }
}

/// Peers that nobody vouches for.
fn junk(part: u32) -> Vec<Object> {
    let object = |number: u32| {
        let mut key = [0xbb; 32];
        key[..4].copy_from_slice(&part.to_be_bytes());
        key[4..8].copy_from_slice(&number.to_be_bytes());
        Object { id: ObjectId::peer(proto::key::PublicKey(key)), content: vec![0xff; 200] }
    };
    (0..500).map(object).collect()
}

/// One session.
struct Talk {
    say: mpsc::Sender<wire::ServerMessage>,
    sign: watch::Receiver<bool>,
    mischief: Arc<Mutex<Option<(Mischief, MapVersion)>>>,
}

impl Talk {
    async fn run(mut self, mut heard: Streaming<wire::AgentMessage>) {
        let (mut held, mut name) = (MapVersion::default(), String::new());
        let (mut serves, mut is_done) = (false, false);
        loop {
            let is_due = serves && !is_done && *self.sign.borrow();
            if is_due && let Some(mischief) = Mischief::of(&name) {
                is_done = true;
                self.misbehave(mischief, held).await;
            }
            let message = tokio::select! {
                message = heard.message() => message,
                _ = self.sign.changed() => continue,
            };
            let Ok(Some(message)) = message else { return };
            let Ok(Some(message)) = AgentMessage::from_wire(message) else { continue };
            match message {
                AgentMessage::Hello(hello) => {
                    (held, name, serves) = (hello.map.version, hello.facts.hostname, hello.activate);
                    self.answer(ServerMessage::Welcome(welcome(held))).await;
                    if serves {
                        self.activated(hello.number, held).await;
                    }
                }
                AgentMessage::Heartbeat { sequence, .. } => self.answer(ack(sequence, held)).await,
                AgentMessage::Activate { number, map } => {
                    (held, serves) = (map.version, true);
                    self.activated(number, held).await;
                }
                AgentMessage::Deactivate => serves = false,
                AgentMessage::Leave { .. } => return,
                AgentMessage::Signal(_)
                | AgentMessage::Update { .. }
                | AgentMessage::Removal(_)
                | AgentMessage::Root(_) => {}
            }
        }
    }

    async fn activated(&self, number: proto::session::SessionNumber, version: MapVersion) {
        self.answer(ServerMessage::Activated { number, version, receipt: Receipt::default() }).await;
    }

    async fn answer(&self, message: ServerMessage) {
        // Who is gone hears nothing.
        self.say.send(message.into_wire(SOFTWARE)).await.ok();
    }

    async fn misbehave(&self, mischief: Mischief, held: MapVersion) {
        let next = MapVersion { revision: held.revision + 1, ..held };
        *self.mischief.lock().await = Some((mischief, next));
        match mischief {
            Mischief::Nonsense => {
                let bad = wire::HeartbeatAck { server_id: vec![1, 2, 3], ..Default::default() };
                let kind = Some(wire::server_message::Kind::Heartbeat(bad));
                self.say.send(wire::ServerMessage { kind }).await.ok();
            }
            Mischief::WrongDigest | Mischief::EndlessMap | Mischief::SilentMap => {
                self.answer(ServerMessage::Fetch(next)).await;
            }
            Mischief::Flood => while self.say.send(ack(0, held).into_wire(SOFTWARE)).await.is_ok() {},
        }
    }
}

fn welcome(at: MapVersion) -> Welcome {
    Welcome {
        server: ServerId([0xbb; 16]),
        server_name: SOFTWARE.to_owned(),
        servers: ServerList::default(),
        heartbeat_interval: Duration::ZERO,
        at,
        unix_ms: unix_ms(),
        observed_address: None,
        membership: Vec::new(),
        roots: None,
    }
}

fn ack(sequence: u64, at: MapVersion) -> ServerMessage {
    ServerMessage::Heartbeat(HeartbeatAck {
        sequence,
        server: ServerId([0xbb; 16]),
        at,
        revision_age: Duration::ZERO,
        database_ok: true,
        spread: Duration::ZERO,
        heartbeat_interval: Duration::ZERO,
        unix_ms: unix_ms(),
        receipt: Receipt::default(),
        map: MapVersion::default(),
    })
}

fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A connection as tonic takes it.
struct Wire(TlsStream<TcpStream>);

impl Connected for Wire {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
