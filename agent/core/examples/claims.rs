//! How steady clients of a shared address are under loss, and what they cost: the machine of claims alone, from event to event. `PAIR_DAYS` is how many days of one client with two nodes are
//! simulated (default 200). Fails if more than one move in 10,000 days is likely.
#![allow(clippy::print_stdout)]

use agent_core::{
    BootTime,
    claims::{Claims, ClaimsConfig, Output, Told},
};
use proto::{claim::Claim, key::PublicKey, statement::NodeId};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;
use std::{
    collections::{BTreeMap, VecDeque},
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
    probes: u64,
    moves: u64,
}

fn key(prefix: u8, node: u8) -> PublicKey {
    let mut key = [1; 32];
    (key[0], key[1]) = (prefix, node);
    PublicKey(key)
}

impl Client {
    fn new(prefixes: u8, loss: f64, seed: u64) -> Self {
        let now = BootTime::from_duration(DAY);
        let mut claims = Claims::new(NodeId(u64::MAX), ClaimsConfig::default());
        for prefix in 0..prefixes {
            let address = std::net::Ipv4Addr::new(10, 9, prefix, 1);
            let claim = Claim::new(std::net::IpAddr::V4(address).into());
            for node in 1..=2 {
                let id = NodeId(u64::from(prefix) * 2 + u64::from(node));
                claims.handle_claims(key(prefix, node), id, vec![claim], now);
            }
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
            probes: 0,
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
                Output::Probe { peer, id } => {
                    self.probes += 1;
                    self.send(peer, Some(id));
                }
                Output::Watch { peer, silence: Some(silence) } => drop(self.watched.insert(peer, silence)),
                Output::Watch { peer, silence: None } => drop(self.watched.remove(&peer)),
                Output::Keep { .. } => {}
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
            let told = Told { boot: 1, uptime, is_leaving: false, is_withdrawn: false };
            self.claims.handle_reply(&peer, id, told, self.now);
        }
    }

    fn silent_at(&self) -> Option<BootTime> {
        let (peer, since, is_told) = self.unanswered?;
        Some(since + *self.watched.get(&peer).filter(|_| !is_told)?)
    }

    /// With a request now and then, as seldom as they are most easily lost without another to make up for it.
    fn run(&mut self, span: Duration, between_requests: Option<Duration>) {
        let (end, mut request_at) = (self.now + span, between_requests.map(|_| self.now));
        loop {
            let deadline = self.claims.poll_timeout().map(|deadline| deadline.at);
            let reply = self.replies.front().map(|(at, ..)| *at);
            let next = [deadline, reply, self.silent_at(), request_at].into_iter().flatten().min();
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
            if let Some(between) = between_requests.filter(|_| request_at.is_some_and(|at| at <= self.now)) {
                self.request();
                request_at = Some(self.now + between.mul_f64(self.rng.random_range(0.1..2.0)));
            }
            if deadline.is_some_and(|at| at <= self.now) {
                self.claims.handle_timeout(&mut self.next_probe, self.now);
            }
            self.drain();
        }
        self.now = end;
    }
}

fn steadiness(days: u32) -> u64 {
    let mut moves = 0;
    for (between, share) in [(1, 4), (10, 2), (60, 4)] {
        let mut client = Client::new(1, 0.01, between);
        client.run(Duration::from_secs(600), Some(Duration::from_secs(between)));
        client.moves = 0;
        client.run(DAY * (days / share), Some(Duration::from_secs(between)));
        println!(
            "{} pair-days at 1 % loss each way, a request in {between} s: {} moves",
            days / share,
            client.moves
        );
        moves += client.moves;
    }
    moves
}

fn cost() {
    let mut idle = Client::new(100, 0.0, 1);
    idle.run(DAY, None);
    println!("idle client with 100 shared prefixes of 2 nodes: {} probes in a day", idle.probes);
    let mut one = Client::new(1, 0.0, 1);
    one.run(Duration::from_secs(60), Some(Duration::from_secs(1)));
    one.probes = 0;
    one.run(Duration::from_secs(1000), Some(Duration::from_secs(1)));
    // Clients do not know of each other: a thousand of them cost a thousand times as much.
    println!(
        "1,000 clients that use one pair: {} probes/s in all, none while they do not use it",
        one.probes
    );
    let nodes = 1002_u32;
    println!("where every node keeps up with every other: {} pairs", nodes * (nodes - 1) / 2);
}

fn main() {
    let days = std::env::var("PAIR_DAYS").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    cost();
    let moves = steadiness(days);
    assert!(moves <= 1 + u64::from(days) / 10_000, "{moves} moves in {days} days");
}
