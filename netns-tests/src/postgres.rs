//! A private Postgres: its own data directory, its own namespace, fsync on, gone with the scenario.
//!
//! Postgres refuses to run as root. It gets a user namespace in which its user is `daemon`, while outside nothing
//! changes hands: the same with real root and with the root of a user namespace. What can happen to one is in
//! `faults`, a second one that follows it in `replica`.

mod faults;
mod replica;

pub use faults::{DataCopy, Stop};

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::authority::Identity;
use crate::process::Process;
use crate::topology::Host;
use crate::wait::wait_until;

const PORT: u16 = 5432;
const USER: &str = "holdfast";
/// `daemon`: exists on every Debian, and needs to, since initdb looks its user's name up.
const UID: u32 = 1;
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A Postgres with one database: running, or not.
pub struct Postgres {
    pub host: Host,
    pub address: Ipv4Addr,
    directory: PathBuf,
    programs: PathBuf,
    process: Option<Process>,
    /// `name=value`, in the order given: a later one wins.
    settings: Vec<String>,
}

impl Postgres {
    /// Initialises and starts one on `host`, to be reached at `address`, in `directory`.
    pub fn start(host: Host, address: Ipv4Addr, directory: &Path) -> Result<Self> {
        let mut postgres = Self::new(host, address, directory)?;
        postgres.initialise()?;
        postgres.run()?;
        postgres.psql("postgres", &format!("create database {USER}"))?;
        // What it has to write for that is written now, and not while a server waits for its first answer.
        postgres.sql("checkpoint")?;
        Ok(postgres)
    }

    fn new(host: Host, address: Ipv4Addr, directory: &Path) -> Result<Self> {
        let programs = find_programs()?;
        std::fs::create_dir_all(directory)?;
        let directory = directory.to_owned();
        Ok(Self { host, address, directory, programs, process: None, settings: Vec::new() })
    }

    /// What `--database` takes.
    pub fn url(&self) -> String {
        format!("postgres://{USER}@{}/{USER}", self.authority())
    }

    /// Its address and port.
    pub fn authority(&self) -> String {
        format!("{}:{PORT}", self.address)
    }

    /// `name=value`, as from the next start on.
    pub fn set(&mut self, setting: impl Into<String>) {
        self.settings.push(setting.into());
    }

    /// Runs one statement and returns what psql printed.
    pub fn psql(&self, database: &str, statement: &str) -> Result<String> {
        let mut command = self.host.namespace.command(self.programs.join("psql"));
        command.args(["-h", &self.address.to_string(), "-U", USER, "-d", database, "-XAtqc", statement]);
        let output = command.output().context("cannot run psql")?;
        if !output.status.success() {
            bail!("psql failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// The same, in the database of the servers.
    pub fn sql(&self, statement: &str) -> Result<String> {
        self.psql(USER, statement)
    }

    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("Postgres is not running")
    }

    fn initialise(&self) -> Result<()> {
        let log = File::create(self.directory.join("initdb.txt"))?;
        let status = self
            .as_daemon("initdb")
            .arg("-D")
            .arg(self.data())
            .args(["-U", USER, "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync", "--wal-segsize=4"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()
            .context("cannot run initdb")?;
        if !status.success() {
            let said = std::fs::read_to_string(self.directory.join("initdb.txt")).unwrap_or_default();
            bail!("initdb failed (it needs a user namespace to run in, or another user than root): {said}");
        }
        let network = format!("{}/24", self.address);
        self.admit(&format!("host all all {network} trust\nhost replication all {network} trust\n"))
    }

    /// Who may connect from elsewhere, as lines of `pg_hba.conf`; read at the next start.
    pub fn admit(&self, rules: &str) -> Result<()> {
        let rules = format!("local all all trust\n{rules}");
        std::fs::write(self.data().join("pg_hba.conf"), rules).context("cannot write pg_hba.conf")
    }

    /// From the next start on others reach it by TLS and with a password alone; it shows this certificate.
    pub fn use_tls(&mut self, identity: &Identity) -> Result<()> {
        self.set("ssl=on");
        self.set(format!("ssl_cert_file={}", identity.certificate.display()));
        self.set(format!("ssl_key_file={}", identity.key.display()));
        let address = self.address;
        // Its own host is this lab's psql.
        self.admit(&format!("host all all {address}/32 trust\nhostssl all all {address}/24 scram-sha-256\n"))
    }

    /// Starts the program on the data directory as it is, without waiting for it.
    pub fn launch(&mut self) -> Result<()> {
        let mut command = self.as_daemon("postgres");
        command.arg("-D").arg(self.data());
        let sockets = format!("unix_socket_directories={}", self.directory.display());
        let own = [format!("listen_addresses={}", self.address), format!("port={PORT}"), sockets];
        let fixed: [&str; 5] = [
            "fsync=on",
            "recovery_init_sync_method=syncfs",
            "synchronous_commit=on",
            "shared_buffers=32MB",
            "max_connections=100",
        ];
        let settings = own.into_iter().chain(fixed.map(str::to_owned)).chain(self.settings.iter().cloned());
        settings.for_each(|setting| {
            command.args(["-c", &setting]);
        });
        // Not `.log`: what Postgres calls ERROR is a statement's, and judged by whoever sent it.
        self.process = Some(Process::start("postgres", command, &self.directory.join("postgres.txt"))?);
        Ok(())
    }

    /// The same, and returns when it was first seen to take connections.
    pub fn run(&mut self) -> Result<Instant> {
        self.launch()?;
        wait_until("Postgres takes connections", START_TIMEOUT, || {
            let process = self.process()?;
            if let Some(status) = process.ended()? {
                bail!("Postgres ended ({status}): {}", process.log_tail(5));
            }
            Ok(self.psql("postgres", "select 1").ok().map(|_| Instant::now()))
        })
    }

    fn as_daemon(&self, program: &str) -> Command {
        let mut command = self.host.namespace.command("unshare");
        command.args(["--user", &format!("--map-user={UID}"), &format!("--map-group={UID}")]);
        command.arg(self.programs.join(program)).current_dir(&self.directory);
        command
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // An immediate shutdown by its own signal lets it take its children with it; SIGKILL would orphan them.
        if self.process.is_some() {
            self.thaw().ok();
            self.stop(Stop::Immediate).ok();
        }
    }
}

/// The newest version installed in Debian's place, or what the search path finds.
fn find_programs() -> Result<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, programs)| programs.join("initdb").is_file())
        .collect();
    versions.sort();
    if let Some((_, programs)) = versions.pop() {
        return Ok(programs);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).find(|directory| directory.join("initdb").is_file());
    found.context("no Postgres here (initdb): packaging/install-deps.sh installs it")
}
