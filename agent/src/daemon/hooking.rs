//! Runs the commands that are told whether somebody uses a claim. Which one is next is decided in `agent_core::hooks`.

use crate::{
    config::{CommandLine, HookLines, Settings},
    platform::{Leftovers, boot_time, run_shell},
};
use agent_core::{
    BootTime,
    hooks::{Hooks, Run, Turn},
};
use ipnet::IpNet;
use std::time::Duration;
use tokio::task::JoinSet;

/// A command that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(30);
/// What is run at the end of the agent is waited for so long in all.
const ENDING_TIME: Duration = Duration::from_secs(30);

/// Whose command it was, and how it ended.
pub(super) type Hooked = (IpNet, Result<(), String>);

/// Outlives the core.
pub(super) struct Hooking {
    machine: Hooks,
    lines: HookLines,
    runs: JoinSet<Hooked>,
    interface: String,
}

impl Hooking {
    pub(super) fn new(interface: &str, settings: &Settings) -> Self {
        let mut machine = Hooks::default();
        machine.set_claims(&settings.claims);
        Self { machine, lines: settings.hooks.clone(), runs: JoinSet::new(), interface: interface.to_owned() }
    }

    /// Other settings, from the next change on; but another `--on-serving` is told of the users that there are.
    pub(super) fn take(&mut self, settings: &Settings) {
        let lines = std::mem::replace(&mut self.lines, settings.hooks.clone());
        self.machine.set_claims(&settings.claims);
        if self.lines.on_serving.is_some() && self.lines.on_serving != lines.on_serving {
            self.machine.tell_users_again();
        }
    }

    pub(super) fn set_users(&mut self, prefix: IpNet, users: u64) {
        self.machine.set_users(prefix, users);
    }

    pub(super) fn set_held(&mut self, prefix: IpNet, fence: Option<u64>) {
        self.machine.set_held(prefix, fence);
    }

    /// The core starts anew, and knows of nobody.
    pub(super) fn forget_users(&mut self) {
        self.machine.end();
        self.start_due(boot_time());
    }

    /// The next command that is over.
    pub(super) async fn done(&mut self) -> Hooked {
        loop {
            match self.runs.join_next().await {
                Some(Ok(hooked)) => return hooked,
                // Nothing tells them to end before the end.
                Some(Err(error)) => tracing::error!(%error, "a command's task failed"),
                None => std::future::pending().await,
            }
        }
    }

    pub(super) fn on_done(&mut self, (prefix, result): Hooked) {
        if let Err(trouble) = &result {
            tracing::warn!("{trouble}");
        }
        self.machine.handle_done(&prefix, result);
        self.start_due(boot_time());
    }

    /// For people.
    pub(super) fn troubles(&self) -> impl Iterator<Item = String> {
        self.machine.troubles()
    }

    /// Nobody is served any more: runs what is to know that, and waits for it.
    pub(super) async fn end(mut self) {
        self.forget_users();
        let all = async {
            while !self.machine.is_quiet() {
                let hooked = self.done().await;
                self.on_done(hooked);
            }
        };
        if tokio::time::timeout(ENDING_TIME, all).await.is_err() {
            tracing::warn!("commands of --on-idle take too long: they are killed");
        }
    }

    /// When the next command is to be started.
    pub(super) fn due(&self) -> Option<BootTime> {
        self.machine.poll_timeout()
    }

    /// Once all that changed in a turn is known: a command is told no state between two.
    pub(super) fn start_due(&mut self, now: BootTime) {
        while let Some(run) = self.machine.poll_run(now) {
            let line = match run.turn {
                Turn::Serving => &self.lines.on_serving,
                Turn::Idle => &self.lines.on_idle,
            };
            match line.clone() {
                Some(line) => drop(self.runs.spawn(execute(run, line, self.interface.clone()))),
                None => self.machine.handle_done(&run.prefix, Ok(())),
            }
        }
    }
}

async fn execute(run: Run, line: CommandLine, interface: String) -> Hooked {
    let Run { prefix, turn, users, fence } = run;
    let option = match turn {
        Turn::Serving => "--on-serving",
        Turn::Idle => "--on-idle",
    };
    tracing::info!(%prefix, users, option, "a command is run");
    let environment = [
        ("HOLDFAST_CLAIM", prefix.to_string()),
        ("HOLDFAST_USERS", users.to_string()),
        ("HOLDFAST_FENCE", fence.map_or_else(String::new, |fence| fence.to_string())),
        ("HOLDFAST_INTERFACE", interface),
    ];
    let result = run_shell(&line.0, &environment, TIMEOUT, Leftovers::Keep).await;
    (prefix, result.map_err(|why| format!("the command of {option} failed for {prefix}: {why}")))
}
