//! Programs that are to know whether somebody uses a claim of this node, or whether the node holds one that is exclusive: which command is run next, and which word is skipped.
//!
//! ```text
//!            the first user                         the last user goes
//!   Idle ----------------------> Serving, a run  ------------------------> Idle, a run
//! ```
//!
//! What is claimed exclusively is served from when it is held until it is lost, whoever uses it; another fence is another serving.
//!
//! For one claim never two run at once, and they run in order. What changed while one ran is told by the next: states that came and went meanwhile are skipped. A command that fails is not run again
//! until the next change. So nothing grows: there is at most one state per claim, and as many runs at once as `AT_ONCE`.

use ipnet::IpNet;
use std::collections::BTreeMap;

/// All claims may get their first user in one moment.
const AT_ONCE: usize = 8;

/// What a command is run for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Serving,
    Idle,
}

/// A command to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub prefix: IpNet,
    pub turn: Turn,
    pub users: u64,
    /// Of what is held exclusively.
    pub fence: Option<u64>,
}

/// What a command is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    Used,
    Held {
        fence: u64,
    },
}

#[derive(Debug, Clone, Default)]
struct Hook {
    users: u64,
    fence: Option<u64>,
    /// As was told last: by a run that began, if it is over or not.
    told: State,
    is_running: bool,
    trouble: Option<String>,
}

/// The claims that somebody uses, or used.
#[derive(Debug, Clone, Default)]
pub struct Hooks {
    hooks: BTreeMap<IpNet, Hook>,
}

impl Hooks {
    /// So many use this claim now.
    pub fn set_users(&mut self, prefix: IpNet, users: u64) {
        self.hooks.entry(prefix).or_default().users = users;
        self.forget_quiet();
    }

    /// This claim is held exclusively, with this fence; `None`: no more.
    pub fn set_held(&mut self, prefix: IpNet, fence: Option<u64>) {
        self.hooks.entry(prefix).or_default().fence = fence;
        self.forget_quiet();
    }

    /// Only these are claimed from now on: what went wrong with others is of no interest any more.
    pub fn set_claims(&mut self, claimed: &[IpNet]) {
        let gone = self.hooks.iter_mut().filter(|(prefix, _)| !claimed.contains(prefix));
        gone.for_each(|(_, hook)| hook.trouble = None);
        self.forget_quiet();
    }

    /// Nobody uses anything any more.
    pub fn end(&mut self) {
        self.hooks.values_mut().for_each(|hook| (hook.users, hook.fence) = (0, None));
        self.forget_quiet();
    }

    /// A command to be run now; to be asked again until there is none.
    pub fn poll_run(&mut self) -> Option<Run> {
        if self.running() >= AT_ONCE {
            return None;
        }
        let (prefix, hook) = self.hooks.iter_mut().find(|(_, hook)| hook.is_due())?;
        (hook.told, hook.is_running) = (hook.state(), true);
        let turn = match hook.told {
            State::Idle => Turn::Idle,
            State::Used | State::Held { .. } => Turn::Serving,
        };
        Some(Run { prefix: *prefix, turn, users: hook.users, fence: hook.fence })
    }

    /// How a run ended.
    pub fn handle_done(&mut self, prefix: &IpNet, result: Result<(), String>) {
        if let Some(hook) = self.hooks.get_mut(prefix) {
            hook.is_running = false;
            hook.trouble = result.err();
        }
        self.forget_quiet();
    }

    /// Nothing runs, and nothing is to be run.
    pub fn is_quiet(&self) -> bool {
        !self.hooks.values().any(|hook| hook.is_running || hook.is_due())
    }

    /// What went wrong with the last run of a claim, for people.
    pub fn troubles(&self) -> impl Iterator<Item = String> {
        self.hooks.values().filter_map(|hook| hook.trouble.clone())
    }

    fn running(&self) -> usize {
        self.hooks.values().filter(|hook| hook.is_running).count()
    }

    fn forget_quiet(&mut self) {
        self.hooks.retain(|_, hook| {
            hook.state() != State::Idle
                || hook.told != State::Idle
                || hook.is_running
                || hook.trouble.is_some()
        });
    }
}

impl Hook {
    fn state(&self) -> State {
        match (self.fence, self.users) {
            (Some(fence), _) => State::Held { fence },
            (None, 0) => State::Idle,
            (None, 1..) => State::Used,
        }
    }

    fn is_due(&self) -> bool {
        !self.is_running && self.told != self.state()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Turn::{Idle, Serving};

    fn prefix(number: u8) -> IpNet {
        format!("10.9.0.{number}/32").parse().unwrap()
    }

    fn run(turn: Turn, users: u64) -> Option<Run> {
        Some(Run { prefix: prefix(1), turn, users, fence: None })
    }

    #[test]
    fn the_first_user_and_the_last_are_told_and_those_between_are_not() {
        let mut hooks = Hooks::default();
        hooks.set_users(prefix(1), 2);
        assert_eq!((hooks.poll_run(), hooks.poll_run()), (run(Serving, 2), None));
        hooks.handle_done(&prefix(1), Ok(()));
        hooks.set_users(prefix(1), 5);
        assert_eq!(hooks.poll_run(), None);
        hooks.set_users(prefix(1), 0);
        assert_eq!(hooks.poll_run(), run(Idle, 0));
        hooks.handle_done(&prefix(1), Ok(()));
        assert!(hooks.is_quiet() && hooks.hooks.is_empty());
    }

    #[test]
    fn what_comes_and_goes_while_a_command_runs_is_skipped_and_the_last_state_wins() {
        let mut hooks = Hooks::default();
        hooks.set_users(prefix(1), 1);
        assert_eq!(hooks.poll_run(), run(Serving, 1));
        for users in [0, 3, 0, 1, 0] {
            hooks.set_users(prefix(1), users);
            assert_eq!(hooks.poll_run(), None, "never two at once");
        }
        hooks.handle_done(&prefix(1), Ok(()));
        assert_eq!(hooks.poll_run(), run(Idle, 0));
        for users in [2, 0] {
            hooks.set_users(prefix(1), users);
        }
        hooks.handle_done(&prefix(1), Ok(()));
        assert_eq!((hooks.poll_run(), hooks.is_quiet()), (None, true));
    }

    #[test]
    fn a_holder_serves_without_users_and_each_fence_is_told() {
        let mut hooks = Hooks::default();
        let held = |fence| Some(Run { prefix: prefix(1), turn: Serving, users: 0, fence: Some(fence) });
        hooks.set_held(prefix(1), Some(7));
        assert_eq!(hooks.poll_run(), held(7));
        for fence in [None, Some(8), None, Some(9)] {
            hooks.set_held(prefix(1), fence);
        }
        hooks.handle_done(&prefix(1), Ok(()));
        assert_eq!(hooks.poll_run(), held(9));
        hooks.handle_done(&prefix(1), Ok(()));
        hooks.end();
        assert_eq!(hooks.poll_run(), run(Idle, 0));
    }

    #[test]
    fn one_that_fails_is_not_run_again_until_the_next_change_and_is_told_until_then() {
        let mut hooks = Hooks::default();
        hooks.set_users(prefix(1), 1);
        hooks.poll_run();
        hooks.handle_done(&prefix(1), Err("exit code 3".into()));
        assert_eq!((hooks.poll_run(), hooks.troubles().count()), (None, 1));
        hooks.set_users(prefix(1), 0);
        assert_eq!(hooks.poll_run(), run(Idle, 0));
        hooks.handle_done(&prefix(1), Ok(()));
        assert_eq!(hooks.troubles().count(), 0);
    }

    #[test]
    fn at_the_end_those_in_use_become_idle_and_few_run_at_once() {
        let mut hooks = Hooks::default();
        for number in 0..100 {
            hooks.set_users(prefix(number), 1);
        }
        for turn in [Serving, Idle] {
            let mut run = Vec::new();
            while !hooks.is_quiet() {
                let started: Vec<Run> = std::iter::from_fn(|| hooks.poll_run()).collect();
                assert!(started.len() <= AT_ONCE && started.iter().all(|run| run.turn == turn));
                started.iter().for_each(|run| hooks.handle_done(&run.prefix, Ok(())));
                run.extend(started);
            }
            assert_eq!(run.len(), 100);
            hooks.end();
        }
        assert!(hooks.is_quiet());
    }
}
