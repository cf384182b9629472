//! How steady clients of a shared address are under loss, by the machine of claims alone, from event to event; and what they cost, by whole agents whose packets are counted on the network.
//! `PAIR_DAYS` is how many days of one client with two nodes are simulated (default 200). Fails if there is more than one move in 10,000 of them, or in fewer.
#![allow(clippy::print_stdout)]

use agent_core::{
    BootTime,
    claims::{Claims, ClaimsConfig, Output, Told},
};
use agent_sim::{Claimed, Setup, World};
use proto::{claim::Claim, key::PublicKey, statement::NodeId};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;
use std::{
    collections::{BTreeMap, VecDeque},
    num::NonZero,
    time::Duration,
};

const ROUND_TRIP: Duration = Duration::from_millis(10);
const DAY: Duration = Duration::from_secs(86_400);

struct Client {
    claims: Claims,
    now: BootTime,
    rng: Pcg32,
    /// Of every packet, each way.
    loss: f64,
    next_probe: u64,
    active: Option<PublicKey>,
    watched: BTreeMap<PublicKey, Duration>,
    /// Data to the active one that nothing followed, and whether that was told.
    unanswered: Option<(PublicKey, BootTime, bool)>,
    /// On their way; the number is a probe's.
    replies: VecDeque<(BootTime, PublicKey, Option<u64>)>,
    moves: u64,
}

fn key(node: u8) -> PublicKey {
    PublicKey([node; 32])
}

impl Client {
    fn new(loss: f64, seed: u64) -> Self {
        let now = BootTime::from_duration(DAY);
        let mut claims = Claims::new(NodeId(u64::MAX), ClaimsConfig::default());
        let claim = Claim::new(std::net::IpAddr::from([10, 9, 0, 1]).into());
        for node in 1..=2 {
            claims.handle_claims(key(node), NodeId(node.into()), vec![claim], now);
        }
        let mut client = Self {
            claims,
            now,
            rng: Pcg32::seed_from_u64(seed),
            loss,
            next_probe: 0,
            active: None,
            watched: BTreeMap::new(),
            unanswered: None,
            replies: VecDeque::new(),
            moves: 0,
        };
        client.drain();
        client
    }

    fn send(&mut self, peer: PublicKey, probe: Option<u64>) {
        let arrives = (1.0 - self.loss) * (1.0 - self.loss);
        if self.rng.random_bool(arrives) {
            self.replies.push_back((self.now + ROUND_TRIP, peer, probe));
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.claims.poll_output() {
            match output {
                Output::Route { peer, from, .. } => {
                    self.moves += u64::from(from.is_some());
                    self.active = peer;
                }
                Output::Probe { peer, id } => self.send(peer, Some(id)),
                Output::Watch { peer, silence: Some(silence) } => drop(self.watched.insert(peer, silence)),
                Output::Watch { peer, silence: None } => drop(self.watched.remove(&peer)),
                Output::Keep { .. } | Output::Withhold { .. } => {}
            }
        }
    }

    fn request(&mut self) {
        let Some(active) = self.active else { return };
        self.claims.handle_data(&[active], self.now);
        self.unanswered.get_or_insert((active, self.now, false));
        self.send(active, None);
    }

    fn on_reply(&mut self, peer: PublicKey, probe: Option<u64>) {
        if let Some((_, _, is_told)) = self.unanswered.take_if(|(silent, ..)| *silent == peer)
            && is_told
        {
            self.claims.handle_heard(&peer, self.now);
        }
        if let Some(id) = probe {
            let uptime = self.now.since(BootTime::default()) / u32::from(peer.0[1]);
            // Both started long ago, and neither ever again.
            let told = Told {
                boot: 1,
                uptime,
                is_leaving: false,
                is_withdrawn: false,
                apart: Vec::new(),
                claims: None,
            };
            self.claims.handle_reply(&peer, id, told, self.now);
        }
    }

    fn silent_at(&self) -> Option<BootTime> {
        let (peer, since, is_told) = self.unanswered?;
        Some(since + *self.watched.get(&peer).filter(|_| !is_told)?)
    }

    /// With a request now and then, as seldom as they are most easily lost without another to make up for it.
    fn run(&mut self, span: Duration, between: Duration) {
        let (end, mut request_at) = (self.now + span, self.now);
        loop {
            let deadline = self.claims.poll_timeout().map(|deadline| deadline.at);
            let reply = self.replies.front().map(|(at, ..)| *at);
            let next = [deadline, reply, self.silent_at(), Some(request_at)].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next < end) else { break };
            self.now = self.now.max(next);
            if reply.is_some_and(|at| at <= self.now)
                && let Some((_, peer, probe)) = self.replies.pop_front()
            {
                self.on_reply(peer, probe);
            }
            if self.silent_at().is_some_and(|at| at <= self.now)
                && let Some((peer, since, is_told)) = &mut self.unanswered
            {
                *is_told = true;
                let (peer, since) = (*peer, *since);
                self.claims.handle_silent(&peer, since, self.now);
            }
            if request_at <= self.now {
                self.request();
                request_at = self.now + between.mul_f64(self.rng.random_range(0.1..2.0));
            }
            if deadline.is_some_and(|at| at <= self.now) {
                self.claims.handle_timeout(&mut self.next_probe, self.now);
            }
            self.drain();
        }
        self.now = end;
    }
}

/// How often so many days of one pair move, with a request every `between` on average.
fn moves(span: Duration, between: Duration, seed: u64) -> u64 {
    let mut client = Client::new(0.01, seed);
    client.run(Duration::from_secs(600), between);
    client.moves = 0;
    client.run(span, between);
    client.moves
}

fn steadiness(days: u32) -> u64 {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get) as u64;
    let mut all = 0;
    for (between, share) in [(1, 4), (10, 2), (60, 4)] {
        let (span, between) = (DAY * days / share, Duration::from_secs(between));
        let each = span.div_f64(threads as f64);
        let moves: u64 = std::thread::scope(|scope| {
            let parts = (0..threads).map(|part| scope.spawn(move || moves(each, between, part)));
            let parts: Vec<_> = parts.collect();
            parts.into_iter().map(|part| part.join().expect("no part fails")).sum()
        });
        let days = span.as_secs_f64() / DAY.as_secs_f64();
        println!("{days} pair-days at 1 % loss each way, a request in {between:?}: {moves} moves");
        all += moves;
    }
    all
}

/// A client and two nodes, each of which claims all of so many addresses.
fn pair(prefixes: u8) -> World {
    let claim = |number: u8, agent| Claimed::new(agent, &format!("10.9.{number}.1/32"));
    let claims = (0..prefixes).flat_map(|number| [claim(number, 1), claim(number, 2)]).collect();
    World::settled(&Setup { agents: 3, claims, traced: false, ..Setup::default() }, 1)
}

fn cost() {
    let hour = Duration::from_secs(3600);
    let mut idle = pair(100);
    let caller = idle.call(0, "10.9.0.1", Duration::from_secs(1));
    idle.run_for(Duration::from_secs(60));
    idle.set_caller(caller, false);
    // The prefix is idle, then the tunnels are.
    idle.run_for(Duration::from_secs(900));
    let before = idle.datagrams(0);
    idle.run_for(hour);
    println!(
        "idle client with 100 shared prefixes of 2 nodes: {} packets in an hour, both ways, with keepalives and handshakes",
        idle.datagrams(0) - before
    );
    let mut used = pair(1);
    let caller = used.call(0, "10.9.0.1", Duration::from_secs(1));
    used.run_for(Duration::from_secs(60));
    let (before, (sent, answered)) = (used.datagrams(0), used.answers(caller));
    used.run_for(hour);
    let (after, (sent_after, answered_after)) = (used.datagrams(0), used.answers(caller));
    let own = after - before - (sent_after - sent) - (answered_after - answered);
    // Clients do not know of each other: a thousand of them cost a thousand times as much.
    println!(
        "1,000 clients that use one pair: {:.0} packets/s in all beside their data, both ways, with keepalives and handshakes",
        1000.0 * own as f64 / hour.as_secs_f64()
    );
    let nodes = 1002_u32;
    println!("where every node keeps up with every other: {} pairs", nodes * (nodes - 1) / 2);
}

fn main() {
    let days = std::env::var("PAIR_DAYS").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    cost();
    let moves = steadiness(days);
    assert!(moves <= u64::from(days.div_ceil(10_000)), "{moves} moves in {days} days");
}
