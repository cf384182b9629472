//! The daemon: the one driver of `agent-core` on a real machine.
//!
//! [`Driver`] is a single event loop on a single thread. It owns the core, feeds it what happens (connections, tunnel, network, callers, time) and does what its
//! outputs say; it decides nothing itself, and nothing in it blocks: disk and data plane have threads of their own, and large answers are written elsewhere.
//! [`World`] is what lives longer than a core: it starts anew after `logout`, or when settings change that it cannot take while running.

mod calls;
mod captures;
mod checking;
mod connection;
mod disk;
mod driver;
mod hooking;
mod notices;
mod outputs;
mod plane;
mod renewals;
mod resolve;
mod rules;
mod serving;
mod users_logged;
mod watchers;

use crate::{
    config::{Options, Settings, SettingsError},
    local::{self, Answer, Asked},
    metrics::Serving,
    platform::{self, Alarm, LocalListener, Network, NetworkWatch, StopSignals, boot_time},
    state_dir::{KeyError, OpenError, State, StateDir, socket_path},
};
use agent_core::{
    ConnId,
    cache::Cached,
    io::{Closed, Connected},
};
use checking::Checking;
use disk::{Disk, Files};
use driver::{Driver, End};
use hooking::Hooking;
use plane::{Plane, PlaneError};
use proto::{
    key::NodeSecret,
    map::Delta,
    root::Fingerprint,
    server_url::ServerUrl,
    session::{Refused, ServerMessage},
    setup_key::SetupKey,
    wire::Enrolled,
};
use renewals::Renewals;
use resolve::Resolver;
use std::{io, net::SocketAddr, path::PathBuf, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use watchers::Watchers;

/// The mark of our own sockets' packets ("Hf"): routing rules keep them out of the tunnel.
pub(crate) const MARK: u32 = 0x4866;
/// Callers' last answers are written for at most this long.
const FAREWELL_TIME: Duration = Duration::from_millis(500);
/// A disk that stalls is waited for this long at the end.
const WRITING_TIME: Duration = Duration::from_secs(3);

/// How a daemon is started.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) state_dir: PathBuf,
    pub(crate) interface: String,
    /// From flags and the environment.
    pub(crate) given: Options,
    /// From the TOML file.
    pub(crate) file: Options,
    pub(crate) setup_key: Option<SetupKey>,
    /// Whether later starts without flags use what is given now.
    pub(crate) keep: bool,
    /// Whether to end when servers refuse to enrol the node; else whoever started it is told by the status.
    pub(crate) end_when_refused: bool,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    #[error(transparent)]
    StateDir(#[from] OpenError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Plane(#[from] PlaneError),
    #[error("the local socket {} cannot be made: {source}", .path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("servers refuse to enrol this node: {0}")]
    Refused(Refused),
    #[error("cannot {what}: {source}")]
    System { what: &'static str, source: io::Error },
}

/// What happens outside of the event loop and its own sources.
enum Event {
    Resolved(ServerUrl, Result<Vec<SocketAddr>, String>),
    Enrolled(ConnId, Enrolled),
    Connected(ConnId, Connected),
    Message(ConnId, Box<ServerMessage>, connection::Turn),
    Fetched(ConnId, Delta, connection::Turn),
    Closed(ConnId, Closed),
}

/// What outlives a core.
struct World {
    /// Held for as long as anything is written there.
    state_dir: StateDir,
    disk: Disk,
    /// As last written.
    state: State,
    /// For the next core: the map of the one before it, or of an earlier start.
    cached: Option<Cached>,
    secret: NodeSecret,
    given: Options,
    file: Options,
    /// From earlier `up` and `set`.
    kept: Options,
    setup_key: Option<SetupKey>,
    end_when_refused: bool,
    plane: Plane,
    tunnel_events: plane::Events,
    calls: Asked,
    metrics: Serving,
    network_watch: NetworkWatch,
    network: Network,
    signals: StopSignals,
    alarm: Alarm,
    watchers: Watchers,
    resolver: Resolver,
    renewals: Renewals,
    checking: Checking,
    hooking: Hooking,
    /// Callers who are answered when everything is done and gone.
    farewells: Vec<(oneshot::Sender<Answer>, String)>,
}

/// Runs until it is told to end; then interface, routes and socket are gone.
pub(crate) async fn run(launch: Launch) -> Result<(), DaemonError> {
    let (mut world, local) = World::new(launch).await?;
    let ended = loop {
        let mut driver = match Driver::new(&mut world) {
            Ok(driver) => driver,
            Err(error) => break Err(error),
        };
        match driver.run().await {
            Ok(End::Stop) => break Ok(()),
            Ok(End::Restart) => {}
            Ok(End::RestartAll) => {
                drop(driver);
                if let Err(error) = world.renew_plane().await {
                    break Err(error);
                }
            }
            Err(error) => break Err(error),
        }
    };
    world.end(local).await;
    ended
}

impl World {
    async fn new(launch: Launch) -> Result<(Self, JoinHandle<()>), DaemonError> {
        let system = |what| move |source| DaemonError::System { what, source };
        let state_dir = StateDir::open(&launch.state_dir)?;
        let secret = state_dir.key()?;
        let (files, found) = Files::load(&state_dir)?;
        let kept = if launch.keep { launch.given.clone().or(&found.settings) } else { found.settings };
        let settings = settings(&launch.given, &launch.file, &kept)?;
        // Who can ask for the status can also stop us in good order.
        let signals = StopSignals::new().map_err(system("wait for signals"))?;
        platform::recover(state_dir.path()).await;
        let (plane, tunnel_events) =
            Plane::new(&launch.interface, &settings, &secret, state_dir.path()).await?;
        // A killed agent's rules are known by its interface's absence: it is gone once ours has the name.
        platform::clean_up().await.map_err(system("look for what a killed agent left"))?;
        let mut network_watch =
            NetworkWatch::start(&launch.interface, MARK).map_err(system("watch the network for changes"))?;
        let path = socket_path(state_dir.path());
        let listener = LocalListener::bind(&path).map_err(|source| DaemonError::Socket { path, source })?;
        let (calls_sender, calls) = mpsc::channel(64);
        let local = tokio::spawn(local::serve(listener, calls_sender.clone()));
        let world = Self {
            secret,
            given: launch.given,
            file: launch.file,
            kept,
            setup_key: launch.setup_key,
            end_when_refused: launch.end_when_refused,
            plane,
            tunnel_events,
            calls,
            metrics: Serving::new(settings.metrics_listen, calls_sender, boot_time()),
            network: network_watch.changed().await,
            network_watch,
            signals,
            alarm: Alarm::new().map_err(system("make a timer"))?,
            watchers: Watchers::default(),
            resolver: Resolver::default(),
            renewals: Renewals::default(),
            checking: Checking::new(&launch.interface, &settings, boot_time()),
            hooking: Hooking::new(&launch.interface, &settings),
            farewells: Vec::new(),
            disk: Disk::start(files, found.state.root()).map_err(system("start a thread"))?,
            state: found.state,
            cached: found.map,
            state_dir,
        };
        Ok((world, local))
    }

    fn settings(&self) -> Result<Settings, SettingsError> {
        settings(&self.given, &self.file, &self.kept)
    }

    /// Another interface and tunnel, after the settings, the addresses or a fault asked for it.
    async fn renew_plane(&mut self) -> Result<(), DaemonError> {
        let settings = self.settings()?;
        self.plane.stop().await;
        let interface = self.plane.interface().to_owned();
        (self.plane, self.tunnel_events) =
            Plane::new(&interface, &settings, &self.secret, self.state_dir.path()).await?;
        Ok(())
    }

    /// Takes everything away, then answers those who asked for it. Only then the disk is waited for.
    async fn end(mut self, local: JoinHandle<()>) {
        // Commands may take long, and meanwhile another node may serve.
        self.plane.unserve().await;
        self.hooking.end().await;
        self.plane.stop().await;
        self.watchers.end();
        drop(self.calls);
        for (answer, message) in self.farewells {
            // A caller who did not wait is not told.
            let _ = answer.send(Answer::Done { message });
        }
        let abort = local.abort_handle();
        if tokio::time::timeout(FAREWELL_TIME, local).await.is_err() {
            abort.abort();
        }
        if !self.disk.finish(WRITING_TIME).await {
            tracing::error!("the state directory takes too long to write: what is new is lost");
        }
    }
}

/// To a member with this root that was given a setup key of one that it does not know.
fn unused_key(root: Fingerprint) -> String {
    format!(
        "the setup key is not used: this node is a member already (root {root}), and the key is of another root; if it is for another network, run `agent logout` first"
    )
}

fn settings(given: &Options, file: &Options, kept: &Options) -> Result<Settings, SettingsError> {
    Settings::resolve(given.clone().or(file).or(kept), platform::hostname())
}
