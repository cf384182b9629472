//! The invariants, looked at four times a second and at certain steps.
//!
//! 1. Two agents whose machines run, awake and undisturbed, and that exchange data keep their tunnel, and every request is answered, whatever servers do.
//! 2. An agent that could be served is, within a bound: see [`World::service_bound`]; with a standby at hand within [`World::standby_bound`].
//! 3. No deadline stays in the past (`driver`), and nothing spins: at most [`MAX_STEPS`] steps a second.
//! 4. What an agent holds stays below a bound, whatever happens and however long.
//! 5. One seed gives one trace (a test of its own).
//! 6. A map never goes back (`driver`).
//! 7. After everything is healed all are served, hold the newest map and reach each other, within [`World::service_bound`] and a little.
//! 8. Then each agent has one serving session, and agents and servers agree which.
//! 9. Nobody is left behind on a root that is trusted no more; who is served believes the newest, and after everything is healed nothing needs a former one (`roots`).
//! 10. What one agent knows of removals, those know soon that it has steady tunnels to (`gossip`).
//! 11. Who is served lets in whom the newest rules allow, and nobody else, soon after they change; requests that they allow as before go on to be answered (`rules`).
//! 12. Prefixes go to who was granted them, and lead somewhere (`claims`), to nobody who has withdrawn (`withdrawn`), and to the holder where they are claimed exclusively (`exclusive`).

use crate::{event::Event, members, network::Host, stream::StreamId, traffic::Flow, world::World};
use agent_core::{Agent, BootTime, cache, io::TunnelCommand};
use proto::map::{Map, ObjectId};
use std::time::Duration;

pub(crate) const CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// Steps (an output, a deadline) of one agent in a second. Dials are 20 a second at most, each with its end; a dozen peers wake at once now and then.
const MAX_STEPS: u32 = 250;
/// .. and where prefixes are shared, five are asked at once for each silence, each with a deadline and a miss.
const MAX_PROBED: u32 = 5 * 3;
/// Machines' and sessions' parts, for up to 16 agents and 4 servers; signals are remembered up to 1024.
const MAX_LOAD: usize = 1024 + 200;
/// A standby counts once it was asked for life: it is every 10 s.
const STANDBY_PROVEN: Duration = Duration::from_secs(12);
/// Dial (3 s), greeting (3 s), the death of a session that hung (3 s), the early cap of the back-off (1 s), a round or two.
const SERVICE_BOUND: Duration = Duration::from_secs(12);
/// A tunnel is repaired within: 15 s until silence is noticed, then initiations 5 s apart, and what was lost of those.
const REPAIR_BOUND: Duration = Duration::from_secs(35);
/// After the time that reach is tried: an address that two servers shared is looked at again once a minute.
const STANDBY_REGAINED: Duration = Duration::from_secs(30);
/// Behind a balancer, at a try in 5 minutes at least.
const STANDBY_BY_CHANCE: Duration = Duration::from_secs(3600);
const REPLY_BOUND: Duration = Duration::from_secs(3);

impl World {
    /// Ends the run: what is wrong, how to see it again, what happened last.
    pub(crate) fn fail(&self, what: &str) -> ! {
        let (seed, at) = (self.seed, self.now.since_boot().as_secs_f64());
        let again = format!("HOLDFAST_SIM_SEED={seed} cargo test -p agent-sim --release --test random");
        panic!(
            "seed {seed} at {at:.3} s: {what}\nreplay (random runs): {again}\nlast events:{}",
            self.trace.tail()
        );
    }

    pub(crate) fn count_step(&mut self, at: usize) {
        let second = self.now.since_boot().as_secs();
        let watch = &mut self.nodes[at].watch;
        if watch.second != second {
            (watch.second, watch.steps) = (second, 0);
        }
        watch.steps += 1;
        let probes = (1000 / self.nodes[at].config.claims.probe_interval.as_millis().max(1)) as u32;
        let max = MAX_STEPS + if self.claims.is_empty() { 0 } else { probes * MAX_PROBED };
        if self.nodes[at].watch.steps > max {
            self.fail(&format!("agent {at} spins: more than {max} steps in one second"));
        }
    }

    pub(crate) fn on_check(&mut self) {
        self.queue.push(self.now + CHECK_INTERVAL, Event::Check);
        for at in 0..self.nodes.len() {
            self.watch_service(at);
            self.check_service(at);
            self.check_standby(at);
            self.check_roots(at);
            self.check_policy(at);
            let load = self.nodes[at].agent.as_ref().map_or(0, Agent::load);
            if load > MAX_LOAD {
                self.fail(&format!("agent {at} holds {load} things"));
            }
        }
        for flow in 0..self.flows.len() {
            self.watch_flow(flow);
            self.check_flow(flow);
        }
        self.check_gossip();
        self.check_claims();
    }

    fn watch_service(&mut self, at: usize) {
        let now = self.now;
        let server = self.server_of(at);
        let synced = server.is_some_and(|server| self.has_database(server));
        let good: Vec<bool> = (0..self.servers.len()).map(|server| self.would_serve(server, at)).collect();
        let awake = self.nodes[at].is_awake();
        let watch = &mut self.nodes[at].watch;
        let since = |since: Option<BootTime>, holds: bool| holds.then(|| since.unwrap_or(now));
        watch.served_since = since(watch.served_since, server.is_some());
        watch.synced_since = since(watch.synced_since, synced);
        if server.is_some() {
            watch.last_served_at = now;
        }
        if synced {
            watch.last_synced_at = now;
        }
        if !awake {
            watch.steady_since = now;
        }
        for (held, good) in watch.good_since.iter_mut().zip(good) {
            *held = since(*held, good);
        }
    }

    fn would_serve(&self, server: usize, at: usize) -> bool {
        let (it, key) = (&self.servers[server], members::of(at).key);
        let node = &self.nodes[at];
        let enrolled = node.agent.as_ref().is_some_and(Agent::is_enrolled);
        let member = it.state.is_member(&key) || (!enrolled && self.has_database(server));
        let named = !self.names_away || it.url.literal().is_some();
        let wanted = self.database.head.removal(&key).is_none() && node.knows(&it.url) && !node.is_leaving;
        member && named && wanted && self.shows_known_root(server, at) && self.is_good(server, at)
    }

    /// How long an agent may go without service while a server would serve it: see [`SERVICE_BOUND`]; the back-off's cap grows with the outage.
    pub(crate) fn service_bound(&self, at: usize) -> Duration {
        let outage = self.now.since(self.nodes[at].watch.last_served_at);
        SERVICE_BOUND + (outage / 30).min(Duration::from_secs(30))
    }

    fn check_service(&self, at: usize) {
        let watch = &self.nodes[at].watch;
        let good = match self.routes.is_balanced() {
            true => self.all_good_since(at),
            false => watch.good_since.iter().flatten().min().copied(),
        };
        let (None, Some(good)) = (watch.served_since, good) else { return };
        let entitled = good.max(watch.steady_since).max(watch.last_served_at);
        if self.now.since(entitled) > self.service_bound(at) {
            self.fail(&format!("agent {at} could be served for {:?}, and is not", self.now.since(entitled)));
        }
    }

    /// A balancer may lead to any server that runs.
    fn all_good_since(&self, at: usize) -> Option<BootTime> {
        let good = self.nodes[at].watch.good_since.iter().zip(&self.servers);
        let alive: Vec<_> = good.filter(|(_, server)| server.is_alive()).map(|(good, _)| *good).collect();
        alive.into_iter().try_fold(None, |latest, good| Some(latest.max(Some(good?)))).flatten()
    }

    /// A heartbeat a second, then four round trips of patience but at least 300 ms, then one message there and back, spread over 200 ms; checks are apart.
    /// Where packets were lost, round trips were measured that hold retransmissions: then patience ends with peer-timeout.
    fn standby_bound(&self, at: usize) -> Duration {
        let server = (0..self.servers.len()).map(|at| self.network.link(Host::Server(at)).latency).max();
        let round_trip =
            (self.network.link(Host::Agent(at)).latency + server.unwrap_or_default()).mul_f64(2.4);
        let patience = match self.network.was_lossy {
            true => Duration::from_secs(3),
            false => (round_trip * 4).clamp(Duration::from_millis(300), Duration::from_secs(3)),
        };
        Duration::from_secs(1) + patience + round_trip + Duration::from_millis(200) + CHECK_INTERVAL * 2
    }

    /// A session that was proven good takes over at once.
    fn check_standby(&self, at: usize) {
        let watch = &self.nodes[at].watch;
        let unserved = self.now.since(watch.last_served_at);
        if watch.served_since.is_some() || unserved <= self.standby_bound(at) {
            return;
        }
        let proven = |since: BootTime| watch.last_served_at.since(since) >= STANDBY_PROVEN;
        let is_standby = |server: usize, (_, session): (&StreamId, &crate::session::Session)| {
            let good = watch.good_since[server].is_some_and(proven);
            session.agent == at && good && proven(session.since)
        };
        let found = (0..self.servers.len())
            .find(|server| self.servers[*server].sessions.iter().any(|entry| is_standby(*server, entry)));
        if let (Some(server), true) = (found, proven(watch.steady_since)) {
            self.fail(&format!("agent {at} is unserved for {unserved:?} with a standby at server {server}"));
        }
    }

    /// Something that is no server's fault befalls an agent's machine; links are looked at in every check.
    pub(crate) fn disturb(&mut self, agent: usize, needs_server: bool) {
        let now = self.now;
        self.nodes[agent].watch.steady_since = now;
        let cached = cache::decode(&self.nodes[agent].cache).map_or_else(|_| Vec::new(), |c| c.objects);
        for flow in self.flows.iter_mut().filter(|flow| flow.from == agent || flow.to == agent) {
            let other = if flow.from == agent { flow.to } else { flow.from };
            let peer = ObjectId::peer(members::of(other).key);
            flow.disturb(now);
            flow.needs_server |= needs_server || !cached.iter().any(|object| object.id == peer);
        }
    }

    fn watch_flow(&mut self, at: usize) {
        let (now, flow) = (self.now, &self.flows[at]);
        let (from, to) = (&self.nodes[flow.from], &self.nodes[flow.to]);
        let removed = |at: usize| self.database.head.removal(&members::of(at).key).is_some();
        let clean = self.network.is_clean(Host::Agent(flow.from), Host::Agent(flow.to));
        let quiet = clean && from.is_awake() && to.is_awake() && !removed(flow.from) && !removed(flow.to);
        let certified = self.are_certified(flow.from, flow.to);
        let synced = from.watch.synced_since.zip(to.watch.synced_since).map(|(one, other)| one.max(other));
        let (allowed, let_in) =
            (self.database.head.policy.allows(flow.from), self.is_let_in(flow.to, flow.from));
        let flow = &mut self.flows[at];
        flow.needs_server |= !certified || !allowed || (!flow.is_settled && !let_in);
        if !quiet || !certified || !allowed {
            return flow.disturb(now);
        }
        let ready = match flow.needs_server {
            true => synced.map(|synced| synced.max(flow.disturbed_at)),
            false => Some(flow.disturbed_at),
        };
        if let_in && ready.is_some_and(|ready| now.since(ready) >= REPAIR_BOUND) {
            flow.is_settled = true;
            flow.needs_server = false;
        }
    }

    fn check_flow(&mut self, at: usize) {
        let now = self.now;
        let lost = |(sent_at, entitled): &(BootTime, bool)| *entitled && now.since(*sent_at) > REPLY_BOUND;
        let flow = &mut self.flows[at];
        if let Some((id, _)) = flow.outstanding.iter().find(|(_, request)| lost(request)) {
            let (id, from, to) = (id & 0xffff_ffff, flow.from, flow.to);
            self.fail(&format!("request {id} from agent {from} to agent {to} has no reply"));
        }
        flow.outstanding.retain(|_, (sent_at, _)| now.since(*sent_at) <= REPLY_BOUND);
    }

    /// A tunnel went down, as an agent says.
    pub(crate) fn note_down(&mut self, at: usize, peer: usize) {
        if let Some(flow) = self.busy_flow(at, peer) {
            self.fail(&format!("agent {at}: the tunnel of flow {flow} went down"));
        }
    }

    pub(crate) fn note_command(&mut self, at: usize, command: &TunnelCommand) {
        let peer = match command {
            TunnelCommand::Forget { peer } | TunnelCommand::Remove { peer } => members::agent_of(peer),
            TunnelCommand::Upsert { .. }
            | TunnelCommand::Initiate { .. }
            | TunnelCommand::SetKeepalive { .. }
            | TunnelCommand::SetEndpoint { .. }
            | TunnelCommand::Message { .. }
            | TunnelCommand::SetRules(_)
            | TunnelCommand::Watch { .. }
            | TunnelCommand::Reset { .. }
            | TunnelCommand::Withhold { .. }
            | TunnelCommand::Rebind => return,
        };
        if let Some(flow) = self.busy_flow(at, peer) {
            self.fail(&format!("agent {at}: {command:?} takes the tunnel of flow {flow}"));
        }
    }

    fn busy_flow(&self, one: usize, other: usize) -> Option<usize> {
        let busy = |flow: &Flow| {
            let between = (flow.from, flow.to) == (one, other) || (flow.from, flow.to) == (other, one);
            between && flow.is_settled && flow.is_on
        };
        self.flows.iter().position(busy).filter(|_| self.has_tunnel(one, other))
    }

    /// Whether an agent's map is the newest.
    pub fn has_newest_map(&self, at: usize) -> bool {
        let Some(agent) = &self.nodes[at].agent else { return false };
        let Ok(cached) = cache::decode(&agent.map_cache()) else { return false };
        let mut map = Map::default();
        cached.objects.into_iter().for_each(|object| {
            map.put(object);
        });
        map.digest() == self.database.head.digest_for(&members::of(at).key)
    }

    /// Heals everything and sees that all is well in time (7, 8).
    ///
    /// # Panics
    /// It is not.
    pub fn settle(&mut self) {
        self.heal();
        let members: Vec<usize> = (0..self.nodes.len())
            .filter(|at| self.database.head.removal(&members::of(*at).key).is_none())
            .collect();
        let bound = members.iter().map(|at| self.service_bound(*at)).max().unwrap_or(SERVICE_BOUND);
        self.run_for(bound + Duration::from_secs(3));
        for at in &members {
            self.wait_for_renewals(*at);
            self.check_agreement(*at);
        }
        self.settle_roots();
        self.check_reach(&members);
        self.run_for(STANDBY_REGAINED);
        if self.routes.is_balanced() {
            self.wait_for_standbys(&members);
        }
        for at in members {
            if self.servers.len() > 1 && !self.has_standby(at) {
                self.fail(&format!("agent {at} has no standby"));
            }
        }
    }

    /// Chance, or those who come in between, lead an agent to the server that it has, again and again.
    fn wait_for_standbys(&mut self, members: &[usize]) {
        let end = self.now + STANDBY_BY_CHANCE;
        let lacks =
            |world: &Self| members.iter().any(|at| world.servers.len() > 1 && !world.has_standby(*at));
        while lacks(self) && self.now < end {
            self.run_for(Duration::from_secs(5));
        }
    }

    /// Where certificates are renewed all the time, the newest map may be on its way.
    fn wait_for_renewals(&mut self, at: usize) {
        let end = self.now + REPLY_BOUND;
        while self.database.head.lifetime().is_some() && !self.has_newest_map(at) && self.now < end {
            self.run_for(Duration::from_millis(20));
        }
    }

    fn check_agreement(&self, at: usize) {
        let alive = (0..self.servers.len()).filter(|server| self.servers[*server].is_alive());
        let serving: Vec<usize> =
            alive.filter(|server| self.servers[*server].serving(at).is_some()).collect();
        if self.server_of(at).map(|server| vec![server]) != Some(serving.clone()) {
            let believed = self.server_of(at);
            self.fail(&format!(
                "agent {at} says {believed:?} serves it; these servers say they do: {serving:?}"
            ));
        }
        if !self.has_newest_map(at) {
            self.fail(&format!("agent {at} does not hold the newest map"));
        }
        self.require_policy(at);
    }

    /// Every pair exchanges a request and a reply, if the rules let it.
    fn check_reach(&mut self, members: &[usize]) {
        let mut flows = Vec::new();
        for from in members {
            for to in members.iter().filter(|to| *to != from) {
                flows.push((*from, *to, self.flow(*from, *to, Duration::from_secs(1))));
            }
        }
        self.run_for(REPAIR_BOUND);
        for (from, to, flow) in flows {
            let (reached, allowed) = (self.traffic(flow).1 > 0, self.database.head.policy.allows(from));
            if reached != allowed {
                self.fail(&format!(
                    "agent {from} reaches agent {to}: {reached}; by the rules it may: {allowed}"
                ));
            }
        }
    }
}

impl Flow {
    pub(crate) fn disturb(&mut self, now: BootTime) {
        self.disturbed_at = now;
        self.is_settled = false;
        self.outstanding.values_mut().for_each(|(_, entitled)| *entitled = false);
    }
}
