//! What happens to a Postgres: it ends in every way, hangs, and comes back with data of an earlier day.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Postgres, USER};
use crate::wait::wait_until;

const END_TIMEOUT: Duration = Duration::from_secs(10);

/// How a Postgres ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// In order: connections are ended, everything is written.
    Fast,
    /// Without writing; the next start recovers.
    Immediate,
    /// `kill -9` of every process.
    Killed,
}

/// A copy of a data directory, as a disk would have held it after a power cut at that moment.
#[derive(Debug)]
pub struct DataCopy {
    directory: PathBuf,
}

impl Postgres {
    /// Ends it; returns the moment just before. When this returns, no process of it is left.
    pub fn stop(&mut self, how: Stop) -> Result<Instant> {
        let signal = match how {
            Stop::Fast => Signal::SIGINT,
            Stop::Immediate => Signal::SIGQUIT,
            Stop::Killed => return self.kill(),
        };
        let pid = self.pid()?;
        let at = Instant::now();
        kill(pid, signal).context("cannot signal Postgres")?;
        let process = self.process()?;
        process.wait_end(END_TIMEOUT).with_context(|| format!("Postgres was asked to stop by {signal}"))?;
        self.process = None;
        Ok(at)
    }

    /// SIGSTOP to every process: its kernel goes on taking connections and data, and nobody answers.
    pub fn freeze(&mut self) -> Result<Instant> {
        let postmaster = self.pid()?;
        let at = Instant::now();
        // The one that starts the others first.
        kill(postmaster, Signal::SIGSTOP).context("cannot freeze Postgres")?;
        self.each_child(Signal::SIGSTOP)?;
        Ok(at)
    }

    /// Goes on after [`Postgres::freeze`]; returns the moment just after.
    pub fn thaw(&mut self) -> Result<Instant> {
        self.each_child(Signal::SIGCONT)?;
        kill(self.pid()?, Signal::SIGCONT).context("cannot thaw Postgres")?;
        Ok(Instant::now())
    }

    /// Copies the data directory while it runs, at one moment.
    pub fn copy(&mut self, name: &str) -> Result<DataCopy> {
        let directory = self.directory.join(name);
        self.freeze()?;
        let copied = copy_tree(&self.data(), &directory);
        self.thaw()?;
        copied?;
        // It names a process that is not the copy's.
        std::fs::remove_file(directory.join("postmaster.pid"))
            .context("a running Postgres has a pid file")?;
        Ok(DataCopy { directory })
    }

    /// Puts the copy in the place of the data directory; Postgres must be stopped.
    pub fn put_back(&mut self, copy: &DataCopy) -> Result<()> {
        if self.process.is_some() {
            bail!("Postgres runs on the directory that is to be replaced");
        }
        std::fs::remove_dir_all(self.data()).context("cannot remove the data directory")?;
        copy_tree(&copy.directory, &self.data())
    }

    /// Takes connections, as others do who share the database, until it gives no more; dropped, they are free again.
    pub fn occupy(&self) -> Result<Vec<TcpStream>> {
        let address: SocketAddr = self.authority().parse()?;
        self.host.namespace.run(|| {
            let mut taken = Vec::new();
            while let Some(connection) = log_in(address)? {
                taken.push(connection);
            }
            Ok(taken)
        })?
    }

    fn kill(&mut self) -> Result<Instant> {
        let at = self.freeze()?;
        let children = self.children()?;
        children.iter().for_each(|child| {
            kill(*child, Signal::SIGKILL).ok();
        });
        self.process()?.kill()?;
        self.process = None;
        wait_until("the killed Postgres is gone", END_TIMEOUT, || {
            Ok(children.iter().all(|child| has_ended(*child)).then_some(()))
        })?;
        Ok(at)
    }

    fn each_child(&mut self, signal: Signal) -> Result<()> {
        for child in self.children()? {
            // One that has just ended needs no signal.
            kill(child, signal).ok();
        }
        Ok(())
    }

    fn children(&mut self) -> Result<Vec<Pid>> {
        let pid = self.pid()?;
        let path = format!("/proc/{pid}/task/{pid}/children");
        let text = std::fs::read_to_string(path).context("the kernel does not list children")?;
        Ok(text.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect())
    }

    fn pid(&mut self) -> Result<Pid> {
        let pid = self.process()?.pid();
        Ok(Pid::from_raw(i32::try_from(pid).context("a process id fits")?))
    }
}

/// A connection that has logged in and asks nothing; `None` where it was refused.
fn log_in(address: SocketAddr) -> Result<Option<TcpStream>> {
    const PROTOCOL_3: [u8; 4] = [0, 3, 0, 0];
    const READY: [u8; 6] = [b'Z', 0, 0, 0, 5, b'I'];
    let names = format!("user\0{USER}\0database\0{USER}\0\0");
    let length = u32::try_from(8 + names.len()).context("a short message")?.to_be_bytes();
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(END_TIMEOUT))?;
    connection.write_all(&[&length[..], &PROTOCOL_3, names.as_bytes()].concat())?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 1024]);
    while !answer.ends_with(&READY) {
        match connection.read(&mut buffer) {
            Ok(0) | Err(_) => return Ok(None),
            Ok(length) => answer.extend_from_slice(&buffer[..length]),
        }
    }
    Ok(Some(connection))
}

/// Gone, or a zombie that nobody waits for.
fn has_ended(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.map_or(true, |stat| stat.contains(") Z "))
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let output = Command::new("cp").arg("-a").arg(from).arg(to).output().context("cannot run cp")?;
    if !output.status.success() {
        bail!("cannot copy {}: {}", from.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
