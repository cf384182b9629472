//! One scenario under way: its directory, what it measured, what it found wrong, and the judgement of its logs.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::binaries::Binaries;
use crate::figures::{Bound, Samples, ms};
use crate::ping::{PingReport, Pinger};
use crate::stillness;

/// What is measured waits for programs so often, one after the other: who tells, who hears, who follows; an agent's patience with
/// a silent server is four of its round trips, in which two programs take part.
const PROGRAMS_IN_A_ROW: u32 = 10;

/// The context a scenario gets, and its report.
pub struct Scenario {
    pub directory: PathBuf,
    pub binaries: Binaries,
    notes: Vec<String>,
    failures: Vec<String>,
    expected: Vec<String>,
    started_at: Instant,
}

impl Scenario {
    /// `root` is a directory for all scenarios of a run; logs and state go into one below it.
    pub fn new(name: &str, root: &Path, binaries: &Binaries) -> Result<Self> {
        let directory = root.join(name);
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        stillness::begin();
        Ok(Self {
            directory,
            binaries: binaries.clone(),
            notes: Vec::new(),
            failures: Vec::new(),
            expected: Vec::new(),
            started_at: Instant::now(),
        })
    }

    /// Prints the samples' figures and holds them to their bounds, each [`Scenario::widened`].
    pub fn figure(&mut self, samples: &Samples, bounds: &[Bound]) {
        self.notes.push(samples.to_string());
        let room = self.room();
        if !room.is_zero() {
            self.notes.push(format!(
                "the machine makes programs wait: bounds are {} wider, and none more than twice itself",
                ms(room)
            ));
        }
        let bounds = bounds.iter().map(|bound| bound.map(|limit| widened(limit, room)));
        self.failures.extend(bounds.filter_map(|bound| samples.breach(bound)));
    }

    /// What a bound is on this machine, as it was since the scenario began: itself where programs are run when they want to be, and twice
    /// itself at most, or a busy machine would excuse everything.
    pub fn widened(&self, limit: Duration) -> Duration {
        widened(limit, self.room())
    }

    fn room(&self) -> Duration {
        stillness::longest_since(self.started_at) * PROGRAMS_IN_A_ROW
    }

    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Records a failure without ending the scenario.
    pub fn require(&mut self, holds: bool, otherwise: impl Into<String>) {
        if !holds {
            self.failures.push(otherwise.into());
        }
    }

    /// A warning that contains `text` is part of the scenario.
    pub fn expect_warning(&mut self, text: impl Into<String>) {
        self.expected.push(text.into());
    }

    /// Stops the meters; every ping must have been answered.
    pub fn none_lost(&mut self, pingers: Vec<Pinger>) -> Result<()> {
        let reports: Vec<PingReport> = pingers.into_iter().map(Pinger::finish).collect::<Result<_>>()?;
        let lost: usize = reports.iter().map(PingReport::lost).sum();
        let sent: usize = reports.iter().map(PingReport::sent).sum();
        let gap = reports.iter().map(PingReport::longest_gap).max().unwrap_or_default();
        let slowest = reports.iter().map(PingReport::slowest).max().unwrap_or_default();
        self.note(format!(
            "pings: {lost} of {sent} lost; longest gap {}, slowest answer {}",
            ms(gap),
            ms(slowest)
        ));
        self.require(sent > 0, "no ping was sent");
        for report in reports.iter().filter(|report| report.lost() > 0) {
            let when = report.losses_since(self.started_at);
            let first = when.first().copied().unwrap_or_default();
            let last = when.last().copied().unwrap_or_default();
            self.failures.push(format!(
                "{}: {} pings lost, sent {} to {} into the scenario",
                report.name,
                report.lost(),
                ms(first),
                ms(last)
            ));
        }
        Ok(())
    }

    /// Ends the scenario with what it returned, and judges the logs. All processes must have ended by now.
    pub fn conclude(mut self, result: Result<()>) -> Verdict {
        if let Err(error) = result {
            self.failures.push(format!("{error:#}"));
        }
        self.failures.extend(self.unexpected_log_lines());
        Verdict {
            notes: self.notes,
            failures: self.failures,
            directory: self.directory,
            took: self.started_at.elapsed(),
        }
    }

    fn unexpected_log_lines(&self) -> Vec<String> {
        let mut found = Vec::new();
        for log in logs_in(&self.directory) {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let odd = text.lines().filter(|line| self.is_odd(line));
            let name = log.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let odd: Vec<&str> = odd.collect();
            found.extend(odd.iter().take(3).map(|line| format!("{name}: {line}")));
            if odd.len() > 3 {
                found.push(format!("{name}: and {} such lines more", odd.len() - 3));
            }
        }
        found
    }

    fn is_odd(&self, line: &str) -> bool {
        match level_of(line) {
            Level::Error => true,
            Level::Warning => !self.expected.iter().any(|text| line.contains(text)),
            Level::Other => line.contains("panicked at"),
        }
    }
}

fn widened(limit: Duration, room: Duration) -> Duration {
    limit + room.min(limit)
}

/// What became of a scenario.
pub struct Verdict {
    pub notes: Vec<String>,
    pub failures: Vec<String>,
    pub directory: PathBuf,
    pub took: Duration,
}

impl Verdict {
    /// Of a scenario that could not even begin.
    pub fn not_started(directory: &Path, error: &anyhow::Error) -> Self {
        Self {
            notes: Vec::new(),
            failures: vec![format!("{error:#}")],
            directory: directory.to_owned(),
            took: Default::default(),
        }
    }

    pub fn is_ok(&self) -> bool {
        self.failures.is_empty()
    }
}

/// The last lines of every log in `directory`, to see what led to a failure.
pub fn log_tails(directory: &Path, lines: usize) -> String {
    let mut tails = String::new();
    for log in logs_in(directory) {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        let name = log.file_name().unwrap_or_default().to_string_lossy();
        for line in &all[all.len().saturating_sub(lines)..] {
            tails.push_str(&format!("    {name}: {line}\n"));
        }
    }
    tails
}

fn logs_in(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut logs: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
    logs.sort();
    logs
}

enum Level {
    Error,
    Warning,
    Other,
}

/// The level stands among the first words of a line: after the time, if there is one.
fn level_of(line: &str) -> Level {
    for word in line.split_whitespace().take(3) {
        match word {
            "ERROR" => return Level::Error,
            "WARN" => return Level::Warning,
            _ => {}
        }
    }
    Level::Other
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario(log: &str) -> (tempfile::TempDir, Scenario) {
        let root = tempfile::tempdir().unwrap();
        let binaries = Binaries { agent: "agent".into(), server: "server".into() };
        let scenario = Scenario::new("x", root.path(), &binaries).unwrap();
        std::fs::write(scenario.directory.join("a.log"), log).unwrap();
        (root, scenario)
    }

    #[test]
    fn an_error_and_an_unexpected_warning_fail_a_scenario_and_an_expected_one_does_not() {
        let log = "2026-01-01T00:00:00Z  INFO x: fine, no ERROR\n\
                   2026-01-01T00:00:00Z  WARN x: idle timeout below its minimum\n\
                   2026-01-01T00:00:00Z  WARN x: something else\n\
                   2026-01-01T00:00:00Z ERROR x: broken\n";
        let (_root, mut scenario) = scenario(log);
        scenario.expect_warning("idle timeout");
        let verdict = scenario.conclude(Ok(()));
        assert_eq!(verdict.failures.len(), 2, "{:?}", verdict.failures);
        assert!(verdict.failures[0].contains("something else") && verdict.failures[1].contains("broken"));
    }

    #[test]
    fn a_panic_in_a_log_fails_a_scenario() {
        let (_root, scenario) = scenario("thread 'main' panicked at src/x.rs:1:1:\n");
        assert!(!scenario.conclude(Ok(())).is_ok());
    }

    #[test]
    fn a_bound_is_widened_by_what_the_machine_was_late_and_by_itself_at_most() {
        let [limit, short, long] = [200, 70, 3000].map(Duration::from_millis);
        assert_eq!(widened(limit, Duration::ZERO), limit);
        assert_eq!(widened(limit, short), limit + short);
        assert_eq!(widened(limit, long), 2 * limit);
    }

    #[test]
    fn a_figure_far_above_its_bound_fails_a_scenario_on_any_machine() {
        let (_root, mut scenario) = scenario("");
        let mut samples = Samples::new("x");
        let limit = Duration::from_millis(1);
        samples.push(2 * limit + Duration::from_nanos(1));
        for bound in [Bound::Median(limit), Bound::P99(limit), Bound::Worst(limit)] {
            scenario.figure(&samples, &[bound]);
        }
        assert_eq!(scenario.conclude(Ok(())).failures.len(), 3);
    }

    #[test]
    fn a_quiet_log_and_a_result_that_is_ok_pass() {
        let (_root, scenario) = scenario("2026-01-01T00:00:00Z  INFO x: fine\n");
        assert!(scenario.conclude(Ok(())).is_ok());
    }
}
