//! Programs that make a WireGuard interface and are configured with `wg`, ours and others', as devices inside hosts.
//!
//! All of them take the interface's name, serve the cross-platform configuration protocol at `/run/wireguard/NAME.sock`
//! and stay in the foreground if asked. The names must differ within a run: the directory is one for all hosts.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::process::Process;
use crate::topology::Host;
use crate::wait::wait_until;

/// Where tools look for interfaces; one directory for all hosts.
pub const SOCKETS: &str = "/var/run/wireguard";
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Of which one is as wanted: that half of all are not happens never.
const MAX_KEYS: usize = 100;

/// How a program is asked for an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Holdfast,
    WireguardGo,
    Boringtun,
    /// Without connected sockets.
    BoringtunRoaming,
    /// The example of the data plane's crate, with more arguments.
    Endpoint(&'static [&'static str]),
}

/// A program, and what it is called in tables.
#[derive(Clone, Debug)]
pub struct Program {
    pub name: String,
    file: PathBuf,
    kind: Kind,
    /// Ours, if another number than it would choose.
    workers: Option<u8>,
    may_use_ebpf: bool,
}

impl Program {
    /// `agent wg`.
    pub fn ours(agent: &Path) -> Self {
        Self {
            name: "holdfast".into(),
            file: agent.to_owned(),
            kind: Kind::Holdfast,
            workers: None,
            may_use_ebpf: true,
        }
    }

    /// As many threads carry packets (`--workers`).
    pub fn with_workers(self, workers: u8) -> Self {
        Self { workers: Some(workers), ..self }
    }

    /// As in a container that is not let load programs into the kernel.
    pub fn without_ebpf(self) -> Self {
        Self { may_use_ebpf: false, ..self }
    }

    fn command(&self, host: &Host) -> Command {
        if self.may_use_ebpf {
            return host.namespace.command(&self.file);
        }
        let mut command = host.namespace.command("setpriv");
        command.args(["--bounding-set", "-bpf,-sys_admin"]).arg(&self.file);
        command
    }

    /// Our data plane without the agent: `file` is a build of the tunnel's example `endpoint`.
    pub fn endpoint(name: &str, file: &Path, arguments: &'static [&'static str]) -> Result<Self> {
        ensure!(file.exists(), "{} is missing: `make bench-tunnel` builds it", file.display());
        Ok(Self {
            name: name.into(),
            file: file.to_owned(),
            kind: Kind::Endpoint(arguments),
            workers: None,
            may_use_ebpf: true,
        })
    }

    /// The system's package of it.
    pub fn wireguard_go() -> Self {
        Self {
            name: "wireguard-go".into(),
            file: "wireguard-go".into(),
            kind: Kind::WireguardGo,
            workers: None,
            may_use_ebpf: true,
        }
    }

    /// As its own address may change. boringtun-cli otherwise connects its sockets, which is quicker and ends with the address.
    #[must_use]
    pub fn roaming(mut self) -> Self {
        match self.kind {
            Kind::Boringtun | Kind::BoringtunRoaming => self.kind = Kind::BoringtunRoaming,
            Kind::Holdfast | Kind::WireguardGo | Kind::Endpoint(_) => {}
        }
        self
    }

    /// Those that `packaging/build-peers.sh` put into `directory`.
    pub fn others(directory: &Path) -> Result<Vec<Self>> {
        let all = [("wireguard-go", Kind::WireguardGo), ("boringtun-cli", Kind::Boringtun)];
        let programs: Vec<Self> = all
            .map(|(name, kind)| Self {
                name: name.into(),
                file: directory.join(name),
                kind,
                workers: None,
                may_use_ebpf: true,
            })
            .into();
        for program in &programs {
            ensure!(
                program.file.exists(),
                "{} is missing: packaging/build-peers.sh makes it",
                program.file.display()
            );
        }
        Ok(programs)
    }

    /// Makes the interface `name` on `host`, not yet configured.
    pub fn start(&self, host: &Host, name: &str, directory: &Path) -> Result<Device> {
        let mut command = self.command(host);
        match self.kind {
            Kind::Holdfast => command.args(["wg", name, "--foreground"]),
            Kind::WireguardGo => command.args(["--foreground", name]).env("LOG_LEVEL", "error"),
            Kind::Endpoint(arguments) => command.arg(name).args(arguments),
            Kind::Boringtun => command.args(["--foreground", "--disable-drop-privileges", name]),
            Kind::BoringtunRoaming => {
                command.args(["--foreground", "--disable-drop-privileges", "--disable-connected-udp", name])
            }
        };
        if let Some(workers) = self.workers {
            command.args(["--workers", &workers.to_string()]);
        }
        let log = directory.join(format!("{name}-{}.txt", self.name));
        let process = Process::start(format!("{} {name}", self.name), command, &log)?;
        let mut device = Device { host: host.clone(), name: name.to_owned(), process };
        // `wg` deletes a socket at which nobody listens yet.
        let socket = Path::new(SOCKETS).join(format!("{name}.sock"));
        let shown = || {
            let listens = UnixStream::connect(&socket).is_ok();
            Ok((listens && device.host.namespace.output("wg", &["show", name]).is_ok()).then_some(()))
        };
        wait_until("the interface can be configured", START_TIMEOUT, shown)
            .with_context(|| device.process.log_tail(5))?;
        ensure!(device.process.ended()?.is_none(), "{} ended: {}", self.name, device.process.log_tail(5));
        Ok(device)
    }
}

/// A running interface. Dropping it ends its program.
pub struct Device {
    pub host: Host,
    pub name: String,
    pub process: Process,
}

impl Device {
    /// `wg set`; the arguments are split at blanks.
    pub fn set(&self, arguments: &str) -> Result<()> {
        let arguments: Vec<&str> =
            ["set", &self.name].into_iter().chain(arguments.split_whitespace()).collect();
        self.host.namespace.tool("wg", &arguments)
    }

    /// The most memory it ever had resident, in bytes.
    pub fn peak_memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.context("no VmHWM")?.trim().trim_end_matches(" kB");
        Ok(kilobytes.parse::<u64>().context("VmHWM: no number")? * 1024)
    }
}

/// A key pair made by `wg`: the file of the private key, and the public one.
#[derive(Clone, Debug)]
pub struct KeyPair {
    pub private: PathBuf,
    pub public: String,
}

impl KeyPair {
    pub fn generate(host: &Host, file: PathBuf) -> Result<Self> {
        Self::generate_where(host, file, |_| Ok(true))
    }

    /// The first whose public key is as wanted; one of a few must be.
    pub fn generate_where(
        host: &Host,
        file: PathBuf,
        is_wanted: impl Fn(&str) -> Result<bool>,
    ) -> Result<Self> {
        for _ in 0..MAX_KEYS {
            let made = Self::generate_one(host, file.clone())?;
            if is_wanted(&made.public)? {
                return Ok(made);
            }
        }
        bail!("none of {MAX_KEYS} keys is as wanted")
    }

    fn generate_one(host: &Host, file: PathBuf) -> Result<Self> {
        let private = host.namespace.output("wg", &["genkey"])?;
        std::fs::write(&file, &private)?;
        let script = format!("wg pubkey <'{}'", file.display());
        let public = host.namespace.output("sh", &["-c", &script])?.trim().to_owned();
        Ok(Self { private: file, public })
    }
}
