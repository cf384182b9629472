//! `make interop`: ours against WireGuards that others wrote: wireguard-go's newest, boringtun-cli, and the kernel's in a virtual
//! machine.
//!
//! ```text
//!   ours  eth0 203.0.113.1, or 2001:db8::1 ──┐          inside: ours 10.77.0.1, theirs 10.77.0.2,
//!   theirs eth0 203.0.113.2, or 2001:db8::2 ─┤ switch           of each pair
//!   the next pair: 3 and 4, and so on ───────┘
//! ```
//!
//! Every pair goes through its [`Course`](course::Course), all of them at the same time, since most of it is waiting for sessions to age:
//! five minutes in all. Printed is a table with a line for each; it fails if one of them does.

#![expect(clippy::print_stdout, reason = "the table is this program's output")]

mod bulk;
mod course;
mod end;
mod guest;
mod plan;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use netns_tests::binaries::Binaries;
use netns_tests::figures::ms;
use netns_tests::sandbox;
use netns_tests::topology::{Host, Port, Switch};
use netns_tests::wireguard::{KeyPair, Program};

use crate::bulk::Bulk;
use crate::course::{Pair, Shown};
use crate::end::{End, Machine, Maker, Place, Settings};
use crate::guest::Guest;
use crate::plan::{KERNEL, Plan};

#[derive(Parser)]
struct Arguments {
    /// Where packaging/build-peers.sh put the other programs
    #[arg(long, default_value = "target/peers")]
    peers: PathBuf,
    /// Where packaging/build-guest.sh put the kernel
    #[arg(long, default_value = "target/guest")]
    guest: PathBuf,
    /// Only pairs whose name contains this (or another of these)
    #[arg(long)]
    only: Vec<String>,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Subcommand)]
enum Part {
    /// One end of a transfer, inside a pair
    #[command(hide = true, subcommand)]
    Bulk(Bulk),
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(Part::Bulk(bulk)) = arguments.part {
        return bulk.run();
    }
    sandbox::enter()?;
    sandbox::own_run_directory()?;
    let root = tempfile::Builder::new().prefix("holdfast-interop-").tempdir()?;
    for file in [arguments.peers.join("versions"), arguments.guest.join("version")] {
        print!("{}", std::fs::read_to_string(file).unwrap_or_default());
    }
    let plans = plan::wanted(&arguments.only)?;
    let lab = Lab::new(&arguments, root.path())?;
    let results = lab.run(&plans)?;
    print!("\n{}", plan::table(&results));
    match results.iter().filter(|result| result.failure.is_some()).count() {
        0 => Ok(()),
        failed => {
            let kept = root.keep();
            bail!("{failed} of {} pairs failed; their logs are in {}", results.len(), kept.display())
        }
    }
}

/// What became of a pair.
pub(crate) struct Outcome {
    pub(crate) plan: Plan,
    pub(crate) shown: Shown,
    pub(crate) failure: Option<String>,
    pub(crate) took: Duration,
}

/// Where all pairs live.
struct Lab<'a> {
    switch: Switch,
    ours: Program,
    others: Vec<Program>,
    arguments: &'a Arguments,
    directory: &'a Path,
}

impl<'a> Lab<'a> {
    fn new(arguments: &'a Arguments, directory: &'a Path) -> Result<Self> {
        let ours = Program::ours(&Binaries::locate()?.agent);
        let others = Program::others(&arguments.peers)?;
        Ok(Self { switch: Switch::new()?, ours, others, arguments, directory })
    }

    /// All at once. Those with the kernel begin when it is up.
    fn run(&self, plans: &[Plan]) -> Result<Vec<Outcome>> {
        std::thread::scope(|scope| {
            let (rooms, hosts): (Vec<_>, Vec<_>) =
                (1..).zip(plans).partition(|(_, plan)| plan.other == KERNEL);
            let mut running: Vec<_> = Vec::new();
            for (number, plan) in hosts {
                running.push(scope.spawn(move || self.one(number, plan, || self.host(number))));
            }
            if !rooms.is_empty() {
                let begun = Instant::now();
                let (guest, ports) =
                    Guest::start(&self.arguments.guest, &self.switch, rooms.len(), self.directory)?;
                println!("the kernel is up after {}", ms(begun.elapsed()));
                let guest = Arc::new(guest);
                for (room, ((number, plan), port)) in rooms.into_iter().zip(ports).enumerate() {
                    let machine = Machine::Room { guest: Arc::clone(&guest), room };
                    running.push(scope.spawn(move || self.one(number, plan, || Ok((machine, port)))));
                }
            }
            let panicked = |_| anyhow::anyhow!("a pair panicked");
            running.into_iter().map(|pair| pair.join().map_err(panicked)).collect()
        })
    }

    fn host(&self, number: u8) -> Result<(Machine, Port)> {
        let host = Host::new(format!("theirs{number}"))?;
        let port = self.switch.plug(&host)?;
        Ok((Machine::Host(host), port))
    }

    fn one(&self, number: u8, plan: &Plan, theirs: impl FnOnce() -> Result<(Machine, Port)>) -> Outcome {
        let (begun, mut shown) = (Instant::now(), Shown::default());
        let result = theirs()
            .and_then(|theirs| self.pair(number, plan, theirs))
            .and_then(|mut pair| pair.run(plan.course, &mut shown));
        let failure = result.err().map(|error| format!("{error:#}"));
        let outcome = Outcome { plan: plan.clone(), shown, failure, took: begun.elapsed() };
        println!("{}", plan::line(&outcome));
        outcome
    }

    fn pair(&self, number: u8, plan: &Plan, theirs: (Machine, Port)) -> Result<Pair> {
        let host = Host::new(format!("ours{number}"))?;
        let port = self.switch.plug(&host)?;
        let preshared = if plan.preshared { Some(self.preshared(&host, number)?) } else { None };
        let settings = |name: &str, begins| -> Result<Settings> {
            let keys = KeyPair::generate(&host, self.directory.join(format!("{name}.key")))?;
            let keepalive = plan.keepalive.filter(|_| begins);
            Ok(Settings { underlay: plan.underlay, preshared: preshared.clone(), begins, keepalive, keys })
        };
        let place = |(machine, port), inner| Place { machine, port, inner, outer: 2 * number - 2 + inner };
        let (left, right) = (format!("ours{number}"), format!("theirs{number}"));
        let (mine, others) = (settings(&left, plan.ours_begins)?, settings(&right, !plan.ours_begins)?);
        let maker = Maker::Program(self.ours.clone());
        let here = place((Machine::Host(host.clone()), port), 1);
        Ok(Pair {
            ours: End::new(left, here, maker, mine, self.directory)?,
            theirs: End::new(right, place(theirs, 2), self.maker(plan)?, others, self.directory)?,
            renews_when_idle: plan.renews_when_idle(),
            bulk_bytes: plan.bulk_bytes(),
            ping_interval: plan.ping_interval(),
        })
    }

    fn preshared(&self, host: &Host, number: u8) -> Result<PathBuf> {
        let file = self.directory.join(format!("preshared{number}"));
        std::fs::write(&file, host.namespace.output("wg", &["genpsk"])?)?;
        Ok(file)
    }

    fn maker(&self, plan: &Plan) -> Result<Maker> {
        if plan.other == KERNEL {
            return Ok(Maker::Kernel);
        }
        let program = self.others.iter().find(|program| program.name == plan.other);
        let program = program.with_context(|| format!("there is no {}", plan.other))?;
        Ok(Maker::Program(program.clone().roaming()))
    }
}
