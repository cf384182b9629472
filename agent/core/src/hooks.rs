//! Programs that are to know whether somebody uses a claim of this node, or whether the node holds one that is exclusive: which command is run next, and which word is skipped.
//!
//! ```text
//!            the first user                         the last user goes
//!   Idle ----------------------> Serving, a run  ------------------------> Idle, a run
//! ```
//!
//! What is claimed exclusively is served from when it is held until it is lost, whoever uses it; another fence is another serving, and all of that is told without delay: another node may serve next. Both are
//! known of every claim at any time, as it may become exclusive, or no longer, while it is in use.
//!
//! For one claim never two run at once, and they run in order. What changed while one ran is told by the next: states that came and went meanwhile are skipped. A command that fails is not run again
//! until the next change. So nothing grows: there is at most one state per claim, and as many runs at once as `AT_ONCE`. Users say themselves that they are some, as often as they like: for one claim runs begin
//! `PACE` apart, the first at once.

use crate::time::BootTime;
use ipnet::IpNet;
use proto::claim::Claim;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// All claims may get their first user in one moment.
const AT_ONCE: usize = 8;
/// Between the beginnings of two runs of one claim.
const PACE: Duration = Duration::from_secs(1);

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

impl State {
    fn fence(self) -> Option<u64> {
        match self {
            Self::Held { fence } => Some(fence),
            Self::Idle | Self::Used => None,
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Hook {
    is_exclusive: bool,
    users: u64,
    fence: Option<u64>,
    /// As was told last: by a run that began, if it is over or not.
    told: State,
    /// There is another command for it since.
    is_news: bool,
    is_running: bool,
    /// The last run began a [`PACE`] earlier.
    not_before: Option<BootTime>,
    trouble: Option<String>,
}

/// The claims that somebody uses, or used.
#[derive(Debug, Clone, Default)]
pub struct Hooks {
    hooks: BTreeMap<IpNet, Hook>,
    exclusive: BTreeSet<IpNet>,
}

impl Hooks {
    /// So many use this claim now.
    pub fn set_users(&mut self, prefix: IpNet, users: u64) {
        self.hook(prefix).users = users;
        self.forget_quiet();
    }

    /// This claim is held exclusively, with this fence; `None`: no more.
    pub fn set_held(&mut self, prefix: IpNet, fence: Option<u64>) {
        self.hook(prefix).fence = fence;
        self.forget_quiet();
    }

    /// Only these are claimed from now on: nobody uses others, and what went wrong with those is of no interest any more.
    pub fn set_claims(&mut self, claims: &[Claim]) {
        let exclusive = claims.iter().filter(|claim| claim.exclusive);
        self.exclusive = exclusive.map(|claim| claim.prefix).collect();
        for (prefix, hook) in &mut self.hooks {
            hook.is_exclusive = self.exclusive.contains(prefix);
            if !claims.iter().any(|claim| claim.prefix == *prefix) {
                (hook.users, hook.fence, hook.trouble) = (0, None, None);
            }
        }
        self.forget_quiet();
    }

    /// There is another command to be told of users: what is in use is told to it as well.
    pub fn tell_users_again(&mut self) {
        let told = self.hooks.values_mut().filter(|hook| hook.told != State::Idle);
        told.for_each(|hook| hook.is_news = true);
    }

    /// Nobody uses anything any more, which is told without delay.
    pub fn end(&mut self) {
        for hook in self.hooks.values_mut() {
            (hook.users, hook.fence, hook.not_before) = (0, None, None);
        }
        self.forget_quiet();
    }

    /// A command to be run now; to be asked again until there is none.
    pub fn poll_run(&mut self, now: BootTime) -> Option<Run> {
        self.hooks.values_mut().for_each(|hook| _ = hook.not_before.take_if(|at| now >= *at));
        self.forget_quiet();
        if self.running() >= AT_ONCE {
            return None;
        }
        let mut due = self.hooks.iter_mut().filter(|(_, hook)| hook.is_due());
        let (prefix, hook) = due.find(|(_, hook)| hook.waits_until().is_none())?;
        (hook.told, hook.is_running, hook.not_before) = (hook.state(), true, Some(now + PACE));
        hook.is_news = false;
        let (turn, users) = match hook.told {
            State::Idle => (Turn::Idle, 0),
            State::Used | State::Held { .. } => (Turn::Serving, hook.users),
        };
        Some(Run { prefix: *prefix, turn, users, fence: hook.told.fence() })
    }

    /// When to ask for the next one.
    pub fn poll_timeout(&self) -> Option<BootTime> {
        let due = self.hooks.values().filter(|hook| hook.is_due() && self.running() < AT_ONCE);
        due.filter_map(Hook::waits_until).min()
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

    fn hook(&mut self, prefix: IpNet) -> &mut Hook {
        let is_exclusive = self.exclusive.contains(&prefix);
        self.hooks.entry(prefix).or_insert_with(|| Hook { is_exclusive, ..Hook::default() })
    }

    fn forget_quiet(&mut self) {
        self.hooks.retain(|_, hook| {
            (hook.users, hook.fence) != (0, None)
                || hook.told != State::Idle
                || hook.is_running
                || hook.not_before.is_some()
                || hook.trouble.is_some()
        });
    }
}

impl Hook {
    fn state(&self) -> State {
        match (self.is_exclusive, self.fence, self.users) {
            (true, Some(fence), _) => State::Held { fence },
            (true, None, _) | (false, _, 0) => State::Idle,
            (false, _, 1..) => State::Used,
        }
    }

    /// Users come and go as they like. Whoever holds a claim next may serve it at once.
    fn waits_until(&self) -> Option<BootTime> {
        let is_held = self.is_exclusive || self.told.fence().is_some();
        self.not_before.filter(|_| !is_held)
    }

    fn is_due(&self) -> bool {
        let is_news = self.is_news && self.state() != State::Idle;
        !self.is_running && (is_news || self.told != self.state())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Turn::{Idle, Serving};

    const START: BootTime = BootTime::from_duration(Duration::from_secs(100));

    fn prefix(number: u8) -> IpNet {
        format!("10.9.0.{number}/32").parse().unwrap()
    }

    fn run(turn: Turn, users: u64) -> Option<Run> {
        Some(Run { prefix: prefix(1), turn, users, fence: None })
    }

    fn held(fence: u64, users: u64) -> Option<Run> {
        Some(Run { prefix: prefix(1), turn: Serving, users, fence: Some(fence) })
    }

    fn exclusive() -> Hooks {
        let mut hooks = Hooks::default();
        hooks.set_claims(&[Claim { exclusive: true, ..Claim::new(prefix(1)) }]);
        hooks
    }

    fn at(paces: u32) -> BootTime {
        START + PACE * paces
    }

    #[test]
    fn the_first_user_and_the_last_are_told_and_those_between_are_not() {
        let mut hooks = Hooks::default();
        hooks.set_users(prefix(1), 2);
        assert_eq!((hooks.poll_run(START), hooks.poll_run(START)), (run(Serving, 2), None));
        hooks.handle_done(&prefix(1), Ok(()));
        hooks.set_users(prefix(1), 5);
        assert_eq!(hooks.poll_run(at(1)), None);
        hooks.set_users(prefix(1), 0);
        assert_eq!(hooks.poll_run(at(1)), run(Idle, 0));
        hooks.handle_done(&prefix(1), Ok(()));
        assert_eq!(hooks.poll_run(at(2)), None);
        assert!(hooks.is_quiet() && hooks.hooks.is_empty());
    }

    #[test]
    fn who_comes_and_goes_all_the_time_has_commands_run_once_a_second_and_the_last_state_wins() {
        let (mut hooks, mut runs) = (Hooks::default(), Vec::new());
        let ms = Duration::from_millis(1);
        for tenth in 0..50 {
            let now = START + ms * 100 * tenth;
            hooks.set_users(prefix(1), u64::from(tenth % 3 == 0));
            while let Some(run) = hooks.poll_run(now) {
                runs.push((now, run.turn));
                hooks.handle_done(&prefix(1), Ok(()));
            }
        }
        assert_eq!(runs[0], (START, Serving));
        assert!(runs.len() <= 5, "{runs:?}");
        assert!(runs.windows(2).all(|two| two[1].0 >= two[0].0 + PACE && two[1].1 != two[0].1), "{runs:?}");
        hooks.set_users(prefix(1), 0);
        if let Some(due) = hooks.poll_timeout() {
            assert_eq!((hooks.poll_run(due - ms), hooks.poll_run(due)), (None, run(Idle, 0)));
            hooks.handle_done(&prefix(1), Ok(()));
        }
        assert!(hooks.is_quiet() && hooks.poll_timeout().is_none());
        assert!(hooks.poll_run(at(10)).is_none() && hooks.hooks.is_empty());
    }

    #[test]
    fn what_comes_and_goes_while_a_command_runs_is_skipped_and_the_last_state_wins() {
        let mut hooks = Hooks::default();
        hooks.set_users(prefix(1), 1);
        assert_eq!(hooks.poll_run(START), run(Serving, 1));
        for users in [0, 3, 0, 1, 0] {
            hooks.set_users(prefix(1), users);
            assert_eq!(hooks.poll_run(at(2)), None, "never two at once");
        }
        hooks.handle_done(&prefix(1), Ok(()));
        assert_eq!(hooks.poll_run(at(2)), run(Idle, 0));
        for users in [2, 0] {
            hooks.set_users(prefix(1), users);
        }
        hooks.handle_done(&prefix(1), Ok(()));
        assert_eq!((hooks.poll_run(at(3)), hooks.is_quiet()), (None, true));
    }

    #[test]
    fn a_holder_serves_without_users_and_each_fence_is_told() {
        let mut hooks = exclusive();
        hooks.set_held(prefix(1), Some(7));
        assert_eq!(hooks.poll_run(START), held(7, 0));
        for fence in [None, Some(8), None, Some(9)] {
            hooks.set_held(prefix(1), fence);
        }
        hooks.handle_done(&prefix(1), Ok(()));
        assert_eq!(hooks.poll_run(START), held(9, 0));
        hooks.handle_done(&prefix(1), Ok(()));
        hooks.set_held(prefix(1), None);
        assert_eq!(hooks.poll_run(START), run(Idle, 0), "at once: another may hold it");
    }

    #[test]
    fn a_claim_in_use_that_becomes_exclusive_is_idle_at_once_until_it_is_held_and_no_longer_exclusive_its_users_count()
     {
        let mut hooks = Hooks::default();
        let next = |hooks: &mut Hooks| {
            hooks.handle_done(&prefix(1), Ok(()));
            hooks.poll_run(START)
        };
        hooks.set_claims(&[Claim::new(prefix(1))]);
        hooks.set_users(prefix(1), 2);
        assert_eq!(next(&mut hooks), run(Serving, 2));
        hooks.set_claims(&[Claim { exclusive: true, ..Claim::new(prefix(1)) }]);
        assert_eq!(next(&mut hooks), run(Idle, 0));
        hooks.set_users(prefix(1), 0);
        assert_eq!(next(&mut hooks), None);
        hooks.set_held(prefix(1), Some(3));
        assert_eq!(next(&mut hooks), held(3, 0));
        hooks.set_users(prefix(1), 1);
        hooks.set_claims(&[Claim::new(prefix(1))]);
        assert_eq!(next(&mut hooks), run(Serving, 1));
        hooks.set_held(prefix(1), None);
        assert_eq!((next(&mut hooks), hooks.poll_timeout()), (None, None), "its clients are served");
        hooks.set_claims(&[]);
        assert_eq!((next(&mut hooks), hooks.poll_timeout()), (None, Some(at(1))));
        assert_eq!(hooks.poll_run(at(1)), run(Idle, 0));
        hooks.handle_done(&prefix(1), Ok(()));
        assert!(hooks.poll_run(at(2)).is_none() && hooks.hooks.is_empty());
    }

    #[test]
    fn another_command_is_told_once_of_what_is_in_use_and_of_nothing_else() {
        let mut hooks = Hooks::default();
        hooks.set_users(prefix(1), 2);
        assert_eq!(hooks.poll_run(START), run(Serving, 2));
        hooks.tell_users_again();
        assert_eq!(hooks.poll_run(at(2)), None, "never two at once");
        hooks.handle_done(&prefix(1), Ok(()));
        assert_eq!(hooks.poll_run(at(2)), run(Serving, 2));
        hooks.handle_done(&prefix(1), Ok(()));
        assert_eq!((hooks.poll_run(at(3)), hooks.is_quiet()), (None, true));
        hooks.tell_users_again();
        assert_eq!(hooks.poll_run(at(3)), run(Serving, 2));
        hooks.tell_users_again();
        hooks.set_users(prefix(1), 0);
        hooks.handle_done(&prefix(1), Ok(()));
        assert_eq!(hooks.poll_run(at(4)), run(Idle, 0), "nobody is served by then");
        hooks.handle_done(&prefix(1), Ok(()));
        hooks.tell_users_again();
        assert_eq!((hooks.poll_run(at(5)), hooks.is_quiet()), (None, true));
    }

    #[test]
    fn one_that_fails_is_not_run_again_until_the_next_change_and_is_told_until_then() {
        let mut hooks = Hooks::default();
        hooks.set_users(prefix(1), 1);
        hooks.poll_run(START);
        hooks.handle_done(&prefix(1), Err("exit code 3".into()));
        assert_eq!((hooks.poll_run(at(1)), hooks.troubles().count()), (None, 1));
        hooks.set_users(prefix(1), 0);
        assert_eq!(hooks.poll_run(at(1)), run(Idle, 0));
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
                let started: Vec<Run> = std::iter::from_fn(|| hooks.poll_run(START)).collect();
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
