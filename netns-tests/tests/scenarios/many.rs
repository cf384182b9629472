//! `agent wg` with thousands of peers: idle ones cost next to nothing, and when all of them wake at once, each one's first packet is
//! delivered, none takes long, and live traffic hardly notices. `make bench-many` does the same with ten thousand.
//!
//! ```text
//!   hub (agent wg) ─── friend (agent wg), with which it has live traffic
//!        └──────────── crowd, which plays 2000 peers
//! ```

use std::time::Duration;

use anyhow::Result;
use netns_tests::figures::{Bound, ms};
use netns_tests::many::{FULL_BYTES, MAX_IDLE_BYTES, MAX_LIVE_BYTES, Resources, Room, SMALL_BYTES, Waking};
use netns_tests::scenario::Scenario;
use netns_tests::wait::wait_until;

const PEERS: usize = 2000;
const ACTIVE: usize = 100;
/// Processor time is told in steps of 10 ms.
const IDLE: Duration = Duration::from_secs(5);
const HANG_UP_TIMEOUT: Duration = Duration::from_secs(20);
/// Of a busy machine, too; `make bench-many` tells more.
const MAX_CPU_PERCENT: f64 = 1.5;

pub(crate) fn peers_of_which_few_are_active(s: &mut Scenario) -> Result<()> {
    let (room, _) = room(s)?;
    let cpu = room.idle_cpu(ACTIVE, IDLE)?;
    s.note(format!("CPU with {ACTIVE} of {PEERS} peers active: {cpu:.2} %"));
    s.require(cpu <= MAX_CPU_PERCENT, format!("{ACTIVE} active peers take {cpu:.2} % of a core"));
    room.finish()
}

pub(crate) fn peers_woken_by_packets(s: &mut Scenario) -> Result<()> {
    let (room, idle) = room(s)?;
    wake(s, room, idle, (Waking::FromHub, FULL_BYTES))
}

pub(crate) fn peers_that_begin_handshakes(s: &mut Scenario) -> Result<()> {
    let (room, idle) = room(s)?;
    wake(s, room, idle, (Waking::FromCrowd, SMALL_BYTES))
}

fn room(s: &mut Scenario) -> Result<(Room, Resources)> {
    let mut room = Room::start(&s.binaries.agent, &s.directory, PEERS)?;
    let empty = room.resources()?;
    let took = room.configure()?;
    has_no_more(&room, empty)?;
    let idle = room.resources()?;
    let each = idle.bytes_each_since(empty, PEERS);
    s.note(format!("{PEERS} peers configured in {}, {each} bytes each", ms(took)));
    s.require(each <= MAX_IDLE_BYTES, format!("an idle peer costs {each} bytes"));
    room.assemble()?;
    Ok((room, idle))
}

/// Neither descriptors nor threads; whoever configured it has hung up by and by.
fn has_no_more(room: &Room, before: Resources) -> Result<()> {
    wait_until("as many descriptors and threads as before", HANG_UP_TIMEOUT, || {
        let now = room.resources()?;
        Ok((now.descriptors <= before.descriptors && now.threads <= before.threads).then_some(()))
    })
}

fn wake(
    s: &mut Scenario,
    room: Room,
    idle: Resources,
    (waking, packet_bytes): (Waking, usize),
) -> Result<()> {
    let woken = room.wake(waking, packet_bytes)?;
    has_no_more(&room, idle)?;
    let live = room.resources()?;
    let each = live.bytes_each_since(idle, PEERS);
    s.note(format!(
        "{} of {PEERS} first packets delivered, half after {}, the last after {}, CPU {}; {each} bytes for a live tunnel",
        woken.delivered,
        ms(woken.half_after),
        ms(woken.all_after),
        ms(woken.cpu)
    ));
    s.require(
        woken.delivered == PEERS,
        format!(
            "{} of {PEERS} first packets delivered; {} refused by the interface",
            woken.delivered, woken.refused_by_interface
        ),
    );
    // Packets that are read one by one, slowly, are all delivered, too.
    let bound = s.widened(waking.bound(PEERS));
    s.require(
        woken.all_after <= bound,
        format!("all are awake after {}, above {}", ms(woken.all_after), ms(bound)),
    );
    // What waited may stay with the allocator.
    let limit = MAX_LIVE_BYTES + packet_bytes as u64;
    s.require(each <= limit, format!("a live tunnel costs {each} bytes"));
    s.note(format!("meanwhile {} datagrams and {} pings of live traffic", woken.live.sent, woken.live.pings));
    s.require(
        (woken.live.lost, woken.live.lost_pings) == (0, 0),
        format!("{} datagrams and {} pings of live traffic lost", woken.live.lost, woken.live.lost_pings),
    );
    // Some 10 ms, and a third of a second where packets wait behind handshakes; the crowd computes on the same cores.
    let bounds = [Bound::P99(Duration::from_millis(50)), Bound::Worst(Duration::from_millis(200))];
    s.figure(&woken.live.latencies, &bounds);
    s.figure(&woken.live.round_trips, &bounds);
    room.finish()
}
