//! Live datagrams through a network that damages, cuts, lengthens, mixes, repeats, delays and loses them: what is
//! delivered was sent, and once; what arrives whole and in time is delivered; nobody's address is changed by rubbish.
//!
//! `make faults` sends ten million, the tests a hundredth of that. Seeded: HOLDFAST_FAULTS_SEED repeats a run.

use std::{collections::VecDeque, time::Instant};

use boringtun::noise::TunnResult;

use super::{Bench, PEER, PEER_ENDPOINT};
use crate::{packet::udp_packet, socket::Path};

/// Long enough for all that happens, short enough for every run of the tests.
const SHORT: u64 = 100_000;
const FORGER: ([u8; 4], u16) = ([198, 51, 100, 1], 4500);
/// Packets of one session.
const SESSION: u64 = 50_000;
/// Datagrams that were delivered and come again, also of former sessions.
const MEMORY: usize = 4096;
/// Within the replay window of 1024.
const MAX_DELAY: u64 = 200;
/// What a process may grow by after its first tenth, in bytes.
const MAX_GROWTH: u64 = 16 << 20;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// The inner packet of a number: its size and contents follow from it.
fn inner(number: u64) -> Vec<u8> {
    let mut random = Random(number);
    let mut payload = number.to_le_bytes().to_vec();
    let len = 8 + random.below(if number.is_multiple_of(8) { 1300 } else { 200 });
    payload.resize_with(len, || random.next() as u8);
    udp_packet((PEER, 9).into(), ([100, 64, 0, 1], 9).into(), &payload).expect("a packet")
}

struct Network {
    bench: Bench,
    random: Random,
    old: Vec<Vec<u8>>,
    /// Due at a number of packets.
    delayed: VecDeque<(u64, Vec<u8>)>,
    /// A bit per number.
    delivered: Vec<u64>,
    delivered_count: u64,
    /// Arrived whole and in time.
    expected: u64,
    faults: u64,
}

impl Network {
    fn new(seed: u64, count: u64) -> Self {
        let mut bench = Bench::new();
        bench.reset();
        Self {
            bench,
            random: Random(seed),
            old: Vec::with_capacity(MEMORY),
            delayed: VecDeque::new(),
            delivered: vec![0; count as usize / 64 + 1],
            delivered_count: 0,
            expected: 0,
            faults: 0,
        }
    }

    fn send(&mut self, number: u64, is_faulty: bool) {
        let inner = inner(number);
        let mut buffer = vec![0; inner.len() + 64];
        let TunnResult::WriteToNetwork(sealed) = self.bench.noise.encapsulate(&inner, &mut buffer) else {
            panic!("packet {number} could not be sealed");
        };
        let datagram = sealed.to_vec();
        if is_faulty {
            self.carry(number, &datagram);
            if self.is_delivered(number) {
                self.remember(datagram);
            }
        } else {
            self.arrive(&datagram);
        }
        while self.delayed.front().is_some_and(|(due, _)| *due <= number) {
            let Some((_, datagram)) = self.delayed.pop_front() else { break };
            self.arrive(&datagram);
        }
    }

    /// One of the things that happen on the way.
    fn carry(&mut self, number: u64, datagram: &[u8]) {
        let what = self.random.below(20);
        let mut bent = datagram.to_vec();
        match what {
            // Lost.
            0 => return,
            1 | 2 => {
                for _ in 0..1 + self.random.below(3) {
                    let bit = self.random.below(bent.len() * 8);
                    bent[bit / 8] ^= 1 << (bit % 8);
                }
                if bent == datagram {
                    return self.arrive(datagram);
                }
            }
            3 => bent.truncate(self.random.below(datagram.len())),
            4 => bent.extend((0..=self.random.below(100)).map(|_| 0)),
            5 => {
                self.arrive(datagram);
                return self.forge(datagram);
            }
            6 if !self.old.is_empty() => {
                let other = self.random.below(self.old.len());
                bent.clone_from(&self.old[other]);
            }
            7 => {
                let due = number + 1 + self.random.next() % MAX_DELAY;
                let at = self.delayed.partition_point(|(other, _)| *other <= due);
                return self.delayed.insert(at, (due, datagram.to_vec()));
            }
            // Another's header before this one's contents.
            8 if !self.old.is_empty() => {
                let other = self.random.below(self.old.len());
                bent[..16].copy_from_slice(&self.old[other][..16]);
                if bent == datagram {
                    return self.arrive(datagram);
                }
            }
            9 => bent[4..].iter_mut().for_each(|byte| *byte = number as u8),
            _ => return self.arrive(datagram),
        }
        self.forge(&bent);
        // Sometimes the true one comes, too.
        if what % 2 == 1 {
            self.arrive(datagram);
        }
    }

    /// The true datagram, for the first time, from where the peer is.
    fn arrive(&mut self, datagram: &[u8]) {
        self.expected += 1;
        self.bench.arrive(Path::to(PEER_ENDPOINT.into()), datagram);
        self.collect();
        assert_eq!(self.delivered_count, self.expected, "a good packet was lost");
    }

    /// From elsewhere, and good for nothing.
    fn forge(&mut self, datagram: &[u8]) {
        self.faults += 1;
        self.bench.arrive(Path::to(FORGER.into()), datagram);
        self.collect();
        assert_eq!(self.delivered_count, self.expected, "what was damaged or repeated was delivered");
    }

    fn collect(&mut self) {
        let (delivered, count) = (&mut self.delivered, &mut self.delivered_count);
        self.bench.worker.writer.take(|packet| {
            let number = packet.get(28..36).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
            let number = number.expect("nothing that short was sent");
            assert!(packet == inner(number), "nobody sent what was delivered as packet {number}");
            let bit = 1 << (number % 64);
            let word = &mut delivered[(number / 64) as usize];
            assert_eq!(*word & bit, 0, "packet {number} was delivered twice");
            *word |= bit;
            *count += 1;
        });
    }

    fn is_delivered(&self, number: u64) -> bool {
        self.delivered[(number / 64) as usize] & 1 << (number % 64) != 0
    }

    fn remember(&mut self, datagram: Vec<u8>) {
        if self.old.len() < MEMORY {
            self.old.push(datagram);
        } else {
            let at = self.random.below(MEMORY);
            self.old[at] = datagram;
        }
    }

    /// A damaged handshake in between, a session that goes on, and at times another one.
    fn pass_time(&mut self, number: u64) {
        self.bench.worker.now = Instant::now();
        let changes: Vec<u8> = (0..8).map(|_| self.random.next() as u8 | 1).collect();
        self.bench.bend(Path::to(FORGER.into()), &changes);
        self.bench.worker.outbox.flush();
        if number.is_multiple_of(SESSION) {
            while let Some((_, datagram)) = self.delayed.pop_front() {
                self.arrive(&datagram);
            }
            self.assert_faithful();
            self.bench.reset();
        }
    }

    fn assert_faithful(&mut self) {
        let peers = &mut self.bench.worker.peers;
        let peer = peers.find(&self.bench.peer).and_then(|id| peers.get(id)).expect("the peer is configured");
        assert_eq!(peer.path, Some(Path::to(PEER_ENDPOINT.into())), "rubbish moved the endpoint");
    }
}

/// Resident bytes of this process.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number");
    pages * 4096
}

#[test]
fn live_datagrams_survive_every_fault_and_nothing_wrong_is_delivered() {
    let number = |name| {
        std::env::var(name).ok().map(|text| text.parse().expect("HOLDFAST_FAULTS and its seed are numbers"))
    };
    let count = number("HOLDFAST_FAULTS").unwrap_or(SHORT);
    let seed = number("HOLDFAST_FAULTS_SEED").unwrap_or(1);
    let started_at = Instant::now();
    let mut network = Network::new(seed, count + 1000);
    let mut before = None;
    for number in 0..count {
        if number > 0 && number.is_multiple_of(5000) {
            network.pass_time(number);
        }
        if number == count / 10 {
            before = Some(resident());
        }
        network.send(number, true);
    }
    while let Some((_, datagram)) = network.delayed.pop_front() {
        network.arrive(&datagram);
    }
    for number in count..count + 1000 {
        network.send(number, false);
    }
    network.assert_faithful();
    let grown = resident().saturating_sub(before.unwrap_or_default());
    // Other tests run beside the short form.
    assert!(count <= SHORT || grown < MAX_GROWTH, "memory grew by {grown} bytes");
    assert!(network.expected > count / 2 && network.faults > count / 4, "hardly anything happened");
    eprintln!(
        "seed {seed}: {} packets sent, {} faulty datagrams, {} delivered, {} KB more memory, {:.1} s",
        count + 1000,
        network.faults,
        network.delivered_count,
        grown / 1024,
        started_at.elapsed().as_secs_f64(),
    );
}
