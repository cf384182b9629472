//! Follows an agent by `agent status --json --watch`: every change with the moment it was told.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::start_child;
use crate::status::Status;
use crate::wait::{is_over, retry};

/// Older states are forgotten, so that a watch of many minutes stays small.
const KEPT: usize = 2000;

#[derive(Default)]
struct Told {
    states: Vec<(Instant, Arc<Status>)>,
    broken: Option<String>,
}

type Shared = Arc<(Mutex<Told>, Condvar)>;

/// A running watch. It ends with the daemon it follows.
pub struct Watch {
    shared: Shared,
    child: Child,
}

impl Watch {
    /// `command` is the whole command line; its first line is waited for.
    pub fn start(mut command: impl FnMut() -> Command, timeout: Duration) -> Result<Self> {
        // A daemon that has just been started does not listen yet: the command ends, and is tried again.
        let attempt = || {
            let watch = Self::attach(command())?;
            let patience = timeout.min(Duration::from_secs(3));
            watch.wait(Instant::now(), patience, "a daemon that runs", |status| status.state != "stopped")?;
            Ok(watch)
        };
        retry("a state of the agent to watch", timeout, attempt)
    }

    fn attach(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = start_child(command).context("cannot run the agent")?;
        let (output, errors) = (child.stdout.take(), child.stderr.take());
        let output = output.context("a piped output is there")?;
        let shared: Shared = Arc::default();
        let into = Arc::clone(&shared);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                tell(&into, Instant::now(), &line);
            }
            let said = errors.map(std::io::read_to_string).and_then(Result::ok).unwrap_or_default();
            stop(&into, format!("the watch ended: {}", said.trim()));
        });
        Ok(Self { shared, child })
    }

    /// The newest state.
    pub fn now(&self) -> Result<Arc<Status>> {
        let told = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.states.last().map(|(_, status)| Arc::clone(status)).context("no state was told yet")
    }

    /// How many states were told since `moment`.
    pub fn states_since(&self, moment: Instant) -> Vec<(Instant, Arc<Status>)> {
        let told = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.states.iter().filter(|(at, _)| *at >= moment).cloned().collect()
    }

    /// The first state told at or after `since`, or the one in force then, that `holds`.
    pub fn wait(
        &self,
        since: Instant,
        timeout: Duration,
        what: &str,
        holds: impl Fn(&Status) -> bool,
    ) -> Result<(Instant, Arc<Status>)> {
        let (lock, changed) = &*self.shared;
        let begun = Instant::now();
        let mut told = lock.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let from = told.states.partition_point(|(at, _)| *at < since).saturating_sub(1);
            if let Some((at, status)) = told.states[from..].iter().find(|(_, status)| holds(status)) {
                return Ok(((*at).max(since), Arc::clone(status)));
            }
            let end = match &told.broken {
                Some(broken) => broken.clone(),
                None if is_over(begun, timeout) => format!("waited {timeout:?} in vain"),
                None => {
                    // A patience that was made longer is looked at again soon.
                    let left = timeout.saturating_sub(begun.elapsed()).max(Duration::from_millis(10));
                    told = changed.wait_timeout(told, left).unwrap_or_else(PoisonError::into_inner).0;
                    continue;
                }
            };
            let last = told.states.last().map_or("none".to_owned(), |(_, status)| summary(status));
            bail!("{what}: {end}; last state: {last}");
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn tell(shared: &Shared, at: Instant, line: &str) {
    match serde_json::from_str::<Status>(line) {
        Ok(status) => {
            let mut told = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
            if told.states.len() >= KEPT {
                told.states.drain(..KEPT / 2);
            }
            told.states.push((at, Arc::new(status)));
        }
        Err(error) => return stop(shared, format!("not the documented JSON ({error}): {line:.200}")),
    }
    shared.1.notify_all();
}

fn stop(shared: &Shared, why: String) {
    shared.0.lock().unwrap_or_else(PoisonError::into_inner).broken.get_or_insert(why);
    shared.1.notify_all();
}

/// One line about a state, for messages.
pub fn summary(status: &Status) -> String {
    let control = &status.control;
    let name = |server: &Option<crate::status::ServerRef>| {
        server.as_ref().map_or("none".to_owned(), |server| server.url.clone())
    };
    let peers: Vec<String> =
        status.peers.iter().map(|peer| format!("{} {}", peer.name, peer.tunnel)).collect();
    format!(
        "{}, control {}, server {}, standby {}, map {}, peers [{}]",
        status.state,
        control.state,
        name(&control.server),
        name(&control.standby),
        control.map_source,
        peers.join(", ")
    )
}
