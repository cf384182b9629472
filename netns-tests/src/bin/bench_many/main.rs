//! `make bench-many`: `agent wg` with thousands of peers. What they cost idle, and what happens when all of them wake at
//! once beside live traffic, by packets from this side and by handshakes from theirs.

#![expect(clippy::print_stdout, reason = "the figures are this program's output")]

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use netns_tests::binaries::Binaries;
use netns_tests::figures::ms;
use netns_tests::many::{LiveReport, Resources, Room, Waking};
use netns_tests::sandbox;

#[derive(Parser)]
struct Arguments {
    /// How many peers are configured
    #[arg(long, default_value_t = 10_000)]
    peers: usize,
    /// How many of them are sent a packet a second
    #[arg(long, default_value_t = 100)]
    active: usize,
    /// For how long the processor time of idling is taken
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

fn main() -> Result<()> {
    sandbox::enter()?;
    sandbox::own_run_directory()?;
    let Arguments { peers, active, seconds } = Arguments::parse();
    let root = tempfile::Builder::new().prefix("holdfast-many-").tempdir()?;
    let agent = Binaries::locate()?.agent;
    for waking in [Waking::FromHub, Waking::FromCrowd] {
        let directory = root.path().join(format!("{waking:?}"));
        std::fs::create_dir(&directory)?;
        let mut room = Room::start(&agent, &directory, peers)?;
        let empty = room.resources()?;
        let configured = room.configure()?;
        let idle = room.resources()?;
        println!("{peers} peers, configured in {}", ms(configured));
        tell("before", empty, None);
        tell("configured", idle, Some((empty, peers)));
        room.assemble()?;
        if waking == Waking::FromHub {
            let span = Duration::from_secs(seconds);
            println!("  CPU of idling: {:.2} %", room.idle_cpu(0, span)?);
            println!(
                "  CPU with {active} active, a packet and its answer a second: {:.2} %",
                room.idle_cpu(active, span)?
            );
        }
        tell_live("alone", &room.calm()?);
        let woken = room.wake(waking)?;
        println!(
            "  all woken, {waking:?}: {} of {peers} first packets delivered, half after {}, the last after {}, CPU {}; refused by the interface: {}",
            woken.delivered,
            ms(woken.half_after),
            ms(woken.all_after),
            ms(woken.cpu),
            woken.refused_by_interface
        );
        tell_live("meanwhile", &woken.live);
        tell("all live", room.resources()?, Some((idle, peers)));
        room.finish()?;
    }
    Ok(())
}

fn tell(when: &str, now: Resources, since: Option<(Resources, usize)>) {
    let each = since.map(|(before, peers)| {
        let grown = now.resident_bytes.saturating_sub(before.resident_bytes);
        format!(", {} bytes more for each peer", grown / peers as u64)
    });
    let megabytes = now.resident_bytes as f64 / 1e6;
    println!(
        "  {when}: {megabytes:.1} MB{}, {} descriptors, {} threads",
        each.unwrap_or_default(),
        now.descriptors,
        now.threads
    );
}

fn tell_live(when: &str, live: &LiveReport) {
    let LiveReport { sent, lost, pings, lost_pings, .. } = live;
    println!("  {when}: {lost} of {sent} datagrams and {lost_pings} of {pings} pings lost");
    println!("    {}\n    {}", live.latencies, live.round_trips);
}
