//! A seeded list of faults, each with its end.

use crate::{faults::Fault, network::Host, rules::Policy, world::World};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg32;
use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

/// Faults and when they happen, from the start of the script.
#[derive(Debug, Clone)]
pub struct Script {
    pub faults: Vec<(Duration, Fault)>,
    /// By then every fault has ended, except that links may lose and processes may be down: [`World::heal`] sets those right.
    pub span: Duration,
}

/// What agents from the third on claim, in the worlds that these are for; the second of them in some.
const SHARED: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1)), IpAddr::V4(Ipv4Addr::new(10, 9, 7, 1))];

struct Writer {
    rng: Pcg32,
    agents: usize,
    servers: usize,
    script: Script,
}

impl Script {
    /// The script of this seed.
    pub fn random(agents: usize, servers: usize, seed: u64) -> Self {
        let mut rng = Pcg32::seed_from_u64(seed ^ 0x5eed);
        let span = Duration::from_secs(rng.random_range(40..=110));
        let count = rng.random_range(2..=7);
        let mut writer = Writer { rng, agents, servers, script: Self { faults: Vec::new(), span } };
        for _ in 0..count {
            writer.fault();
        }
        if seed % 4 == 1 {
            writer.restore();
        }
        if seed % 8 == 6 && agents > 2 {
            writer.removal_apart();
        }
        if seed % 4 == 3 {
            writer.roots();
        }
        if seed % 16 == 7 && agents > 2 {
            writer.removal_apart();
        }
        if seed % 3 == 1 {
            writer.rules();
        }
        if seed % 5 == 2 && agents > 4 {
            writer.claims();
        }
        if seed % 5 == 2 && seed / 10 % 2 == 1 && agents > 4 {
            writer.unserved();
        }
        if seed % 10 == 4 && agents > 4 {
            writer.exclusive();
        }
        writer.one_wrong_clock();
        writer.script.faults.sort_by_key(|(at, _)| *at);
        writer.script
    }

    /// Schedules it from now on.
    pub fn play(&self, world: &mut World) {
        self.faults.iter().for_each(|(at, fault)| world.schedule(*at, *fault));
    }
}

impl Writer {
    fn fault(&mut self) {
        match self.rng.random_range(0..12) {
            0..=4 => self.server_fault(),
            5..=6 => self.link_fault(),
            7 => self.database_fault(),
            8..=9 => self.agent_fault(),
            10 => {
                let (one, other) = (Host::Agent(self.agent()), Host::Server(self.server()));
                self.between(Fault::Partition(one, other), Fault::Join(one, other));
            }
            _ => self.change(),
        }
    }

    fn server_fault(&mut self) {
        let server = self.server();
        let all = self.rng.random_bool(0.2);
        let kind = self.rng.random_range(0..4);
        let servers = if all { (0..self.servers).collect() } else { vec![server] };
        let (start, end) = self.times();
        for server in servers {
            let (fault, cure) = match kind {
                0 => (Fault::Kill(server), Fault::Start(server)),
                1 => (Fault::Freeze(server), Fault::Thaw(server)),
                2 => (Fault::Drain(server), Fault::Start(server)),
                _ => {
                    let to = (server + 1) % self.servers;
                    let back = Fault::Route { address_of: server, to: server };
                    (Fault::Route { address_of: server, to }, back)
                }
            };
            self.script.faults.push((start, fault));
            self.script.faults.push((end, cure));
        }
    }

    fn link_fault(&mut self) {
        let host = match self.rng.random_bool(0.6) {
            true => Host::Server(self.server()),
            false => Host::Agent(self.agent()),
        };
        let fault = match self.rng.random_range(0..5) {
            0 => Fault::Cut(host),
            1 => Fault::DropIn(host),
            2 => Fault::DropOut(host),
            3 => Fault::Loss(host, self.rng.random_range(0.02..0.4)),
            _ => Fault::Latency(host, Duration::from_millis(self.rng.random_range(1..250))),
        };
        self.between(fault, Fault::Heal(host));
    }

    fn database_fault(&mut self) {
        let server = self.server();
        match self.rng.random_bool(0.5) {
            true => self.between(Fault::DatabaseAway, Fault::DatabaseBack),
            false => self.between(Fault::CutOff(server), Fault::Reconnect(server)),
        }
    }

    fn agent_fault(&mut self) {
        let agent = self.agent();
        match self.rng.random_range(0..4) {
            0 => self.between(Fault::Stop(agent), Fault::Launch(agent)),
            1 => self.between(Fault::Sleep(agent), Fault::WakeUp(agent)),
            2 => {
                let at = self.times().0;
                self.script.faults.push((at, Fault::Move(agent)));
            }
            _ => {
                let (at, ahead_s) = (self.times().0, self.rng.random_range(-100_000_000..100_000_000));
                self.script.faults.push((at, Fault::WallClock(agent, ahead_s)));
            }
        }
    }

    /// Changes in a burst: some are seen in maps, some are not.
    fn change(&mut self) {
        let start = self.times().0;
        for step in 0..self.rng.random_range(1..6) {
            let agent = self.agent();
            let fault = if self.rng.random_bool(0.5) { Fault::Rename(agent) } else { Fault::Unseen };
            self.script.faults.push((start + Duration::from_millis(7) * step, fault));
        }
        if self.agents > 2 && self.rng.random_bool(0.1) {
            self.script.faults.push((start, Fault::Remove(self.agents - 1)));
        }
    }

    /// A node is removed while another hears no server, but its peers.
    fn removal_apart(&mut self) {
        let apart = self.rng.random_range(0..self.agents - 1);
        let (start, end) = self.times();
        for server in 0..self.servers {
            let (one, other) = (Host::Agent(apart), Host::Server(server));
            self.script.faults.push((start, Fault::Partition(one, other)));
            self.script.faults.push((end, Fault::Join(one, other)));
        }
        self.script.faults.push((start + (end - start) / 4, Fault::Remove(self.agents - 1)));
    }

    /// The root changes, perhaps more than once, while an agent is away and a server is behind; whoever wants the former gone tries it again and again.
    fn roots(&mut self) {
        let span = self.script.span;
        let mut changed_at: Vec<Duration> =
            (0..self.rng.random_range(1..=3)).map(|_| self.times().0).collect();
        changed_at.sort_unstable();
        self.script.faults.extend(changed_at.iter().map(|at| (*at, Fault::Rotate)));
        let first = changed_at[0];
        for _ in 0..self.rng.random_range(0..=6) {
            let at = first + (span - first).mul_f64(self.rng.random_range(0.0..1.0));
            self.script.faults.push((at, Fault::Retire));
        }
        let (agent, server, kind) = (self.agent(), self.server(), self.rng.random_range(0..4));
        if kind == 0 {
            self.across(first, Fault::Stop(agent), Fault::Launch(agent));
        }
        if kind == 1 {
            self.across(first, Fault::Sleep(agent), Fault::WakeUp(agent));
        }
        if kind == 1 || kind == 2 {
            self.across(first, Fault::CutOff(server), Fault::Reconnect(server));
        }
    }

    /// The rules change, perhaps twice within a moment, or while an agent is away or a server behind.
    fn rules(&mut self) {
        let first = self.times().0;
        for number in 0..self.rng.random_range(1..=4) {
            let at = if number == 0 { first } else { self.times().0 };
            let policy = self.policy();
            self.script.faults.push((at, Fault::Rules(policy)));
            if self.rng.random_bool(0.3) {
                let soon = Duration::from_millis(self.rng.random_range(0..400));
                let policy = self.policy();
                self.script.faults.push((at + soon, Fault::Rules(policy)));
            }
        }
        let (agent, server) = (self.agent(), self.server());
        match self.rng.random_range(0..4) {
            0 => self.across(first, Fault::Stop(agent), Fault::Launch(agent)),
            1 => self.across(first, Fault::Sleep(agent), Fault::WakeUp(agent)),
            2 => self.across(first, Fault::CutOff(server), Fault::Reconnect(server)),
            _ => {}
        }
    }

    fn policy(&mut self) -> Policy {
        let agents = self.rng.random_range(0..1 << self.agents);
        match self.rng.random_range(0..4) {
            0 => Policy::Network,
            1 => Policy::Named(agents),
            _ => Policy::InSet(agents),
        }
    }

    /// Who claims something is lost to one client or to all, or claims it no more.
    fn claims(&mut self) {
        for _ in 0..self.rng.random_range(1..=3) {
            let (client, claimer) = (self.rng.random_range(0..2), self.rng.random_range(2..self.agents));
            let (one, other) = (Host::Agent(client), Host::Agent(claimer));
            match self.rng.random_range(0..10) {
                5..=6 => self.leave(claimer),
                7..=9 => self.checks(client, claimer),
                0 => self.between(Fault::Block(one, other), Fault::Unblock(one, other)),
                1 => self.between(Fault::Block(other, one), Fault::Unblock(other, one)),
                2 => self.between(Fault::Stop(claimer), Fault::Launch(claimer)),
                3 => self.between(Fault::Cut(other), Fault::Heal(other)),
                _ => self.between(Fault::Withdraw(claimer), Fault::Claim(claimer)),
            }
        }
    }

    /// Whoever holds what is claimed exclusively is lost, or does not hear of a successor; nobody may be granted anything for a while.
    fn exclusive(&mut self) {
        for _ in 0..self.rng.random_range(2..=5) {
            let claimer = self.rng.random_range(2..self.agents);
            match self.rng.random_range(0..10) {
                0 => self.between(Fault::Stop(claimer), Fault::Launch(claimer)),
                1 => self.between(Fault::Sleep(claimer), Fault::WakeUp(claimer)),
                2 => self.between(Fault::Cut(Host::Agent(claimer)), Fault::Heal(Host::Agent(claimer))),
                3 => self.apart(claimer),
                4 => self.between(Fault::DatabaseAway, Fault::DatabaseBack),
                5 => self.no_servers(),
                6 => self.leave(claimer),
                7 => self.checks(self.agents - 1, claimer),
                8 => self.between(Fault::Withdraw(claimer), Fault::Claim(claimer)),
                // A restart while nobody can say who holds it.
                _ => {
                    self.no_servers();
                    self.between(Fault::Stop(claimer), Fault::Launch(claimer));
                }
            }
        }
    }

    /// It reaches others, and no server.
    fn apart(&mut self, agent: usize) {
        let (start, end) = self.times();
        for server in 0..self.servers {
            let (one, other) = (Host::Agent(agent), Host::Server(server));
            self.script.faults.push((start, Fault::Partition(one, other)));
            self.script.faults.push((end, Fault::Join(one, other)));
        }
    }

    fn no_servers(&mut self) {
        let (start, end) = self.times();
        for server in 0..self.servers {
            self.script.faults.push((start, Fault::Kill(server)));
            self.script.faults.push((end, Fault::Start(server)));
        }
    }

    /// What one or all of them serve is found wrong for a while, or again and again; the words may be lost.
    fn checks(&mut self, client: usize, claimer: usize) {
        let all = self.rng.random_bool(0.3);
        let failing = if all { 2..self.agents } else { claimer..claimer + 1 };
        for claimer in failing {
            for _ in 0..self.rng.random_range(1..=3) {
                self.between(Fault::CheckFails(claimer), Fault::CheckPasses(claimer));
            }
        }
        let (one, other) = (Host::Agent(client), Host::Agent(claimer));
        match self.rng.random_range(0..4) {
            0 => self.between(Fault::Block(other, one), Fault::Unblock(other, one)),
            1 => self.between(Fault::Stop(claimer), Fault::Launch(claimer)),
            2 => self.between(Fault::Sleep(claimer), Fault::WakeUp(claimer)),
            _ => {}
        }
    }

    /// One of two claims cannot be served for a while, by one or all of them.
    fn unserved(&mut self) {
        for _ in 0..self.rng.random_range(1..=4) {
            let address = SHARED[self.rng.random_range(0..SHARED.len())];
            let one = self.rng.random_range(2..self.agents);
            let all = self.rng.random_bool(0.3);
            for claimer in if all { 2..self.agents } else { one..one + 1 } {
                let (fault, cure) = (Fault::Unserved(claimer, address), Fault::ServedAgain(claimer, address));
                self.between(fault, cure);
            }
        }
    }

    /// It goes as it is told to, which takes 3 s at most, and comes back.
    fn leave(&mut self, claimer: usize) {
        let (start, end) = self.times();
        let gone_at = start + Duration::from_millis(self.rng.random_range(3100..4000));
        self.script.faults.push((start, Fault::Leave(claimer)));
        self.script.faults.push((gone_at, Fault::Stop(claimer)));
        self.script.faults.push((end.max(gone_at), Fault::Launch(claimer)));
    }

    /// Two whose clocks were both set back begin no handshake that the other believes, so no invariant could bear more than one.
    fn one_wrong_clock(&mut self) {
        let clock = |(_, fault): &(Duration, Fault)| {
            let Fault::WallClock(agent, _) = fault else { return None };
            Some(*agent)
        };
        let first = self.script.faults.iter().find_map(clock);
        self.script.faults.retain(|entry| clock(entry).is_none() || clock(entry) == first);
    }

    /// From before a moment to some time, perhaps after it.
    fn across(&mut self, moment: Duration, fault: Fault, cure: Fault) {
        let start = moment.mul_f64(self.rng.random_range(0.3..1.0));
        let left = self.script.span - start;
        self.script.faults.push((start, fault));
        self.script.faults.push((start + left.mul_f64(self.rng.random_range(0.1..1.0)), cure));
    }

    /// The database goes back, while servers run or while none does. A removal that nobody remembers then is undone, which no invariant can bear.
    fn restore(&mut self) {
        self.script.faults.retain(|(_, fault)| !matches!(fault, Fault::Remove(_)));
        let (copied_at, restored_at) = self.times();
        if self.rng.random_bool(0.5) {
            self.script.faults.push((copied_at, Fault::Copy));
        }
        let all_restart = self.rng.random_bool(0.5);
        for server in (0..self.servers).filter(|_| all_restart) {
            self.script.faults.push((restored_at - Duration::from_millis(1), Fault::Kill(server)));
            self.script.faults.push((restored_at + Duration::from_millis(500), Fault::Start(server)));
        }
        self.script.faults.push((restored_at, Fault::Restore));
    }

    fn between(&mut self, fault: Fault, cure: Fault) {
        let (start, end) = self.times();
        self.script.faults.push((start, fault));
        self.script.faults.push((end, cure));
    }

    fn times(&mut self) -> (Duration, Duration) {
        let span = self.script.span;
        let start = span.mul_f64(self.rng.random_range(0.0..0.9));
        (start, start + (span - start).mul_f64(self.rng.random_range(0.05..1.0)))
    }

    fn agent(&mut self) -> usize {
        self.rng.random_range(0..self.agents)
    }

    fn server(&mut self) -> usize {
        self.rng.random_range(0..self.servers)
    }
}
