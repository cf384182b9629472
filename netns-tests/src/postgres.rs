//! A private Postgres: its own data directory, its own namespace, fsync on, gone with the scenario.
//!
//! Postgres refuses to run as root. It gets a user namespace in which its user is `daemon`, while outside nothing
//! changes hands: the same with real root and with the root of a user namespace.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::Process;
use crate::topology::Host;
use crate::wait::wait_until;

const PORT: u16 = 5432;
const USER: &str = "holdfast";
/// `daemon`: exists on every Debian, and needs to, since initdb looks its user's name up.
const UID: u32 = 1;
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running Postgres with one empty database.
pub struct Postgres {
    host: Host,
    address: Ipv4Addr,
    directory: PathBuf,
    programs: PathBuf,
    process: Option<Process>,
}

impl Postgres {
    /// Initialises and starts one on `host`, to be reached at `address`, in `directory`.
    pub fn start(host: Host, address: Ipv4Addr, directory: &Path) -> Result<Self> {
        let programs = find_programs()?;
        std::fs::create_dir_all(directory)?;
        let mut postgres = Self { host, address, directory: directory.to_owned(), programs, process: None };
        postgres.initialise()?;
        postgres.run()?;
        postgres.psql("postgres", &format!("create database {USER}"))?;
        Ok(postgres)
    }

    /// What `--database` takes.
    pub fn url(&self) -> String {
        format!("postgres://{USER}@{}:{PORT}/{USER}", self.address)
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

    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("Postgres is not running")
    }

    fn initialise(&self) -> Result<()> {
        let log = File::create(self.directory.join("initdb.txt"))?;
        let status = self
            .as_daemon("initdb")
            .arg("-D")
            .arg(self.data())
            .args(["-U", USER, "-A", "trust", "-E", "UTF8", "--no-locale"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()
            .context("cannot run initdb")?;
        if !status.success() {
            let said = std::fs::read_to_string(self.directory.join("initdb.txt")).unwrap_or_default();
            bail!("initdb failed (it needs a user namespace to run in, or another user than root): {said}");
        }
        let rules = format!("local all all trust\nhost all all {}/24 trust\n", self.address);
        std::fs::write(self.data().join("pg_hba.conf"), rules).context("cannot write pg_hba.conf")
    }

    fn run(&mut self) -> Result<()> {
        let mut command = self.as_daemon("postgres");
        command.arg("-D").arg(self.data());
        let sockets = format!("unix_socket_directories={}", self.directory.display());
        for setting in [
            &format!("listen_addresses={}", self.address),
            &format!("port={PORT}"),
            &sockets,
            "fsync=on",
            "synchronous_commit=on",
            "shared_buffers=32MB",
            "max_connections=100",
        ] {
            command.args(["-c", setting]);
        }
        // Not `.log`: what Postgres calls ERROR is a statement's, and judged by whoever sent it.
        let mut process = Process::start("postgres", command, &self.directory.join("postgres.txt"))?;
        wait_until("Postgres takes connections", START_TIMEOUT, || {
            if let Some(status) = process.ended()? {
                bail!("Postgres ended ({status}): {}", process.log_tail(5));
            }
            Ok(self.psql("postgres", "select 1").ok())
        })?;
        self.process = Some(process);
        Ok(())
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
        if let Some(process) = self.process.as_mut() {
            let pid = i32::try_from(process.pid()).map(nix::unistd::Pid::from_raw);
            if let Ok(pid) = pid {
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGQUIT).ok();
            }
            process.wait_end(Duration::from_secs(5)).ok();
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
