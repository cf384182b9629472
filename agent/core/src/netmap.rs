//! The map that this agent holds: objects from servers, and the peers that they prove to be members.
//!
//! A map never goes backwards, and a peer is in it only with a certificate under a trusted root that no removal ends, whoever told that. What is not understood or not proven stays among the
//! objects (so that the digest is the servers') but has no effect.

use crate::{
    cache::Cached,
    holdings::Holdings,
    removals::Removals,
    rules::is_about_rules,
    time::BootTime,
    trust::{Learned, Trust},
};
use proto::{
    claim::Claim,
    holding::Holding,
    key::PublicKey,
    map::{Content, Delta, Map, MapVersion, Network, Object, ObjectId, Peer},
    receipt::Receipt,
    root_list::RootList,
    session::MapState,
    statement::{Membership, Removal, Statement, StatementError},
    time::UnixTime,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// A peer with its verified certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub peer: Peer,
    pub membership: Membership,
}

impl Member {
    /// Whether it may be talked to at this time. Unknown time judges nobody.
    pub fn is_usable(&self, time: Option<UnixTime>) -> bool {
        let ended = |end: Option<UnixTime>| matches!((end, time), (Some(end), Some(time)) if time >= end);
        !ended(self.membership.not_after) && !ended(self.peer.expires_at)
    }

    /// What it serves beside its own addresses: the map says what it wants, and its certificate what it may.
    pub fn granted_claims(&self) -> Vec<Claim> {
        let is_granted =
            |claim: &&Claim| self.membership.claims.iter().any(|grant| grant.contains(&claim.prefix));
        self.peer.claims.iter().filter(is_granted).copied().collect()
    }

    fn may_hold(&self, told: &Holding) -> bool {
        let claims_it = |claim: &Claim| claim.exclusive && claim.prefix == told.prefix;
        self.membership.node_id == told.node && self.granted_claims().iter().any(claims_it)
    }

    fn shares_address(&self, other: &Self) -> bool {
        self.membership.addresses.iter().any(|address| other.membership.addresses.contains(address))
    }

    /// When that may change.
    pub fn ends_at(&self) -> Option<UnixTime> {
        [self.membership.not_after, self.peer.expires_at].into_iter().flatten().min()
    }
}

/// Objects of a map, and their bytes: many times what a network has, and no more than a machine can bear.
const MAX_OBJECTS: usize = 50_000;
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// What a step changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Added or changed.
    pub upserted: Vec<PublicKey>,
    pub removed: Vec<PublicKey>,
    /// The keys of removals that are news.
    pub learned: Vec<PublicKey>,
    pub network: bool,
    /// What others may open here, perhaps.
    pub rules: bool,
    /// Who holds what is claimed exclusively, perhaps.
    pub holdings: bool,
    /// Entries that were not believed, and why.
    pub refused: Vec<(PublicKey, String)>,
}

/// How a step from a server ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// Older than what we have: nothing was done.
    Stale,
    /// More of it follows.
    Partial(Changes),
    Whole(Changes),
    /// The digest is not the server's: the map must be fetched against its objects.
    Diverged(Changes),
    /// It is more than a map may be; what was not proven of it is forgotten.
    TooLarge(Changes),
}

/// The map.
#[derive(Debug, Clone)]
pub struct NetMap {
    own: PublicKey,
    trust: Option<Trust>,
    map: Map,
    /// Of the last step that was applied: an older one is stale.
    version: MapVersion,
    /// The newest that a server that serves us was at, with or without a change for us: no server behind it may tell us anything. Steps lag behind it
    /// (a server's maps follow its state), so it does not judge them.
    seen: MapVersion,
    /// For `seen`, as a server gave it.
    receipt: Receipt,
    /// The newest whose map this is, as servers told in this start.
    level: MapVersion,
    members: BTreeMap<PublicKey, Member>,
    /// Whose own address each is.
    owners: BTreeMap<IpAddr, PublicKey>,
    /// Members that a new epoch's map lacks: the database may have lost them, and only a removal or the end of its certificate ends a member.
    lingering: BTreeSet<PublicKey>,
    removals: Removals,
    network: Option<Network>,
    holdings: Holdings,
    /// Of a step of which something is missing, for all that is known.
    incomplete: Option<MapVersion>,
}

impl NetMap {
    pub fn new(own: PublicKey, trust: Option<Trust>) -> Self {
        Self {
            own,
            trust,
            map: Map::default(),
            version: MapVersion::default(),
            seen: MapVersion::default(),
            receipt: Receipt::default(),
            level: MapVersion::default(),
            members: BTreeMap::new(),
            owners: BTreeMap::new(),
            lingering: BTreeSet::new(),
            removals: Removals::default(),
            network: None,
            holdings: Holdings::default(),
            incomplete: None,
        }
    }

    /// From the cache: its certificates were verified before they were written, under a checksum, into a file of our own.
    pub fn restore(&mut self, cached: Cached) -> Changes {
        let Cached { version, receipt, objects, removals } = cached;
        let mut changes = Changes::default();
        for signed in removals {
            if let Ok((_, Statement::Removal(removal))) = Statement::trust(&signed) {
                self.learn(removal, &signed, &mut changes);
            }
        }
        for object in objects {
            self.put(object, &mut changes, |_, signed| {
                Statement::trust(signed).map(|(_, statement)| statement)
            });
        }
        (self.version, self.seen, self.receipt) = (version, version, receipt);
        // What was kept is no news.
        changes.learned.clear();
        changes
    }

    /// We enrolled: from now on certificates can be judged.
    pub fn set_trust(&mut self, trust: Trust) {
        self.trust = Some(trust);
    }

    pub fn trust(&self) -> Option<&Trust> {
        self.trust.as_ref()
    }

    /// The roots that a server tells. What could not be judged under those known before is judged again. `None`: nothing is new.
    ///
    /// # Errors
    /// The list is no chain.
    pub fn learn_roots(&mut self, list: &RootList) -> Result<Option<(Learned, Changes)>, StatementError> {
        let Some(trust) = &mut self.trust else { return Ok(None) };
        let Some(learned) = trust.learn(list)? else { return Ok(None) };
        Ok(Some((learned, if learned.newer { self.judge_unjudged() } else { Changes::default() })))
    }

    /// The roots that a peer leads to from the newest known here; they prove removals and nothing else. Whether one is new.
    pub fn follow_roots(&mut self, links: &[Vec<u8>]) -> bool {
        self.trust.as_mut().is_some_and(|trust| trust.follow(links))
    }

    fn judge_unjudged(&mut self) -> Changes {
        self.judge_again(|netmap, id| !netmap.is_judged(id))
    }

    /// Lets roots go that servers name no more, once neither this map nor `own`, this agent's certificate, can need them, and with them the members that still stand under
    /// them. `None`: there are none.
    pub fn release_roots(&mut self, own: &[u8]) -> Option<Changes> {
        let level = self.level;
        self.trust.as_mut()?.release(level, own).then_some(())?;
        let mut changes = self.judge_again(|netmap, id| !netmap.is_proved(id));
        let lingering: Vec<ObjectId> = self.lingering.iter().copied().map(ObjectId::peer).collect();
        for id in lingering.iter().filter(|id| !self.is_proved(id)).collect::<Vec<_>>() {
            self.remove_member(id, &mut changes);
        }
        Some(changes)
    }

    fn judge_again(&mut self, is_asked: impl Fn(&Self, &ObjectId) -> bool) -> Changes {
        let objects = self.map.iter().filter(|(id, ..)| is_asked(self, id));
        let objects: Vec<(ObjectId, Vec<u8>)> =
            objects.map(|(id, _, content)| (id.clone(), content.to_vec())).collect();
        let mut changes = Changes::default();
        for (id, content) in objects {
            self.judge(&id, &content, &mut changes, verify);
        }
        changes
    }

    /// A server that serves us says that this is its map of that version. Whether only the end of a step was missing, with which another server was lost.
    pub fn on_level(&mut self, version: MapVersion) -> bool {
        self.level = self.level.max(version);
        self.incomplete.take_if(|incomplete| *incomplete <= version).is_some()
    }

    /// Whether the object had the effect that it asks for.
    fn is_judged(&self, id: &ObjectId) -> bool {
        let content = self.map.content(id).map(|content| Content::decode(id, content));
        match content {
            Some(Ok(Content::Peer(peer))) => {
                key_of(id).and_then(|key| self.members.get(&key)).is_some_and(|member| member.peer == peer)
            }
            Some(Ok(Content::Removal(signed))) => self.removals.holds(&signed),
            Some(Ok(
                Content::Network(_)
                | Content::Rule(_)
                | Content::Sources(_)
                | Content::Holdings(_)
                | Content::Unknown,
            )) => true,
            Some(Err(_)) | None => true,
        }
    }

    /// A removal that a peer told: it counts only under a root's signature. `None`: no root signed it that is known here, or that peers led to.
    pub fn on_removal(&mut self, signed: &[u8]) -> Option<Changes> {
        let mut changes = Changes::default();
        let Some(trust) = self.trust.as_ref().filter(|_| !self.removals.cover(signed)) else {
            return Some(changes);
        };
        match trust.verify_told(signed) {
            Ok(Statement::Removal(removal)) => self.learn(removal, signed, &mut changes),
            Err(StatementError::Signature) => return None,
            Ok(_) | Err(_) => {}
        }
        Some(changes)
    }

    /// Every removal that was proven, whoever told it.
    pub fn removals(&self) -> &Removals {
        &self.removals
    }

    /// Forgets removals of keys whose certificates have all ended.
    pub fn forget_ended_removals(&mut self, time: UnixTime) -> bool {
        self.removals.forget_ended(time)
    }

    /// The newest removals that a server with this map seems not to know.
    pub fn removals_beside_map(&self) -> impl Iterator<Item = (&PublicKey, &[u8])> {
        let is_beside = |key: &PublicKey| {
            let is_back = self.members.contains_key(key);
            !is_back && self.map.content(&ObjectId::removal(*key)).is_none()
        };
        self.removals.newest().filter(move |(key, _)| **key != self.own && is_beside(key))
    }

    pub fn state(&self) -> MapState {
        MapState { version: self.seen, digest: self.map.digest(), receipt: self.receipt }
    }

    /// The version of the last step that was applied.
    pub fn applied(&self) -> MapVersion {
        self.version
    }

    pub fn objects(&self) -> &Map {
        &self.map
    }

    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    pub fn holdings(&self) -> &Holdings {
        &self.holdings
    }

    /// What a peer tells of itself inside its tunnel: a holder that servers cannot tell hears so that it is none any more. Only who may claim the prefix is believed. Whether it is news.
    pub fn on_holding(&mut self, key: &PublicKey, told: Holding, now: BootTime) -> bool {
        let may_hold = self.members.get(key).is_some_and(|member| member.may_hold(&told));
        may_hold && self.holdings.hear(told, now)
    }

    /// What was heard before this start.
    pub fn restore_heard(&mut self, heard: &[Holding], now: BootTime) {
        for holding in heard {
            self.holdings.hear(*holding, now);
        }
        self.forget_former_holders();
    }

    /// What peers told of themselves goes with their leave to hold it; not in the middle of a step, whose later part may say who holds it now.
    pub fn forget_former_holders(&mut self) {
        if self.incomplete.is_none() && self.holdings.heard().next().is_some() {
            let members = &self.members;
            self.holdings.retain_heard(|heard| {
                let mut known = members.values().filter(|member| member.membership.node_id == heard.node);
                known.next().map(|member| member.may_hold(heard))
            });
        }
    }

    /// See [`Holdings::judge`].
    pub fn judge_holders(&mut self, trusted_since: Option<BootTime>, now: BootTime) -> bool {
        self.holdings.judge(trusted_since, now)
    }

    pub fn member(&self, key: &PublicKey) -> Option<&Member> {
        self.members.get(key)
    }

    /// Whose own address it is.
    pub fn owner_of(&self, address: &IpAddr) -> Option<&Member> {
        self.members.get(self.owners.get(address)?)
    }

    pub fn members(&self) -> impl Iterator<Item = (&PublicKey, &Member)> {
        self.members.iter()
    }

    /// Applies a step, or a part of one.
    pub fn apply(&mut self, delta: Delta) -> Applied {
        if delta.version < self.version {
            return Applied::Stale;
        }
        self.incomplete = Some(delta.version);
        let mut changes = Changes::default();
        let begins_epoch = delta.version.epoch > self.version.epoch;
        for id in &delta.drop {
            self.drop(id, begins_epoch, &mut changes);
        }
        for object in delta.put {
            if self.map.len() >= MAX_OBJECTS || self.map.size_bytes() + object.content.len() > MAX_BYTES {
                self.forget_unproven();
                return Applied::TooLarge(changes);
            }
            self.put(object, &mut changes, verify);
        }
        if !delta.last {
            return Applied::Partial(changes);
        }
        if self.map.digest() != delta.digest {
            return Applied::Diverged(changes);
        }
        self.version = delta.version;
        self.on_level(delta.version);
        self.on_seen(delta.version, delta.receipt);
        Applied::Whole(changes)
    }

    /// Back to what another server can go on from.
    fn forget_unproven(&mut self) {
        let is_proven = |id: &ObjectId| {
            let known = |key| self.members.contains_key(&key) || self.removals.signed(&key).is_some();
            key_of(id).map_or(*id == ObjectId::network(), known)
        };
        let unproven = self.map.iter().filter(|(id, _, _)| !is_proven(id));
        let unproven: Vec<ObjectId> = unproven.map(|(id, _, _)| id.clone()).collect();
        for id in &unproven {
            self.map.drop(id);
        }
    }

    /// The server that serves us is at this version, and gave this receipt for it.
    pub fn on_seen(&mut self, version: MapVersion, receipt: Receipt) {
        if version > self.seen || (version == self.seen && receipt != Receipt::default()) {
            (self.seen, self.receipt) = (version, receipt);
        }
    }

    fn drop(&mut self, id: &ObjectId, begins_epoch: bool, changes: &mut Changes) {
        let Some(old) = self.map.content(id).map(<[u8]>::to_vec) else { return };
        self.map.drop(id);
        changes.rules |= is_about_rules(id);
        match Content::decode(id, &old) {
            Ok(Content::Peer(_)) if begins_epoch && self.may_linger(id) => self.lingering.extend(key_of(id)),
            Ok(Content::Peer(_)) => self.remove_member(id, changes),
            Ok(Content::Network(_) | Content::Removal(_) | Content::Unknown) | Err(_) => {}
            Ok(Content::Rule(_) | Content::Sources(_)) => {}
            Ok(Content::Holdings(_)) => {
                self.holdings.learn_all(&[]);
                changes.holdings = true;
            }
        }
    }

    fn put(
        &mut self,
        object: Object,
        changes: &mut Changes,
        verify: impl Fn(&Trust, &[u8]) -> Result<Statement, StatementError>,
    ) {
        let Object { id, content } = object.clone();
        if !self.map.put(object) {
            return;
        }
        // They are read all together when the map is whole.
        if is_about_rules(&id) {
            changes.rules = true;
            return;
        }
        match Content::decode(&id, &content) {
            Ok(Content::Peer(peer)) if self.trust.is_some() && self.is_verified(&id, &peer) => {
                self.update_peer(&id, peer, changes);
            }
            Ok(_) | Err(_) => self.judge(&id, &content, changes, verify),
        }
    }

    /// Gives an object of the map its effect.
    fn judge(
        &mut self,
        id: &ObjectId,
        content: &[u8],
        changes: &mut Changes,
        verify: impl Fn(&Trust, &[u8]) -> Result<Statement, StatementError>,
    ) {
        let Some(trust) = &self.trust else { return };
        match Content::decode(id, content) {
            Ok(Content::Peer(peer)) => match verify(trust, &peer.membership) {
                Ok(Statement::Membership(membership)) if Some(membership.node_key) == key_of(id) => {
                    self.put_member(Member { peer, membership }, changes);
                }
                Ok(_) => self.refuse(id, "its certificate is for another key".into(), changes),
                // Under a root that we have not heard of yet, perhaps: then it is judged again.
                Err(StatementError::Signature) if self.is_proved(id) => {}
                Err(error) => self.refuse(id, error.to_string(), changes),
            },
            Ok(Content::Removal(signed)) => {
                if !self.removals.holds(&signed)
                    && let Ok(Statement::Removal(removal)) = verify(trust, &signed)
                {
                    self.learn(removal, &signed, changes);
                    self.removals.sign_anew(removal, &signed);
                }
            }
            Ok(Content::Network(network)) => {
                changes.network |= self.network.as_ref() != Some(&network);
                self.network = Some(network);
            }
            Ok(Content::Holdings(held)) => {
                self.holdings.learn_all(&held);
                changes.holdings = true;
            }
            Ok(Content::Rule(_) | Content::Sources(_) | Content::Unknown) => {}
            Err(error) => {
                if let Some(key) = key_of(id) {
                    changes.refused.push((key, error.to_string()));
                }
            }
        }
    }

    fn refuse(&mut self, id: &ObjectId, reason: String, changes: &mut Changes) {
        self.remove_member(id, changes);
        changes.refused.extend(key_of(id).map(|key| (key, reason)));
    }

    /// Whether it is a member by the certificate that it had before.
    fn is_proved(&self, id: &ObjectId) -> bool {
        let member = key_of(id).and_then(|key| self.members.get(&key));
        let verified =
            self.trust.as_ref().zip(member).map(|(trust, member)| trust.verify_held(&member.peer.membership));
        verified.is_some_and(|verified| verified.is_ok())
    }

    /// It comes with the certificate that was verified before: then only the rest may have changed.
    fn is_verified(&self, id: &ObjectId, peer: &Peer) -> bool {
        let known = key_of(id).and_then(|key| self.members.get(&key));
        known.is_some_and(|known| known.peer.membership == peer.membership)
    }

    fn update_peer(&mut self, id: &ObjectId, peer: Peer, changes: &mut Changes) {
        let known = key_of(id).and_then(|key| self.members.get(&key));
        if let Some(membership) = known.map(|known| known.membership.clone()) {
            self.put_member(Member { peer, membership }, changes);
        }
    }

    fn put_member(&mut self, member: Member, changes: &mut Changes) {
        let key = member.membership.node_key;
        // We are no peer of ours.
        if key == self.own {
            return;
        }
        // Removed is removed, whatever an older server says; a newer certificate is another beginning.
        if self.removals.end(&member.membership) {
            return self.remove_member(&ObjectId::peer(key), changes);
        }
        self.lingering.remove(&key);
        self.make_room(&member, changes);
        let addresses = member.membership.addresses.clone();
        if let Some(former) = self.members.insert(key, member) {
            self.disown(&key, &former);
        }
        self.owners.extend(addresses.into_iter().map(|address| (address, key)));
        changes.removed.retain(|removed| *removed != key);
        changes.upserted.push(key);
    }

    fn may_linger(&self, id: &ObjectId) -> bool {
        let Some((key, member)) = key_of(id).and_then(|key| self.members.get_key_value(&key)) else {
            return false;
        };
        self.members.iter().all(|(other, held)| other == key || !held.shares_address(member))
    }

    /// An address has one owner: who is in the map has it, not who was.
    fn make_room(&mut self, member: &Member, changes: &mut Changes) {
        let shares =
            |key: &&PublicKey| self.members.get(key).is_some_and(|other| other.shares_address(member));
        let gone = self.lingering.iter().filter(shares);
        for key in gone.copied().collect::<Vec<_>>() {
            self.remove_member(&ObjectId::peer(key), changes);
        }
    }

    fn learn(&mut self, removal: Removal, signed: &[u8], changes: &mut Changes) {
        let key = removal.node_key;
        if !self.removals.add(removal, signed) {
            return;
        }
        changes.learned.push(key);
        if self.members.get(&key).is_some_and(|member| removal.ends(&member.membership)) {
            self.remove_member(&ObjectId::peer(key), changes);
        }
    }

    fn disown(&mut self, key: &PublicKey, member: &Member) {
        for address in &member.membership.addresses {
            if self.owners.get(address) == Some(key) {
                self.owners.remove(address);
            }
        }
    }

    fn remove_member(&mut self, id: &ObjectId, changes: &mut Changes) {
        let Some(key) = key_of(id) else { return };
        self.lingering.remove(&key);
        if let Some(former) = self.members.remove(&key) {
            self.disown(&key, &former);
            changes.upserted.retain(|upserted| *upserted != key);
            changes.removed.push(key);
        }
    }
}

fn verify(trust: &Trust, signed: &[u8]) -> Result<Statement, StatementError> {
    trust.verify(signed).map(|(statement, _)| statement)
}

fn key_of(id: &ObjectId) -> Option<PublicKey> {
    id.id.as_slice().try_into().ok().map(PublicKey)
}
