//! `server run`: puts a server together from its options, says when it listens, and takes it down in order when it is told to end.

use crate::{
    accept::Bound,
    admin::{self, Stage},
    advertise::advertised,
    cluster::{Actor, Op, SetupKey, SetupKeyTerms},
    cluster_key::{ClusterKey, RootAccess},
    follow::{Cluster, OpenError},
    gate::{Gate, Limits},
    identity::ServerFiles,
    metrics,
    serve::{self, Running, Server},
    settings::Settings,
    store::{self, DatabaseUrl, Missing, ServerReport, ServerRow, StoreError},
};
use anyhow::Context;
use proto::{server_url::ServerUrl, session::ServerId, setup_key::SetupSecret};
use std::time::{Duration, Instant};
use std::{convert::Infallible, io::Write, net::SocketAddr, path::PathBuf, sync::Arc};
use tokio::{task::JoinSet, time::sleep};

/// Between two tries to open a database that is away.
const WAIT_FIRST: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(1);
/// So often it is said that the database is still away.
const WAIT_TOLD_INTERVAL: Duration = Duration::from_secs(60);

/// What `server run` needs to know, whatever it was told by.
#[derive(Debug, Clone)]
pub struct RunOptions {
    pub database: DatabaseUrl,
    /// Where agents connect to.
    pub listen: SocketAddr,
    /// What agents are told; empty: worked out from `listen`.
    pub advertise: Vec<ServerUrl>,
    pub admin_listen: SocketAddr,
    pub data_dir: PathBuf,
    /// What the root in the database is wrapped under; `None`: it is not.
    pub cluster_key: Option<PathBuf>,
    /// `None`: the host's name.
    pub name: Option<String>,
    pub settings: Settings,
    pub limits: Limits,
}

/// Serves until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// An address, the data directory or the database cannot be used.
pub async fn run(options: RunOptions) -> anyhow::Result<()> {
    let mut interrupts = Interrupts::new()?;
    raise_descriptor_limit();
    // Beside the server: they end with it.
    let (mut running, _tasks) = tokio::select! {
        begun = begin(options) => begun?,
        () = interrupts.next() => {
            tracing::info!("ended before it served anybody");
            return Ok(());
        }
    };
    tokio::select! {
        () = interrupts.next() => {}
        failed = running.failed() => return Err(failed.context("this server cannot go on; start it again")),
    }
    tracing::info!("shutting down: agents leave first; another signal ends at once");
    tokio::select! {
        () = running.drain() => {}
        () = interrupts.next() => tracing::info!("ended at once"),
    }
    Ok(())
}

/// Opens everything and serves.
async fn begin(options: RunOptions) -> anyhow::Result<(Running, JoinSet<()>)> {
    let cluster_key = options.cluster_key.as_deref().map(ClusterKey::read).transpose()?;
    let files = ServerFiles::open(&options.data_dir)?;
    let recorder = metrics::install()?;
    // Before the database is touched: what fails for its address leaves nothing behind.
    let bound = Bound::new(options.listen)?;
    let admin_listener = admin::listen(options.admin_listen).await?;
    let addr = bound.addr();
    let name = options.name.clone().unwrap_or_else(host_name);
    let stage = Arc::new(Stage::new(files.id, name.clone(), options.database.to_string()));
    let mut tasks = JoinSet::new();
    tasks.spawn(admin::serve(admin_listener, stage.clone(), recorder.clone()));
    tasks.spawn(metrics::keep_small(recorder));
    let cluster = open_cluster(&options.database, &RootAccess::Sign(cluster_key), &stage).await?;
    let row = ServerRow {
        id: files.id,
        incarnation: files.incarnation,
        name,
        host: host_name(),
        urls: advertised(&options.advertise, addr, &cluster.state().network),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        clock_ahead_ms: 0,
        report: ServerReport::default(),
    };
    let urls = list(&row.urls);
    let gate = Gate::new(options.limits, descriptor_limit());
    let server = Arc::new(Server::new(row, cluster.clone(), options.settings, gate)?);
    let running = serve::start(server.clone(), bound, files.predecessors.clone()).await;
    let running = running.context("cannot start to serve")?;
    stage.handle_serving(server.clone());
    tracing::info!(
        id = %server.id, name = server.name, listen = %addr, advertise = urls, admin = %options.admin_listen,
        database = %options.database, "listening for agents"
    );
    match first_setup_key(&cluster, server.id).await {
        Ok(None) => {}
        Ok(Some(setup_key)) => {
            // Whoever started this with no terminal to print to has a log.
            let _unprinted =
                writeln!(std::io::stdout(), "agent up --servers {urls} --setup-key {}", setup_key.expose());
        }
        Err(error) => {
            tracing::warn!("{error:#}; agents are served, and `server setup-key create` makes one");
        }
    }
    Ok((running, tasks))
}

/// Opens the cluster. While the database is away (refused, silent, starting up, without a primary) it is waited for: nothing listens for agents meanwhile.
///
/// # Errors
/// What waiting cannot cure.
async fn open_cluster(database: &DatabaseUrl, access: &RootAccess, stage: &Stage) -> anyhow::Result<Cluster> {
    let mut delay = WAIT_FIRST;
    let mut told_at: Option<Instant> = None;
    loop {
        let error = match try_open(database, access).await {
            Ok(cluster) => {
                if told_at.is_some() {
                    tracing::info!("the database answers; beginning to serve");
                }
                return Ok(cluster);
            }
            Err(OpenError::Store(error)) if may_be_waited_for(database, &error) => error,
            Err(error) => return Err(error.into()),
        };
        stage.handle_waiting(error.to_string());
        if told_at.is_none_or(|at| at.elapsed() >= WAIT_TOLD_INTERVAL) {
            told_at = Some(Instant::now());
            tracing::warn!(%error, "not ready: this server waits for its database and lets no agents in");
        }
        sleep(delay).await;
        delay = (delay * 2).min(WAIT_MAX);
    }
}

async fn try_open(database: &DatabaseUrl, access: &RootAccess) -> Result<Cluster, OpenError> {
    let store = store::open(database, Missing::Create).await?;
    Cluster::open_with(store, access.clone()).await
}

/// A file that cannot be opened does not come by itself. Nor does a database come back from where it was moved to.
fn may_be_waited_for(database: &DatabaseUrl, error: &StoreError) -> bool {
    match (database, error) {
        (DatabaseUrl::Sqlite(_), _) | (_, StoreError::Moved { .. }) => false,
        (DatabaseUrl::Postgres(_), error) => error.is_retriable(),
    }
}

fn list(urls: &[ServerUrl]) -> String {
    urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// A reusable key, where the cluster has never had one: shown now, never again.
async fn first_setup_key(
    cluster: &Cluster,
    me: ServerId,
) -> anyhow::Result<Option<proto::setup_key::SetupKey>> {
    if cluster.state().setup_keys().next().is_some() {
        return Ok(None);
    }
    let secret = SetupSecret::generate().context("no random source")?;
    let terms = SetupKeyTerms { reusable: true, ..SetupKeyTerms::default() };
    let written = cluster.write::<_, Infallible>(Actor::Server(me), |state, now| {
        // Of two servers that start at once, one makes it.
        if state.setup_keys().next().is_some() {
            return Ok((Vec::new(), None));
        }
        let (record, key) = SetupKey::new(state, now, &secret, &terms);
        Ok((vec![Op::put_setup_key(record)], Some(key)))
    });
    written.await.context("cannot make the first setup key")
}

/// The signals that end a server.
struct Interrupts {
    #[cfg(unix)]
    term: tokio::signal::unix::Signal,
    #[cfg(unix)]
    int: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Interrupts {
    fn new() -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let on = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { term: on(SignalKind::terminate())?, int: on(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

#[cfg(not(unix))]
impl Interrupts {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {})
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}

#[cfg(unix)]
fn host_name() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "server".to_owned())
}

#[cfg(not(unix))]
fn host_name() -> String {
    std::env::var("COMPUTERNAME").unwrap_or_else(|_| "server".to_owned())
}

/// One descriptor per agent: the usual soft limit of 1024 would be the first thing to run out.
#[cfg(unix)]
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::debug!(%error, "the limit of open files stays");
    }
}

#[cfg(not(unix))]
fn raise_descriptor_limit() {}

/// How many files this process may have open.
#[cfg(unix)]
fn descriptor_limit() -> Option<usize> {
    use nix::sys::resource::{Resource, getrlimit};
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    usize::try_from(soft).ok()
}

#[cfg(not(unix))]
fn descriptor_limit() -> Option<usize> {
    None
}
