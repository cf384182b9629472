//! Whether what a node serves is well, by checks that somebody configured: all must pass, or the node's claims are withdrawn.
//!
//! ```text
//!               `rise` passes in a row                 `fall` failures in a row
//!   Failing ------------------------------> Passing ------------------------------> Failing
//! ```
//!
//! A check begins as failing: nothing is served that never passed. One that takes longer than the interval is run again when it is done, never twice at once. Nothing is run here: the driver asks
//! [`poll_run`](Checks::poll_run) what to run, and tells how it went.

use crate::time::BootTime;
use std::time::Duration;

/// How often checks run, and how many results in a row count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChecksConfig {
    /// From the start of one run to the start of the next.
    pub interval: Duration,
    /// A run that takes longer has failed; the driver's to enforce.
    pub timeout: Duration,
    pub rise: u32,
    pub fall: u32,
}

impl Default for ChecksConfig {
    fn default() -> Self {
        Self { interval: Duration::from_secs(1), timeout: Duration::from_secs(1), rise: 2, fall: 3 }
    }
}

/// Which check it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Checks of the same key are the same.
    pub key: String,
    /// As people know it.
    pub name: String,
}

#[derive(Debug, Clone)]
struct Check {
    named: Named,
    is_passing: bool,
    /// Results in a row that speak against that.
    against: u32,
    /// Failures in a row.
    failures: u32,
    /// Of the last failure.
    why: Option<String>,
    /// `None` while it runs.
    next_at: Option<BootTime>,
    started_at: BootTime,
}

/// All checks of a node.
#[derive(Debug, Clone, Default)]
pub struct Checks {
    config: ChecksConfig,
    checks: Vec<Check>,
}

impl Checks {
    /// Checks that begin now. Those that `before` had stay as they were.
    pub fn new(checks: Vec<Named>, config: ChecksConfig, before: &Self, now: BootTime) -> Self {
        let check = |named: Named| {
            let known = before.checks.iter().find(|check| check.named.key == named.key);
            match known {
                Some(known) => Check { next_at: Some(now), ..known.clone() },
                None => Check::new(named, now),
            }
        };
        Self { config, checks: checks.into_iter().map(check).collect() }
    }

    /// The place of a check that is to be run now; to be asked again until there is none.
    pub fn poll_run(&mut self, now: BootTime) -> Option<usize> {
        let is_due = |check: &Check| check.next_at.is_some_and(|at| now >= at);
        let place = self.checks.iter().position(is_due)?;
        let check = &mut self.checks[place];
        (check.next_at, check.started_at) = (None, now);
        Some(place)
    }

    /// How a run went.
    pub fn handle_result(&mut self, place: usize, result: Result<(), String>, now: BootTime) {
        let config = self.config;
        if let Some(check) = self.checks.get_mut(place) {
            check.next_at = Some(now.max(check.started_at + config.interval));
            check.take(result, &config);
        }
    }

    /// When the next one is to be run.
    pub fn poll_timeout(&self) -> Option<BootTime> {
        self.checks.iter().filter_map(|check| check.next_at).min()
    }

    /// Why claims are withdrawn, for people; `None`: they are served.
    pub fn withdrawn(&self) -> Option<String> {
        let reasons: Vec<String> =
            self.checks.iter().filter_map(|check| check.reason(self.config.fall)).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    /// Whether a check is known to fail, rather than not known yet.
    pub fn is_failing(&self) -> bool {
        self.checks.iter().any(|check| !check.is_passing && check.failures > 0)
    }
}

impl Check {
    fn new(named: Named, now: BootTime) -> Self {
        Self {
            named,
            is_passing: false,
            against: 0,
            failures: 0,
            why: None,
            next_at: Some(now),
            started_at: now,
        }
    }

    fn take(&mut self, result: Result<(), String>, config: &ChecksConfig) {
        let passed = result.is_ok();
        self.failures = if passed { 0 } else { self.failures.saturating_add(1) };
        if let Err(why) = result {
            self.why = Some(why);
        }
        if passed == self.is_passing {
            self.against = 0;
            return;
        }
        self.against += 1;
        if self.against >= if passed { config.rise } else { config.fall } {
            (self.is_passing, self.against) = (passed, 0);
        }
    }

    /// In words that stay the same while nothing changes: who follows the status is not told of every run.
    fn reason(&self, fall: u32) -> Option<String> {
        let Self { named: Named { name, .. }, why, failures, .. } = self;
        match (self.is_passing, why, (*failures).min(fall)) {
            (true, _, _) => None,
            (false, None, _) => Some(format!("check {name} has not passed yet")),
            (false, Some(why), 0) => {
                Some(format!("check {name} passes again, not often enough yet; before: {why}"))
            }
            (false, Some(why), 1) => Some(format!("check {name} failed: {why}")),
            (false, Some(why), failures) => Some(format!("check {name} failed {failures} times: {why}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn named(names: &[&str]) -> Vec<Named> {
        names.iter().map(|name| Named { key: (*name).to_owned(), name: (*name).to_owned() }).collect()
    }

    /// Checks whose results are told as fast as they are asked for.
    struct Bench {
        checks: Checks,
        now: BootTime,
    }

    impl Bench {
        fn new(names: &[&str]) -> Self {
            let now = BootTime::from_duration(SECOND * 1000);
            Self { checks: Checks::new(named(names), ChecksConfig::default(), &Checks::default(), now), now }
        }

        /// One round; the names of those that fail are given.
        fn round(&mut self, failing: &[usize]) -> Option<String> {
            self.now = self.checks.poll_timeout().unwrap().max(self.now);
            while let Some(place) = self.checks.poll_run(self.now) {
                let result = if failing.contains(&place) { Err("refused".to_owned()) } else { Ok(()) };
                self.checks.handle_result(place, result, self.now);
            }
            self.checks.withdrawn()
        }
    }

    #[test]
    fn nothing_is_served_before_the_rise_and_it_is_withdrawn_at_the_fall() {
        let mut bench = Bench::new(&["tcp:80"]);
        assert_eq!(bench.checks.withdrawn().as_deref(), Some("check tcp:80 has not passed yet"));
        assert!(bench.round(&[]).is_some());
        assert_eq!(bench.round(&[]), None);
        assert_eq!([bench.round(&[0]), bench.round(&[0])], [None, None]);
        assert_eq!(bench.round(&[0]).as_deref(), Some("check tcp:80 failed 3 times: refused"));
        assert!(bench.checks.is_failing());
        assert!(bench.round(&[0]).unwrap().contains("failed 3 times"), "the same words as before");
        assert!(bench.round(&[]).unwrap().contains("passes again, not often enough yet; before: refused"));
        assert_eq!(bench.round(&[]), None);
    }

    #[test]
    fn a_check_that_passes_now_and_then_neither_withdraws_nor_restores() {
        let mut bench = Bench::new(&["tcp:80"]);
        bench.round(&[]);
        bench.round(&[]);
        for _ in 0..20 {
            assert_eq!([bench.round(&[0]), bench.round(&[0]), bench.round(&[])], [None, None, None]);
        }
        (0..3).for_each(|_| drop(bench.round(&[0])));
        for _ in 0..20 {
            assert!(bench.round(&[]).is_some() && bench.round(&[0]).is_some());
        }
    }

    #[test]
    fn all_must_pass_and_each_that_does_not_is_named() {
        let mut bench = Bench::new(&["tcp:80", "tcp:81"]);
        bench.round(&[]);
        assert_eq!(bench.round(&[]), None);
        (0..3).for_each(|_| drop(bench.round(&[1])));
        assert_eq!(bench.checks.withdrawn().as_deref(), Some("check tcp:81 failed 3 times: refused"));
        (0..3).for_each(|_| drop(bench.round(&[0, 1])));
        let both = bench.checks.withdrawn().unwrap();
        assert!(both.contains("tcp:80 failed 3 times") && both.contains("tcp:81 failed 3 times"), "{both}");
    }

    #[test]
    fn one_that_takes_longer_than_the_interval_never_runs_twice_at_once() {
        let mut bench = Bench::new(&["cmd:slow"]);
        let begun = bench.now;
        assert_eq!(bench.checks.poll_run(begun), Some(0));
        assert_eq!((bench.checks.poll_run(begun + SECOND * 5), bench.checks.poll_timeout()), (None, None));
        bench.checks.handle_result(0, Ok(()), begun + SECOND * 5);
        assert_eq!(bench.checks.poll_timeout(), Some(begun + SECOND * 5));
        assert_eq!(bench.checks.poll_run(begun + SECOND * 5), Some(0));
        bench.checks.handle_result(0, Ok(()), begun + SECOND * 5);
        assert_eq!(bench.checks.poll_timeout(), Some(begun + SECOND * 6));
    }

    #[test]
    fn checks_that_stay_are_as_they_were_and_a_new_one_must_pass_first() {
        let mut bench = Bench::new(&["a"]);
        bench.round(&[]);
        bench.round(&[]);
        let again =
            |names: &[&str]| Checks::new(named(names), ChecksConfig::default(), &bench.checks, bench.now);
        assert_eq!(again(&["a"]).withdrawn(), None);
        assert_eq!(again(&["a", "b"]).withdrawn().as_deref(), Some("check b has not passed yet"));
        assert_eq!((again(&[]).withdrawn(), again(&[]).poll_timeout()), (None, None));
    }

    #[test]
    fn results_of_checks_that_are_no_more_change_nothing() {
        let mut bench = Bench::new(&[]);
        bench.checks.handle_result(3, Err("late".into()), bench.now);
        assert_eq!(bench.checks.withdrawn(), None);
    }
}
