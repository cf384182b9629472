//! The scenarios: what the mesh must show, on real processes in the lab.
//!
//! `cargo test -p netns-tests --release [-- FILTER..] [--list]`. Long and quiet scenarios run together in the background,
//! those that measure milliseconds one at a time. The last line is `N passed, N failed`, and the exit code says the same.

#![expect(clippy::print_stdout, reason = "the report is this program's output")]

mod lab;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use netns_tests::binaries::Binaries;
use netns_tests::figures::ms;
use netns_tests::sandbox;
use netns_tests::scenario::{Scenario, Verdict};

/// How a scenario may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// Measures short spans: alone.
    Alone,
    /// Waits most of its time: together with others.
    Quiet,
}

struct Case {
    name: &'static str,
    pace: Pace,
    run: fn(&mut Scenario) -> Result<()>,
}

const fn alone(name: &'static str, run: fn(&mut Scenario) -> Result<()>) -> Case {
    Case { name, pace: Pace::Alone, run }
}

const fn quiet(name: &'static str, run: fn(&mut Scenario) -> Result<()>) -> Case {
    Case { name, pace: Pace::Quiet, run }
}

/// All there are; [`alone`] ones run in this order.
const CASES: &[Case] = &[
    alone("lab_gap_meter_counts_what_a_cut_loses", lab::gap_meter_counts_what_a_cut_loses),
    alone("lab_one_way_faults_and_loss_do_what_they_say", lab::one_way_faults_and_loss_do_what_they_say),
    alone("lab_capture_sees_a_packet_and_silence", lab::capture_sees_a_packet_and_silence),
    alone("lab_routes_and_addresses_move", lab::routes_and_addresses_move),
    alone("lab_signals_reach_processes_and_drop_ends_them", lab::signals_reach_processes_and_drop_ends_them),
    alone("lab_postgres_syncs_and_goes", lab::postgres_syncs_and_goes),
];

/// What cargo and people pass.
struct Arguments {
    filters: Vec<String>,
    list: bool,
}

impl Arguments {
    fn parse() -> Self {
        let (flags, filters): (Vec<String>, Vec<String>) =
            std::env::args().skip(1).partition(|argument| argument.starts_with('-'));
        Self { filters, list: flags.iter().any(|flag| flag == "--list") }
    }

    fn wants(&self, case: &Case) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| case.name.contains(filter.as_str()))
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let wanted: Vec<&Case> = CASES.iter().filter(|case| arguments.wants(case)).collect();
    if arguments.list {
        wanted.iter().for_each(|case| println!("{}: test", case.name));
        return Ok(());
    }
    let needs_binaries = wanted.iter().any(|case| !case.name.starts_with("lab_"));
    if needs_binaries && !sandbox::is_inside() {
        Binaries::build()?;
    }
    sandbox::enter()?;
    let binaries = if needs_binaries { Binaries::locate()? } else { Binaries::none() };
    let run = Run::new(binaries)?;
    run.all(&wanted);
    std::process::exit(run.conclude());
}

/// One run of many scenarios.
struct Run {
    root: PathBuf,
    binaries: Binaries,
    passed: AtomicUsize,
    failed: Mutex<Vec<&'static str>>,
    output: Mutex<()>,
}

impl Run {
    fn new(binaries: Binaries) -> Result<Self> {
        let root = tempfile::Builder::new().prefix("holdfast-lab-").tempdir()?.keep();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&root, open).context("cannot open the run's directory to Postgres' user")?;
        Ok(Self {
            root,
            binaries,
            passed: AtomicUsize::new(0),
            failed: Mutex::default(),
            output: Mutex::new(()),
        })
    }

    fn all(&self, cases: &[&'static Case]) {
        std::thread::scope(|scope| {
            for case in cases.iter().filter(|case| case.pace == Pace::Quiet) {
                scope.spawn(|| self.one(case));
            }
            cases.iter().filter(|case| case.pace == Pace::Alone).for_each(|case| self.one(case));
        });
    }

    fn one(&self, case: &'static Case) {
        let verdict = match Scenario::new(case.name, &self.root, &self.binaries) {
            Ok(mut scenario) => {
                let result = caught(case, &mut scenario);
                scenario.conclude(result)
            }
            Err(error) => Verdict::not_started(&self.root, &error),
        };
        if verdict.is_ok() {
            self.passed.fetch_add(1, Ordering::Relaxed);
        } else if let Ok(mut failed) = self.failed.lock() {
            failed.push(case.name);
        }
        self.print(case, &verdict);
        if verdict.is_ok() {
            remove(&verdict.directory);
        }
    }

    fn print(&self, case: &Case, verdict: &Verdict) {
        let _one_at_a_time = self.output.lock();
        let word = if verdict.is_ok() { "ok" } else { "FAILED" };
        println!("{} .. {word} ({})", case.name, ms(verdict.took));
        verdict.notes.iter().for_each(|note| println!("    {note}"));
        verdict.failures.iter().for_each(|failure| println!("  ! {failure}"));
        if !verdict.is_ok() {
            println!("  logs in {}:\n{}", verdict.directory.display(), verdict.log_tails(12));
        }
    }

    /// The summary; returns the exit code.
    fn conclude(self) -> i32 {
        let passed = self.passed.into_inner();
        let failed = self.failed.into_inner().unwrap_or_default();
        failed.iter().for_each(|name| println!("FAILED: {name}"));
        println!("{passed} passed, {} failed", failed.len());
        if failed.is_empty() {
            remove(&self.root);
        }
        i32::from(!failed.is_empty())
    }
}

/// Runs a case; a panic in it is a failure of this case alone.
fn caught(case: &Case, scenario: &mut Scenario) -> Result<()> {
    let run = std::panic::AssertUnwindSafe(|| (case.run)(scenario));
    std::panic::catch_unwind(run).unwrap_or_else(|_| Err(anyhow::anyhow!("the scenario panicked")))
}

fn remove(directory: &Path) {
    if let Err(error) = std::fs::remove_dir_all(directory) {
        println!("  cannot remove {}: {error}", directory.display());
    }
}
