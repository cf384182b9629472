//! One running server: what its parts share, the tasks that keep it up, and how it ends.

use crate::{
    accept::{self, Bound},
    cluster::{Roots, State, Touched},
    connection::ConnectionState,
    exclusive,
    follow::Cluster,
    gate::Gate,
    health::{self, Monitor},
    jobs::{self, Jobs},
    lease::{self, Servers},
    map::Atlas,
    presence::{self, Presence},
    reissue,
    session::{Hub, LimitedService, Reports, Returns, Signals, receive_signals, send_signals, write_reports},
    settings::Settings,
    store::{Incarnation, ServerRow},
};
use anyhow::{Context, anyhow};
use arc_swap::ArcSwap;
use proto::{
    key::{NodeSecret, PublicKey},
    map::MapVersion,
    root::RootKey,
    session::ServerId,
    tls,
};
use rustls::ServerConfig;
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};

/// How long agents have to leave a server that drains.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Taking this server out of the database's lists: whoever stops it may wait 10 s in all.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);
const LOAD_RETRY_DELAY: Duration = Duration::from_millis(250);
/// Connections whose handshake is done and that wait to be served.
const READY_CONNECTIONS: usize = 256;
/// Calls of one agent at a time: its session, and a fetch or an enrolment.
const MAX_CALLS: u32 = 8;
const MAX_HEADER_BYTES: u32 = 4096;
/// Streams that a peer opens and resets, or breaks, before its connection is closed: agents do neither.
const MAX_RESETS: usize = 32;

/// What the parts of a server share.
pub(crate) struct Server {
    pub(crate) id: ServerId,
    pub(crate) name: String,
    pub(crate) cluster: Cluster,
    /// The key that session proofs are made for: as long-lived as this process.
    pub(crate) session_secret: NodeSecret,
    presented: ArcSwap<Presented>,
    pub(crate) hub: Hub,
    /// The objects of all maps, as of the newest state.
    pub(crate) atlas: ArcSwap<Atlas>,
    pub(crate) presence: Presence,
    pub(crate) servers: Servers,
    pub(crate) signals: Signals,
    pub(crate) reports: Reports,
    pub(crate) returns: Returns,
    pub(crate) jobs: Jobs,
    pub(crate) settings: Settings,
    pub(crate) monitor: Monitor,
    pub(crate) gate: Arc<Gate>,
}

/// What new connections are answered with, and what that was made from.
struct Presented {
    tls: Arc<ServerConfig>,
    root: RootKey,
    roots: Option<Arc<Roots>>,
}

/// A server and its tasks, which end with it.
pub(crate) struct Running {
    pub(crate) server: Arc<Server>,
    pub(crate) accepting: AbortHandle,
    /// Each with its name. None ends by itself.
    tasks: JoinSet<&'static str>,
}

impl Server {
    /// # Errors
    /// No identity can be made.
    pub(crate) fn new(
        row: ServerRow,
        cluster: Cluster,
        settings: Settings,
        gate: Arc<Gate>,
    ) -> anyhow::Result<Self> {
        let state = cluster.state();
        let session_secret = NodeSecret::generate().context("no random source")?;
        let presented = Presented::of(&state, row.id, &session_secret.public())?;
        Ok(Self {
            id: row.id,
            name: row.name.clone(),
            presented: ArcSwap::from_pointee(presented),
            session_secret,
            hub: Hub::new(),
            atlas: ArcSwap::from_pointee(Atlas::of(&state)),
            presence: Presence::new(row.id),
            servers: Servers::new(row),
            signals: Signals::new(),
            reports: Reports::new(),
            returns: Returns::default(),
            jobs: Jobs::default(),
            settings,
            monitor: Monitor::default(),
            gate,
            cluster,
        })
    }

    pub(crate) fn tls(&self) -> Arc<ServerConfig> {
        self.presented.load().tls.clone()
    }

    /// Where the root was changed, or a former one retired. Connections that are open stay open.
    fn renew_tls(&self, state: &State) {
        if self.presented.load().is_level(state) {
            return;
        }
        match Presented::of(state, self.id, &self.session_secret.public()) {
            Ok(presented) => self.presented.store(Arc::new(presented)),
            Err(error) => {
                tracing::error!(
                    "{error:#}; new connections get the certificate of before: start this server again"
                );
            }
        }
    }

    /// The agent's own address, as far as this server sees it: not that of a balancer, another server, or a crowd.
    pub(crate) fn observed(&self, connection: &ConnectionState) -> Option<IpAddr> {
        let ip = connection.peer.ip();
        let urls = self.servers.urls();
        let is_advertised = urls.iter().any(|url| url.literal().is_some_and(|addr| addr.ip() == ip));
        (!is_advertised && self.gate.is_own_address(ip)).then_some(ip)
    }
}

impl Presented {
    fn of(state: &State, id: ServerId, session_key: &PublicKey) -> anyhow::Result<Self> {
        let root = state.root.secret().context("the root key is wrapped and was not opened")?;
        let roots = state.roots().cloned();
        let links = roots.as_ref().map(|roots| roots.links()).unwrap_or_default();
        let tls = tls::server_config(root, id, session_key, &links).context("cannot make a TLS identity")?;
        Ok(Self { tls, root: root.public(), roots })
    }

    fn is_level(&self, state: &State) -> bool {
        (self.root, self.roots.as_ref()) == (state.root.public(), state.roots())
    }
}

/// Starts to serve agents that connect to `listener`.
///
/// `predecessors`: the runs of this server before this one of which it is certain that they are over.
///
/// # Errors
/// The database holds what cannot be read, another server has this one's id, or somebody else listens at the address meanwhile.
pub(crate) async fn start(
    server: Arc<Server>,
    bound: Bound,
    predecessors: Vec<Incarnation>,
) -> anyhow::Result<Running> {
    let seats = loop {
        match presence::load(&server).await {
            Err(error) if error.is_retriable() => {
                tracing::debug!(%error, "presence cannot be read yet");
                sleep(LOAD_RETRY_DELAY).await;
            }
            loaded => break loaded?,
        }
    };
    lease::begin(&server, predecessors).await?;
    let listener = bound.listen()?;
    let mut tasks = JoinSet::new();
    let (ready, connections) = mpsc::channel(READY_CONNECTIONS);
    let accepting = accept::accept(listener, server.clone(), ready);
    let accepting = tasks.spawn(named("accept", accepting));
    let service = LimitedService::new(server.clone());
    let grpc = tonic::transport::Server::builder()
        .max_concurrent_streams(MAX_CALLS)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .http2_max_pending_accept_reset_streams(Some(MAX_RESETS))
        .http2_max_local_error_reset_streams(Some(MAX_RESETS))
        .add_service(service);
    let connections = ReceiverStream::new(connections).map(Ok::<_, std::convert::Infallible>);
    tasks.spawn(named("serve", async move {
        if let Err(error) = grpc.serve_with_incoming(connections).await {
            tracing::error!(%error, "agents are no longer served");
        }
    }));
    let cluster = server.cluster.clone();
    tasks.spawn(named("follow the log", async move { cluster.follower_ended().await }));
    tasks.spawn(named("follow the state", follow_state(server.clone())));
    tasks.spawn(named("watch health", health::watch(server.clone())));
    tasks.spawn(named("keep the lease", lease::keep(server.clone())));
    tasks.spawn(named("publish presence", presence::publish(server.clone())));
    tasks.spawn(named("save presence", presence::save(server.clone())));
    tasks.spawn(named("follow presence", presence::follow(server.clone(), seats)));
    tasks.spawn(named("write reports", write_reports(server.clone())));
    tasks.spawn(named("do periodic jobs", jobs::run(server.clone())));
    tasks.spawn(named("keep leases of exclusive claims", exclusive::keep(server.clone())));
    tasks.spawn(named("grant exclusive claims", exclusive::run(server.clone())));
    tasks.spawn(named("sign under a new root", reissue::run(server.clone())));
    tasks.spawn(named("send signals", send_signals(server.clone())));
    tasks.spawn(named("receive signals", receive_signals(server.clone())));
    Ok(Running { server, accepting, tasks })
}

async fn named(name: &'static str, task: impl Future<Output = ()>) -> &'static str {
    task.await;
    name
}

/// Keeps the certificate and the atlas level with the state, for ever. The first look counts: the state may be newer than what the server was made from.
async fn follow_state(server: Arc<Server>) {
    let mut changed = server.cluster.changed();
    let mut renewed = MapVersion::default();
    loop {
        let state = server.cluster.state();
        let atlas = server.atlas.load_full();
        if state.version() > renewed {
            server.renew_tls(&state);
            renewed = state.version();
        }
        if state.version() > atlas.version() {
            server.atlas.store(Arc::new(atlas.advanced(&state)));
            server.hub.wake_all();
            let is_removal = |touched: &Touched| matches!(touched, Touched::Removal(_));
            if state.changed_since(atlas.version()).is_none_or(|touched| touched.iter().any(is_removal)) {
                server.presence.handle_removed(&state);
            }
        }
        if changed.changed().await.is_err() {
            return;
        }
    }
}

impl Running {
    /// Waits until a task ends, which none should: a server that goes on without it would be deaf. Says which.
    pub(crate) async fn failed(&mut self) -> anyhow::Error {
        let ended = self.tasks.join_next().await;
        if let Some(conflict) = self.server.servers.conflict() {
            return anyhow!(conflict.to_owned());
        }
        match ended {
            Some(Ok(name)) => anyhow!("the task to {name} ended"),
            Some(Err(error)) => anyhow!("a task failed: {error}"),
            None => anyhow!("no task is left"),
        }
    }

    /// Sends the agents away, waits until they have left, and takes this server out of the cluster's lists.
    pub(crate) async fn drain(mut self) {
        let server = &self.server;
        self.accepting.abort();
        server.hub.drain();
        let mut connected = server.hub.connected();
        match timeout(DRAIN_TIMEOUT, connected.wait_for(|count| *count == 0)).await {
            Ok(_) => tracing::info!("all agents have left"),
            Err(_elapsed) => {
                let left = server.hub.all();
                tracing::info!(sessions = left.len(), "agents that did not leave are cut off");
                left.iter().for_each(|slot| slot.ends_within(Duration::ZERO));
            }
        }
        // Nothing may renew the lease, or a seat, behind what follows.
        self.tasks.shutdown().await;
        let goodbye = async {
            server.presence.end(server).await?;
            server.cluster.store().release_lease(&server.servers.me).await
        };
        match timeout(GOODBYE_TIMEOUT, goodbye).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the lease ends by itself"),
            Err(_elapsed) => tracing::debug!("the database does not answer; the lease ends by itself"),
        }
    }
}
