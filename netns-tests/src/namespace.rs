//! Network namespaces without names: made by a thread, held open by a descriptor, gone with this process.
//!
//! Everything that happens "inside" does so either on a thread that entered the namespace ([`Namespace::run`])
//! or in a child process that enters it before `exec` ([`Namespace::command`]).

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace; clones are the same one.
#[derive(Clone)]
pub struct Namespace {
    fd: Arc<OwnedFd>,
}

impl Namespace {
    /// A new, empty namespace with its loopback up, that does not forward.
    pub fn new() -> Result<Self> {
        let made = std::thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            File::open("/proc/thread-self/ns/net").context("cannot open the new network namespace")
        });
        let file = made.join().map_err(|_| anyhow::anyhow!("the thread making a namespace panicked"))??;
        let namespace = Self { fd: Arc::new(file.into()) };
        namespace.ip("link set lo up")?;
        // New ones take it from the machine, which may forward for reasons of its own.
        namespace.sysctl("net/ipv4/ip_forward", "0")?;
        Ok(namespace)
    }

    /// Runs `work` on a thread of its own inside the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| -> Result<T> {
                self.enter()?;
                Ok(work())
            });
            inside.join().map_err(|_| anyhow::anyhow!("a thread inside a namespace panicked"))?
        })
    }

    /// Moves the calling thread into the namespace, for good.
    pub fn enter(&self) -> Result<()> {
        setns(self.fd.as_ref(), CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")
    }

    /// A command that will run inside. The variables that configure Holdfast are kept from it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("HOLDFAST_") {
                command.env_remove(name);
            }
        }
        let fd = Arc::clone(&self.fd);
        // SAFETY: setns is one system call; it neither allocates nor takes a lock between fork and exec.
        unsafe {
            command
                .pre_exec(move || setns(fd.as_ref(), CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from));
        }
        command
    }

    /// `ip ARGUMENTS` inside; the arguments are split at blanks.
    pub fn ip(&self, arguments: &str) -> Result<()> {
        self.tool("ip", &arguments.split_whitespace().collect::<Vec<_>>())
    }

    /// `nft RULES` inside, as one command.
    pub fn nft(&self, rules: &str) -> Result<()> {
        self.tool("nft", &[rules])
    }

    /// Runs a tool inside to its end; what it printed is returned by [`Namespace::output`] instead.
    pub fn tool(&self, program: &str, arguments: &[&str]) -> Result<()> {
        self.output(program, arguments).map(drop)
    }

    /// What a tool run inside printed; fails if the tool did.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self
            .command(program)
            .args(arguments)
            .output()
            .with_context(|| format!("cannot run {program}: is it installed?"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`{program} {}` failed: {}", arguments.join(" "), said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Sets a sysctl of this namespace; `key` is its path below /proc/sys.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run(|| std::fs::write(format!("/proc/sys/{key}"), value))?
            .with_context(|| format!("cannot set {key} to {value}"))
    }

    /// A path by which other programs find the namespace while this process lives.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }
}
