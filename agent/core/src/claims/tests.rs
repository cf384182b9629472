//! One client and a few claimants on a simulated network, in virtual time.

mod connections;
mod nobody;
mod withdrawn;

use super::*;
use proto::{claim::Claim, peer_message::Apart};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;

const TICK: Duration = Duration::from_millis(5);

/// One claimant as it really is.
struct Node {
    key: PublicKey,
    rtt: Duration,
    boot: u64,
    /// By the client's clock, if it was not before that began: then it is up for so much longer than that.
    started_at: Option<BootTime>,
    older: Duration,
    hears: bool,
    is_heard: bool,
    is_leaving: bool,
    is_withdrawn: bool,
    /// Claims that are withdrawn alone, or served again since then.
    apart: BTreeMap<IpNet, Option<BootTime>>,
    /// What it says that it claims.
    listed: Option<Vec<IpNet>>,
}

struct World {
    claims: Claims,
    nodes: Vec<Node>,
    now: BootTime,
    next_probe: u64,
    routes: BTreeMap<IpNet, PublicKey>,
    withheld: BTreeSet<IpNet>,
    watched: BTreeMap<PublicKey, Duration>,
    kept: BTreeSet<PublicKey>,
    /// Answers on their way.
    replies: Vec<(BootTime, PublicKey, u64)>,
    /// Per watched peer: the first data that nothing followed.
    unanswered: BTreeMap<PublicKey, BootTime>,
    answered_at: Option<BootTime>,
    longest_outage: Duration,
    probes: usize,
    /// Of every packet, each way, in thousandths.
    loss: u32,
    rng: Pcg32,
    moves: Vec<(BootTime, IpNet, PublicKey)>,
    /// Whose connections could not go on.
    broken: Vec<PublicKey>,
}

impl Node {
    fn told(&self, now: BootTime) -> Told {
        let uptime = match self.started_at {
            Some(started_at) => now.since(started_at),
            None => now.since_boot() + self.older,
        };
        let uptime_of = |(prefix, since): (&IpNet, &Option<BootTime>)| Apart {
            prefix: *prefix,
            uptime: since.map(|since| now.since(since)),
        };
        let apart = self.apart.iter().map(uptime_of).collect();
        let (is_leaving, is_withdrawn) = (self.is_leaving, self.is_withdrawn);
        Told { boot: self.boot, uptime, is_leaving, is_withdrawn, apart, claims: self.listed.clone() }
    }
}

fn key(number: u8) -> PublicKey {
    PublicKey([number; 32])
}

fn prefix(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn claim(text: &str) -> Claim {
    Claim::new(prefix(text))
}

const ADDRESS: &str = "10.9.0.1/32";

impl World {
    /// Nodes with their claims; all are up for longer than the client's machine, the first longest.
    fn new(claims: &[Claim]) -> Self {
        let now = BootTime::from_duration(Duration::from_secs(1000));
        let mut world = Self {
            claims: Claims::new(NodeId(99), ClaimsConfig::default()),
            nodes: Vec::new(),
            now,
            next_probe: 0,
            routes: BTreeMap::new(),
            withheld: BTreeSet::new(),
            watched: BTreeMap::new(),
            kept: BTreeSet::new(),
            replies: Vec::new(),
            unanswered: BTreeMap::new(),
            answered_at: None,
            longest_outage: Duration::ZERO,
            probes: 0,
            loss: 0,
            rng: Pcg32::seed_from_u64(7),
            moves: Vec::new(),
            broken: Vec::new(),
        };
        for (number, claim) in (1..).zip(claims) {
            let older = Duration::from_secs(10_000 - 100 * u64::from(number));
            let rtt = Duration::from_millis(1);
            let key = key(number);
            world.nodes.push(Node {
                key,
                rtt,
                boot: 1,
                started_at: None,
                older,
                hears: true,
                is_heard: true,
                is_leaving: false,
                is_withdrawn: false,
                apart: BTreeMap::new(),
                listed: None,
            });
            world.claims.handle_claims(key, NodeId(number.into()), vec![*claim], now);
        }
        world.drain();
        world
    }

    fn node(&mut self, number: u8) -> &mut Node {
        &mut self.nodes[usize::from(number) - 1]
    }

    fn kill(&mut self, number: u8) {
        (self.node(number).hears, self.node(number).is_heard) = (false, false);
    }

    /// As a new process.
    fn restart(&mut self, number: u8) {
        let now = self.now;
        let node = self.node(number);
        (node.hears, node.is_heard, node.started_at) = (true, true, Some(now));
        node.is_leaving = false;
        node.boot += 1;
    }

    /// It says that it goes, and goes on serving until its users have moved.
    fn leave(&mut self, number: u8) {
        self.node(number).is_leaving = true;
        let now = self.now;
        self.claims.handle_leaving(&key(number), now);
        self.drain();
    }

    /// Whether a packet there, and its answer, get through.
    fn returns(&mut self, peer: PublicKey) -> bool {
        let lost = (0..2).any(|_| self.rng.random_range(0..1000) < self.loss);
        self.nodes.iter().any(|node| node.key == peer && node.hears && node.is_heard) && !lost
    }

    fn drain(&mut self) {
        while let Some(output) = self.claims.poll_output() {
            match output {
                Output::Route { prefix, peer: Some(peer), broken, .. } => {
                    self.broken.extend(broken);
                    self.routes.insert(prefix, peer);
                    self.moves.push((self.now, prefix, peer));
                }
                Output::Route { prefix, peer: None, .. } => {
                    self.routes.remove(&prefix);
                }
                Output::Withhold { prefix, withheld: true } => assert!(self.withheld.insert(prefix)),
                Output::Withhold { prefix, withheld: false } => assert!(self.withheld.remove(&prefix)),
                Output::Probe { peer, id } => {
                    self.probes += 1;
                    if self.returns(peer) {
                        let node = self.nodes.iter().find(|node| node.key == peer).unwrap();
                        self.replies.push((self.now + node.rtt, peer, id));
                    }
                }
                Output::Keep { peer, kept: true } => assert!(self.kept.insert(peer)),
                Output::Keep { peer, kept: false } => assert!(self.kept.remove(&peer)),
                Output::Watch { peer, silence } => match silence {
                    Some(silence) => drop(self.watched.insert(peer, silence)),
                    None => drop(self.watched.remove(&peer)),
                },
            }
        }
    }

    fn deliver(&mut self) {
        let (due, later) = self.replies.iter().partition(|(at, ..)| *at <= self.now);
        self.replies = later;
        let due: Vec<(BootTime, PublicKey, u64)> = due;
        for (_, peer, id) in due {
            let node = self.nodes.iter().find(|node| node.key == peer).unwrap();
            if node.is_heard {
                let told = node.told(self.now);
                self.unanswered.remove(&peer);
                self.claims.handle_reply(&peer, id, told, self.now);
            }
        }
    }

    /// It withdraws its claims or restores them, and says so.
    fn withdraw(&mut self, number: u8, is_withdrawn: bool) {
        let now = self.now;
        let node = self.node(number);
        node.is_withdrawn = is_withdrawn;
        if !is_withdrawn {
            node.started_at = Some(now);
        }
        let (key, told) = (node.key, node.told(now));
        self.claims.handle_reply(&key, 0, told, now);
        self.drain();
    }

    /// It withdraws one of its claims or restores it, and says so.
    fn withdraw_one(&mut self, number: u8, claim: &str, is_withdrawn: bool) {
        let now = self.now;
        let node = self.node(number);
        node.apart.insert(prefix(claim), (!is_withdrawn).then_some(now));
        let (key, told) = (node.key, node.told(now));
        self.claims.handle_reply(&key, 0, told, now);
        self.drain();
    }

    /// A request to the address, answered within the tick if all is well.
    fn request(&mut self, to: IpNet) {
        let Some(peer) = self.routes.get(&to).copied() else { return };
        self.claims.handle_data(&[peer], self.now);
        if self.returns(peer) {
            if self.unanswered.remove(&peer).is_some() {
                self.claims.handle_heard(&peer, self.now);
            }
            if let Some(before) = self.answered_at.replace(self.now) {
                self.longest_outage = self.longest_outage.max(self.now.since(before));
            }
        } else {
            let since = *self.unanswered.entry(peer).or_insert(self.now);
            if self.watched.get(&peer).is_some_and(|silence| self.now >= since + *silence) {
                self.claims.handle_silent(&peer, since, self.now);
            }
        }
    }

    /// Lets time pass, in ticks; with a request to the address in each, or without any.
    fn run(&mut self, span: Duration, to: Option<IpNet>) {
        let end = self.now + span;
        while self.now < end {
            self.now = self.now + TICK;
            self.deliver();
            if let Some(to) = to {
                self.request(to);
            }
            let mut turns = 0;
            while self.claims.poll_timeout().is_some_and(|deadline| deadline.at <= self.now) {
                self.claims.handle_timeout(&mut self.next_probe, self.now);
                turns += 1;
                assert!(turns < 10, "spins at {:?}", self.claims.poll_timeout());
            }
            self.drain();
        }
    }

    fn use_for_s(&mut self, seconds: u64) {
        self.run(Duration::from_secs(seconds), Some(prefix(ADDRESS)));
    }

    fn serving(&self) -> u8 {
        self.routes[&prefix(ADDRESS)].0[0]
    }

    /// The longest gap between answers since this was asked last.
    fn outage(&mut self) -> Duration {
        std::mem::take(&mut self.longest_outage)
    }
}

fn pair() -> World {
    let mut world = World::new(&[claim(ADDRESS), claim(ADDRESS)]);
    world.use_for_s(10);
    assert_eq!((world.serving(), world.moves.len()), (1, 1));
    world.outage();
    world
}

const BOUND: Duration = Duration::from_millis(600);

#[test]
fn a_killed_node_is_left_for_the_standby_within_the_bound() {
    let mut world = pair();
    world.kill(1);
    world.use_for_s(5);
    assert_eq!(world.serving(), 2);
    assert!((500..=600).contains(&(world.outage().as_millis())));
}

#[test]
fn a_cut_of_either_direction_alone_is_no_different() {
    for direction in 0..2 {
        let mut world = pair();
        match direction {
            0 => world.node(1).hears = false,
            _ => world.node(1).is_heard = false,
        }
        world.use_for_s(5);
        assert_eq!(world.serving(), 2);
        assert!(world.outage() <= BOUND);
    }
}

#[test]
fn a_client_whose_own_link_is_cut_moves_nothing() {
    let mut world = pair();
    for number in [1, 2] {
        world.kill(number);
    }
    world.use_for_s(30);
    for number in [1, 2] {
        let node = world.node(number);
        (node.hears, node.is_heard) = (true, true);
    }
    world.use_for_s(100);
    assert_eq!((world.serving(), world.moves.len()), (1, 1));
}

#[test]
fn blackouts_shorter_than_the_bound_move_nothing() {
    let mut world = pair();
    for _ in 0..60 {
        world.kill(1);
        world.run(Duration::from_millis(300), Some(prefix(ADDRESS)));
        let node = world.node(1);
        (node.hears, node.is_heard) = (true, true);
        world.use_for_s(5);
    }
    assert_eq!(world.moves.len(), 1);
}

#[test]
fn one_that_failed_for_this_client_alone_is_returned_to_after_a_minute_of_health() {
    let mut world = pair();
    world.node(1).is_heard = false;
    world.use_for_s(20);
    assert_eq!(world.serving(), 2);
    world.node(1).is_heard = true;
    world.use_for_s(55);
    assert_eq!(world.serving(), 2);
    world.outage();
    world.use_for_s(40);
    assert_eq!(world.serving(), 1);
    assert!(world.outage() <= TICK * 2, "nothing is lost on the way back");
}

#[test]
fn one_that_restarted_ranks_last_and_is_not_returned_to() {
    let mut world = pair();
    world.kill(1);
    world.use_for_s(5);
    world.restart(1);
    world.use_for_s(600);
    assert_eq!((world.serving(), world.moves.len()), (2, 2));
}

#[test]
fn one_whose_machine_stood_still_is_up_for_less_and_not_returned_to() {
    let mut world = pair();
    let stood_still = Duration::from_secs(200);
    world.kill(1);
    world.run(stood_still, Some(prefix(ADDRESS)));
    let node = world.node(1);
    (node.hears, node.is_heard) = (true, true);
    node.older -= stood_still;
    world.use_for_s(100);
    assert_eq!((world.serving(), world.moves.len()), (2, 2));
}

#[test]
fn of_more_than_are_considered_the_preferred_are() {
    let mut claims = [claim(ADDRESS); MAX_CANDIDATES + 2];
    claims[MAX_CANDIDATES + 1].priority = 1;
    let mut world = World::new(&claims);
    world.use_for_s(2);
    assert_eq!(usize::from(world.serving()), claims.len());
    let status = world.claims.status();
    assert_eq!((status.len(), status[0].candidates.len()), (1, MAX_CANDIDATES));
}

#[test]
fn one_that_preempts_is_returned_to_after_the_hold() {
    let preempting = Claim { preempt: true, ..claim(ADDRESS) };
    let mut world = World::new(&[preempting, claim(ADDRESS)]);
    world.use_for_s(5);
    world.kill(1);
    world.use_for_s(5);
    assert_eq!(world.serving(), 2);
    world.restart(1);
    world.use_for_s(4);
    assert_eq!(world.serving(), 2);
    world.use_for_s(6);
    assert_eq!(world.serving(), 1);
}

#[test]
fn a_shorter_prefix_serves_until_the_longer_one_is_back_for_the_hold() {
    let mut world = World::new(&[claim(ADDRESS), claim("10.9.0.0/31")]);
    world.use_for_s(5);
    world.outage();
    assert_eq!(world.serving(), 1);
    world.kill(1);
    world.use_for_s(5);
    assert_eq!(world.serving(), 2);
    assert!(world.outage() <= BOUND);
    assert_eq!(world.routes[&prefix("10.9.0.0/31")], key(2));
    world.restart(1);
    world.use_for_s(10);
    assert_eq!((world.serving(), world.moves.len()), (1, 4));
    assert!(world.outage() <= TICK * 2);
}

#[test]
fn ten_claimers_one_after_the_other_are_followed_within_the_bound() {
    let mut world = World::new(&[claim(ADDRESS); 10]);
    world.use_for_s(10);
    for number in 1..10 {
        assert_eq!(world.serving(), number);
        world.outage();
        world.kill(number);
        world.use_for_s(5);
        let outage = world.outage();
        assert!(outage <= BOUND, "{number}: {outage:?}");
    }
    assert_eq!(world.serving(), 10);
}

#[test]
fn whoever_leaves_is_left_before_anything_is_lost() {
    let mut world = pair();
    world.leave(1);
    world.use_for_s(2);
    assert_eq!(world.serving(), 2);
    assert!(world.outage() <= TICK * 2);
}

#[test]
fn one_that_is_there_is_left_for_nobody_who_died_unnoticed() {
    let mut world = pair();
    world.kill(2);
    world.leave(1);
    world.use_for_s(5);
    assert_eq!(world.serving(), 1);
    // Now the other one has been up for longer, as far as anybody knows.
    world.restart(1);
    world.use_for_s(5);
    assert_eq!((world.serving(), world.moves.len()), (1, 1));
    assert!(world.outage() <= TICK * 2);
    world.restart(2);
    world.restart(1);
    world.use_for_s(120);
    assert_eq!(world.serving(), 1);
}

#[test]
fn clients_agree_whomever_they_met_first() {
    for first in [1, 2, 3] {
        let mut world = World::new(&[claim(ADDRESS); 3]);
        for number in [1, 2, 3].into_iter().filter(|number| *number != first) {
            let now = world.now;
            world.claims.handle_claims(key(number), NodeId(number.into()), Vec::new(), now);
        }
        world.drain();
        world.use_for_s(10);
        assert_eq!(world.serving(), first);
        for number in 1..=3 {
            let now = world.now;
            world.claims.handle_claims(key(number), NodeId(number.into()), vec![claim(ADDRESS)], now);
        }
        world.use_for_s(10);
        assert_eq!(world.serving(), 1);
    }
}

#[test]
fn who_is_up_longest_serves_though_its_number_is_higher() {
    let mut world = World::new(&[claim(ADDRESS); 3]);
    world.node(3).older = Duration::from_secs(1_000_000);
    world.use_for_s(2);
    assert_eq!((world.serving(), world.moves.len()), (3, 2));
}

/// How often clients move that use the address as often as that for ten minutes.
fn moves_under_loss(loss_in_1000: u32, between_requests: Duration) -> usize {
    let mut world = pair();
    world.loss = loss_in_1000;
    let end = world.now + Duration::from_secs(600);
    while world.now < end {
        world.run(TICK, Some(prefix(ADDRESS)));
        world.run(between_requests.saturating_sub(TICK), None);
    }
    world.moves.len() - 1
}

#[test]
fn loss_moves_nobody() {
    for between in [TICK, Duration::from_millis(100), Duration::from_secs(1)] {
        assert_eq!(moves_under_loss(10, between), 0, "1 %, {between:?}");
        assert_eq!(moves_under_loss(100, between), 0, "10 %, {between:?}");
    }
}

#[test]
fn a_prefix_in_use_costs_a_probe_in_25_s_beside_the_check_and_an_idle_one_nothing() {
    let mut world = pair();
    world.probes = 0;
    world.use_for_s(100);
    assert!((265..=275).contains(&world.probes), "while it carries data: {}", world.probes);
    world.run(Duration::from_secs(10), None);
    world.probes = 0;
    world.run(Duration::from_secs(100), None);
    assert!((52..=56).contains(&world.probes), "{}", world.probes);
    world.run(Duration::from_secs(301), None);
    world.probes = 0;
    world.run(Duration::from_secs(3600), None);
    assert_eq!((world.probes, world.claims.poll_timeout()), (0, None));
    assert!(world.kept.is_empty());
}

#[test]
fn one_that_dies_while_it_owes_an_answer_is_left_within_a_second_though_nothing_is_unanswered() {
    for after_ms in (5..2000).step_by(95) {
        let mut world = pair();
        world.run(Duration::from_millis(after_ms), None);
        world.run(TICK, Some(prefix(ADDRESS)));
        world.kill(1);
        world.run(Duration::from_secs(1), None);
        assert_eq!(world.serving(), 2, "after {after_ms} ms");
    }
}

#[test]
fn silence_for_less_than_a_long_dead_after_moves_nobody() {
    let mut world = pair();
    world.claims.set_config(ClaimsConfig { dead_after: Duration::from_secs(5), ..ClaimsConfig::default() });
    for _ in 0..3 {
        (world.node(1).hears, world.node(1).is_heard) = (false, false);
        world.use_for_s(4);
        (world.node(1).hears, world.node(1).is_heard) = (true, true);
        world.use_for_s(10);
        assert_eq!((world.serving(), world.moves.len()), (1, 1));
    }
    world.kill(1);
    world.use_for_s(7);
    assert_eq!(world.serving(), 2);
}

#[test]
fn a_slow_path_is_given_its_round_trips() {
    let mut world = World::new(&[claim(ADDRESS), claim(ADDRESS)]);
    for number in [1, 2] {
        world.node(number).rtt = Duration::from_millis(200);
    }
    world.use_for_s(60);
    assert_eq!((world.serving(), world.moves.len()), (1, 1));
    world.outage();
    world.kill(1);
    world.use_for_s(5);
    assert_eq!(world.serving(), 2);
    let outage = world.outage();
    assert!(outage <= BOUND + Duration::from_millis(800), "{outage:?}");
}

#[test]
fn who_is_gone_from_the_map_serves_no_more_at_once() {
    let mut world = pair();
    let now = world.now;
    world.claims.handle_claims(key(1), NodeId(1), Vec::new(), now);
    world.drain();
    assert_eq!(world.serving(), 2);
    world.claims.handle_claims(key(2), NodeId(2), Vec::new(), now);
    world.drain();
    assert!(world.routes.is_empty() && world.kept.is_empty() && world.watched.is_empty());
    assert_eq!(world.claims.load(), 0);
}
