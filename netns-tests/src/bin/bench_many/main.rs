//! `make bench-many`: `agent wg` with thousands of peers. What they cost idle, and what happens when all of them wake at
//! once beside live traffic, by packets from this side and by handshakes from theirs, small and full-sized.
//!
//! Each waking has a room of its own, in which nobody has a session. It fails if a bound is broken, and says which.

#![expect(clippy::print_stdout, reason = "the figures are this program's output")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::Parser;
use netns_tests::binaries::Binaries;
use netns_tests::figures::ms;
use netns_tests::many::{
    FULL_BYTES, LiveReport, MAX_IDLE_BYTES, MAX_LIVE_BYTES, Resources, Room, SMALL_BYTES, Waking,
};
use netns_tests::sandbox;
use netns_tests::wait::wait_until;

const MAX_IDLE_CPU_PERCENT: f64 = 1.0;
/// Of the live traffic's datagrams, and of its pings: thousands of handshakes are not to be had for nothing.
const MAX_LOST_PERCENT: u64 = 1;
/// What reading a configuration may leave behind, however short it is.
const CONFIGURING_BYTES: u64 = 512 << 10;
const HANG_UP_TIMEOUT: Duration = Duration::from_secs(20);
const WAKINGS: [(Waking, usize); 4] = [
    (Waking::FromHub, SMALL_BYTES),
    (Waking::FromHub, FULL_BYTES),
    (Waking::FromCrowd, SMALL_BYTES),
    (Waking::FromCrowd, FULL_BYTES),
];

#[derive(Parser)]
struct Arguments {
    /// How many peers are configured
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u16).range(1..=60_000))]
    peers: u16,
    /// How many of them are sent a packet a second
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    active: u16,
    /// For how long the processor time of idling is taken
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
}

fn main() -> Result<()> {
    sandbox::enter()?;
    sandbox::own_run_directory()?;
    let Arguments { peers, active, seconds } = Arguments::parse();
    ensure!(active <= peers, "{active} of {peers} peers cannot be active");
    let root = tempfile::Builder::new().prefix("holdfast-many-").tempdir()?;
    let mut bench = Bench { agent: Binaries::locate()?.agent, peers: usize::from(peers), broken: Vec::new() };
    bench.idle(root.path(), usize::from(active), Duration::from_secs(seconds))?;
    for (number, (waking, packet_bytes)) in WAKINGS.into_iter().enumerate() {
        let directory = root.path().join(number.to_string());
        std::fs::create_dir(&directory)?;
        bench.wake(&directory, waking, packet_bytes)?;
    }
    if bench.broken.is_empty() {
        println!("every bound was kept");
        return Ok(());
    }
    bail!("{}", bench.broken.join("\n"))
}

struct Bench {
    agent: PathBuf,
    peers: usize,
    /// The bounds that were, in words.
    broken: Vec<String>,
}

impl Bench {
    fn require(&mut self, is_kept: bool, otherwise: String) {
        if !is_kept {
            println!("  ! {otherwise}");
            self.broken.push(otherwise);
        }
    }

    /// The room with all peers configured, and what the hub has then.
    fn room(&mut self, directory: &Path) -> Result<(Room, Resources)> {
        let mut room = Room::start(&self.agent, directory, self.peers)?;
        let empty = room.resources()?;
        let configured = room.configure()?;
        wait_until("whoever configured it hangs up", HANG_UP_TIMEOUT, || {
            Ok((room.resources()?.descriptors <= empty.descriptors).then_some(()))
        })?;
        let idle = room.resources()?;
        println!("{} peers, configured in {}", self.peers, ms(configured));
        tell("before", empty, None);
        let each = idle.bytes_each_since(empty, self.peers);
        tell("configured", idle, Some(each));
        let limit = MAX_IDLE_BYTES + CONFIGURING_BYTES / self.peers as u64;
        self.require(each <= limit, format!("an idle peer costs {each} bytes"));
        self.has_no_more(idle, empty, "idle");
        room.assemble()?;
        Ok((room, idle))
    }

    fn has_no_more(&mut self, now: Resources, before: Resources, which: &str) {
        let is_kept = now.descriptors <= before.descriptors && now.threads <= before.threads;
        self.require(is_kept, format!("{which} peers have descriptors or threads of their own"));
    }

    fn idle(&mut self, directory: &Path, active: usize, span: Duration) -> Result<()> {
        let (room, _) = self.room(directory)?;
        for active in [0, active] {
            let cpu = room.idle_cpu(active, span)?;
            println!("  CPU with {active} active, a packet and its answer a second: {cpu:.2} %");
            let is_kept = cpu < MAX_IDLE_CPU_PERCENT;
            self.require(
                is_kept,
                format!("{cpu:.2} % of a core with {active} of {} peers active", self.peers),
            );
        }
        room.finish()
    }

    fn wake(&mut self, directory: &Path, waking: Waking, packet_bytes: usize) -> Result<()> {
        let (room, idle) = self.room(directory)?;
        let peers = self.peers;
        tell_live("alone", &room.calm()?);
        let woken = room.wake(waking, packet_bytes)?;
        let what = format!(
            "{waking:?}, packets of {packet_bytes} bytes: {} of {peers} first packets delivered; refused by the interface: {}",
            woken.delivered, woken.refused_by_interface
        );
        println!(
            "  all woken, {what}; half after {}, the last after {}, CPU {}",
            ms(woken.half_after),
            ms(woken.all_after),
            ms(woken.cpu)
        );
        self.require(woken.delivered == peers, what);
        let bound = waking.bound(peers);
        self.require(
            woken.all_after <= bound,
            format!("{waking:?}: all awake after {}, above {}", ms(woken.all_after), ms(bound)),
        );
        tell_live("meanwhile", &woken.live);
        let LiveReport { sent, lost, pings, lost_pings, .. } = woken.live;
        let is_kept = 100 * lost <= MAX_LOST_PERCENT * sent
            && 100 * lost_pings as u64 <= MAX_LOST_PERCENT * pings as u64;
        self.require(is_kept, format!("{waking:?}: {lost} datagrams and {lost_pings} pings lost meanwhile"));
        let live = room.resources()?;
        let each = live.bytes_each_since(idle, peers);
        tell("all live", live, Some(each));
        // What waited may stay with the allocator.
        let limit = MAX_LIVE_BYTES + packet_bytes as u64;
        self.require(each <= limit, format!("{waking:?}: a live tunnel costs {each} bytes"));
        self.has_no_more(live, idle, "live");
        room.finish()
    }
}

fn tell(when: &str, now: Resources, each: Option<u64>) {
    let each = each.map(|bytes| format!(", {bytes} bytes more for each peer")).unwrap_or_default();
    let megabytes = now.resident_bytes as f64 / 1e6;
    println!("  {when}: {megabytes:.1} MB{each}, {} descriptors, {} threads", now.descriptors, now.threads);
}

fn tell_live(when: &str, live: &LiveReport) {
    let LiveReport { sent, lost, pings, lost_pings, .. } = live;
    println!("  {when}: {lost} of {sent} datagrams and {lost_pings} of {pings} pings lost");
    println!("    {}\n    {}", live.latencies, live.round_trips);
}
