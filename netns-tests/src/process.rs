//! Programs inside namespaces: their logs in files, signals with the time they were sent, an end that is certain.
//!
//! Children ask the kernel to die with their parent. The kernel means the parent *thread* by that, so one thread
//! that lives as long as this process starts them all.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::wait_until;

type Job = Box<dyn FnOnce() + Send>;

static STARTER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();

/// Starts `command` as a child that dies with this process, from the thread that outlives every scenario.
pub(crate) fn start_child(mut command: Command) -> std::io::Result<Child> {
    // SAFETY: prctl is one system call; it neither allocates nor takes a lock between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let starter = STARTER.get_or_init(|| {
        let (sender, jobs) = channel::<Job>();
        std::thread::spawn(move || jobs.into_iter().for_each(|job| job()));
        Mutex::new(sender)
    });
    let (done, result) = channel();
    let job: Job = Box::new(move || drop(done.send(command.spawn())));
    let sent = starter.lock().map(|sender| sender.send(job).is_ok());
    match (sent, result.recv()) {
        (Ok(true), Ok(child)) => child,
        (_, _) => Err(std::io::Error::other("the thread that starts children is gone")),
    }
}

/// A running (or ended) program. Dropping it kills it.
pub struct Process {
    pub name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it prints is appended to `log`.
    pub fn start(name: impl Into<String>, mut command: Command, log: &Path) -> Result<Self> {
        let name = name.into();
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let program = command.get_program().to_string_lossy().into_owned();
        let child = start_child(command).with_context(|| format!("cannot start {program}"))?;
        Ok(Self { name, child, log: log.to_owned() })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`; returns the moment just before.
    pub fn kill(&mut self) -> Result<Instant> {
        let at = self.signal(Signal::SIGKILL)?;
        self.child.wait()?;
        Ok(at)
    }

    /// `kill -9` of what may be ending by itself; whether it was killed.
    pub fn kill_unless_ended(&mut self) -> Result<bool> {
        self.child.kill().with_context(|| format!("cannot kill {}", self.name))?;
        Ok(self.child.wait()?.signal() == Some(libc::SIGKILL))
    }

    /// SIGTERM; returns the moment just before. Does not wait.
    pub fn terminate(&mut self) -> Result<Instant> {
        self.signal(Signal::SIGTERM)
    }

    /// SIGSTOP: alive for its kernel, dead for everybody else.
    pub fn freeze(&mut self) -> Result<Instant> {
        self.signal(Signal::SIGSTOP)
    }

    pub fn thaw(&mut self) -> Result<Instant> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&mut self, signal: Signal) -> Result<Instant> {
        if let Some(status) = self.child.try_wait()? {
            return Err(anyhow!("{} had already ended ({status}): {}", self.name, self.log_tail(5)));
        }
        let pid = i32::try_from(self.child.id()).context("a process id fits")?;
        let at = Instant::now();
        kill(Pid::from_raw(pid), signal).with_context(|| format!("cannot send {signal} to {}", self.name))?;
        Ok(at)
    }

    /// How the program ended, if it did.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for the program to end by itself.
    pub fn wait_end(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let what = format!("{} ends", self.name);
        let child = &mut self.child;
        wait_until(&what, timeout, || Ok(child.try_wait()?)).with_context(|| self.log_tail(5))
    }

    /// Resident memory and processor time used, in that order.
    pub fn usage(&self) -> Result<(u64, Duration)> {
        usage_of(self.pid())
    }

    /// The most resident memory that the program ever had, bytes.
    pub fn peak_memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        let kilobytes: u64 = line.trim_end_matches("kB").trim().parse().context("VmHWM is no number")?;
        Ok(kilobytes << 10)
    }

    /// The number that its next descriptor will have.
    pub fn next_descriptor(&self) -> Result<u64> {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid()))?.flatten();
        let taken: BTreeSet<u64> =
            open.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).collect();
        (0..).find(|number| !taken.contains(number)).context("every number is taken")
    }

    /// Descriptors from `limit` on are refused to it from now on, those it has stay; returns what was the limit.
    pub fn limit_descriptors(&self, limit: u64) -> Result<u64> {
        let pid = i32::try_from(self.pid()).context("a process id fits")?;
        // SAFETY: one system call, which reads one struct of ours and writes the other.
        let (before, done) = unsafe {
            let mut before = std::mem::zeroed::<libc::rlimit>();
            libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut before);
            let new = libc::rlimit { rlim_cur: limit, rlim_max: before.rlim_max };
            (before, libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const new, std::ptr::null_mut()))
        };
        match done {
            0 => Ok(before.rlim_cur),
            _ => Err(std::io::Error::last_os_error()).context("cannot limit the open files of a process"),
        }
    }

    /// The last lines it printed.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already ended is the usual case, and the only error.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Resident bytes and processor time of a process.
pub fn usage_of(pid: u32) -> Result<(u64, Duration)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field, the program's name, may hold blanks; it ends at the last bracket.
    let (_, fields) = stat.rsplit_once(") ").context("/proc/PID/stat without a name")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let number = |index: usize| -> Result<u64> {
        fields.get(index).context("/proc/PID/stat is short")?.parse().context("/proc/PID/stat: no number")
    };
    // Counted from the state, the first field after the name: utime, stime (in ticks of 10 ms), rss (in pages).
    let ticks = number(11)? + number(12)?;
    Ok((number(21)? * 4096, Duration::from_millis(ticks * 10)))
}
