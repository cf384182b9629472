//! `make bench-tunnel`: the tunnel beside other WireGuard programs, interleaved, in one run.
//!
//! ```text
//!   left: wgl 198.18.0.1 ── veth 192.0.2.1/24 ──── 192.0.2.2/24 ── wgr 198.18.0.2 :right
//! ```
//!
//! Both ends run the same program; `veth` is the cable without any. In each round every program is started anew, measured
//! and ended, one after the other, so that a slow minute of the machine strikes all of them alike. Printed are
//! medians with the lowest and the highest, how ours compares within the rounds, what the filter costs, and how close ours is to
//! the limit, which a build of the data plane that copies instead of encrypting tells.

#![expect(clippy::print_stdout, reason = "the figures are this program's output")]

mod limit;
mod load;
mod pair;
mod table;

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use netns_tests::binaries::Binaries;
use netns_tests::sandbox;
use netns_tests::wireguard::Program;

use crate::limit::{Limits, seal_and_open};
use crate::load::{LOADS, Work};
use crate::pair::Pair;
use crate::table::{Cost, Figure, Table};

/// `agent wg`.
const OURS: &str = "holdfast";
/// The same data plane with the packet filter.
const FILTER: &str = "with filter";
/// The same data plane without encryption.
const COPY: &str = "copy for AEAD";
/// No program at all.
const CABLE: &str = "veth";
/// Beneath a target directory of cargo's.
const ENDPOINT: &str = "release/examples/endpoint";

#[derive(Parser)]
struct Arguments {
    /// Where packaging/build-peers.sh put the other programs
    #[arg(long, default_value = "target/peers")]
    peers: PathBuf,
    /// Cargo's target directory with the build of the tunnel's example `endpoint`
    #[arg(long, default_value = "target")]
    target: PathBuf,
    /// Cargo's target directory with the build that copies instead of encrypting
    #[arg(long, default_value = "target/copy")]
    copy_target: PathBuf,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each load runs
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Measure only these programs (veth and holdfast among them)
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

impl Arguments {
    /// What is measured, in turns; `None` is the cable.
    fn programs(&self) -> Result<Vec<Option<Program>>> {
        let endpoint =
            |name, target: &Path, arguments| Program::endpoint(name, &target.join(ENDPOINT), arguments);
        let mut programs = vec![
            Some(Program::ours(&Binaries::locate()?.agent)),
            Some(endpoint(FILTER, &self.target, &["--filter"])?),
            Some(endpoint(COPY, &self.copy_target, &[])?),
        ];
        programs.extend(Program::others(&self.peers)?.into_iter().map(Some));
        programs.push(None);
        programs.retain(|program| {
            self.only.is_empty() || self.only.iter().any(|name| name == name_of(program.as_ref()))
        });
        Ok(programs)
    }
}

fn main() -> Result<()> {
    sandbox::enter()?;
    sandbox::own_run_directory()?;
    let arguments = Arguments::parse();
    let root = tempfile::Builder::new().prefix("holdfast-bench-").tempdir()?;
    let programs = arguments.programs()?;
    let versions = std::fs::read_to_string(arguments.peers.join("versions")).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let (rounds, seconds) = (arguments.rounds, Duration::from_secs(arguments.seconds));
    println!("{versions}{rounds} rounds, {seconds:?} each load, {cores} cores\n");
    let mut table = Table::default();
    for round in 1..=rounds {
        measure_encryption(&mut table)?;
        for program in &programs {
            let name = name_of(program.as_ref());
            measure(program.as_ref(), root.path(), seconds, &mut table)
                .with_context(|| format!("round {round}, {name}"))?;
        }
        eprintln!("round {round} of {rounds}");
    }
    println!("{table}\n{}\n{}", Cost(&table), Limits { table: &table, threads: cores.min(2) });
    Ok(())
}

fn measure_encryption(table: &mut Table) -> Result<()> {
    for work in Work::ALL {
        let time = seal_and_open(work.packet_bytes())?;
        table.add(OURS, work.aead_name(), vec![Figure::less("ns", time)]);
    }
    Ok(())
}

fn measure(program: Option<&Program>, directory: &Path, time: Duration, table: &mut Table) -> Result<()> {
    let name = name_of(program);
    let pair = Pair::start(program, directory)?;
    for load in LOADS {
        let figures = (load.run)(&pair, time).context(load.name)?;
        table.add(name, load.name, figures);
    }
    table.add(name, "memory", pair.memory()?);
    Ok(())
}

fn name_of(program: Option<&Program>) -> &str {
    program.map_or(CABLE, |program| program.name.as_str())
}
