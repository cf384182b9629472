//! Runs the checks that say whether what this node serves is well, and tells the core when the answer changed. What follows from results is decided in `agent_core::checks`.

use super::driver::Driver;
use crate::{
    config::{Check, CheckRule, Settings},
    platform::{Leftovers, boot_time, run_shell},
};
use agent_core::{
    BootTime,
    checks::{Checks, ChecksConfig, Named},
};
use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{net::TcpStream, task::JoinSet};

/// The place of a check, and how it went.
pub(super) type Checked = (usize, Result<(), String>);

/// Outlives the core: what is withdrawn stays so when that starts anew.
pub(super) struct Checking {
    machine: Checks,
    checks: Vec<Check>,
    config: ChecksConfig,
    runs: JoinSet<Checked>,
    names: Names,
    interface: String,
}

impl Checking {
    pub(super) fn new(interface: &str, settings: &Settings, now: BootTime) -> Self {
        let mut checking = Self {
            machine: Checks::default(),
            checks: Vec::new(),
            config: ChecksConfig::default(),
            runs: JoinSet::new(),
            names: Names::default(),
            interface: interface.to_owned(),
        };
        checking.take(settings, now);
        checking
    }

    /// Other settings. Who claims nothing has nothing to check.
    pub(super) fn take(&mut self, settings: &Settings, now: BootTime) {
        let checks = if settings.claims.is_empty() { &[][..] } else { &settings.checking.checks };
        let config = settings.checking.config;
        if (checks, config) == (self.checks.as_slice(), self.config) {
            return;
        }
        // Runs under way end with it.
        self.runs = JoinSet::new();
        self.machine = Checks::new(checks.iter().map(named).collect(), config, &self.machine, now);
        (self.checks, self.config) = (checks.to_vec(), config);
    }

    pub(super) fn due(&self) -> Option<BootTime> {
        self.machine.poll_timeout()
    }

    pub(super) fn start_due(&mut self, now: BootTime) {
        while let Some(place) = self.machine.poll_run(now) {
            let (check, timeout) = (self.checks[place].clone(), self.config.timeout);
            let (interface, names) = (self.interface.clone(), self.names.clone());
            self.runs.spawn(async move { (place, run(check, timeout, interface, names).await) });
        }
    }

    /// The next run that is over.
    pub(super) async fn done(&mut self) -> Checked {
        loop {
            match self.runs.join_next().await {
                Some(Ok(checked)) => return checked,
                // It was told to end.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Why claims are withdrawn.
    pub(super) fn withdrawn(&self) -> Option<String> {
        self.machine.withdrawn()
    }

    /// For people.
    pub(super) fn trouble(&self) -> Option<String> {
        let reason = self.machine.withdrawn().filter(|_| self.machine.is_failing())?;
        Some(format!("this node does not serve what it claims: {reason}"))
    }
}

fn named(check: &Check) -> Named {
    let key = serde_json::to_string(&CheckRule::Check(check.clone())).unwrap_or_default();
    Named { key, name: check.name() }
}

async fn run(check: Check, timeout: Duration, interface: String, names: Names) -> Result<(), String> {
    match check {
        Check::Command(line) => {
            run_shell(&line.0, &[("HOLDFAST_INTERFACE", interface)], timeout, Leftovers::Kill).await
        }
        Check::Tcp { host, port } => {
            let connected = tokio::time::timeout(timeout, connect(&host, port, &names)).await;
            connected.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")))
        }
    }
}

/// Any address of the host will do.
async fn connect(host: &str, port: u16, names: &Names) -> Result<(), String> {
    let addresses = match host.parse::<IpAddr>() {
        Ok(address) => vec![address],
        Err(_) if host == "localhost" => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        Err(_) => names.look_up(host).await?,
    };
    let mut first = None;
    for address in addresses {
        match TcpStream::connect(SocketAddr::new(address, port)).await {
            Ok(_connection) => return Ok(()),
            Err(error) => _ = first.get_or_insert(error),
        }
    }
    Err(first.map_or_else(|| format!("{host} has no address"), |error| why(&error)))
}

fn why(error: &io::Error) -> String {
    match error.kind() == io::ErrorKind::ConnectionRefused {
        true => "connection refused".to_owned(),
        false => error.to_string(),
    }
}

/// Names that are being looked up. The system's resolver may take minutes, holds a thread, and cannot be told to stop: so it is asked for each name once at a time.
#[derive(Debug, Clone, Default)]
struct Names(Arc<Mutex<BTreeSet<String>>>);

impl Names {
    async fn look_up(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        let is_first = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(host.to_owned());
        if !is_first {
            return Err(format!("the name {host} takes long to resolve"));
        }
        let (names, host) = (self.clone(), host.to_owned());
        // By itself: the run may be given up before.
        let looked_up = tokio::spawn(async move {
            let found = tokio::net::lookup_host((host.as_str(), 0)).await;
            names.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&host);
            let found = found.map(|addresses| addresses.map(|address| address.ip()).collect());
            found.map_err(|error| format!("the name {host} cannot be resolved: {error}"))
        });
        looked_up.await.unwrap_or_else(|error| Err(error.to_string()))
    }
}

impl Driver<'_> {
    pub(super) fn on_checked(&mut self, (place, result): Checked) {
        let now = boot_time();
        self.world.checking.machine.handle_result(place, result, now);
        self.apply_checks(now);
    }

    /// Tells the core what checks and machine say, if it is news.
    pub(super) fn apply_checks(&mut self, now: BootTime) {
        let withdrawn = self.world.checking.withdrawn();
        let is_failing = self.world.checking.machine.is_failing();
        match (&withdrawn, self.agent.is_withdrawn()) {
            (Some(reason), false) if is_failing => tracing::warn!(reason, "claims are withdrawn"),
            (Some(reason), false) => tracing::info!(reason, "claims are not served yet"),
            (None, true) => tracing::info!("nothing speaks against it any more: claims are served"),
            (Some(_), true) | (None, false) => {}
        }
        self.agent.set_withdrawn(withdrawn, now);
        self.agent.set_unserved(self.world.plane.unserved(), now);
    }

    /// Before other claims are told: what is not served is not told as served, even for a moment. What is served again waits for [`apply_checks`](Self::apply_checks).
    pub(super) fn apply_failed_checks(&mut self, now: BootTime) {
        if self.world.checking.withdrawn().is_some() || !self.world.plane.unserved().is_empty() {
            self.apply_checks(now);
        }
    }
}
