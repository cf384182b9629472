//! TCP through two tunnels between two network namespaces on this machine, measured with iperf3.
//!
//! Prints Gbit/s, retransmissions and the CPU seconds of both tunnels together (iperf3's own are not counted).
//! Both ends share the machine's cores: compare by Gbit/s per CPU second, and within one run.
//!
//!     cargo run --release -p agent-tunnel --example throughput -- [seconds] [iperf3 options]

#![allow(clippy::print_stdout)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{env, time::Duration};

use support::{Pair, wait_until};

fn main() {
    let mut arguments = env::args().skip(1);
    let seconds = arguments.next().unwrap_or_else(|| "10".into());
    let options = arguments.collect::<Vec<_>>().join(" ");
    let pair = Pair::connected();
    let ping = pair.wire.left.shell("ping -q -c 200 -i 0.002 100.64.0.2");
    println!("{}", ping.lines().last().unwrap_or_default());
    let mut server = pair.wire.right.spawn("iperf3 -s -1 -B 100.64.0.2");
    wait_until("iperf3 listens", || pair.wire.right.shell("ss -Hltn sport = :5201").contains("5201"));
    let before = cpu_time();
    let report = pair
        .wire
        .left
        .shell(&format!("iperf3 -c 100.64.0.2 --format g --interval 0 --time {seconds} {options}"));
    let cpu = (cpu_time() - before).as_secs_f64();
    let _ = server.wait();
    report
        .lines()
        .filter(|line| line.ends_with("sender") || line.ends_with("receiver"))
        .for_each(|line| println!("{line}"));
    let received = report.lines().rfind(|line| line.ends_with("receiver")).unwrap_or_default();
    let words: Vec<&str> = received.split_whitespace().collect();
    let gbits =
        words.iter().position(|word| *word == "Gbits/sec").and_then(|at| words[at - 1].parse::<f64>().ok());
    let total = gbits.unwrap_or_default() * seconds.parse::<f64>().unwrap_or_default();
    println!("CPU of both tunnels {cpu:.2} s, {:.2} Gbit per CPU second", total / cpu);
    for (side, netns) in [("left", &pair.wire.left), ("right", &pair.wire.right)] {
        println!("{side}: {}", losses(netns));
    }
    println!("left {:?}\nright {:?}", pair.left.tunnel.drops(), pair.right.tunnel.drops());
}

/// What the kernel dropped around the tunnel, and how often TCP's timers, not losses, made it send again.
fn losses(netns: &support::Netns) -> String {
    let counters =
        netns.shell("nstat -asz UdpRcvbufErrors TcpExtTCPLossProbes TcpExtTCPTimeouts TcpRetransSegs");
    let counters: Vec<&str> =
        counters.lines().skip(1).flat_map(|line| line.split_whitespace().take(2)).collect();
    let interfaces = netns.run(|| std::fs::read_to_string("/proc/thread-self/net/dev")).unwrap_or_default();
    let line = interfaces.lines().find(|line| line.trim().starts_with("hf0:")).unwrap_or_default();
    let dropped: Vec<&str> = line.split_whitespace().skip(4).step_by(8).collect();
    format!("{}, interface dropped {} in and {} out", counters.join(" "), dropped[0], dropped[1])
}

/// User and system time of this process, which is the tunnels.
fn cpu_time() -> Duration {
    // SAFETY: getrusage fills the struct it is given, for which all zeros is a valid value.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let time = |value: libc::timeval| {
        Duration::from_secs(value.tv_sec as u64) + Duration::from_micros(value.tv_usec as u64)
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}
