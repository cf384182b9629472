//! Everything the servers know, as of one version: the objects of every map. An agent's map is all of them but its own entry.

use crate::{claims::Claimed, holders::Holdings, members, rules::Policy};
use ipnet::IpNet;
use proto::{
    claim::Claim,
    holding::Holding,
    key::PublicKey,
    map::{Content, ContentHash, Delta, Map, MapDigest, MapVersion, Network, Object, ObjectId, Peer},
    receipt::{Mark, Receipt},
    root_list::MAX_ROOTS,
    statement::NodeId,
    time::UnixTime,
    wire::ObjectKind,
};
use std::{
    cmp::Reverse, collections::BTreeMap, net::SocketAddr, ops::RangeInclusive, rc::Rc, time::Duration,
};

/// A version of everything.
#[derive(Debug, Clone, Default)]
pub(crate) struct Atlas {
    pub(crate) version: MapVersion,
    /// Of its change: another in every timeline.
    pub(crate) mark: Mark,
    map: Map,
    nodes: BTreeMap<PublicKey, Known>,
    removals: BTreeMap<PublicKey, Removed>,
    pub(crate) policy: Policy,
    /// The roots that are trusted, by their numbers.
    pub(crate) first_root: usize,
    pub(crate) newest_root: usize,
    /// Of certificates; `None`: they never end.
    lifetime: Option<Duration>,
    claims: Rc<[Claimed]>,
    pub(crate) holdings: Holdings,
}

/// A node.
#[derive(Debug, Clone)]
struct Known {
    name: String,
    endpoints: Vec<SocketAddr>,
    certificate: Certificate,
    /// The newest root that it keeps, as it said.
    confirmed: usize,
    /// It claims nothing for now.
    is_withdrawn: bool,
    /// It gives way to whoever else claims the same.
    yields: bool,
}

/// A node's certificate, by what makes it another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Certificate {
    pub(crate) root: usize,
    pub(crate) issued_at: UnixTime,
}

#[derive(Debug, Clone)]
struct Removed {
    root: usize,
    at: UnixTime,
    signed: Vec<u8>,
}

/// A change of the cluster's state.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Enrol(usize),
    Endpoints(usize, Vec<SocketAddr>),
    /// A change that no other agent's map shows.
    Unseen,
    Rename(usize, String),
    Remove(usize),
    /// Its certificate is given out anew.
    Renew(usize),
    /// It claims nothing any more, or again what it may.
    Withdraw(usize, bool),
    Yield(usize, bool),
    /// The prefix is held by this node from now on.
    Grant(IpNet, usize),
    /// The next root.
    Rotate,
    /// The next that is under a former root is signed anew.
    SignAnew,
    /// A node keeps this root.
    Confirm(usize, usize),
    /// The trust in former roots ends.
    Retire,
    Rules(Policy),
}

impl Atlas {
    pub(crate) fn first(lifetime: Option<Duration>, claims: Rc<[Claimed]>) -> Self {
        let version = MapVersion { epoch: 1, revision: 1 };
        let mut atlas = Self { version, lifetime, claims, ..Self::default() };
        put(&mut atlas.map, &Content::Network(network()), Vec::new());
        atlas.put_policy(Policy::Network);
        atlas
    }

    /// With this change, made at this time.
    pub(crate) fn after(&self, change: &Change, at: UnixTime) -> Self {
        let mut next = self.clone();
        next.version.revision += 1;
        match change {
            Change::Unseen => {}
            Change::Enrol(agent) => next.enrol(*agent, at),
            Change::Endpoints(agent, endpoints) => {
                next.change(*agent, |node| node.endpoints.clone_from(endpoints));
            }
            Change::Rename(agent, name) => next.change(*agent, |node| node.name.clone_from(name)),
            Change::Remove(agent) => next.remove(*agent, at),
            Change::Renew(agent) => {
                let certificate = Certificate { root: next.newest_root, issued_at: at };
                next.change(*agent, |node| node.certificate = certificate);
            }
            Change::Withdraw(agent, is_withdrawn) => {
                next.change(*agent, |node| node.is_withdrawn = *is_withdrawn);
            }
            Change::Yield(agent, yields) => next.change(*agent, |node| node.yields = *yields),
            Change::Grant(prefix, agent) => {
                next.holdings.grant(*prefix, *agent, next.version, at);
                next.put_holdings();
            }
            Change::Rotate => next.newest_root += 1,
            Change::SignAnew => next.sign_anew(),
            Change::Confirm(agent, root) => next.change(*agent, |node| node.confirmed = *root),
            Change::Retire => next.first_root = next.newest_root,
            Change::Rules(policy) => next.put_policy(*policy),
        }
        next
    }

    /// Nodes and removals that `past` has and this lacks; a removal wins. Returns whether there were any.
    pub(crate) fn put_back(&mut self, past: &Self) -> bool {
        let removed = past.removals.iter().filter(|(key, _)| !self.removals.contains_key(key));
        let removed: Vec<(usize, UnixTime)> =
            removed.map(|(key, removed)| (members::agent_of(key), removed.at)).collect();
        removed.iter().for_each(|(agent, at)| self.remove(*agent, *at));
        let is_lost = |key: &&PublicKey| !self.nodes.contains_key(key) && !self.removals.contains_key(key);
        let lost: Vec<PublicKey> = past.nodes.keys().filter(is_lost).copied().collect();
        for key in &lost {
            self.put_node(members::agent_of(key), past.nodes[key].clone());
        }
        let is_held_back = self.holdings.put_back(&past.holdings);
        if is_held_back {
            self.put_holdings();
        }
        is_held_back || !removed.is_empty() || !lost.is_empty()
    }

    fn enrol(&mut self, agent: usize, at: UnixTime) {
        let issued_at = if self.lifetime.is_some() { at } else { members::FOUNDED };
        let certificate = Certificate { root: self.newest_root, issued_at };
        let (name, endpoints, confirmed) = (format!("agent{agent}"), Vec::new(), self.first_root);
        self.put_node(
            agent,
            Known { name, endpoints, certificate, confirmed, is_withdrawn: false, yields: false },
        );
    }

    fn change(&mut self, agent: usize, change: impl FnOnce(&mut Known)) {
        if let Some(mut node) = self.nodes.get(&members::of(agent).key).cloned() {
            change(&mut node);
            self.put_node(agent, node);
        }
    }

    fn put_node(&mut self, agent: usize, node: Known) {
        let member = members::of(agent);
        let peer = Peer {
            node_id: member.node,
            name: node.name.clone(),
            membership: self.signed(agent, node.certificate),
            endpoints: node.endpoints.clone(),
            os: "sim".to_owned(),
            agent_version: String::new(),
            expires_at: None,
            ephemeral: false,
            claims: if node.is_withdrawn { Vec::new() } else { self.told_claims(agent, node.yields) },
        };
        put(&mut self.map, &Content::Peer(peer), member.key.0.to_vec());
        self.nodes.insert(member.key, node);
    }

    fn remove(&mut self, agent: usize, at: UnixTime) {
        let key = members::of(agent).key;
        self.nodes.remove(&key);
        self.map.drop(&ObjectId::peer(key));
        self.put_removal(agent, at);
    }

    fn put_removal(&mut self, agent: usize, at: UnixTime) {
        let (key, root) = (members::of(agent).key, self.newest_root);
        let signed = members::removal(agent, root, at);
        put(&mut self.map, &Content::Removal(signed.clone()), key.0.to_vec());
        self.removals.insert(key, Removed { root, at, signed });
    }

    fn put_holdings(&mut self) {
        put(&mut self.map, &Content::Holdings(self.holdings.told()), Vec::new());
    }

    fn put_policy(&mut self, policy: Policy) {
        let is_old =
            |id: &&ObjectId| [ObjectKind::Rule as u32, ObjectKind::Sources as u32].contains(&id.kind);
        let old: Vec<ObjectId> = self.map.iter().map(|(id, _, _)| id).filter(is_old).cloned().collect();
        for id in &old {
            self.map.drop(id);
        }
        for (content, id) in policy.objects() {
            put(&mut self.map, &content, id);
        }
        self.policy = policy;
    }

    fn sign_anew(&mut self) {
        let newest = self.newest_root;
        let node = self.nodes.iter().find(|(_, node)| node.certificate.root < newest);
        let removal = self.removals.iter().find(|(_, removed)| removed.root < newest);
        let removal = removal.map(|(key, removed)| (members::agent_of(key), removed.at));
        match (node.map(|(key, _)| members::agent_of(key)), removal) {
            (Some(agent), _) => self.change(agent, |node| node.certificate.root = newest),
            (None, Some((agent, at))) => self.put_removal(agent, at),
            (None, None) => {}
        }
    }

    /// Whether anything is under a former root.
    pub(crate) fn is_under_former(&self) -> bool {
        self.nodes.values().any(|node| node.certificate.root < self.newest_root)
            || self.removals.values().any(|removed| removed.root < self.newest_root)
    }

    /// Whether nothing and nobody needs a former root.
    pub(crate) fn may_retire(&self) -> bool {
        let has_confirmed = |node: &Known| node.confirmed == self.newest_root;
        self.first_root < self.newest_root
            && !self.is_under_former()
            && self.nodes.values().all(has_confirmed)
    }

    pub(crate) fn may_rotate(&self) -> bool {
        self.newest_root + 1 < members::ROOTS && self.newest_root + 1 - self.first_root < MAX_ROOTS
    }

    pub(crate) fn roots(&self) -> RangeInclusive<usize> {
        self.first_root..=self.newest_root
    }

    /// Whether this node has not said yet that it keeps this root.
    pub(crate) fn lacks_confirmation(&self, agent: usize, root: usize) -> bool {
        self.nodes.get(&members::of(agent).key).is_some_and(|node| node.confirmed < root)
            && root == self.newest_root
    }

    pub(crate) fn certificate(&self, agent: usize) -> Option<Certificate> {
        self.nodes.get(&members::of(agent).key).map(|node| node.certificate)
    }

    pub(crate) fn signed(&self, agent: usize, certificate: Certificate) -> Vec<u8> {
        let of = self.claims.iter().filter(|claimed| claimed.agent == agent && claimed.is_granted);
        let claims = of.map(|claimed| claimed.claim.prefix).collect();
        members::certificate(agent, certificate.root, certificate.issued_at, self.lifetime, claims)
    }

    /// What a node wants to serve.
    pub(crate) fn claims_of(&self, agent: usize) -> Vec<Claim> {
        let mut claims: Vec<Claim> = self
            .claims
            .iter()
            .filter(|claimed| claimed.agent == agent)
            .map(|claimed| claimed.claim)
            .collect();
        claims.sort();
        claims
    }

    fn told_claims(&self, agent: usize, yields: bool) -> Vec<Claim> {
        let claims = self.claims_of(agent).into_iter();
        claims.map(|claim| Claim { yields: yields && claim.exclusive, ..claim }).collect()
    }

    pub(crate) fn yields(&self, agent: usize) -> bool {
        self.nodes.get(&members::of(agent).key).is_some_and(|node| node.yields)
    }

    /// Who may have what is claimed exclusively, the best first: who does not yield, then the higher priority, then the lower number.
    pub(crate) fn exclusive_claimers(&self, prefix: &IpNet) -> Vec<(usize, Claim)> {
        let of =
            self.claims.iter().filter(|claimed| claimed.claim.prefix == *prefix && claimed.claim.exclusive);
        let may = of.filter(|claimed| claimed.is_granted && self.claims_now(claimed.agent));
        let mut claimers: Vec<(usize, Claim)> = may
            .map(|claimed| (claimed.agent, Claim { yields: self.yields(claimed.agent), ..claimed.claim }))
            .collect();
        claimers.sort_by_key(|(agent, claim)| (claim.yields, Reverse(claim.priority), *agent));
        claimers
    }

    fn claims_now(&self, agent: usize) -> bool {
        self.is_member_for_good(agent) && !self.is_withdrawn(agent)
    }

    /// One that was removed and enrols again has a certificate that nobody believes, unless it is dated.
    pub(crate) fn is_member_for_good(&self, agent: usize) -> bool {
        let key = &members::of(agent).key;
        self.is_member(key) && self.removal(key).is_none()
    }

    /// Who holds a prefix, if whoever was given it still claims it.
    pub(crate) fn holder(&self, prefix: &IpNet) -> Option<Holding> {
        let holding = self.holdings.of(prefix)?;
        self.claims_now(members::agent_of_node(holding.node)).then_some(holding)
    }

    pub(crate) fn is_withdrawn(&self, agent: usize) -> bool {
        self.nodes.get(&members::of(agent).key).is_some_and(|node| node.is_withdrawn)
    }

    pub(crate) fn lifetime(&self) -> Option<Duration> {
        self.lifetime
    }

    pub(crate) fn receipt(&self) -> Receipt {
        members::receipts().issue(self.version, self.mark)
    }

    pub(crate) fn is_member(&self, key: &PublicKey) -> bool {
        self.nodes.contains_key(key)
    }

    pub(crate) fn is_node(&self, node: NodeId) -> bool {
        self.is_member(&members::of(members::agent_of_node(node)).key)
    }

    pub(crate) fn endpoints(&self, key: &PublicKey) -> Option<&[SocketAddr]> {
        self.nodes.get(key).map(|node| node.endpoints.as_slice())
    }

    pub(crate) fn removal(&self, key: &PublicKey) -> Option<&[u8]> {
        self.removals.get(key).map(|removed| removed.signed.as_slice())
    }

    /// The digest of the map that this node should have.
    pub(crate) fn digest_for(&self, key: &PublicKey) -> MapDigest {
        let mut digest = self.map.digest();
        if let Some(own) = self.map.hash(&ObjectId::peer(*key)) {
            digest.subtract(own);
        }
        digest
    }

    /// What a node needs that has `have`.
    pub(crate) fn step(&self, key: &PublicKey, have: &BTreeMap<ObjectId, ContentHash>) -> Delta {
        let own = ObjectId::peer(*key);
        let differs = |id: &ObjectId, hash: ContentHash| *id != own && have.get(id) != Some(&hash);
        let put = self.map.iter().filter(|(id, hash, _)| differs(id, *hash));
        Delta {
            version: self.version,
            digest: self.digest_for(key),
            put: put.map(|(id, _, content)| Object { id: id.clone(), content: content.to_vec() }).collect(),
            drop: have.keys().filter(|id| **id == own || self.map.hash(id).is_none()).cloned().collect(),
            last: true,
            receipt: self.receipt(),
        }
    }

    /// The objects of a node's map.
    pub(crate) fn objects_for(&self, key: &PublicKey) -> BTreeMap<ObjectId, ContentHash> {
        let own = ObjectId::peer(*key);
        let others = self.map.iter().filter(|(id, _, _)| **id != own);
        others.map(|(id, hash, _)| (id.clone(), hash)).collect()
    }
}

fn network() -> Network {
    Network {
        name: "sim".to_owned(),
        overlay_v4: ipnet::Ipv4Net::new_assert([100, 64, 0, 0].into(), 10).into(),
        overlay_v6: ipnet::Ipv6Net::new_assert([0xfd00, 0, 0, 0, 0, 0, 0, 0].into(), 48).into(),
    }
}

fn put(map: &mut Map, content: &Content, id: Vec<u8>) {
    if let Some(object) = Object::new(content, id) {
        map.put(object);
    }
}
