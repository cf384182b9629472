//! `server run`: puts a server together from its options, says when it listens, and takes it down in order when it is told to end.

use crate::{
    accept, admin,
    advertise::advertised,
    cluster::{Actor, Op, SetupKey, SetupKeyTerms},
    cluster_key::{ClusterKey, RootAccess},
    follow::Cluster,
    identity::ServerFiles,
    metrics,
    serve::{self, Running, Server},
    settings::Settings,
    store::{self, DatabaseUrl, Missing, ServerRow},
};
use anyhow::Context;
use proto::{server_url::ServerUrl, session::ServerId, setup_key::SetupSecret};
use std::{convert::Infallible, io::Write, net::SocketAddr, path::PathBuf, sync::Arc};
use tokio::task::AbortHandle;

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
}

/// Serves until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// An address, the data directory or the database cannot be used.
pub async fn run(options: RunOptions) -> anyhow::Result<()> {
    let mut interrupts = Interrupts::new()?;
    raise_descriptor_limit();
    let (mut running, admin) = tokio::select! {
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
    admin.abort();
    Ok(())
}

/// Opens everything and serves.
async fn begin(options: RunOptions) -> anyhow::Result<(Running, AbortHandle)> {
    let cluster_key = options.cluster_key.as_deref().map(ClusterKey::read).transpose()?;
    let files = ServerFiles::open(&options.data_dir)?;
    let recorder = metrics::install()?;
    // Before the database is touched: what fails for its address leaves nothing behind.
    let listener = accept::listen(options.listen)?;
    let admin_listener = admin::listen(options.admin_listen).await?;
    let addr = listener.local_addr().context("cannot read the address listened on")?;
    let store = store::open(&options.database, Missing::Create).await?;
    let cluster = Cluster::open_with(store, RootAccess::Sign(cluster_key)).await?;
    let row = ServerRow {
        id: files.id,
        incarnation: files.incarnation,
        name: options.name.clone().unwrap_or_else(host_name),
        host: host_name(),
        urls: advertised(&options.advertise, addr, &cluster.state().network),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        clock_ahead_ms: 0,
    };
    let urls = list(&row.urls);
    let server = Arc::new(Server::new(row, cluster.clone(), options.settings)?);
    let running = serve::start(server.clone(), listener, files.predecessor).await;
    let running = running.context("cannot start to serve")?;
    let admin = tokio::spawn(admin::serve(admin_listener, server.clone(), recorder));
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
    Ok((running, admin.abort_handle()))
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
