//! Who holds what is claimed exclusively, as servers grant it: a model of `server/src/exclusive.rs` and `server/src/cluster/exclusive.rs`. One holder per prefix with a fence that grows; its lease is
//! renewed once a second by the server that hears it; whoever is best and connected succeeds it when the lease is over, when it says that it goes, or at once where it yields. Nothing is
//! granted without the database, and nothing taken over until it was there for as long as a lease.

use crate::{
    atlas::{Atlas, Change},
    event::Event,
    members,
    world::World,
};
use agent_core::BootTime;
use ipnet::IpNet;
use proto::{holding::Holding, map::MapVersion, time::UnixTime};
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

const LEASE: Duration = Duration::from_secs(5);
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// For each better claimer that does not take what is free.
const TURN_DELAY: Duration = Duration::from_secs(1);
const PREEMPT_HOLD: Duration = Duration::from_secs(5);
/// Between two rounds: or the process stood still.
const LARGEST_GAP: Duration = Duration::from_secs(2);
/// An agent that said nothing for longer is not heard.
const HEARD_FOR: Duration = Duration::from_millis(1500);
const FENCE_BITS: u32 = 20;

/// All that is held, and how far fences were counted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Holdings {
    last_fence: u64,
    held: BTreeMap<IpNet, Holding>,
}

fn first_fence(version: MapVersion) -> u64 {
    version.epoch.saturating_sub(1) << FENCE_BITS
}

impl Holdings {
    pub(crate) fn grant(&mut self, prefix: IpNet, agent: usize, version: MapVersion, since: UnixTime) {
        let fence = self.last_fence.max(first_fence(version)) + 1;
        self.last_fence = fence;
        self.held.insert(prefix, Holding { prefix, node: members::of(agent).node, fence, since });
    }

    pub(crate) fn of(&self, prefix: &IpNet) -> Option<Holding> {
        self.held.get(prefix).copied()
    }

    pub(crate) fn told(&self) -> Vec<Holding> {
        self.held.values().copied().collect()
    }

    /// What `past` knows of fences that this lost. Whether it was anything.
    pub(crate) fn put_back(&mut self, past: &Self) -> bool {
        let is_newer = past.last_fence > self.last_fence;
        if is_newer {
            self.clone_from(past);
        }
        is_newer
    }
}

/// What a server knows from round to round.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    looked_at: BootTime,
    /// Since when the database answers without a gap.
    steady_since: Option<BootTime>,
    vacant_since: BTreeMap<IpNet, BootTime>,
    served_since: BTreeMap<usize, BootTime>,
}

/// That a node is to have a prefix.
#[derive(Debug, Clone, Copy)]
struct Wish {
    from: Option<Holding>,
    to: usize,
    /// The former holder lives, and has to give way all the same.
    is_forced: bool,
}

/// What one round looks at.
struct View {
    state: Rc<Atlas>,
    served: BTreeSet<usize>,
    online: BTreeSet<usize>,
    leased: BTreeSet<usize>,
}

impl Rounds {
    pub(crate) fn on_database(&mut self, is_ok: bool, now: BootTime) {
        if now.since(self.looked_at) > LARGEST_GAP || !is_ok {
            self.steady_since = None;
        }
        if is_ok {
            self.steady_since.get_or_insert(now);
        }
        self.looked_at = now;
    }

    fn decide(&mut self, prefix: IpNet, view: &View, now: BootTime) -> Option<Wish> {
        let claimers = view.state.exclusive_claimers(&prefix);
        let from = view.state.holder(&prefix);
        let holder = from.map(|holding| members::agent_of_node(holding.node));
        let is_over = |agent: &usize| holder == Some(*agent) && !view.leased.contains(agent);
        let is_connected =
            |agent: &usize| view.served.contains(agent) || view.online.contains(agent) && !is_over(agent);
        let mut connected = claimers.iter().filter(|(agent, _)| is_connected(agent)).enumerate();
        let mine = connected.find(|(_, (agent, _))| view.served.contains(agent));
        if let (Some(holding), Some(holder)) = (from, holder)
            && (view.served.contains(&holder) || view.leased.contains(&holder))
        {
            self.vacant_since.remove(&prefix);
            if holding.fence <= first_fence(view.state.version) {
                let wish = Wish { from, to: holder, is_forced: true };
                return view.served.contains(&holder).then_some(wish);
            }
            let (place, (to, claim)) = mine?;
            let held_as = claimers.iter().find(|(agent, _)| *agent == holder)?.1;
            let is_there = self.served_since.get(to).is_some_and(|at| now.since(*at) >= PREEMPT_HOLD);
            let is_better = claim.preempt && claim.priority > held_as.priority && is_there;
            let takes_over = place == 0 && !claim.yields && (held_as.yields || is_better);
            return takes_over.then_some(Wish { from, to: *to, is_forced: true });
        }
        let vacant_since = *self.vacant_since.entry(prefix).or_insert(now);
        let (place, (to, claim)) = mine?;
        let first = claimers.iter().find(|(agent, _)| is_connected(agent));
        if claim.yields && first.is_some_and(|(_, first)| !first.yields) {
            return None;
        }
        let may_take = from.is_none() || self.steady_since.is_some_and(|since| now.since(since) >= LEASE);
        let is_its_turn = now.since(vacant_since) >= TURN_DELAY * place as u32;
        (may_take && is_its_turn).then_some(Wish { from, to: *to, is_forced: false })
    }
}

impl World {
    /// Each of them once.
    pub(crate) fn exclusive_prefixes(&self) -> BTreeSet<IpNet> {
        let exclusive = self.claims.iter().filter(|claimed| claimed.claim.exclusive);
        exclusive.map(|claimed| claimed.claim.prefix).collect()
    }

    fn is_heard(&self, server: usize, agent: usize) -> bool {
        let it = &self.servers[server];
        let session = it.serving(agent).and_then(|id| it.sessions.get(&id));
        session.is_some_and(|session| self.now.since(session.heard_at) < HEARD_FOR)
    }

    pub(crate) fn renew_holders(&mut self, server: usize) {
        for holding in self.servers[server].state.clone().holdings.told() {
            let agent = members::agent_of_node(holding.node);
            if self.is_heard(server, agent) {
                self.database.holders.insert(agent, self.now + LEASE);
            }
        }
    }

    /// The node says that it goes: what it holds is free at once.
    pub(crate) fn release(&mut self, server: usize, agent: usize) {
        if self.has_database(server) {
            self.database.holders.remove(&agent);
        }
    }

    /// Four times a second.
    pub(crate) fn on_round(&mut self, server: usize, life: u32) {
        if self.servers[server].life != life || !self.servers[server].is_alive() {
            return;
        }
        self.queue.push(self.now + LOOK_INTERVAL, Event::Round { server, life });
        if self.servers[server].frozen {
            return;
        }
        let (now, is_ok) = (self.now, self.has_database(server));
        self.servers[server].rounds.on_database(is_ok, now);
        if !is_ok {
            return;
        }
        let view = self.view(server);
        let served_since = &mut self.servers[server].rounds.served_since;
        served_since.retain(|agent, _| view.served.contains(agent));
        view.served.iter().for_each(|agent| _ = served_since.entry(*agent).or_insert(now));
        for prefix in self.exclusive_prefixes() {
            if let Some(wish) = self.servers[server].rounds.decide(prefix, &view, now) {
                self.take(server, prefix, wish);
            }
        }
    }

    fn view(&self, server: usize) -> View {
        let it = &self.servers[server];
        let agents = 0..self.nodes.len();
        let is_online = |agent: &usize| it.seats.contains_key(&members::of(*agent).node);
        View {
            state: it.state.clone(),
            served: agents.clone().filter(|agent| self.is_heard(server, *agent)).collect(),
            online: agents.clone().filter(is_online).collect(),
            leased: agents.filter(|agent| self.is_leased(*agent)).collect(),
        }
    }

    fn is_leased(&self, agent: usize) -> bool {
        self.database.holders.get(&agent).is_some_and(|until| self.now < *until)
    }

    /// By what the database says now, behind its lock.
    fn take(&mut self, server: usize, prefix: IpNet, wish: Wish) {
        self.on_follow(server, self.servers[server].life);
        let head = &self.database.head;
        let claims = head.exclusive_claimers(&prefix).iter().any(|(agent, _)| *agent == wish.to);
        let lives = wish.from.is_some_and(|from| self.is_leased(members::agent_of_node(from.node)));
        if head.holder(&prefix) != wish.from || !claims || (lives && !wish.is_forced) {
            return;
        }
        self.write(&Change::Grant(prefix, wish.to));
        self.database.holders.insert(wish.to, self.now + LEASE);
        if let Some(holding) = self.database.head.holder(&prefix) {
            self.database.granted.insert((prefix, wish.to, holding.fence));
            self.database.granted_at = self.now;
        }
        self.servers[server].rounds.vacant_since.remove(&prefix);
    }
}
