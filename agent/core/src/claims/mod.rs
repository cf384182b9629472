//! Who is active for a prefix that several nodes claim, as this client sees it. No server has a part in it.
//!
//! - `rank`: the order of those who claim a prefix, the same for every client
//! - `pulse`: whether one of them is there, by round trips inside its tunnel
//! - `since`: since when each of them serves, by the clock of this client
//! - `claimed`: who claims what, and so who may serve it
//! - `claimant`: what one of them says of itself, and whether it failed
//! - `choice`: who serves, and who is kept ready
//! - `needs`: who is asked for it, and how often
//!
//! ```text
//!             data for it                      A is dead, and B has proven since that it is there; or A goes
//!   not in use ----------> in use, A serves -----------------------------------------------------------> in use, B serves
//!       ^                   |           ^                                                                    |
//!       +-------------------+           +--------------------------------------------------------------------+
//!     nothing for the idle timeout          A is there again: for 5 s if it is preferred by configuration,
//!                                           for 60 s among equals, unless it restarted: then it ranks last
//! ```
//!
//! Here they are put together: which claimants there are, which prefixes are in use, what follows for each. A prefix that claims of a shorter one cover falls to those when nobody of its own is
//! there. A prefix that is not in use costs nothing: nobody is probed for it.

mod choice;
mod claimant;
mod claimed;
mod config;
mod needs;
mod pulse;
mod rank;
mod since;

use crate::time::{BootTime, Cause, Deadline, earliest};
use choice::{Decision, Standing};
use claimant::Claimant;
use ipnet::IpNet;
use proto::{key::PublicKey, statement::NodeId};
use pulse::Need;
use rank::Candidate;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

pub use claimant::Told;
pub use config::ClaimsConfig;

/// At most so many nodes are considered for one prefix, those that are preferred by configuration first.
pub const MAX_CANDIDATES: usize = 64;

/// What the agent must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Packets to the prefix go to this peer from now on; `None`: nobody claims it. Connections by way of `broken`, who served last, cannot go
    /// on.
    Route { prefix: IpNet, peer: Option<PublicKey>, from: Option<PublicKey>, broken: Option<PublicKey> },
    /// Packets to the prefix go to nobody, also where a shorter one is served; or no longer.
    Withhold { prefix: IpNet, withheld: bool },
    /// Ask the peer's agent inside its tunnel, which is woken for it.
    Probe { peer: PublicKey, id: u64 },
    /// Keep its tunnel up, or no longer.
    Keep { peer: PublicKey, kept: bool },
    /// Tell when data to it is unanswered for this long; `None`: no longer.
    Watch { peer: PublicKey, silence: Option<Duration> },
}

#[derive(Debug, Clone, Default)]
struct Choice {
    active: Option<PublicKey>,
    standby: Option<PublicKey>,
    /// When data was last carried for it, as far as it is in use. In use without it: nobody serves, so no use is seen, and one that is back is waited for.
    used_at: Option<BootTime>,
    is_withheld: bool,
    again_at: Option<BootTime>,
    leave_since: Option<BootTime>,
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

    /// These carried data since the last report.
    pub fn handle_data(&mut self, peers: &[PublicKey], now: BootTime) {
        for peer in peers {
            if let Some(claimant) = self.claimants.get_mut(peer) {
                claimant.pulse.on_data(&self.config, now);
            }
        }
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

    /// How long one that is silent is asked before its session is made anew: until the first answer is missed.
    pub fn repair_patience(&self, peer: &PublicKey) -> Duration {
        let claimant = self.claimants.get(peer);
        claimant.map_or(Duration::ZERO, |claimant| claimant.pulse.repair_patience(&self.config))
    }

    /// Something authentic came from a peer that was silent, or a handshake was done with it.
    pub fn handle_heard(&mut self, peer: &PublicKey, now: BootTime) {
        self.with_claimant(peer, now, |claimant, _| claimant.pulse.on_heard());
    }

    /// An answer inside the tunnel, whoever asked.
    pub fn handle_reply(&mut self, peer: &PublicKey, id: u64, told: Told, now: BootTime) {
        let before = self.claimants.get(peer).map(Claimant::withdrawn);
        self.with_claimant(peer, now, |claimant, config| {
            claimant.on_told(&told, now);
            claimant.pulse.on_reply(id, config, now);
        });
        // Also where nobody sends anything now.
        if self.claimants.get(peer).map(Claimant::withdrawn) != before {
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
        let stays =
            |prefix: &IpNet| self.claimants.get(peer).is_none_or(|claimant| claimant.stays_for(prefix));
        let is_used = |prefix: &&IpNet| {
            self.active(prefix).as_ref() == Some(peer) && (stays(prefix) || self.has_another(prefix, peer))
        };
        self.in_use.iter().filter(is_used).copied().collect()
    }

    fn has_another(&self, prefix: &IpNet, peer: &PublicKey) -> bool {
        let is_possible = |claimant: &Claimant| claimant.stays_for(prefix) && !claimant.pulse.is_dead();
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
        let idle = |choice: &Choice| choice.used_at.is_some_and(|at| now >= at + self.config.idle_timeout);
        let (over, still): (Vec<IpNet>, Vec<IpNet>) =
            self.in_use.iter().partition(|prefix| self.choices.get(prefix).is_none_or(idle));
        for prefix in over {
            match self.choices.get_mut(&prefix) {
                Some(choice) if choice.active.is_none() => choice.used_at = None,
                Some(_) | None => drop(self.in_use.remove(&prefix)),
            }
            self.settle(prefix, now);
        }
        for prefix in still {
            if self.choices.get(&prefix).and_then(|choice| choice.again_at).is_some_and(|at| now >= at) {
                self.settle(prefix, now);
            }
        }
        self.probe(next_probe, now);
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

    /// Decides anew for a prefix, and does what follows.
    fn settle(&mut self, prefix: IpNet, now: BootTime) {
        let ordered = self.ordered(&prefix);
        let Some(choice) = self.choices.get(&prefix) else { return };
        let standing = |(peer, candidate): &(PublicKey, Candidate)| {
            self.claimants.get(peer).map(|claimant| claimant.standing_as(*candidate, &self.config, now))
        };
        let standings: Vec<Standing<'_>> = ordered.iter().filter_map(standing).collect();
        let from = choice.active;
        let place = ordered.iter().position(|(peer, _)| Some(*peer) == from);
        let Decision { active, standby, needs, again_at, leave_since } = match self.in_use.contains(&prefix) {
            true => choice::decide(&standings, place, choice.leave_since, &self.config, now),
            false => choice::decide_idle(&standings, place),
        };
        let key = |place: Option<usize>| place.and_then(|place| ordered.get(place)).map(|(peer, _)| *peer);
        let (active, standby) = (key(active), key(standby));
        // Nobody may send anything any more: asked as one that is kept ready.
        let most = if choice.used_at.is_some() { Need::Proof } else { Need::Standby };
        let needs = needs.into_iter().map(|need| need.min(most));
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
                if active.is_some() && self.in_use.contains(&prefix) {
                    choice.used_at.get_or_insert(now);
                }
                (choice.active, choice.standby) = (active, standby);
                (choice.again_at, choice.leave_since) = (again_at, leave_since);
                choice.switches += u64::from(from.is_some() && active.is_some() && from != active);
                std::mem::replace(&mut choice.needs, needs)
            }
            None => return,
        };
        // One that nobody holds is waited for.
        let is_claimed = !ordered.is_empty() || self.claimed.contains_key(&prefix);
        let is_withheld = is_claimed && active.is_none();
        // First, so that what waits for the former goes nowhere else.
        if is_withheld {
            self.withhold(prefix, true);
        }
        if from != active {
            if let Some(serving) = active.and_then(|peer| self.claimants.get_mut(&peer)) {
                serving.has_failed = false;
            }
            self.outputs.push_back(Output::Route { prefix, peer: active, from, broken });
        }
        if !is_withheld {
            self.withhold(prefix, false);
        }
        if ordered.is_empty() {
            self.in_use.remove(&prefix);
            if !is_claimed {
                self.choices.remove(&prefix);
            }
        }
        let concerned: BTreeSet<PublicKey> =
            needed.iter().map(|(peer, _)| *peer).chain(ordered.iter().map(|(peer, _)| *peer)).collect();
        for peer in concerned {
            self.need(&peer, now);
        }
    }

    fn withhold(&mut self, prefix: IpNet, withheld: bool) {
        let Some(choice) = self.choices.get_mut(&prefix) else { return };
        if std::mem::replace(&mut choice.is_withheld, withheld) != withheld {
            self.outputs.push_back(Output::Withhold { prefix, withheld });
        }
    }
}

#[cfg(test)]
mod tests;
