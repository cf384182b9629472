//! Removals between agents, inside tunnels, so that they spread with every server down, and from agents to a server that lost them.
//!
//! A removal that is news is told to every peer with a live tunnel, once. When a tunnel comes up or has another session, who knows removals says what the newest of them hash
//! to; a peer that knows others answers with its own hash, and both tell what they have. One datagram at a time is under way to a peer; the next follows its answer.
//!
//! A datagram with a removal under a root that is not known here is not answered: the peer is asked how it came to its newest root, and what it told is judged again after its answer.
//! Roots that nobody asked for are not looked at.

use super::Agent;
use crate::{
    io::{ConnId, Output},
    removals,
    time::BootTime,
    trust::Trust,
};
use proto::{
    key::PublicKey,
    map::MapVersion,
    peer_message::Body,
    session::{AgentMessage, Reason, Refused},
    statement::Statement,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Removals in one datagram take up so many bytes at most.
const DATAGRAM: usize = 1000;
/// A datagram that is not answered is sent again after this, doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// After so many in vain the peer is told nothing until something comes from it again. An older agent never answers.
const ATTEMPTS: u32 = 5;
/// So often a peer is asked for the roots of one datagram.
const QUESTIONS: u32 = 2;
/// A peer's summary is answered once within this, and its roots are asked for: two that have nothing to tell, but differ, would answer each other for ever.
const SUMMARY_INTERVAL: Duration = Duration::from_secs(10);
/// What one peer tells is verified at this rate, with as much in store: a signature costs a tenth of a millisecond.
const VERIFIED_PER_SECOND: u32 = 20;
const VERIFIED_AT_ONCE: u32 = 100;

/// One datagram under way.
#[derive(Debug)]
struct Sent {
    id: u64,
    keys: Vec<PublicKey>,
    attempts: u32,
    again_at: BootTime,
}

/// What a peer told under roots that are not known here.
#[derive(Debug)]
struct Unproven {
    removals: Vec<Vec<u8>>,
    id: u64,
    asked_at: BootTime,
    questions: u32,
}

/// What one peer is still to be told.
#[derive(Debug, Default)]
struct Telling {
    pending: BTreeSet<PublicKey>,
    sent: Option<Sent>,
}

/// What may still be verified of what one peer tells.
#[derive(Debug, Clone, Copy)]
struct Budget {
    left: u32,
    since: BootTime,
}

/// Who is to be told what.
#[derive(Debug, Default)]
pub(super) struct Gossip {
    telling: BTreeMap<PublicKey, Telling>,
    budgets: BTreeMap<PublicKey, Budget>,
    /// What a peer told, the last datagram of it, until it answers how it came to its newest root.
    unproven: BTreeMap<PublicKey, Unproven>,
    /// When a peer was last asked for roots, and led to none that is not known here, or did not answer.
    asked_in_vain: BTreeMap<PublicKey, BootTime>,
    /// When a peer was last told of roots.
    roots_told: BTreeMap<PublicKey, BootTime>,
    /// When a peer's summary was last answered.
    summaries: BTreeMap<PublicKey, BootTime>,
    /// Peers that were told in vain while their tunnel seemed to be up.
    deaf: BTreeSet<PublicKey>,
    last_id: u64,
    /// What the server at the other end of this connection was told.
    server_told: Option<(ConnId, BTreeSet<PublicKey>)>,
    /// The map or the removals changed since it was last compared with them.
    is_map_unseen: bool,
}

impl Gossip {
    /// The tunnel is gone; what was not said is said when it is back.
    pub(super) fn forget(&mut self, peer: &PublicKey) {
        self.telling.remove(peer);
        self.budgets.remove(peer);
        self.summaries.remove(peer);
        self.unproven.remove(peer);
        self.asked_in_vain.remove(peer);
        self.roots_told.remove(peer);
        self.deaf.remove(peer);
    }

    pub(super) fn look_at_map(&mut self) {
        self.is_map_unseen = true;
    }

    pub(super) fn deadline(&self) -> Option<BootTime> {
        self.telling.values().filter_map(|telling| Some(telling.sent.as_ref()?.again_at)).min()
    }

    pub(super) fn len(&self) -> usize {
        let told = self.server_told.as_ref().map_or(0, |(_, told)| told.len());
        self.telling.values().map(|telling| 1 + telling.pending.len()).sum::<usize>()
            + self.unproven.len()
            + told
    }

    /// What no root signed that anybody knows is asked about once in a while, and answered meanwhile: it must not hold up the rest.
    fn may_ask(&self, peer: &PublicKey, now: BootTime) -> bool {
        self.asked_in_vain.get(peer).is_none_or(|at| now >= *at + SUMMARY_INTERVAL)
    }

    fn may_verify(&mut self, peer: PublicKey, now: BootTime) -> bool {
        let full = Budget { left: VERIFIED_AT_ONCE, since: now };
        let budget = self.budgets.entry(peer).or_insert(full);
        let earned =
            now.since(budget.since).as_secs().min(VERIFIED_AT_ONCE.into()) as u32 * VERIFIED_PER_SECOND;
        if earned > 0 {
            *budget = Budget { left: VERIFIED_AT_ONCE.min(budget.left + earned), since: now };
        }
        let may = budget.left > 0;
        budget.left = budget.left.saturating_sub(1);
        may
    }
}

impl Agent {
    /// News for every peer with a live tunnel, but for who told it; and for those they are about.
    pub(super) fn tell_removals(&mut self, learned: &[PublicKey], from: Option<PublicKey>) {
        if learned.is_empty() {
            return;
        }
        if let Some(time) = self.netmap.removals().newest_at() {
            self.time.on_signed(time);
        }
        self.gossip.look_at_map();
        self.save_map_soon();
        let connected = self.peers.iter().filter(|(key, peer)| peer.is_connected() && Some(**key) != from);
        let connected: Vec<PublicKey> = connected.map(|(key, _)| *key).collect();
        for peer in connected {
            if learned.contains(&peer) && self.netmap.member(&peer).is_none() {
                self.tell_removed(peer);
                continue;
            }
            self.gossip.telling.entry(peer).or_default().pending.extend(learned);
            self.send_removals(peer);
        }
    }

    /// Its last word from us: why the tunnel goes.
    fn tell_removed(&mut self, peer: PublicKey) {
        if let Some(signed) = self.netmap.removals().signed(&peer) {
            let removals = vec![signed.to_vec()];
            self.send_to_peer(peer, Body::Removed { removals, id: 0 }, None);
            // If it asks, nobody hears it any more.
            if self.netmap.trust().is_some_and(|trust| !trust.told_links().is_empty()) {
                self.tell_roots(peer);
            }
        }
    }

    /// A tunnel is up: perhaps its other end knows less, or more.
    pub(super) fn sum_up_removals(&mut self, peer: PublicKey) {
        if !self.netmap.removals().is_empty() {
            self.send_to_peer(peer, Body::RemovalSummary(self.netmap.removals().digest()), None);
        }
    }

    /// A message came from a peer, which may have been away behind a tunnel that stayed up.
    pub(super) fn on_peer_heard(&mut self, peer: PublicKey) {
        if self.gossip.deaf.remove(&peer) {
            self.sum_up_removals(peer);
        }
    }

    /// A session took the place of another: perhaps the peer restarted, and another run of it knows less.
    pub(super) fn on_session_replaced(&mut self, peer: PublicKey) {
        self.gossip.deaf.remove(&peer);
        let sent = self.gossip.telling.get_mut(&peer).and_then(|telling| telling.sent.as_mut());
        match sent {
            Some(sent) => (sent.attempts, sent.again_at) = (0, self.now),
            None => self.sum_up_removals(peer),
        }
    }

    pub(super) fn on_removal_summary(&mut self, peer: PublicKey, digest: [u8; 32]) {
        let own = self.netmap.removals().digest();
        let is_told = self.gossip.telling.contains_key(&peer);
        let answered_at = self.gossip.summaries.get(&peer);
        let is_answered = answered_at.is_some_and(|at| self.now < *at + SUMMARY_INTERVAL);
        if digest == own || is_told || is_answered || !self.peers.contains_key(&peer) {
            return;
        }
        self.gossip.summaries.insert(peer, self.now);
        self.send_to_peer(peer, Body::RemovalSummary(own), None);
        let newest: Vec<PublicKey> = self.netmap.removals().newest().map(|(key, _)| *key).collect();
        self.gossip.telling.entry(peer).or_default().pending.extend(newest);
        self.send_removals(peer);
    }

    pub(super) fn on_removed_told(&mut self, peer: PublicKey, removals: &[Vec<u8>], id: u64) {
        let mut is_proven = true;
        for signed in removals {
            if self.netmap.removals().holds(signed) {
                continue;
            }
            if !self.gossip.may_verify(peer, self.now) {
                // Without an answer it is told again.
                return;
            }
            is_proven &= self.on_removal(peer, signed);
        }
        // Without an answer it is told again.
        if !is_proven && self.waits_for_roots(peer, removals, id) {
            return;
        }
        self.gossip.unproven.remove(&peer);
        if id != 0 && self.peers.contains_key(&peer) {
            self.send_to_peer(peer, Body::RemovedSeen(id), None);
        }
    }

    /// Whether the peer is to lead to the roots of what it told: then it is asked, when that comes again once more. An older agent never answers.
    fn waits_for_roots(&mut self, peer: PublicKey, removals: &[Vec<u8>], id: u64) -> bool {
        let now = self.now;
        if !self.gossip.may_ask(&peer, now) {
            return false;
        }
        let asked = self.gossip.unproven.get(&peer);
        let asked = asked.filter(|asked| asked.id == id && asked.removals == removals);
        // The network may deliver twice what was sent once.
        if asked.is_some_and(|asked| now < asked.asked_at + FIRST_RETRY / 2) {
            return true;
        }
        let questions = asked.map_or(0, |asked| asked.questions);
        if questions >= QUESTIONS {
            self.gossip.asked_in_vain.insert(peer, now);
            return false;
        }
        let unproven = Unproven { removals: removals.to_vec(), id, asked_at: now, questions: questions + 1 };
        self.gossip.unproven.insert(peer, unproven);
        self.send_to_peer(peer, Body::RootsWanted, None);
        true
    }

    pub(super) fn on_roots_told(&mut self, peer: PublicKey, links: &[Vec<u8>]) {
        if !self.gossip.unproven.contains_key(&peer) {
            return;
        }
        let trust = self.netmap.trust();
        let is_known = |link: &Vec<u8>| {
            trust.is_some_and(|trust| trust.links().contains(link) || trust.led().any(|led| led == link))
        };
        let news: Vec<Vec<u8>> = links.iter().filter(|link| !is_known(link)).cloned().collect();
        if !news.iter().all(|_| self.gossip.may_verify(peer, self.now)) {
            return;
        }
        let Some(Unproven { removals, id, .. }) = self.gossip.unproven.remove(&peer) else { return };
        let led = self.follow_roots(&news);
        // It is not asked again about the same.
        self.gossip.asked_in_vain.insert(peer, self.now);
        self.on_removed_told(peer, &removals, id);
        if led {
            self.gossip.asked_in_vain.remove(&peer);
        }
    }

    pub(super) fn on_roots_wanted(&mut self, peer: PublicKey) {
        let told_at = self.gossip.roots_told.get(&peer);
        if told_at.is_some_and(|at| self.now < *at + FIRST_RETRY / 2) {
            return;
        }
        self.gossip.roots_told.insert(peer, self.now);
        self.tell_roots(peer);
    }

    fn tell_roots(&mut self, peer: PublicKey) {
        let links = self.netmap.trust().map_or_else(Vec::new, Trust::told_links);
        self.send_to_peer(peer, Body::Roots(links), None);
    }

    /// Whether it was under a root that is believed.
    fn on_removal(&mut self, from: PublicKey, signed: &[u8]) -> bool {
        // Others may forget later than we did.
        if self.time.told_at(self.now).is_some_and(|time| removals::is_over(signed, time)) {
            return true;
        }
        let Some(changes) = self.netmap.on_removal(signed) else { return false };
        let is_own = changes.learned.contains(&self.identity.key);
        self.tell_removals(&changes.learned, Some(from));
        self.apply_changes(changes);
        if is_own {
            self.on_own_removal(signed);
        }
        true
    }

    /// No second opinion is needed under the root's signature.
    fn on_own_removal(&mut self, signed: &[u8]) {
        if let Ok((_, Statement::Removal(removal))) = Statement::trust(signed)
            && self.ends_us(&removal)
        {
            let detail = "this node was removed from the network, as a peer could prove; enrol it again with a new setup key";
            self.control.handle_proven_removal(Refused {
                reason: Reason::Removed,
                detail: detail.to_owned(),
                retry_after: None,
                removal: signed.to_vec(),
            });
            self.drain_control();
        }
    }

    pub(super) fn on_removed_seen(&mut self, peer: PublicKey, id: u64) {
        if let Some(telling) = self.gossip.telling.get_mut(&peer)
            && telling.sent.take_if(|sent| sent.id == id).is_some()
        {
            self.send_removals(peer);
        }
    }

    /// The next datagram, unless one is under way.
    fn send_removals(&mut self, peer: PublicKey) {
        let Some(telling) = self.gossip.telling.get_mut(&peer) else { return };
        if telling.sent.is_some() {
            return;
        }
        let (mut keys, mut removals, mut size) = (Vec::new(), Vec::new(), 0);
        while let Some(key) = telling.pending.first().copied() {
            let signed = self.netmap.removals().signed(&key).filter(|_| key != peer);
            size += signed.map_or(0, <[u8]>::len);
            if size > DATAGRAM && !keys.is_empty() {
                break;
            }
            telling.pending.remove(&key);
            if let Some(signed) = signed {
                keys.push(key);
                removals.push(signed.to_vec());
            }
        }
        if keys.is_empty() {
            self.gossip.telling.remove(&peer);
            return;
        }
        self.gossip.last_id += 1;
        let id = self.gossip.last_id;
        telling.sent = Some(Sent { id, keys, attempts: 1, again_at: self.now + FIRST_RETRY });
        self.send_to_peer(peer, Body::Removed { removals, id }, None);
    }

    pub(super) fn repeat_removals(&mut self) {
        let now = self.now;
        let is_due = |telling: &Telling| telling.sent.as_ref().is_some_and(|sent| sent.again_at <= now);
        let due: Vec<PublicKey> =
            self.gossip.telling.iter().filter(|(_, t)| is_due(t)).map(|(key, _)| *key).collect();
        for peer in due {
            let sent = self.gossip.telling.get_mut(&peer).and_then(|telling| telling.sent.as_mut());
            match sent {
                Some(sent) if sent.attempts < ATTEMPTS => {
                    sent.again_at = now + FIRST_RETRY * 2u32.pow(sent.attempts);
                    sent.attempts += 1;
                    let known = self.netmap.removals();
                    let removals = sent.keys.iter().filter_map(|key| known.signed(key));
                    let body =
                        Body::Removed { removals: removals.map(<[u8]>::to_vec).collect(), id: sent.id };
                    self.send_to_peer(peer, body, None);
                }
                Some(_) => {
                    self.gossip.telling.remove(&peer);
                    self.gossip.deaf.insert(peer);
                }
                None => drop(self.gossip.telling.remove(&peer)),
            }
        }
    }

    /// A server whose map is level with ours and lacks a removal has lost it, or never heard of it.
    pub(super) fn tell_server_of_removals(&mut self, conn: ConnId, at: MapVersion) {
        if self.control.serving() != Some(conn) || self.fetching.is_some() || !self.has_map() {
            return;
        }
        let is_another = self.gossip.server_told.as_ref().is_none_or(|(told, _)| *told != conn);
        if is_another {
            self.gossip.server_told = Some((conn, BTreeSet::new()));
            self.gossip.is_map_unseen = true;
        }
        // A server that is behind may just not have told it yet.
        let is_level = at >= self.netmap.applied() && at >= self.netmap.state().version;
        if !is_level || !std::mem::take(&mut self.gossip.is_map_unseen) {
            return;
        }
        let Some((_, told)) = &mut self.gossip.server_told else { return };
        let news = self.netmap.removals_beside_map().filter(|(key, _)| !told.contains(key));
        let news: Vec<(PublicKey, Vec<u8>)> = news.map(|(key, signed)| (*key, signed.to_vec())).collect();
        told.extend(news.iter().map(|(key, _)| *key));
        for (_, signed) in news {
            self.outputs.push_back(Output::Send { conn, message: AgentMessage::Removal(signed) });
        }
    }
}
