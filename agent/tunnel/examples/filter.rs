//! What the filter costs per packet: of a known TCP connection, of many in turns, and of datagrams that a rule allows.
//!
//!     cargo run --release -p agent-tunnel --example filter

#![allow(clippy::print_stdout)]

use std::{
    hint::black_box,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use agent_tunnel::{Filter, Protocol, Rule, Service, Via};

const PACKETS: u32 = 2_000_000;
const ROUNDS: usize = 7;
const POLICIES: u8 = 200;
const VIA: Via = Via(1);

fn packet(protocol: u8, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: u8) -> Vec<u8> {
    let mut packet = vec![0; 1400];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&1400u16.to_be_bytes());
    packet[9] = protocol;
    packet[12..16].copy_from_slice(&from.0.octets());
    packet[16..20].copy_from_slice(&to.0.octets());
    packet[20..22].copy_from_slice(&from.1.to_be_bytes());
    packet[22..24].copy_from_slice(&to.1.to_be_bytes());
    packet[33] = flags;
    packet
}

fn main() {
    let (here, there) = (Ipv4Addr::new(100, 64, 0, 1), Ipv4Addr::new(100, 64, 0, 2));
    let rules = (0..POLICIES).map(|number| Rule {
        sources: vec![format!("100.64.{number}.0/24").parse().expect("a prefix")],
        destinations: Vec::new(),
        services: vec![Service { protocol: Protocol::Udp, ports: vec![53..=53] }],
    });
    let now = Instant::now();
    let mut filter = Filter::new(rules.collect(), now);
    let streams: Vec<Vec<u8>> = (1..=1000).map(|port| packet(6, (there, 80), (here, port), 16)).collect();
    (1..=1000).for_each(|port| filter.note_outbound(&packet(6, (here, port), (there, 80), 2), VIA, now));
    let datagram = packet(17, (there, 9), (here, 53), 0);
    let denied = packet(17, (there, 9), (here, 54), 0);
    report("one TCP connection", |_| filter.judge_inbound(&streams[0], VIA, now).is_ok());
    report("1000 TCP connections in turns", |i| filter.judge_inbound(&streams[i % 1000], VIA, now).is_ok());
    report("UDP by one of 200 rules", |_| filter.judge_inbound(&datagram, VIA, now).is_ok());
    let mut open = Filter::new(vec![Rule::all()], now);
    report("UDP where all is allowed", |_| open.judge_inbound(&datagram, VIA, now).is_ok());
    report("denied by 200 rules", |_| filter.judge_inbound(&denied, VIA, now).is_ok());
}

fn report(what: &str, mut judge: impl FnMut(usize) -> bool) {
    let mut rounds: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            (0..PACKETS as usize).for_each(|number| {
                black_box(judge(number));
            });
            begun.elapsed()
        })
        .collect();
    rounds.sort_unstable();
    let nanoseconds = |span: Duration| span.as_nanos() as f64 / f64::from(PACKETS);
    println!(
        "{what}: {:.0} ns a packet ({:.0} to {:.0})",
        nanoseconds(rounds[ROUNDS / 2]),
        nanoseconds(rounds[0]),
        nanoseconds(rounds[ROUNDS - 1])
    );
}
