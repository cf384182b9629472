//! `make bench-tunnel`: the tunnel beside other WireGuard programs, interleaved, in one run.
//!
//! ```text
//!   left: wgl 198.18.0.1 ── veth 192.0.2.1/24 ──── 192.0.2.2/24 ── wgr 198.18.0.2 :right
//! ```
//!
//! Both ends run the same program; `veth` is the cable without any. In each round every program is started anew, measured
//! and ended, one after the other, so that a slow minute of the machine strikes all of them alike. Printed are
//! medians with the lowest and the highest, and how ours compares within the rounds.

#![expect(clippy::print_stdout, reason = "the figures are this program's output")]

mod load;
mod pair;
mod table;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use netns_tests::binaries::Binaries;
use netns_tests::sandbox;
use netns_tests::wireguard::Program;

use crate::load::LOADS;
use crate::pair::Pair;
use crate::table::Table;

#[derive(Parser)]
struct Arguments {
    /// Where packaging/build-peers.sh put the other programs
    #[arg(long, default_value = "target/peers")]
    peers: PathBuf,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each load runs
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Measure only these programs (veth and holdfast among them)
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

fn main() -> Result<()> {
    sandbox::enter()?;
    sandbox::own_run_directory()?;
    let arguments = Arguments::parse();
    let root = tempfile::Builder::new().prefix("holdfast-bench-").tempdir()?;
    let others = Program::others(&arguments.peers)?;
    let ours = Program::ours(&Binaries::locate()?.agent);
    let mut programs: Vec<Option<Program>> = vec![Some(ours)];
    programs.extend(others.into_iter().map(Some));
    programs.push(None);
    programs.retain(|program| {
        arguments.only.is_empty() || arguments.only.iter().any(|name| name == name_of(program.as_ref()))
    });
    let versions = std::fs::read_to_string(arguments.peers.join("versions")).unwrap_or_default();
    println!("{versions}{} rounds, {} s each load\n", arguments.rounds, arguments.seconds);
    let mut table = Table::default();
    for round in 1..=arguments.rounds {
        for program in &programs {
            let name = name_of(program.as_ref());
            let pair = Pair::start(program.as_ref(), root.path())
                .with_context(|| format!("round {round}, {name}"))?;
            for load in LOADS {
                let figures = (load.run)(&pair, Duration::from_secs(arguments.seconds))
                    .with_context(|| format!("round {round}, {name}, {}", load.name))?;
                table.add(name, load.name, figures);
            }
            table.add(name, "memory", pair.memory()?);
        }
        eprintln!("round {round} of {}", arguments.rounds);
    }
    println!("{table}");
    Ok(())
}

fn name_of(program: Option<&Program>) -> &str {
    program.map_or("veth", |program| program.name.as_str())
}
