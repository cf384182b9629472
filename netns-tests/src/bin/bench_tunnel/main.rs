//! `make bench-tunnel`: the tunnel beside other WireGuard programs, interleaved, in one run.
//!
//! ```text
//!   left: wgl 198.18.0.1 ── veth 192.0.2.1/24 ──── 192.0.2.2/24 ── wgr 198.18.0.2 :right
//! ```
//!
//! Both ends run the same program; `veth` is the cable without any. In each round every program is started anew, measured
//! and ended, one after the other, so that a slow minute of the machine strikes all of them alike. Printed are
//! medians with the lowest and the highest, how ours compares within the rounds, what the filter costs, how close the data plane is to
//! the limit, which a build of it that copies instead of encrypting tells, and which targets are met. It fails by the gates among them.
//!
//! Ours runs one worker everywhere, but where two are measured; filter and limit are differences of one program, the data plane's
//! example `endpoint`.

#![expect(clippy::print_stdout, reason = "the figures are this program's output")]

mod limit;
mod load;
mod pair;
mod table;
mod targets;

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use netns_tests::binaries::Binaries;
use netns_tests::sandbox;
use netns_tests::wireguard::Program;

use crate::limit::{Limits, seal_and_open};
use crate::load::{FEW, LOADS, Work};
use crate::pair::Pair;
use crate::table::{Cost, Figure, Table};
use crate::targets::Targets;

/// `agent wg`.
const OURS: &str = "holdfast";
const TWO_WORKERS: &str = "2 workers";
/// The same data plane without the agent.
const ENDPOINT: &str = "data plane";
/// That with the packet filter: one rule that lets all pass.
const FILTER: &str = "filter";
/// That with hundreds of rules and thousands of flows.
const RULES: &str = "filter of a mesh";
/// That without encryption.
const COPY: &str = "copy for AEAD";
/// No program at all.
const CABLE: &str = "veth";
/// Ours, too: under a few loads, and not compared with as with others.
const PARTS: [&str; 5] = [TWO_WORKERS, ENDPOINT, FILTER, RULES, COPY];
/// Beneath a target directory of cargo's.
const EXAMPLE: &str = "release/examples/endpoint";

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
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// How long each load runs
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Measure only these programs, by their names in the tables
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

impl Arguments {
    /// What is measured, in turns; `None` is the cable.
    fn programs(&self) -> Result<Vec<Option<Program>>> {
        let ours = Program::ours(&Binaries::locate()?.agent).with_workers(1);
        let mut two_workers = ours.clone().with_workers(2);
        TWO_WORKERS.clone_into(&mut two_workers.name);
        let mut programs = vec![Some(ours), Some(two_workers)];
        for (name, target, arguments) in [
            (ENDPOINT, &self.target, &[][..]),
            (FILTER, &self.target, &["--filter", "all"]),
            (RULES, &self.target, &["--filter", "mesh"]),
            (COPY, &self.copy_target, &[]),
        ] {
            programs.push(Some(Program::endpoint(name, &target.join(EXAMPLE), arguments)?.with_workers(1)));
        }
        programs.extend(Program::others(&self.peers)?.into_iter().map(Some));
        programs.push(None);
        let names: Vec<&str> = programs.iter().map(|program| name_of(program.as_ref())).collect();
        for name in &self.only {
            ensure!(names.contains(&name.as_str()), "there is no {name:?}, only {}", names.join(", "));
        }
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
    let limits = Limits { table: &table, threads: cores.min(2) };
    let targets = Targets::of(&table, &limits);
    println!("{table}\n{}\n{limits}\n{targets}", Cost(&table));
    match targets.broken(arguments.only.is_empty()).as_slice() {
        [] => Ok(()),
        broken => bail!("gates that were not kept: {}", broken.join("; ")),
    }
}

fn measure_encryption(table: &mut Table) -> Result<()> {
    for work in Work::ALL {
        let time = seal_and_open(work.packet_bytes())?;
        table.add(ENDPOINT, work.aead_name(), vec![Figure::less("ns", time)]);
    }
    Ok(())
}

fn measure(program: Option<&Program>, directory: &Path, time: Duration, table: &mut Table) -> Result<()> {
    let name = name_of(program);
    let pair = Pair::start(program, directory)?;
    if name == RULES {
        pair.open_flows()?;
    }
    let is_part = PARTS.contains(&name);
    for load in LOADS.into_iter().filter(|load| !is_part || FEW.contains(&load.name)) {
        let figures = (load.run)(&pair, time).context(load.name)?;
        table.add(name, load.name, figures);
    }
    table.add(name, "memory", pair.memory()?);
    Ok(())
}

fn name_of(program: Option<&Program>) -> &str {
    program.map_or(CABLE, |program| program.name.as_str())
}
