//! A control server on a host of the lab.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::namespace::Namespace;
use crate::process::Process;
use crate::topology::{Host, Port};
use crate::wait::{retry, wait_until};

/// Where agents reach a server.
pub const CONTROL_PORT: u16 = 7443;
const ADMIN: &str = "127.0.0.1:7480";
const ADMIN_TIMEOUT: Duration = Duration::from_secs(3);
const LISTEN_TIMEOUT: Duration = Duration::from_secs(20);
/// Bounds every command of the command line, in seconds.
const COMMAND_TIMEOUT: &str = "40";

/// What is the same for all servers of a cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub program: PathBuf,
    pub directory: PathBuf,
    /// What `--database` takes.
    pub database: String,
}

/// One server: running, or not.
pub struct Server {
    pub name: String,
    pub host: Host,
    pub port: Port,
    /// What agents are told.
    pub url: String,
    cluster: Cluster,
    arguments: Vec<String>,
    /// Set for the server alone, not for commands.
    pub environment: Vec<(String, String)>,
    process: Option<Process>,
}

impl Server {
    /// A server that listens on `address`, and is not started yet.
    pub fn new(cluster: &Cluster, host: Host, port: Port, address: Ipv4Addr) -> Self {
        let name = host.name.clone();
        let url = format!("{address}:{CONTROL_PORT}");
        let data = cluster.directory.join(&name).display().to_string();
        let arguments = [
            ["--listen", &url],
            ["--advertise", &url],
            ["--admin-listen", ADMIN],
            ["--data-dir", &data],
            ["--database", &cluster.database],
            ["--name", &name],
        ];
        let arguments = arguments.concat().into_iter().map(str::to_owned).collect();
        Self {
            name,
            host,
            port,
            url,
            cluster: cluster.clone(),
            arguments,
            environment: Vec::new(),
            process: None,
        }
    }

    /// More arguments for `run`: options with their values.
    pub fn add_options(&mut self, options: &[String]) {
        self.arguments.extend(options.iter().cloned());
    }

    /// Another database, from the next start on.
    pub fn use_database(&mut self, url: &str) {
        for pair in self.arguments.chunks_mut(2).filter(|pair| pair[0] == "--database") {
            url.clone_into(&mut pair[1]);
        }
        url.clone_into(&mut self.cluster.database);
    }

    /// Leaves all arguments to their defaults but these.
    pub fn only(&mut self, options: &[&str]) {
        let pairs = self.arguments.chunks(2).filter(|pair| options.contains(&pair[0].as_str()));
        self.arguments = pairs.flatten().cloned().collect();
    }

    /// Starts the program without waiting for it; returns the moment just before.
    pub fn launch(&mut self) -> Result<Instant> {
        let mut command = self.host.namespace.command(&self.cluster.program);
        command.arg("run").args(&self.arguments).envs(self.environment.iter().cloned());
        let at = Instant::now();
        self.process = Some(Process::start(&self.name, command, &self.log())?);
        Ok(at)
    }

    /// Starts the program and waits until it listens; returns that moment.
    pub fn start(&mut self) -> Result<Instant> {
        self.launch()?;
        self.wait_listening()
    }

    /// When the control port was first seen listening. Asks the kernel and not the server, which notices nothing.
    pub fn wait_listening(&mut self) -> Result<Instant> {
        let process = self.process.as_mut().context("the server was not started")?;
        let what = format!("{} listens", process.name);
        self.host.namespace.run(|| {
            wait_until(&what, LISTEN_TIMEOUT, || {
                if let Some(status) = process.ended()? {
                    bail!("{} ended ({status}): {}", process.name, process.log_tail(5));
                }
                Ok(is_listening(CONTROL_PORT)?.then(Instant::now))
            })
        })?
    }

    /// Whether the control port listens now.
    pub fn is_listening(&self) -> Result<bool> {
        self.host.namespace.run(|| is_listening(CONTROL_PORT))?
    }

    /// Where it is reached.
    pub fn address(&self) -> Result<Ipv4Addr> {
        let address = self.url.split(':').next().unwrap_or_default();
        address.parse().with_context(|| format!("{} has no address in its URL", self.name))
    }

    /// The running program.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().with_context(|| format!("{} is not running", self.name))
    }

    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<Instant> {
        let at = self.process()?.kill()?;
        self.process = None;
        Ok(at)
    }

    /// SIGTERM, and waits for the end; returns the moment of the signal.
    pub fn drain(&mut self) -> Result<Instant> {
        let process = self.process()?;
        let at = process.terminate()?;
        let status = process.wait_end(Duration::from_secs(20))?;
        if !status.success() {
            bail!("{} drained and ended with {status}: {}", process.name, process.log_tail(5));
        }
        self.process = None;
        Ok(at)
    }

    /// A `server` command on the cluster's database, run on this server's host.
    pub fn command(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = bounded(&self.host.namespace, &self.cluster.program);
        command.args(arguments).args(["--database", &self.cluster.database]);
        command.output().context("cannot run the server's command line")
    }

    /// A `server` command that is told of no database but in its arguments.
    pub fn command_alone(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = bounded(&self.host.namespace, &self.cluster.program);
        command.args(arguments).output().context("cannot run the server's command line")
    }

    /// A command on the cluster's database, begun and not waited for.
    pub fn begin(&self, arguments: &[&str]) -> Result<Process> {
        let mut command = self.host.namespace.command(&self.cluster.program);
        command.args(arguments).args(["--database", &self.cluster.database]);
        // Not `.log`: what a command line calls an error is judged by its exit code.
        Process::start(arguments.join(" "), command, &self.cluster.directory.join("commands.txt"))
    }

    /// The JSON a successful `server` command prints.
    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let output = self.command(&[arguments, &["--json"]].concat())?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!("server {} failed ({}): {said}", arguments.join(" "), output.status);
        }
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("server {} printed no JSON", arguments.join(" ")))
    }

    /// A reusable setup key.
    pub fn setup_key(&self, options: &[&str]) -> Result<String> {
        let made = self.json(&[&["setup-key", "create"], options].concat())?;
        Ok(made["key"].as_str().context("setup-key create --json printed no \"key\"")?.to_owned())
    }

    /// The same, as soon as a server that has just begun to listen has made its cluster.
    pub fn first_setup_key(&self) -> Result<String> {
        retry("a cluster that has a setup key", LISTEN_TIMEOUT, || self.setup_key(&["--reusable"]))
    }

    /// What the server answers on its admin address: the status code and the text.
    pub fn admin(&self, path: &str) -> Result<(u16, String)> {
        self.host.namespace.run(|| http_get(path))?.with_context(|| format!("{}: GET {path}", self.name))
    }

    /// The JSON of `path` on its admin address, whatever the status code.
    pub fn admin_json(&self, path: &str) -> Result<(u16, serde_json::Value)> {
        let (code, text) = self.admin(path)?;
        let value = serde_json::from_str(&text);
        Ok((code, value.with_context(|| format!("{}: {path} is no JSON: {text}", self.name))?))
    }

    /// A value of its metrics, by the line's name with its labels; 0 where nothing was counted.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let (_, text) = self.admin("/metrics")?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(Ok(0.0), |value| value.trim().parse().with_context(|| format!("{name} is {value:?}")))
    }

    pub fn log(&self) -> PathBuf {
        self.cluster.directory.join(format!("{}.log", self.name))
    }
}

/// From the admin address of the calling thread's namespace.
fn http_get(path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&ADMIN.parse()?, ADMIN_TIMEOUT)?;
    stream.set_read_timeout(Some(ADMIN_TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no whole HTTP answer")?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status code")?;
    Ok((code, body.to_owned()))
}

/// A command that is ended after a while, so that one that hangs fails its scenario (status 124).
pub(crate) fn bounded(namespace: &Namespace, program: &Path) -> Command {
    let mut command = namespace.command("timeout");
    command.args(["-k", "1", COMMAND_TIMEOUT]).arg(program).env("NO_COLOR", "1");
    command
}

/// Whether a TCP socket listens on `port` in the calling thread's namespace.
fn is_listening(port: u16) -> Result<bool> {
    const LISTEN: &str = "0A";
    let suffix = format!(":{port:04X}");
    for table in ["tcp", "tcp6"] {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
        let mut sockets = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        if sockets.any(|fields| fields.len() > 3 && fields[1].ends_with(&suffix) && fields[3] == LISTEN) {
            return Ok(true);
        }
    }
    Ok(false)
}
