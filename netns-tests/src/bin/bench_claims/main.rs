//! `make bench-claims`: shared addresses under every fault, on real processes, beside VpnCloud in the same run.
//!
//! A client pings the shared address every 5 ms, and the one that serves it is struck again and again. Each row has a lab of its own; some run at the same time, ours
//! and VpnCloud's side by side, so that both meet the same noise. Rows are told as they are done, and all of them as a table at the end or when the run is ended early. It fails
//! if a row could not be measured, and with `--strict` if a target was missed, which the table says in any case.

#![expect(clippy::print_stdout, reason = "the figures are this program's output")]

mod check;
mod cost;
mod holdfast;
mod idle;
mod jobs;
mod lab;
mod plan;
mod rounds;
mod several;
mod steady;
mod table;
mod tcp;
mod vpncloud;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::Parser;
use netns_tests::binaries::Binaries;
use netns_tests::figures::ms;
use netns_tests::sandbox;

use crate::jobs::Run;
use crate::vpncloud::Timing;

#[derive(Parser)]
pub(crate) struct Arguments {
    /// Measure only rows whose name contains one of these
    rows: Vec<String>,
    /// Say which rows there are
    #[arg(long)]
    list: bool,
    /// Of each of our rows
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Of each of VpnCloud's, whose rounds take many times as long
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..))]
    their_rounds: u16,
    /// For how long false switches are looked for
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    minutes: u16,
    /// For how many days of one client with two nodes false switches are simulated
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    pair_days: u32,
    /// Fail if a target is missed
    #[arg(long)]
    strict: bool,
    /// Keep the logs and states of all labs here
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Where packaging/build-vpncloud.sh put VpnCloud; without it ours is measured alone
    #[arg(long)]
    vpncloud: Option<PathBuf>,
}

/// What every row is measured with.
pub(crate) struct Bench {
    pub(crate) binaries: Binaries,
    pub(crate) root: PathBuf,
    pub(crate) rounds: usize,
    pub(crate) their_rounds: usize,
    pub(crate) watched_for: Duration,
    pub(crate) pair_days: u32,
    /// And the tightest timing with which it is stable here.
    pub(crate) vpncloud: Option<(PathBuf, Timing)>,
}

fn main() -> Result<()> {
    sandbox::enter()?;
    sandbox::own_run_directory()?;
    let arguments = Arguments::parse();
    let root = tempfile::Builder::new().prefix("holdfast-claims-").tempdir()?;
    let bench = Bench {
        binaries: Binaries::locate()?,
        root: arguments.keep.clone().unwrap_or_else(|| root.path().to_owned()),
        rounds: usize::from(arguments.rounds),
        their_rounds: usize::from(arguments.their_rounds),
        watched_for: Duration::from_secs(60 * u64::from(arguments.minutes)),
        pair_days: arguments.pair_days,
        vpncloud: arguments
            .vpncloud
            .as_deref()
            .map(|directory| their_program(directory, root.path()))
            .transpose()?,
    };
    let begun = Instant::now();
    let mut jobs = plan::jobs(&bench);
    jobs.retain(|job| {
        arguments.rows.is_empty() || arguments.rows.iter().any(|wanted| job.name().contains(wanted.as_str()))
    });
    if arguments.list {
        jobs.iter().for_each(|job| println!("{}", job.name()));
        return Ok(());
    }
    ensure!(!jobs.is_empty(), "no row is called that; --list says which there are");
    let run = Run::new(&jobs);
    run.end_well_when_interrupted();
    run.work_through(&bench, jobs);
    println!("\n{}\nmeasured in {}", run.table(), ms(begun.elapsed()));
    match (run.unmeasured(), run.missed()) {
        (0, 0) => Ok(()),
        (0, targets) if arguments.strict => bail!("{targets} targets were missed"),
        (0, _) => Ok(()),
        (rows, _) => bail!("{rows} rows could not be measured"),
    }
}

/// VpnCloud, with the tightest timing that it keeps up.
fn their_program(directory: &Path, root: &Path) -> Result<(PathBuf, Timing)> {
    let program = directory.join("vpncloud");
    ensure!(program.is_file(), "{} is missing: packaging/build-vpncloud.sh", program.display());
    print!("{}", std::fs::read_to_string(directory.join("versions")).unwrap_or_default());
    let (tightest, words) = vpncloud::tightest(&program, root)?;
    println!(
        "VpnCloud's timing (peer timeout/keepalive): its page's, and the tightest that is stable. {words}\n"
    );
    Ok((program, tightest))
}
