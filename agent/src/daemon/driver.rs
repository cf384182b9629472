//! The event loop: waits for what happens, tells the core, does what it says.

use super::{
    DaemonError, Event, World,
    checking::Checked,
    connection::{Connections, Credentials, Enrolment},
    hooking::Hooked,
    plane,
    users_logged::UsersLogged,
};
use crate::{
    config::Settings,
    local::{Answer, Call, Snapshot},
    platform::{self, Network, boot_time},
};
use agent_core::{Agent, BootTime, Identity, cache, config::PeerConfig, trust::Pins};
use proto::{
    map::MAX_ENDPOINTS,
    root::Fingerprint,
    session::{Reason, Refused, ServerMessage},
    time::UnixTime,
    tls,
};
use rustls::ClientConfig;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::{mpsc, oneshot};

/// Events of connections that wait for the loop; beyond, servers wait.
const BACKLOG: usize = 1024;
/// Saying goodbye takes at most this long.
const ENDING_TIMEOUT: Duration = Duration::from_secs(1);
/// The wall clock is looked at this often.
const WALL_CLOCK_INTERVAL: Duration = Duration::from_secs(600);
/// The wall clock was set if it jumped by so much.
const CLOCK_SET: Duration = Duration::from_secs(5);
/// Boot time that passed while this program's monotonic clock stood still.
const SLEPT: Duration = Duration::from_secs(1);
/// A deadline that is over for longer says that this program stood still: what came meanwhile lies unread.
const STALLED: Duration = Duration::from_millis(50);
/// What was received passes through the tasks of TCP, HTTP/2 and the connection: so many turns of all tasks bring it here.
const CATCH_UP_TURNS: usize = 16;

/// Why the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Stop,
    /// With another core, on the same data plane.
    Restart,
    /// With another core and another data plane.
    RestartAll,
}

/// How to take leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Farewell {
    /// Peers and servers are told that we go.
    Drain,
    /// Servers are told that we leave the network.
    Logout,
    /// We are back at once.
    None,
}

#[derive(Debug, Clone, Copy)]
struct Ending {
    end: End,
    give_up_at: BootTime,
}

/// One turn of the loop begins with one of these.
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
enum Input {
    Tunnel(agent_tunnel::Event),
    Event(Event),
    Checked(Checked),
    Hooked(Hooked),
    Served,
    Call(Call),
    Network(Network),
    Alarm,
    Signal,
    RootKept(Option<Fingerprint>),
    ConnectionGone,
}

pub(super) struct Driver<'w> {
    pub(super) world: &'w mut World,
    pub(super) agent: Agent,
    pub(super) settings: Settings,
    /// With the rules for single peers, as the core has it.
    pub(super) peer_config: PeerConfig,
    pub(super) connections: Connections,
    pub(super) events: mpsc::Sender<Event>,
    happened: mpsc::Receiver<Event>,
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// What that was made from.
    pins: Option<Pins>,
    pub(super) pings: BTreeMap<u64, (String, oneshot::Sender<Answer>)>,
    pub(super) last_ping: u64,
    pub(super) own_endpoints: Vec<SocketAddr>,
    pub(super) users_logged: UsersLogged,
    listen_port: u16,
    /// The network was left.
    pub(super) left: bool,
    /// Who waits for the end of a logout.
    pub(super) leaving: Option<oneshot::Sender<Answer>>,
    /// The data plane failed, and is made anew then.
    renew_at: Option<BootTime>,
    ending: Option<Ending>,
    wall_clock_at: BootTime,
    /// Wall clock less boot time, when it was last told.
    wall_at_boot: Duration,
    /// Boot time less monotonic time: grows by what the machine sleeps.
    sleep_offset: Duration,
    started: Instant,
}

impl<'w> Driver<'w> {
    pub(super) fn new(world: &'w mut World) -> Result<Self, DaemonError> {
        let system = |what| move |source| DaemonError::System { what, source };
        let settings = world.settings()?;
        settings.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        world.state = world.state.clone().started();
        let saved = world.state.core.pins();
        match (&saved, &world.setup_key) {
            (Some(pins), Some(key)) if !pins.knows(key.fingerprint) => {
                // The key may be of a root that came while this node was away: it needs none.
                tracing::warn!("{}", super::unused_key(pins.newest));
                world.setup_key = None;
            }
            (Some(_), _) => world.setup_key = None,
            (None, _) => {}
        }
        world.disk.save_state(world.state.clone());
        world.disk.save_settings(world.kept.clone());
        let now = boot_time();
        let identity = Identity {
            key: world.secret.public(),
            boot: world.state.boot,
            can_enrol: world.setup_key.is_some(),
        };
        let seed = random().map_err(system("get random numbers"))?;
        let config = settings.core(platform::os_version());
        let peer_config = config.peer.clone();
        let agent = Agent::new(config, identity, world.state.core.clone(), world.cached.take(), seed, now);
        let (events, happened) = mpsc::channel(BACKLOG);
        let mut driver = Self {
            agent,
            settings,
            peer_config,
            connections: Connections::new(events.clone()),
            events,
            happened,
            tls: None,
            pins: None,
            pings: BTreeMap::new(),
            last_ping: 0,
            own_endpoints: Vec::new(),
            users_logged: UsersLogged::default(),
            listen_port: 0,
            left: false,
            leaving: None,
            renew_at: None,
            ending: None,
            wall_clock_at: now,
            wall_at_boot: Duration::ZERO,
            sleep_offset: now.since_boot(),
            started: Instant::now(),
            world,
        };
        let invited = driver.world.setup_key.as_ref().map(|key| Pins::only(key.fingerprint));
        if let Some(pins) = saved.or(invited) {
            driver.trust(pins);
        }
        let kept = driver.world.disk.kept_root();
        driver.agent.handle_root_kept(kept, now);
        driver.agent.handle_networks(driver.world.network.networks.clone(), now);
        driver.apply_modes();
        driver.world.hooking.forget_users();
        driver.apply_checks(now);
        Ok(driver)
    }

    /// Connections are made to servers of this cluster from now on.
    pub(super) fn trust(&mut self, pins: Pins) {
        let config = tls::client_config_after(vec![pins.newest], pins.former.clone());
        self.tls = Some(config.expect("ring speaks TLS 1.3"));
        self.pins = Some(pins);
    }

    /// The cluster's root may have changed.
    fn update_trust(&mut self) {
        if let Some(pins) = self.agent.pins().filter(|pins| self.pins.as_ref() != Some(pins)) {
            self.trust(pins);
        }
    }

    pub(super) async fn run(&mut self) -> Result<End, DaemonError> {
        loop {
            self.look_at_clocks();
            self.update_trust();
            self.do_outputs().await?;
            self.update_endpoints();
            if self.ending.is_some() {
                // Whatever was to be said is queued by now.
                self.connections.close_all();
            }
            self.do_outputs().await?;
            self.log_users();
            self.world.hooking.start_due(boot_time());
            if let Some(end) = self.ended() {
                return Ok(end);
            }
            self.tell_watchers();
            self.world
                .alarm
                .set(self.deadline())
                .map_err(|source| DaemonError::System { what: "set a timer", source })?;
            let input = self.wait().await;
            self.handle(input).await?;
            self.handle_timeout().await?;
            if self.agent.has_left() && self.ending.is_none() {
                self.ending = Some(Ending { end: End::Stop, give_up_at: boot_time() + ENDING_TIMEOUT });
            }
        }
    }

    async fn wait(&mut self) -> Input {
        // Who asks during a restart is answered after it.
        let answers = self.ending.is_none_or(|ending| ending.end == End::Stop);
        let world = &mut *self.world;
        tokio::select! {
            event = world.tunnel_events.next() => Input::Tunnel(event),
            Some(event) = self.happened.recv() => Input::Event(event),
            Some(call) = world.calls.recv(), if answers => Input::Call(call),
            network = world.network_watch.changed() => Input::Network(network),
            () = world.signals.received() => Input::Signal,
            root = world.disk.root_kept() => Input::RootKept(root),
            checked = world.checking.done() => Input::Checked(checked),
            hooked = world.hooking.done() => Input::Hooked(hooked),
            () = world.plane.served() => Input::Served,
            () = self.connections.task_ended() => Input::ConnectionGone,
            expired = world.alarm.expired() => {
                if let Err(error) = expired {
                    tracing::error!(%error, "the timer cannot be read");
                }
                Input::Alarm
            }
        }
    }

    async fn handle(&mut self, input: Input) -> Result<(), DaemonError> {
        let now = boot_time();
        self.world.watchers.on_event();
        match input {
            Input::Tunnel(event) => match plane::event(event) {
                Ok(event) => self.agent.handle_tunnel(event, now),
                Err(fault) => {
                    tracing::warn!(fault, "the data plane failed; it is started again");
                    self.renew_at = Some(self.world.renewals.next(now));
                }
            },
            Input::Event(event) => return self.handle_event(event, now),
            Input::Call(call) => self.answer(call, now).await,
            Input::Network(network) => self.on_network(network, now),
            Input::Alarm => {}
            Input::Signal => {
                tracing::info!("ending, as a signal asks");
                self.end(End::Stop, Farewell::Drain);
            }
            Input::RootKept(root) => self.agent.handle_root_kept(root, now),
            Input::Checked(checked) => self.on_checked(checked),
            Input::Hooked(hooked) => self.world.hooking.on_done(hooked),
            Input::Served => self.apply_checks(now),
            Input::ConnectionGone => {}
        }
        Ok(())
    }

    async fn handle_timeout(&mut self) -> Result<(), DaemonError> {
        let is_over = |at: BootTime| at + STALLED <= boot_time();
        if self.agent.poll_timeout().is_some_and(|deadline| is_over(deadline.at)) {
            self.catch_up().await?;
        }
        let now = boot_time();
        if self.agent.poll_timeout().is_some_and(|deadline| deadline.at <= now) {
            self.agent.handle_timeout(now);
        }
        self.world.checking.start_due(now);
        if self.world.metrics.due().is_some_and(|at| at <= now) {
            self.world.metrics.retry(now);
        }
        if self.renew_at.is_some_and(|at| at <= now) {
            self.renew_at = None;
            // Without a data plane there is nothing to wait for.
            let end = if self.agent.is_draining() { End::Stop } else { End::RestartAll };
            self.end(end, Farewell::None);
        }
        Ok(())
    }

    /// A server that answered while this program stood still must not be taken for a silent one.
    async fn catch_up(&mut self) -> Result<(), DaemonError> {
        for _ in 0..CATCH_UP_TURNS {
            tokio::task::yield_now().await;
            // At most what waits now: more comes in with the next turn.
            for _ in 0..self.happened.len() {
                self.do_outputs().await?;
                if let Ok(event) = self.happened.try_recv() {
                    self.handle_event(event, boot_time())?;
                }
            }
        }
        Ok(())
    }

    fn handle_event(&mut self, event: Event, now: BootTime) -> Result<(), DaemonError> {
        match event {
            Event::Resolved(url, result) => self.agent.handle_resolved(&url, result, now),
            Event::Enrolled(conn, enrolled) if self.connections.is_open(conn) => {
                self.agent.handle_enrolled(conn, &enrolled, now);
                if self.agent.is_enrolled() {
                    self.world.setup_key = None;
                }
            }
            Event::Connected(conn, connected) if self.connections.is_open(conn) => {
                self.connections.on_connected(conn);
                self.agent.handle_connected(conn, connected, now);
            }
            Event::Message(conn, message, _turn) if self.connections.is_open(conn) => {
                self.agent.handle_message(conn, *message, now);
            }
            Event::Fetched(conn, delta, _turn) if self.connections.is_open(conn) => {
                self.agent.handle_fetched(conn, delta, now);
            }
            Event::Closed(conn, why) if self.connections.is_open(conn) => {
                tracing::debug!(conn = conn.0, %why, "a control connection ended");
                self.connections.close(conn);
                self.agent.handle_closed(conn, &why, now);
            }
            Event::Message(_, message, _turn) if self.leaving.is_some() => self.on_last_words(&message),
            // Of a connection that the core has given up.
            Event::Enrolled(..)
            | Event::Connected(..)
            | Event::Message(..)
            | Event::Fetched(..)
            | Event::Closed(..) => {}
        }
        Ok(())
    }

    /// The core has closed the connection, and does not hear what the server says to our leaving.
    fn on_last_words(&mut self, message: &ServerMessage) {
        if matches!(message, ServerMessage::Refused(refused) if refused.reason == Reason::Removed) {
            self.on_left(true);
        }
    }

    /// The first moment at which something is to be done.
    fn deadline(&self) -> Option<BootTime> {
        let core = self.agent.poll_timeout().map(|deadline| deadline.at);
        let ending = self.ending.map(|ending| ending.give_up_at);
        let world = &self.world;
        let world = [world.watchers.due(), world.metrics.due(), world.checking.due(), world.hooking.due()];
        let own = [self.renew_at, Some(self.wall_clock_at), self.users_logged.due()];
        own.into_iter().chain(world).chain([core, ending]).flatten().min()
    }

    /// Notices that the machine slept, and tells the wall clock's time now and then.
    fn look_at_clocks(&mut self) {
        let now = boot_time();
        let offset = now.since_boot().saturating_sub(self.started.elapsed());
        let slept = offset.saturating_sub(self.sleep_offset);
        if slept >= SLEPT {
            tracing::info!(slept_s = slept.as_secs(), "the machine slept; connections are made again");
            self.sleep_offset = offset;
            self.agent.handle_network_changed(now);
        }
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // As if the clock had stood at zero when the machine booted.
        let wall_at_boot = wall.saturating_sub(now.since_boot());
        let was_set = wall_at_boot.abs_diff(self.wall_at_boot) >= CLOCK_SET;
        if now >= self.wall_clock_at || slept >= SLEPT || was_set {
            self.wall_at_boot = wall_at_boot;
            self.wall_clock_at = now + WALL_CLOCK_INTERVAL;
            self.agent.handle_wall_clock(UnixTime(wall.as_secs()), now);
        }
    }

    fn on_network(&mut self, network: Network, now: BootTime) {
        let is_another = network.is_another_than(&self.world.network);
        if network != self.world.network {
            self.world.plane.look_again();
        }
        self.world.network = network;
        self.agent.handle_networks(self.world.network.networks.clone(), now);
        if is_another {
            tracing::info!("the network changed; connections are made again");
            self.agent.handle_network_changed(now);
        }
    }

    /// Where peers may reach us: at every own address, with the tunnel's port.
    fn update_endpoints(&mut self) {
        let port = self.world.plane.listen_port();
        let addresses = self.world.network.addresses.iter().filter(|_| port != 0);
        let endpoints: Vec<SocketAddr> = addresses.map(|address| SocketAddr::new(*address, port)).collect();
        if endpoints != self.own_endpoints || port != self.listen_port {
            self.own_endpoints.clone_from(&endpoints);
            self.listen_port = port;
            self.agent.handle_endpoints(endpoints, port, boot_time());
        }
    }

    /// Before the tunnel is up its port is a guess, nearly always right: peers then know where we are as soon as they know us.
    pub(super) fn credentials(&self) -> Option<Credentials> {
        let port = match self.listen_port {
            0 => self.settings.listen_port,
            port => port,
        };
        let addresses = self.world.network.addresses.iter().take(MAX_ENDPOINTS);
        let enrolment = self.world.setup_key.as_ref().map(|key| Enrolment {
            setup_secret: key.secret.clone(),
            facts: self.settings.core(platform::os_version()).facts,
            endpoints: addresses.map(|address| SocketAddr::new(*address, port)).collect(),
        });
        Some(Credentials { secret: self.world.secret.clone(), tls: self.tls.clone()?, enrolment })
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let mut status = self.agent.status(boot_time());
        self.world.plane.interface().clone_into(&mut status.own.interface);
        status.own.listen_port = self.world.plane.listen_port();
        status.warnings.extend(self.world.metrics.trouble());
        status.warnings.extend(self.world.checking.trouble());
        status.warnings.extend(self.world.hooking.troubles());
        status.warnings.extend(self.world.plane.troubles());
        Snapshot { status, tunnel: self.world.plane.tunnel() }
    }

    fn tell_watchers(&mut self) {
        let begun = boot_time();
        if self.world.watchers.due().is_some_and(|due| due <= begun) {
            let snapshot = self.snapshot();
            let now = boot_time();
            self.world.watchers.tell(snapshot, now, now.since(begun));
        }
    }

    /// The loop ends once everybody was told.
    pub(super) fn end(&mut self, end: End, farewell: Farewell) {
        let now = boot_time();
        let time = match farewell {
            Farewell::Drain => {
                self.agent.drain(now);
                if !self.agent.has_left() {
                    tracing::info!("waiting until those that use this node have moved");
                    return;
                }
                ENDING_TIMEOUT
            }
            Farewell::Logout => {
                self.connections.await_last_words(ENDING_TIMEOUT);
                self.agent.logout(now);
                ENDING_TIMEOUT
            }
            Farewell::None => Duration::ZERO,
        };
        // A stop is not undone by a restart that was under way.
        if self.ending.is_none_or(|ending| ending.end != End::Stop) {
            self.ending = Some(Ending { end, give_up_at: now + time });
        }
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    fn ended(&mut self) -> Option<End> {
        let ending = self.ending?;
        let all_is_said = self.connections.all_ended() && self.happened.is_empty();
        if !all_is_said && boot_time() < ending.give_up_at {
            return None;
        }
        self.on_left(false);
        // The core saves by itself when it is told to leave.
        if ending.end != End::Stop {
            self.save_state();
            self.save_map();
            let kept = self.agent.has_map() && !self.left;
            self.world.cached = kept.then(|| cache::decode(&self.agent.map_cache()).ok()).flatten();
        }
        Some(ending.end)
    }

    pub(super) fn refusal_ends_us(&self, refused: &Refused) -> bool {
        self.world.end_when_refused && !self.agent.is_enrolled() && refused.reason.is_about_the_agent()
    }
}

fn random() -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    Ok(u64::from_le_bytes(bytes))
}
