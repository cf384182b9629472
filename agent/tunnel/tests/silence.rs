//! Idle means silent, on the wire and on the machine. Alone in its process, as it counts the threads' wake-ups.

// Its own helpers panic as tests do.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use agent_tunnel::{Command, Event};
use support::{Node, Pair};

#[test]
fn a_forgotten_peer_is_silent_has_no_timers_and_wakes_again() {
    let pair = Pair::connected();
    pair.wire.left.shell("ping -q -c 3 -i 0.002 100.64.0.2");
    pair.left.tunnel.command(Command::Forget { peer: pair.right.key });
    pair.right.tunnel.command(Command::Forget { peer: pair.left.key });
    let at_rest = |node: &Node| !node.tunnel.stats()[0].live;
    assert!(at_rest(&pair.left) && at_rest(&pair.right));
    pair.left.events.try_iter().chain(pair.right.events.try_iter()).for_each(drop);
    let (packets, wakeups) = (sent(&pair), voluntary_switches());
    let events = events_within(&pair.left, Duration::from_secs(12));
    // What was active before may still be reported.
    assert!(events.iter().all(|event| matches!(event, Event::Active(_))), "{events:?}");
    assert_eq!(sent(&pair), packets);
    assert!(
        voluntary_switches() - wakeups <= 4,
        "idle threads woke {} times",
        voluntary_switches() - wakeups
    );
    let ping = pair.wire.left.spawn("ping -q -c 1 -W 15 100.64.0.2");
    pair.left.wait_for_packet_waiting();
    pair.connect();
    assert!(ping.wait_with_output().unwrap().status.success());
}

fn sent(pair: &Pair) -> u64 {
    pair.wire.left.datagrams_sent() + pair.wire.right.datagrams_sent()
}

fn events_within(node: &Node, span: Duration) -> Vec<Event> {
    let deadline = Instant::now() + span;
    let next = || node.events.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok();
    std::iter::from_fn(next).collect()
}

/// How often this process's data-plane threads have waited.
fn voluntary_switches() -> u64 {
    let tasks = std::fs::read_dir("/proc/thread-self/../").unwrap();
    let statuses = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("status")).ok());
    let tunnels = statuses.filter(|status| status.starts_with("Name:\ttunnel"));
    let count = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    tunnels.map(count).sum()
}
