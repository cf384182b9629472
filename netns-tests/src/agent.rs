//! An agent on a host of the lab, followed by a watch while it runs.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::namespace::Namespace;
use crate::process::Process;
use crate::server::bounded;
use crate::status::Status;
use crate::topology::{Host, Port};
use crate::watch::Watch;

pub const INTERFACE: &str = "hf0";
const ATTACH_TIMEOUT: Duration = Duration::from_secs(20);

/// One agent: running, or not.
pub struct Agent {
    pub name: String,
    pub host: Host,
    pub port: Port,
    /// Its address outside the overlay.
    pub underlay: Ipv4Addr,
    pub state_directory: PathBuf,
    /// Its name; all hosts have one directory for the sockets by which `wg` finds interfaces.
    pub interface: String,
    program: PathBuf,
    log: PathBuf,
    /// What `up` is given beside `--foreground` and `--hostname`.
    pub options: Vec<String>,
    /// Set for the daemon alone, not for commands.
    pub environment: Vec<(String, String)>,
    process: Option<Process>,
    watch: Option<Watch>,
}

impl Agent {
    /// An agent that is not started yet; its state and log go into `directory`.
    pub fn new(program: &Path, directory: &Path, host: Host, port: Port, underlay: Ipv4Addr) -> Self {
        let name = host.name.clone();
        Self {
            state_directory: directory.join(&name),
            log: directory.join(format!("{name}.log")),
            interface: INTERFACE.to_owned(),
            program: program.to_owned(),
            options: Vec::new(),
            environment: Vec::new(),
            process: None,
            watch: None,
            name,
            host,
            port,
            underlay,
        }
    }

    /// Starts the daemon in the foreground; returns the moment just before. Waits for nothing.
    pub fn launch(&mut self) -> Result<Instant> {
        let mut command = self.invocation(&self.host.namespace.clone());
        command.args(["up", "--foreground", "--hostname", &self.name]).args(&self.options);
        command.envs(self.environment.iter().cloned());
        let at = Instant::now();
        self.process = Some(Process::start(&self.name, command, &self.log)?);
        Ok(at)
    }

    /// Starts to follow the daemon's state.
    pub fn follow(&mut self) -> Result<()> {
        let (namespace, this) = (self.host.namespace.clone(), &*self);
        let command = || {
            let mut command = this.invocation(&namespace);
            command.args(["status", "--json", "--watch"]);
            command
        };
        let watch = Watch::start(command, ATTACH_TIMEOUT).with_context(|| self.plight())?;
        self.watch = Some(watch);
        Ok(())
    }

    /// Stops following: with a large map, telling every change is work for the daemon.
    pub fn unfollow(&mut self) {
        self.watch = None;
    }

    pub fn start(&mut self) -> Result<()> {
        self.launch()?;
        self.follow()
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<Instant> {
        self.watch = None;
        let at = self.process()?.kill()?;
        self.process = None;
        Ok(at)
    }

    /// SIGTERM, and waits for the end; returns the moment of the signal.
    pub fn stop(&mut self) -> Result<Instant> {
        self.watch = None;
        let process = self.process()?;
        let at = process.terminate()?;
        let status = process.wait_end(Duration::from_secs(10))?;
        if !status.success() {
            bail!("{} was asked to end and ended with {status}: {}", process.name, process.log_tail(5));
        }
        self.process = None;
        Ok(at)
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().with_context(|| format!("{} is not running", self.name))
    }

    /// The newest state that the watch was told.
    pub fn status(&self) -> Result<Arc<Status>> {
        self.watch()?.now().with_context(|| self.plight())
    }

    /// The first state from `since` on that `holds`.
    pub fn wait(
        &self,
        since: Instant,
        timeout: Duration,
        what: &str,
        holds: impl Fn(&Status) -> bool,
    ) -> Result<(Instant, Arc<Status>)> {
        self.watch()?.wait(since, timeout, what, holds).with_context(|| self.plight())
    }

    /// Waits, from now on, until the state `holds`.
    pub fn wait_now(
        &self,
        timeout: Duration,
        what: &str,
        holds: impl Fn(&Status) -> bool,
    ) -> Result<Arc<Status>> {
        Ok(self.wait(Instant::now(), timeout, what, holds)?.1)
    }

    pub fn watch(&self) -> Result<&Watch> {
        self.watch.as_ref().with_context(|| format!("{} is not followed", self.name))
    }

    /// An `agent` command for this agent, run to its end.
    pub fn command(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = bounded(&self.host.namespace, &self.program);
        command
            .arg("--state-dir")
            .arg(&self.state_directory)
            .args(["--interface", &self.interface])
            .args(arguments);
        command.output().context("cannot run the agent's command line")
    }

    /// A command that must succeed; what it printed.
    pub fn ask(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!("{}: agent {} failed ({}): {said}", self.name, arguments.join(" "), output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn invocation(&self, namespace: &Namespace) -> Command {
        let mut command = namespace.command(&self.program);
        command.arg("--state-dir").arg(&self.state_directory).args(["--interface", &self.interface]);
        command
    }

    /// For messages: who, and what it logged last.
    fn plight(&self) -> String {
        let tail = self.process.as_ref().map(|process| process.log_tail(3)).unwrap_or_default();
        format!("agent {} (log: {tail})", self.name)
    }
}
