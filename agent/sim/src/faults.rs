//! What can go wrong, and what sets it right again.

use crate::{atlas::Change, members, network::Host, rules::Policy, world::World};
use agent_core::{Agent, BootTime};
use proto::time::UnixTime;
use std::{collections::VecDeque, net::IpAddr, time::Duration};

/// One change of the world.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    Kill(usize),
    Start(usize),
    Freeze(usize),
    Thaw(usize),
    /// The server asks its agents to leave, and ends.
    Drain(usize),
    /// The database is away for one server.
    CutOff(usize),
    Reconnect(usize),
    DatabaseAway,
    DatabaseBack,
    /// A machine's link loses everything.
    Cut(Host),
    DropIn(Host),
    DropOut(Host),
    /// .. or each packet with this probability.
    Loss(Host, f64),
    Latency(Host, Duration),
    /// What a machine sends is that much later than what it gets.
    LatencyOut(Host, Duration),
    Heal(Host),
    Partition(Host, Host),
    Join(Host, Host),
    /// What the first sends to the second is lost.
    Block(Host, Host),
    Unblock(Host, Host),
    /// Another machine answers at a server's address.
    Route {
        address_of: usize,
        to: usize,
    },
    /// Agents, by `kill -9`.
    Stop(usize),
    Launch(usize),
    Sleep(usize),
    WakeUp(usize),
    /// The agent's process stands still; what comes meanwhile waits in its socket, up to a bound.
    Pause(usize),
    Resume(usize),
    /// The agent tells its peers that it goes, and goes on until it is stopped.
    Leave(usize),
    /// A node claims nothing any more, or again what it may.
    Withdraw(usize),
    Claim(usize),
    /// What a node serves is found wrong, or well again, by its own check.
    CheckFails(usize),
    CheckPasses(usize),
    /// A node's machine cannot serve one of its claims, the one that has this address, or can again.
    Unserved(usize, IpAddr),
    ServedAgain(usize, IpAddr),
    /// The agent's machine gets another address.
    Move(usize),
    /// Its wall clock is set, seconds ahead of the truth.
    WallClock(usize, i32),
    NamesAway,
    NamesBack,
    Rename(usize),
    /// A change that nobody's map shows.
    Unseen,
    Remove(usize),
    /// Others may open something on agents.
    Rules(Policy),
    /// The cluster gets another root, unless it has too many.
    Rotate,
    /// .. and trusts former ones no more, unless somebody needs them.
    Retire,
    /// A backup of the database is made.
    Copy,
    /// The database is restored from its copy: without one, it is as at the very first start.
    Restore,
}

impl World {
    /// Lets it happen now.
    pub fn apply(&mut self, fault: &Fault) {
        self.trace.note(self.now, || format!("{fault:?}"));
        match *fault {
            Fault::Kill(server) => self.kill_server(server),
            Fault::Start(server) => self.start_server(server),
            Fault::Freeze(server) => self.freeze_server(server, true),
            Fault::Thaw(server) => self.freeze_server(server, false),
            Fault::Drain(server) => self.drain_server(server),
            Fault::CutOff(server) => self.servers[server].cut_off = true,
            Fault::Reconnect(server) => self.servers[server].cut_off = false,
            Fault::DatabaseAway => self.database_away = true,
            Fault::DatabaseBack => self.database_away = false,
            Fault::NamesAway => self.names_away = true,
            Fault::NamesBack => self.names_away = false,
            Fault::Cut(host) => self.network.link_mut(host).cut = true,
            Fault::DropIn(host) => self.network.link_mut(host).drops_in = true,
            Fault::DropOut(host) => self.network.link_mut(host).drops_out = true,
            Fault::Loss(host, loss) => self.network.lose(host, loss),
            Fault::Latency(host, latency) => self.network.link_mut(host).latency = latency,
            Fault::LatencyOut(host, more) => self.network.link_mut(host).latency_out = more,
            Fault::Heal(host) => self.network.link_mut(host).heal(),
            Fault::Partition(one, other) => drop(self.network.partitions.insert((one, other))),
            Fault::Join(one, other) => drop(self.network.partitions.remove(&(one, other))),
            Fault::Block(from, to) => drop(self.network.blocked.insert((from, to))),
            Fault::Unblock(from, to) => drop(self.network.blocked.remove(&(from, to))),
            Fault::Route { address_of, to } => self.routes.set(members::server_addr(address_of), to),
            Fault::Stop(agent) => self.stop_agent(agent),
            Fault::Launch(agent) => self.launch_agent(agent),
            Fault::Sleep(agent) => self.sleep(agent),
            Fault::WakeUp(agent) => self.wake_up(agent),
            Fault::Pause(agent) => self.pause(agent),
            Fault::Resume(agent) => self.resume(agent),
            Fault::Leave(agent) => self.leave(agent),
            Fault::Withdraw(agent) => self.set_claims(agent, false),
            Fault::Claim(agent) if self.database.head.is_withdrawn(agent) => self.set_claims(agent, true),
            Fault::Claim(_) => {}
            Fault::CheckFails(agent) => self.set_check(agent, true),
            Fault::CheckPasses(agent) => self.set_check(agent, false),
            Fault::Unserved(agent, address) => self.set_unserved(agent, address, true),
            Fault::ServedAgain(agent, address) => self.set_unserved(agent, address, false),
            Fault::Move(agent) => self.move_agent(agent),
            Fault::WallClock(agent, ahead_s) => self.set_wall_clock(agent, ahead_s),
            Fault::Rename(agent) => self.rename(agent),
            Fault::Unseen => self.write_if_possible(&Change::Unseen),
            Fault::Remove(agent) => self.remove(agent),
            Fault::Rotate => self.rotate(),
            Fault::Retire => self.retire(),
            Fault::Copy => self.database.keep_copy(),
            Fault::Restore => self.restore(),
            Fault::Rules(policy) => self.set_policy(policy),
        }
    }

    fn rename(&mut self, agent: usize) {
        let name = format!("renamed{}", self.now.since_boot().as_millis());
        self.write_if_possible(&Change::Rename(agent, name));
    }

    fn set_claims(&mut self, agent: usize, claims: bool) {
        self.write_if_possible(&Change::Withdraw(agent, !claims));
        let claims = match self.database.head.is_withdrawn(agent) {
            true => Vec::new(),
            false => self.database.head.claims_of(agent),
        };
        self.nodes[agent].config.facts.claims.clone_from(&claims);
        self.tell_claims(agent);
    }

    /// One that stands still hears it when it goes on.
    fn tell_claims(&mut self, agent: usize) {
        let claims = self.nodes[agent].config.facts.claims.clone();
        self.input(agent, |a, now| a.set_claims(claims, now));
    }

    fn remove(&mut self, agent: usize) {
        self.write_if_possible(&Change::Remove(agent));
        self.disturb(agent, true);
    }

    fn restore(&mut self) {
        let before = self.database.head.policy;
        self.database.restore_copy();
        // Nobody restores a database that servers go on using.
        self.servers.iter_mut().for_each(|server| server.rounds.on_database(false, self.now));
        self.on_policy_changed(before);
    }

    fn set_policy(&mut self, policy: Policy) {
        let before = self.database.head.policy;
        self.write_if_possible(&Change::Rules(policy));
        self.on_policy_changed(before);
    }

    pub(crate) fn write_if_possible(&mut self, change: &Change) {
        let known = |agent: &usize| self.database.head.is_member(&members::of(*agent).key);
        let possible = match change {
            Change::Rename(agent, _)
            | Change::Remove(agent)
            | Change::Endpoints(agent, _)
            | Change::Renew(agent)
            | Change::Withdraw(agent, _)
            | Change::Yield(agent, _)
            | Change::Grant(_, agent)
            | Change::Confirm(agent, _) => known(agent),
            Change::Unseen | Change::Enrol(_) | Change::SignAnew | Change::Rules(_) => true,
            Change::Rotate => self.database.head.may_rotate(),
            Change::Retire => self.database.head.may_retire(),
        };
        if possible && !self.database_away {
            self.write(change);
        }
    }

    fn sleep(&mut self, agent: usize) {
        self.nodes[agent].asleep = true;
        self.disturb(agent, false);
    }

    fn wake_up(&mut self, agent: usize) {
        self.nodes[agent].asleep = false;
        self.disturb(agent, false);
        self.input(agent, |a, now| a.handle_network_changed(now));
        self.tell_check(agent);
        self.tell_claims(agent);
    }

    fn pause(&mut self, agent: usize) {
        self.nodes[agent].backlog = Some(VecDeque::new());
        self.sleep(agent);
    }

    fn resume(&mut self, agent: usize) {
        self.nodes[agent].asleep = false;
        self.disturb(agent, false);
        for (from, to, body) in self.nodes[agent].backlog.take().into_iter().flatten() {
            self.on_datagram(from, to, body);
        }
        // Its timers are late.
        self.input(agent, |_, _| {});
        self.tell_check(agent);
        self.tell_claims(agent);
    }

    fn leave(&mut self, agent: usize) {
        self.nodes[agent].is_leaving = self.nodes[agent].is_awake();
        self.input(agent, Agent::drain);
    }

    fn move_agent(&mut self, agent: usize) {
        self.nodes[agent].moves += 1;
        self.disturb(agent, true);
        let endpoint = self.nodes[agent].endpoint();
        self.input(agent, |a, now| a.handle_endpoints(vec![endpoint], endpoint.port(), now));
        self.input(agent, |a, now| a.handle_network_changed(now));
    }

    fn set_wall_clock(&mut self, agent: usize, ahead_s: i32) {
        self.nodes[agent].clock_ahead_s = ahead_s.into();
        self.nodes[agent].tunnel.clock_ahead_s = ahead_s.into();
        let wall = self.wall(agent);
        self.input(agent, |a, now| a.handle_wall_clock(wall, now));
    }

    /// What the machine's wall clock shows.
    pub(crate) fn wall(&self, agent: usize) -> UnixTime {
        UnixTime(self.time().0.saturating_add_signed(self.nodes[agent].clock_ahead_s))
    }

    /// Everything is set right.
    pub fn heal(&mut self) {
        self.network.partitions.clear();
        self.network.blocked.clear();
        let agents = (0..self.nodes.len()).map(Host::Agent);
        let hosts: Vec<Host> = agents.chain((0..self.servers.len()).map(Host::Server)).collect();
        hosts.into_iter().for_each(|host| self.apply(&Fault::Heal(host)));
        self.apply(&Fault::DatabaseBack);
        self.apply(&Fault::NamesBack);
        for server in 0..self.servers.len() {
            self.apply(&Fault::Route { address_of: server, to: server });
            self.apply(&Fault::Reconnect(server));
            if self.servers[server].frozen {
                self.apply(&Fault::Thaw(server));
            }
            // One that drains ends first.
            if !self.servers[server].is_healthy() {
                self.apply(&Fault::Kill(server));
                self.apply(&Fault::Start(server));
            }
        }
        for agent in 0..self.nodes.len() {
            self.apply(&Fault::Claim(agent));
            self.apply(&Fault::CheckPasses(agent));
            self.serve_all(agent);
            if self.nodes[agent].backlog.is_some() {
                self.apply(&Fault::Resume(agent));
            }
            if self.nodes[agent].asleep {
                self.apply(&Fault::WakeUp(agent));
            }
            if self.nodes[agent].is_leaving {
                self.apply(&Fault::Stop(agent));
            }
            self.apply(&Fault::Launch(agent));
        }
    }

    pub(crate) fn schedule(&mut self, after: Duration, fault: Fault) {
        let at: BootTime = self.now + after;
        self.queue.push(at, crate::event::Event::Fault(fault));
    }
}
