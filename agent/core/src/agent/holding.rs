//! What is claimed exclusively: this node serves what it holds, and sends to who holds it.
//!
//! Servers say who holds what, in the map; a holder also says so itself inside tunnels, to those who claim the same, so that one that no server reaches hears from its successor that it is none any more. The
//! higher fence is believed. A holder that reaches no server goes on serving: nobody can tell it whether it may. One that starts takes the map of its disk for true only once a server had the time to say otherwise.

use super::Agent;
use crate::{
    io::{Notice, Output},
    status::Holder,
    time::BootTime,
};
use ipnet::IpNet;
use proto::{
    claim::Claim,
    holding::Holding,
    key::PublicKey,
    map::{Content, ObjectId},
    peer_message::Body,
    session::Facts,
    statement::NodeId,
};
use std::{collections::BTreeMap, time::Duration};

/// What the disk says may be old: a server has so long to tell. As long as a holder's lease.
const CONFIRMATION_TIMEOUT: Duration = Duration::from_secs(5);
/// As many as fit into one message.
const TOLD_AT_ONCE: usize = 16;

/// What this node holds, as it last acted on.
#[derive(Debug, Clone)]
pub(super) struct Held {
    /// When the disk is believed although no server told anything.
    believed_at: BootTime,
    fences: BTreeMap<IpNet, u64>,
    /// What is known counts: a server with its database told this start's agent its whole map, or had the time to.
    is_believed: bool,
    /// What the server that serves us says of its database.
    is_database_away: bool,
    /// Since when we know the map of a server with its database.
    trusted_since: Option<BootTime>,
}

impl Held {
    pub(super) fn new(now: BootTime) -> Self {
        let believed_at = now + CONFIRMATION_TIMEOUT;
        let fences = BTreeMap::new();
        Self { believed_at, fences, is_believed: false, is_database_away: false, trusted_since: None }
    }
}

impl Agent {
    /// What this node holds and serves, with the fence of each.
    pub fn held(&self) -> &BTreeMap<IpNet, u64> {
        &self.held.fences
    }

    /// Who holds a prefix that is claimed exclusively, by the highest fence that is believed here.
    pub fn holding(&self, prefix: &IpNet) -> Option<&Holding> {
        self.netmap.holdings().of(prefix)
    }

    fn own_id(&self) -> Option<NodeId> {
        self.membership.as_ref().map(|(_, membership)| membership.node_id)
    }

    /// Whether it is this node that holds what it claims exclusively.
    pub(super) fn holds(&self, prefix: &IpNet) -> bool {
        self.held_now(prefix).is_some()
    }

    fn held_now(&self, prefix: &IpNet) -> Option<&Holding> {
        let holding = self.netmap.holdings().of(prefix)?;
        (self.held.is_believed && Some(holding.node) == self.own_id()).then_some(holding)
    }

    /// When the disk is believed although no server told anything, and what peers told no more although servers did not.
    pub(super) fn holding_deadline(&self) -> Option<BootTime> {
        let is_own = |holding: &Holding| Some(holding.node) == self.own_id();
        let is_awaited = !self.held.is_believed && self.netmap.holdings().iter().any(is_own);
        let believed_at = is_awaited.then_some(self.held.believed_at);
        let judged_at = self.netmap.holdings().deadline(self.held.trusted_since);
        believed_at.into_iter().chain(judged_at).min()
    }

    pub(super) fn look_at_holdings(&mut self) {
        if !self.held.is_believed && self.now >= self.held.believed_at {
            self.held.is_believed = true;
            self.on_holdings_changed();
        }
        if self.netmap.judge_holders(self.held.trusted_since, self.now) {
            self.on_holdings_changed();
        }
    }

    /// The map of the server that serves us is known in full.
    pub(super) fn on_confirmed(&mut self) {
        if self.held.is_database_away {
            return;
        }
        if self.control.serving().is_some() {
            self.held.trusted_since.get_or_insert(self.now);
        }
        if !std::mem::replace(&mut self.held.is_believed, true) {
            self.on_holdings_changed();
        }
    }

    pub(super) fn on_database_told(&mut self, is_ok: bool) {
        self.held.is_database_away = !is_ok;
        if !is_ok {
            self.on_unconfirmed();
        }
    }

    /// Nobody could say any more that a peer is wrong about what it holds.
    pub(super) fn on_unconfirmed(&mut self) {
        if self.held.trusted_since.take().is_some() {
            self.look_at_holdings();
        }
    }

    /// Somebody holds something else, or we claim something else: routes, and what this node serves, follow.
    pub(super) fn on_holdings_changed(&mut self) {
        self.netmap.forget_former_holders();
        let holders = self.netmap.holdings().iter().map(|holding| (holding.prefix, holding.node)).collect();
        self.claims.handle_holders(holders, self.now);
        self.drain_claims();
        let own =
            self.config.facts.claims.iter().filter(|claim| claim.exclusive && self.refusal(claim).is_none());
        let held = own.filter_map(|claim| self.held_now(&claim.prefix));
        let fences: BTreeMap<IpNet, u64> = held.map(|holding| (holding.prefix, holding.fence)).collect();
        let before = std::mem::replace(&mut self.held.fences, fences.clone());
        if before == fences {
            return;
        }
        let lost = before.keys().filter(|prefix| !fences.contains_key(*prefix)).map(|prefix| (*prefix, None));
        let won = fences.iter().filter(|(prefix, fence)| before.get(*prefix) != Some(*fence));
        let won = won.map(|(prefix, fence)| (*prefix, Some(*fence)));
        for (prefix, fence) in lost.chain(won) {
            self.outputs.push_back(Output::Notice(Notice::Held { prefix, fence }));
        }
        self.configure_interface();
        for rival in self.rivals() {
            self.tell_held(rival);
        }
    }

    /// Those who claim what this node holds.
    fn rivals(&self) -> Vec<PublicKey> {
        let claims_it = |claim: &Claim| claim.exclusive && self.held.fences.contains_key(&claim.prefix);
        let rivals =
            self.netmap.members().filter(|(_, member)| member.granted_claims().iter().any(claims_it));
        rivals.map(|(key, _)| *key).collect()
    }

    /// Also to a peer that reaches no server.
    pub(super) fn tell_held(&mut self, peer: PublicKey) {
        let held = self.held.fences.keys().filter_map(|prefix| self.netmap.holdings().of(prefix).copied());
        let held: Vec<Holding> = held.collect();
        for some in held.chunks(TOLD_AT_ONCE) {
            self.send_to_peer(peer, Body::Holdings(some.to_vec()), None);
        }
    }

    /// A peer says what it holds. Who knows of a later holder does not follow it.
    pub(super) fn on_held_told(&mut self, peer: PublicKey, held: &[Holding]) {
        let mut is_news = false;
        for holding in held {
            is_news |= self.netmap.on_holding(&peer, *holding, self.now);
        }
        if is_news {
            self.save_state_soon();
            self.on_holdings_changed();
            return;
        }
        let is_behind =
            |told: &Holding| self.held.fences.get(&told.prefix).is_some_and(|own| *own > told.fence);
        if held.iter().any(is_behind) {
            self.tell_held(peer);
        }
    }

    /// Servers see who is to be succeeded, and is not to succeed: a node that goes, or has withdrawn its claims.
    pub(super) fn told_facts(&self) -> Facts {
        let is_out = |claim: &Claim| self.draining || self.has_withdrawn(claim);
        let yields = |claim: &Claim| Claim { yields: claim.exclusive && is_out(claim), ..*claim };
        Facts { claims: self.config.facts.claims.iter().map(yields).collect(), ..self.config.facts.clone() }
    }

    fn gives_way(&self, claim: &Claim) -> bool {
        !claim.exclusive && self.claims.is_exclusive(&claim.prefix)
    }

    /// Why a claim gives way to others' exclusive ones.
    pub(super) fn refusal_by_exclusive(&self, claim: &Claim) -> Option<String> {
        if !self.gives_way(claim) {
            return None;
        }
        let claims_it = |other: &Claim| other.exclusive && other.prefix == claim.prefix;
        let mut members = self.netmap.members();
        let (_, owner) = members.find(|(_, member)| member.granted_claims().iter().any(claims_it))?;
        let name = &owner.peer.name;
        Some(format!("{name} claims it exclusively: give --exclusive here as well, or another prefix there"))
    }

    /// As servers name it, where the map tells: another node may have this machine's name.
    fn own_name(&self) -> String {
        let content = self.netmap.objects().content(&ObjectId::peer(self.identity.key));
        let peer = content.map(|content| Content::decode(&ObjectId::peer(self.identity.key), content));
        match peer {
            Some(Ok(Content::Peer(peer))) => peer.name,
            Some(_) | None => self.config.facts.hostname.clone(),
        }
    }

    /// The holder by what is known, believed or not.
    fn is_known_holder(&self, prefix: &IpNet) -> bool {
        let holder = self.netmap.holdings().of(prefix).map(|holding| holding.node);
        holder.is_some() && holder == self.own_id()
    }

    /// Who holds a prefix, for people.
    pub(super) fn holder_status(&self, prefix: &IpNet) -> Option<Holder> {
        let holding = self.netmap.holdings().of(prefix)?;
        let is_it = |member: &crate::netmap::Member| member.membership.node_id == holding.node;
        let name = match Some(holding.node) == self.own_id() {
            true => self.own_name(),
            false => {
                let named = self.netmap.members().find(|(_, member)| is_it(member));
                named.map_or_else(|| format!("node {}", holding.node), |(_, member)| member.peer.name.clone())
            }
        };
        let stuck = match (self.control.serving(), self.held.is_database_away) {
            (None, _) => Some("no server is reached: nobody here would know if another took over".to_owned()),
            (Some(_), true) => Some("the database is away: nobody can take over".to_owned()),
            (Some(_), false) => None,
        };
        let held_seconds = self.time.at(self.now).map(|time| time.since(holding.since).as_secs());
        Some(Holder { name, since_unix_s: holding.since.0, held_seconds, fence: holding.fence, stuck })
    }

    /// Why what this node claims exclusively is not served now.
    pub(super) fn standby_reason(&self, claim: &Claim) -> Option<String> {
        if !claim.exclusive || self.holds(&claim.prefix) {
            return None;
        }
        Some(match self.holder_status(&claim.prefix) {
            Some(_) if self.is_known_holder(&claim.prefix) => {
                "it held it before it started; servers are asked whether it still does".to_owned()
            }
            Some(holder) => format!("{} holds it, fence {}", holder.name, holder.fence),
            None => "nobody holds it yet: a server gives it to one of those who claim it".to_owned(),
        })
    }
}
