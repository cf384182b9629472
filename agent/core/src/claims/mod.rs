//! Who is active for a prefix that several nodes claim, as this client sees it. No server has a part in it.
//!
//! - `rank`: the order of those who claim a prefix, the same for every client
//! - `pulse`: whether one of them is there, by round trips inside its tunnel
//! - `choice`: who serves, and who is kept ready
//!
//! Here they are put together: which claimants there are, which prefixes are in use, what follows for each. A prefix that claims of a shorter one cover falls to those when nobody of its own is
//! there. A prefix that is not in use costs nothing: nobody is probed for it.

mod choice;
mod pulse;
mod rank;

use crate::time::{BootTime, Cause, Deadline, earliest};
use choice::{Decision, Standing};
use ipnet::IpNet;
use proto::{claim::Claim, key::PublicKey, statement::NodeId};
use pulse::{Need, Pulse};
use rank::Candidate;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// At most so many nodes are considered for one prefix, in the order of rank without knowing them.
pub const MAX_CANDIDATES: usize = 64;

/// An uptime that is shorter by so much than what was told before is another one, and no answer that took long.
const RESTORED: Duration = Duration::from_secs(10);

/// The numbers of shared addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimsConfig {
    /// Between two probes of one that is in doubt.
    pub probe_interval: Duration,
    /// Silent for this long with unanswered data, the active one is dead, if it missed five probes as well.
    pub dead_after: Duration,
    /// Data that is unanswered for less is no reason to doubt; nor for less than two round trips. Half of `dead_after`, if that is less: five misses need their time.
    pub silence_floor: Duration,
    /// How long an answer is waited for before any round trip was measured.
    pub first_patience: Duration,
    /// Between two probes of the active one while it carries data: notices when only what we send is lost.
    pub check_interval: Duration,
    /// Between two probes of the standby: keeps its tunnel and its NAT mapping.
    pub warm_interval: Duration,
    /// Between two probes of one that might be returned to, at first.
    pub return_interval: Duration,
    /// For so long one that is preferred by configuration must be there again before it serves.
    pub preferred_hold: Duration,
    /// And one that is equal, and failed for this client alone.
    pub return_hold: Duration,
    /// A prefix without data for this long is not in use.
    pub idle_timeout: Duration,
    /// Subnets are used, and not only host addresses.
    pub accept_routes: bool,
}

impl Default for ClaimsConfig {
    fn default() -> Self {
        Self {
            probe_interval: Duration::from_millis(50),
            dead_after: Duration::from_millis(500),
            silence_floor: Duration::from_millis(150),
            first_patience: Duration::from_millis(300),
            check_interval: Duration::from_secs(2),
            warm_interval: Duration::from_secs(25),
            return_interval: Duration::from_secs(1),
            preferred_hold: Duration::from_secs(5),
            return_hold: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(300),
            accept_routes: false,
        }
    }
}

/// What the agent must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Packets to the prefix go to this peer from now on; `None`: nobody claims it. Connections by way of `broken`, who served last, cannot go
    /// on.
    Route { prefix: IpNet, peer: Option<PublicKey>, from: Option<PublicKey>, broken: Option<PublicKey> },
    /// Ask the peer's agent inside its tunnel, which is woken for it.
    Probe { peer: PublicKey, id: u64 },
    /// Keep its tunnel up, or no longer.
    Keep { peer: PublicKey, kept: bool },
    /// Tell when data to it is unanswered for this long; `None`: no longer.
    Watch { peer: PublicKey, silence: Option<Duration> },
}

/// What a claimant says of itself in its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// Its start number: another one means that it restarted.
    pub boot: u64,
    pub uptime: Duration,
    /// It is about to go.
    pub is_leaving: bool,
    /// It does not serve what it claims now; its uptime begins anew when it does again.
    pub is_withdrawn: bool,
}

#[derive(Debug, Clone)]
struct Claimant {
    node: NodeId,
    claims: Vec<Claim>,
    boot: Option<u64>,
    up_since: Option<BootTime>,
    is_leaving: bool,
    is_withdrawn: bool,
    has_failed: bool,
    pulse: Pulse,
    /// As last asked of the data plane.
    watched: Option<Duration>,
}

#[derive(Debug, Clone, Default)]
struct Choice {
    active: Option<PublicKey>,
    standby: Option<PublicKey>,
    /// When data was last carried for it, as far as it is in use.
    used_at: Option<BootTime>,
    again_at: Option<BootTime>,
    needs: Vec<(PublicKey, Need)>,
    switches: u64,
    /// Who serves, or did before nobody does, and whether connections through it end with it: when another does, it may claim nothing any more.
    last: Option<(PublicKey, bool)>,
}

/// How a prefix stands, for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimStatus {
    pub prefix: IpNet,
    pub active: Option<PublicKey>,
    pub standby: Option<PublicKey>,
    /// In the order of rank.
    pub candidates: Vec<PublicKey>,
    pub switches: u64,
    /// Only its holder serves it.
    pub is_exclusive: bool,
}

/// All claims of others.
#[derive(Debug)]
pub struct Claims {
    config: ClaimsConfig,
    client: NodeId,
    claimants: BTreeMap<PublicKey, Claimant>,
    /// Who claims exactly this.
    claimed: BTreeMap<IpNet, BTreeSet<PublicKey>>,
    choices: BTreeMap<IpNet, Choice>,
    in_use: BTreeSet<IpNet>,
    /// Of the prefixes that are claimed exclusively.
    holders: BTreeMap<IpNet, NodeId>,
    /// Claimants that are asked anything.
    engaged: BTreeSet<PublicKey>,
    outputs: VecDeque<Output>,
}

impl Claims {
    pub fn new(client: NodeId, config: ClaimsConfig) -> Self {
        Self {
            config,
            client,
            claimants: BTreeMap::new(),
            claimed: BTreeMap::new(),
            choices: BTreeMap::new(),
            in_use: BTreeSet::new(),
            holders: BTreeMap::new(),
            engaged: BTreeSet::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Other numbers, for what is judged from now on.
    pub fn set_config(&mut self, config: ClaimsConfig) {
        self.config = config;
    }

    /// Our own number, once we are a member.
    pub fn set_client(&mut self, client: NodeId) {
        self.client = client;
    }

    /// The prefixes that this peer serves for us.
    pub fn served_by(&self, peer: &PublicKey) -> impl Iterator<Item = IpNet> {
        self.choices
            .iter()
            .filter(|(_, choice)| choice.active.as_ref() == Some(peer))
            .map(|(prefix, _)| *prefix)
    }

    /// Every prefix that somebody claims: while nobody serves it, its packets go nowhere else either.
    pub fn routed(&self) -> impl Iterator<Item = IpNet> {
        self.choices.keys().copied()
    }

    /// What this node claims now, in place of what it claimed before; nothing, if it is gone.
    pub fn handle_claims(&mut self, peer: PublicKey, node: NodeId, claims: Vec<Claim>, now: BootTime) {
        let before = self.claimants.get(&peer).map(|claimant| claimant.claims.clone()).unwrap_or_default();
        if before == claims {
            return;
        }
        for claim in &before {
            self.unclaim(&claim.prefix, &peer);
        }
        for claim in &claims {
            self.claimed.entry(claim.prefix).or_default().insert(peer);
            self.choices.entry(claim.prefix).or_default();
        }
        let changed: BTreeSet<IpNet> = before.iter().chain(&claims).map(|claim| claim.prefix).collect();
        match claims.is_empty() {
            true => self.forget(&peer),
            false => {
                let claimant = self.claimants.entry(peer).or_insert_with(|| Claimant::new(node));
                (claimant.node, claimant.claims) = (node, claims);
            }
        }
        let is_touched = |prefix: &&IpNet| changed.iter().any(|changed| changed.contains(*prefix));
        let touched: Vec<IpNet> = self.choices.keys().filter(is_touched).copied().collect();
        for prefix in touched {
            self.settle(prefix, now);
        }
    }

    /// Who holds what is claimed exclusively, in place of all that was said before: nobody else serves it, whatever its pulse.
    pub fn handle_holders(&mut self, holders: BTreeMap<IpNet, NodeId>, now: BootTime) {
        if holders == self.holders {
            return;
        }
        let before = std::mem::replace(&mut self.holders, holders);
        let prefixes = before.keys().chain(self.holders.keys());
        let is_moved = |prefix: &&IpNet| before.get(*prefix) != self.holders.get(*prefix);
        let moved: BTreeSet<IpNet> = prefixes.filter(is_moved).copied().collect();
        let is_touched = |prefix: &&IpNet| moved.iter().any(|moved| moved.contains(*prefix));
        let touched: Vec<IpNet> = self.claimed.keys().filter(is_touched).copied().collect();
        for prefix in touched {
            self.choices.entry(prefix).or_default();
            self.settle(prefix, now);
        }
    }

    /// Whether somebody claims exactly this exclusively.
    pub fn is_exclusive(&self, prefix: &IpNet) -> bool {
        let claims = self.claimed.get(prefix).into_iter().flatten();
        let claims = claims.filter_map(|peer| self.claimants.get(peer)?.candidate(prefix));
        claims.into_iter().any(|candidate| candidate.claim.exclusive)
    }

    /// Whether it may serve exactly this.
    fn may_serve(&self, prefix: &IpNet, candidate: &Candidate) -> bool {
        candidate.claim.exclusive && self.holders.get(prefix) == Some(&candidate.node)
    }

    fn unclaim(&mut self, prefix: &IpNet, peer: &PublicKey) {
        if let Some(claimants) = self.claimed.get_mut(prefix) {
            claimants.remove(peer);
            if claimants.is_empty() {
                self.claimed.remove(prefix);
            }
        }
    }

    fn forget(&mut self, peer: &PublicKey) {
        self.engaged.remove(peer);
        let Some(claimant) = self.claimants.remove(peer) else { return };
        if claimant.pulse.need() != Need::None {
            self.outputs.push_back(Output::Keep { peer: *peer, kept: false });
        }
        if claimant.watched.is_some() {
            self.outputs.push_back(Output::Watch { peer: *peer, silence: None });
        }
    }

    /// These carried data since the last report.
    pub fn handle_data(&mut self, peers: &[PublicKey], now: BootTime) {
        let is_used = |choice: &Choice| choice.active.is_some_and(|active| peers.contains(&active));
        let used: Vec<IpNet> =
            self.choices.iter().filter(|(_, choice)| is_used(choice)).map(|(prefix, _)| *prefix).collect();
        for prefix in used {
            if let Some(choice) = self.choices.get_mut(&prefix) {
                choice.used_at = Some(now);
            }
            if self.in_use.insert(prefix) {
                self.settle(prefix, now);
            }
        }
    }

    /// Data to this peer is unanswered since then, or waits for its tunnel.
    pub fn handle_silent(&mut self, peer: &PublicKey, since: BootTime, now: BootTime) {
        self.handle_data(&[*peer], now);
        self.with_claimant(peer, now, |claimant, _| claimant.pulse.on_silent(since));
    }

    /// Something authentic came from a peer that was silent, or a handshake was done with it.
    pub fn handle_heard(&mut self, peer: &PublicKey, now: BootTime) {
        self.with_claimant(peer, now, |claimant, _| claimant.pulse.on_heard());
    }

    /// An answer inside the tunnel, whoever asked.
    pub fn handle_reply(&mut self, peer: &PublicKey, id: u64, told: Told, now: BootTime) {
        let was_withdrawn = self.claimants.get(peer).map(|claimant| claimant.is_withdrawn);
        self.with_claimant(peer, now, |claimant, _| {
            claimant.on_told(told, now);
            claimant.pulse.on_reply(id, now);
        });
        // Also where nobody sends anything now.
        if was_withdrawn.is_some_and(|was_withdrawn| was_withdrawn != told.is_withdrawn) {
            self.settle_all_of(peer, now);
        }
    }

    /// It says that it goes: who serves in its place is asked for now.
    pub fn handle_leaving(&mut self, peer: &PublicKey, now: BootTime) {
        self.with_claimant(peer, now, |claimant, _| claimant.leave());
        // Also where nobody sends anything now.
        self.settle_all_of(peer, now);
    }

    /// Decides anew for every prefix that this node may serve.
    fn settle_all_of(&mut self, peer: &PublicKey, now: BootTime) {
        let claims = self.claimants.get(peer).map_or(&[][..], |claimant| &claimant.claims);
        let is_covered = |prefix: &&IpNet| claims.iter().any(|claim| claim.prefix.contains(*prefix));
        let concerned: Vec<IpNet> = self.choices.keys().filter(is_covered).copied().collect();
        for prefix in concerned {
            self.settle(prefix, now);
        }
    }

    /// The prefixes for which packets of ours go to this peer. One that leaves need not wait for a client that has nobody else.
    pub fn used(&self, peer: &PublicKey) -> Vec<IpNet> {
        let stays = self.claimants.get(peer).is_none_or(Claimant::stays);
        let is_used = |prefix: &&IpNet| {
            self.active(prefix).as_ref() == Some(peer) && (stays || self.has_another(prefix, peer))
        };
        self.in_use.iter().filter(is_used).copied().collect()
    }

    fn has_another(&self, prefix: &IpNet, peer: &PublicKey) -> bool {
        let is_possible = |claimant: &Claimant| claimant.stays() && !claimant.pulse.is_dead();
        let is_there = |key: &PublicKey| key != peer && self.claimants.get(key).is_some_and(is_possible);
        match self.is_exclusive(prefix) {
            // Another will hold it.
            true => self.claimed.get(prefix).into_iter().flatten().any(is_there),
            false => self.ordered(prefix).iter().any(|(key, _)| is_there(key)),
        }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let pulses = self.engaged.iter().filter_map(|peer| self.claimants.get(peer));
        let pulses = pulses.map(|claimant| claimant.pulse.deadline(&self.config));
        let choices = self.in_use.iter().filter_map(|prefix| self.choices.get(prefix));
        let choices = choices.flat_map(|choice| {
            let idle =
                choice.used_at.map(|at| Deadline { at: at + self.config.idle_timeout, cause: Cause::Idle });
            [idle, choice.again_at.map(|at| Deadline { at, cause: Cause::Claim })]
        });
        earliest(pulses.chain(choices))
    }

    /// Probes get ids above `next_probe`, which is the agent's counter for all of them.
    pub fn handle_timeout(&mut self, next_probe: &mut u64, now: BootTime) {
        for peer in self.engaged.clone() {
            self.with_claimant(&peer, now, |claimant, config| claimant.pulse.handle_timeout(config, now));
        }
        let idle = |choice: &Choice| choice.used_at.is_none_or(|at| now >= at + self.config.idle_timeout);
        let (over, still): (Vec<IpNet>, Vec<IpNet>) =
            self.in_use.iter().partition(|prefix| self.choices.get(prefix).is_none_or(idle));
        for prefix in over {
            self.in_use.remove(&prefix);
            self.settle(prefix, now);
        }
        for prefix in still {
            if self.choices.get(&prefix).and_then(|choice| choice.again_at).is_some_and(|at| now >= at) {
                self.settle(prefix, now);
            }
        }
        self.probe(next_probe, now);
    }

    fn probe(&mut self, next_probe: &mut u64, now: BootTime) {
        for peer in &self.engaged {
            let Some(claimant) = self.claimants.get_mut(peer) else { continue };
            let id = next_probe.wrapping_add(1);
            if claimant.pulse.poll_probe(id, &self.config, now) {
                *next_probe = id;
                self.outputs.push_back(Output::Probe { peer: *peer, id });
            }
        }
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Who serves packets to exactly this prefix.
    pub fn active(&self, prefix: &IpNet) -> Option<PublicKey> {
        self.choices.get(prefix)?.active
    }

    pub fn status(&self) -> Vec<ClaimStatus> {
        let status = |(prefix, choice): (&IpNet, &Choice)| ClaimStatus {
            prefix: *prefix,
            active: choice.active,
            standby: choice.standby,
            candidates: match self.is_exclusive(prefix) {
                true => self.claimed.get(prefix).into_iter().flatten().copied().collect(),
                false => self.ordered(prefix).into_iter().map(|(peer, _)| peer).collect(),
            },
            switches: choice.switches,
            is_exclusive: self.is_exclusive(prefix),
        };
        self.choices.iter().map(status).collect()
    }

    /// How much is held.
    pub fn load(&self) -> usize {
        self.claimants.len() + self.choices.len() + self.engaged.len() + self.outputs.len()
    }

    fn with_claimant(
        &mut self,
        peer: &PublicKey,
        now: BootTime,
        step: impl FnOnce(&mut Claimant, &ClaimsConfig),
    ) {
        let Some(claimant) = self.claimants.get_mut(peer) else { return };
        let before = claimant.standing();
        step(claimant, &self.config);
        claimant.on_time(&self.config, now);
        if claimant.standing() == before {
            return;
        }
        let concerned = |prefix: &&IpNet| {
            self.choices.get(prefix).is_some_and(|choice| choice.needs.iter().any(|(key, _)| key == peer))
        };
        let concerned: Vec<IpNet> = self.in_use.iter().filter(concerned).copied().collect();
        for prefix in concerned {
            self.settle(prefix, now);
        }
        self.watch(peer);
    }

    /// Everybody who may serve a prefix, the best first.
    fn ordered(&self, prefix: &IpNet) -> Vec<(PublicKey, Candidate)> {
        let mut candidates: Vec<(PublicKey, Candidate)> = Vec::new();
        let mut around = Some(*prefix);
        while let Some(prefix) = around {
            let is_exclusive = self.is_exclusive(&prefix);
            for peer in self.claimed.get(&prefix).into_iter().flatten() {
                let is_new = !candidates.iter().any(|(known, _)| known == peer);
                let candidate = self.claimants.get(peer).and_then(|claimant| claimant.candidate(&prefix));
                let candidate = candidate.filter(|one| !is_exclusive || self.may_serve(&prefix, one));
                if let Some(candidate) = candidate.filter(|_| is_new && candidates.len() < MAX_CANDIDATES) {
                    candidates.push((*peer, candidate));
                }
            }
            // Nobody stands in for a holder.
            around = prefix.supernet().filter(|_| !is_exclusive);
        }
        let plain: Vec<Candidate> = candidates.iter().map(|(_, candidate)| *candidate).collect();
        rank::order(&plain, self.client).into_iter().map(|place| candidates[place]).collect()
    }

    /// Decides anew for a prefix, and does what follows.
    fn settle(&mut self, prefix: IpNet, now: BootTime) {
        let ordered = self.ordered(&prefix);
        let Some(choice) = self.choices.get(&prefix) else { return };
        let standing = |(peer, candidate): &(PublicKey, Candidate)| {
            self.claimants.get(peer).map(|claimant| claimant.standing_as(*candidate))
        };
        let standings: Vec<Standing<'_>> = ordered.iter().filter_map(standing).collect();
        let from = choice.active;
        let place = ordered.iter().position(|(peer, _)| Some(*peer) == from);
        let Decision { active, standby, needs, again_at } = match self.in_use.contains(&prefix) {
            true => choice::decide(&standings, place, &self.config, now),
            false => choice::decide_idle(&standings, place),
        };
        let key = |place: Option<usize>| place.and_then(|place| ordered.get(place)).map(|(peer, _)| *peer);
        let (active, standby) = (key(active), key(standby));
        let needs = ordered.iter().map(|(peer, _)| *peer).zip(needs).collect();
        let serving = ordered.iter().find(|(peer, _)| Some(*peer) == active);
        let serving = serving.map(|(peer, candidate)| (*peer, candidate.claim.holds_connections()));
        let broken = match (choice.last, serving) {
            (Some((last, held)), Some((now, holds))) => (last != now && (held || holds)).then_some(last),
            (_, None) | (None, _) => None,
        };
        let needed = match self.choices.get_mut(&prefix) {
            Some(choice) => {
                choice.last = serving.or(choice.last);
                (choice.active, choice.standby, choice.again_at) = (active, standby, again_at);
                choice.switches += u64::from(from.is_some() && active.is_some() && from != active);
                std::mem::replace(&mut choice.needs, needs)
            }
            None => return,
        };
        if from != active {
            if let Some(serving) = active.and_then(|peer| self.claimants.get_mut(&peer)) {
                serving.has_failed = false;
            }
            self.outputs.push_back(Output::Route { prefix, peer: active, from, broken });
        }
        if ordered.is_empty() {
            self.in_use.remove(&prefix);
            // One that nobody holds is waited for.
            if !self.claimed.contains_key(&prefix) {
                self.choices.remove(&prefix);
            }
        }
        let concerned: BTreeSet<PublicKey> =
            needed.iter().map(|(peer, _)| *peer).chain(ordered.iter().map(|(peer, _)| *peer)).collect();
        for peer in concerned {
            self.need(&peer, now);
        }
    }

    /// A peer is needed for the most that any prefix needs it for.
    fn need(&mut self, peer: &PublicKey, now: BootTime) {
        let choices = self.in_use.iter().filter_map(|prefix| self.choices.get(prefix));
        let needs = choices.flat_map(|choice| &choice.needs).filter(|(key, _)| key == peer);
        let need = needs.map(|(_, need)| *need).max().unwrap_or_default();
        let Some(claimant) = self.claimants.get_mut(peer) else { return };
        let before = claimant.pulse.need();
        claimant.pulse.set_need(need, &self.config, now);
        match need {
            Need::None => self.engaged.remove(peer),
            Need::Standby | Need::Return | Need::Active | Need::Proof => self.engaged.insert(*peer),
        };
        if (before == Need::None) != (need == Need::None) {
            self.outputs.push_back(Output::Keep { peer: *peer, kept: need != Need::None });
        }
        self.watch(peer);
    }

    fn watch(&mut self, peer: &PublicKey) {
        let Some(claimant) = self.claimants.get_mut(peer) else { return };
        let silence = match claimant.pulse.need() {
            Need::Active => Some(claimant.pulse.silence(&self.config)),
            Need::None | Need::Standby | Need::Return | Need::Proof => None,
        };
        if claimant.watched != silence {
            claimant.watched = silence;
            self.outputs.push_back(Output::Watch { peer: *peer, silence });
        }
    }
}

impl Claimant {
    fn new(node: NodeId) -> Self {
        Self {
            node,
            claims: Vec::new(),
            boot: None,
            up_since: None,
            is_leaving: false,
            is_withdrawn: false,
            has_failed: false,
            pulse: Pulse::default(),
            watched: None,
        }
    }

    fn on_told(&mut self, told: Told, now: BootTime) {
        if self.boot.is_some_and(|boot| boot != told.boot) {
            self.has_failed = true;
            self.up_since = None;
        }
        self.boot = Some(told.boot);
        // The first word counts: the delay of later ones differs. But one that was withdrawn and restored is up since then, also for those who missed it.
        let up_since = now - told.uptime;
        let is_restored = self.is_withdrawn && !told.is_withdrawn;
        if is_restored || self.up_since.is_some_and(|known| up_since > known + RESTORED) {
            (self.up_since, self.has_failed) = (None, true);
        }
        self.up_since.get_or_insert(up_since);
        self.is_withdrawn = told.is_withdrawn;
        self.has_failed |= told.is_withdrawn;
        match told.is_leaving {
            true => self.leave(),
            false => self.is_leaving = false,
        }
    }

    /// It serves, or would.
    fn stays(&self) -> bool {
        !self.is_leaving && !self.is_withdrawn
    }

    fn leave(&mut self) {
        (self.is_leaving, self.has_failed) = (true, true);
    }

    fn on_time(&mut self, config: &ClaimsConfig, now: BootTime) {
        self.has_failed |= self.pulse.is_dead();
        let healthy_since = self.pulse.healthy_since();
        let there_since = healthy_since.map(|since| since.max(self.up_since.unwrap_or(since)));
        if self.stays() && there_since.is_some_and(|since| now >= since + config.return_hold) {
            self.has_failed = false;
        }
    }

    /// All that a decision depends on.
    fn standing(&self) -> impl PartialEq + use<> {
        let pulse = &self.pulse;
        let health = (pulse.is_dead(), pulse.doubted_since(), pulse.healthy_since(), pulse.proven_at());
        (health, self.up_since, self.is_leaving, self.is_withdrawn, self.has_failed)
    }

    fn standing_as(&self, candidate: Candidate) -> Standing<'_> {
        Standing {
            candidate,
            pulse: &self.pulse,
            is_leaving: self.is_leaving,
            is_withdrawn: self.is_withdrawn,
            has_failed: self.has_failed,
        }
    }

    fn candidate(&self, prefix: &IpNet) -> Option<Candidate> {
        let claim = *self.claims.iter().find(|claim| claim.prefix == *prefix)?;
        Some(Candidate { node: self.node, claim, up_since: self.up_since })
    }
}

#[cfg(test)]
mod tests;
