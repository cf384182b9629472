//! A node as the cluster keeps it, and what may be done to one: told facts, renamed, expired, granted a claim, renewed, removed. Each is a pure
//! function from the state to the ops that `Cluster::write` appends. Whatever stands in the certificate is signed here.

use crate::cluster::{
    Entity, EntityId, Op, Removed, Settings, SetupKeyId, State, base64_text, claims, claims::claimable, name,
};
use ipnet::IpNet;
use proto::{
    claim::{Claim, Unclaimable},
    key::PublicKey,
    session::Facts,
    statement::{Membership, NodeId, Statement},
    time::UnixTime,
};
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    pub key: PublicKey,
    pub name: String,
    pub address_v4: Ipv4Addr,
    pub address_v6: Ipv6Addr,
    /// An encoded `Signed` membership.
    #[serde(with = "base64_text")]
    pub membership: Vec<u8>,
    pub issued_at: UnixTime,
    pub not_after: Option<UnixTime>,
    /// The number of the root that signed the certificate.
    #[serde(default)]
    pub root: u32,
    /// The number of the newest root that its agent said it keeps.
    #[serde(default)]
    pub confirmed_root: u32,
    /// When its login ends; `None`: never.
    pub expires_at: Option<UnixTime>,
    pub created_at: UnixTime,
    /// When something of it last changed.
    pub updated_at: UnixTime,
    /// The key it last logged in with.
    pub setup_key: SetupKeyId,
    pub ephemeral: bool,
    pub groups: Vec<String>,
    /// The prefixes it may claim.
    pub claims: Vec<IpNet>,
    pub facts: Facts,
    pub endpoints: Vec<SocketAddr>,
}

/// Why a change to a node is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    #[error("there is no node {0}; `server node list` shows those there are")]
    Unknown(String),
    #[error("{0:?} is no name for a node: use 1 to 63 of a-z, 0-9 and -, not at the ends")]
    InvalidName(String),
    #[error("the name {name:?} belongs to node {owner}; choose another")]
    NameTaken { name: String, owner: NodeId },
    #[error(transparent)]
    Unclaimable(#[from] Unclaimable),
    #[error("{0} takes too many of the overlay's addresses from new nodes: allow a /{1} or longer there")]
    ClaimTooLarge(IpNet, u8),
    #[error("{node} has no leave of its own to claim {prefix}; it may claim: {granted}")]
    NotAllowed { prefix: IpNet, node: String, granted: String },
    #[error("{prefix} is the own address of {owner}, which nobody else may serve: take one that no node has")]
    ClaimOfOwn { prefix: IpNet, owner: String },
}

impl Node {
    /// IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.address_v4.into(), self.address_v6.into()]
    }

    /// What it wants to serve, as far as it may in this cluster.
    pub(crate) fn granted_claims(&self, state: &State) -> impl Iterator<Item = Claim> {
        self.facts.claims.iter().filter(|claim| claims::is_granted(state, &self.claims, claim)).copied()
    }

    /// What it wants to serve and may not.
    pub fn refused_claims(&self, state: &State) -> impl Iterator<Item = IpNet> {
        let refused =
            self.facts.claims.iter().filter(|claim| !claims::is_granted(state, &self.claims, claim));
        refused.map(|claim| claim.prefix)
    }

    pub fn is_expired(&self, now: UnixTime) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }

    /// Whether its certificate has ended: it was not served for that long.
    pub fn is_lapsed(&self, now: UnixTime) -> bool {
        self.not_after.is_some_and(|end| end <= now)
    }

    /// Signs a certificate for the node as it is now. Whatever the clock did, it is newer than one that says otherwise, and
    /// than a removal of the same key, which it undoes: the newest is believed.
    pub(crate) fn certify(&mut self, state: &State, now: UnixTime) {
        const NEXT: Duration = Duration::from_secs(1);
        let removed = state.removal(&self.key).map(|removed| removed.removed_at.saturating_add(NEXT));
        let before = match Statement::trust(&self.membership) {
            Ok((_, Statement::Membership(before))) if self.is_told_by(&before) => Some(before.issued_at),
            Ok((_, Statement::Membership(before))) => Some(before.issued_at.saturating_add(NEXT)),
            Ok((_, Statement::Removal(_) | Statement::NextRoot(_) | Statement::Unknown)) | Err(_) => None,
        };
        self.issued_at = [removed, before].into_iter().flatten().fold(now, UnixTime::max);
        self.not_after = state.settings().not_after(self.issued_at);
        let membership = Membership {
            node_id: self.id,
            node_key: self.key,
            addresses: self.addresses().to_vec(),
            claims: self.claims.clone(),
            issued_at: self.issued_at,
            not_after: self.not_after,
        };
        self.membership = state.sign(&Statement::Membership(membership));
        self.root = state.root_number();
    }

    /// Whether its certificate was issued under these settings.
    pub(crate) fn has_lifetime_of(&self, settings: &Settings) -> bool {
        self.not_after == settings.not_after(self.issued_at)
    }

    /// Whether the certificate says what the node is now.
    fn is_told_by(&self, membership: &Membership) -> bool {
        membership.node_id == self.id
            && membership.addresses == self.addresses()
            && membership.claims == self.claims
    }
}

/// What a node says of itself; no op where nothing is new.
pub fn observe(
    node: &Node,
    now: UnixTime,
    facts: Option<&Facts>,
    endpoints: Option<&[SocketAddr]>,
) -> Option<Op> {
    let facts = facts.unwrap_or(&node.facts);
    let endpoints = endpoints.unwrap_or(&node.endpoints);
    if (facts, endpoints) == (&node.facts, &node.endpoints[..]) {
        return None;
    }
    Some(Op::put_node(Node {
        facts: facts.clone(),
        endpoints: endpoints.to_vec(),
        updated_at: now,
        ..node.clone()
    }))
}

/// A fresh certificate, where the node's is due for it or was issued under other settings.
pub fn renew(state: &State, node: &Node, now: UnixTime) -> Option<Op> {
    let settings = state.settings();
    let is_old = settings.renew_after().is_some_and(|age| now.since(node.issued_at) >= age);
    if node.is_expired(now) || (!is_old && node.has_lifetime_of(settings)) {
        return None;
    }
    let mut node = node.clone();
    node.certify(state, now);
    Some(Op::put_node(node))
}

/// # Errors
/// The name is not valid, or another node's.
pub fn rename(state: &State, node: &Node, name: &str, now: UnixTime) -> Result<Vec<Op>, NodeError> {
    if !name::is_valid(name) {
        return Err(NodeError::InvalidName(name.to_owned()));
    }
    match state.node_by_name(name) {
        Some(owner) if owner.id == node.id => Ok(Vec::new()),
        Some(owner) => Err(NodeError::NameTaken { name: name.to_owned(), owner: owner.id }),
        None => Ok(vec![Op::put_node(Node { name: name.to_owned(), updated_at: now, ..node.clone() })]),
    }
}

/// Ends the node's login: it stays known, is not served, and has to log in again.
pub fn expire(node: &Node, now: UnixTime) -> Vec<Op> {
    match node.is_expired(now) {
        true => Vec::new(),
        false => vec![Op::put_node(Node { expires_at: Some(now), updated_at: now, ..node.clone() })],
    }
}

/// Grants the node a prefix to claim.
///
/// # Errors
/// See [`claimable`].
pub fn allow_claim(state: &State, node: &Node, prefix: IpNet, now: UnixTime) -> Result<Vec<Op>, NodeError> {
    let prefix = claimable(state, prefix)?;
    if node.claims.contains(&prefix) {
        return Ok(Vec::new());
    }
    let mut node = node.clone();
    node.claims.push(prefix);
    node.certify(state, now);
    Ok(vec![Op::put_node(node)])
}

/// Takes the leave to claim a prefix back.
///
/// # Errors
/// It has no such leave; what it has is told.
pub fn disallow_claim(
    state: &State,
    node: &Node,
    prefix: IpNet,
    now: UnixTime,
) -> Result<Vec<Op>, NodeError> {
    let prefix = prefix.trunc();
    let mut changed = node.clone();
    changed.claims.retain(|granted| *granted != prefix);
    if changed.claims == node.claims {
        let granted: Vec<String> = node.claims.iter().map(IpNet::to_string).collect();
        return Err(NodeError::NotAllowed { prefix, node: node.name.clone(), granted: granted.join(", ") });
    }
    changed.certify(state, now);
    Ok(vec![Op::put_node(changed)])
}

/// Ends the membership: the node goes, a signed removal stays until its certificate would have ended.
pub fn remove(state: &State, node: &Node, now: UnixTime) -> Vec<Op> {
    remove_all(state, [node].into_iter(), now)
}

/// As [`remove`], several at once.
pub fn remove_all<'a>(state: &State, nodes: impl Iterator<Item = &'a Node>, now: UnixTime) -> Vec<Op> {
    let gone = nodes.flat_map(|node| {
        let removed = Op::Put(Entity::Removal(Box::new(Removed::new(state, node, now))));
        [Op::Delete(EntityId::Node(node.id)), removed]
    });
    gone.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing;

    const LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn the_certificate_says_what_the_node_is() {
        let (state, node) = testing::with_node("web");
        let statement = Statement::verify(&node.membership, state.network_id, &state.root.public());
        let Ok(Statement::Membership(membership)) = statement else { panic!("{statement:?}") };
        assert_eq!(membership.node_id, node.id);
        assert_eq!(membership.node_key, node.key);
        assert_eq!(membership.addresses, node.addresses());
        assert_eq!(membership.not_after, Some(testing::NOW.saturating_add(LIFETIME)));
    }

    #[test]
    fn a_claim_is_granted_once_and_stands_in_the_certificate() {
        let (mut state, node) = testing::with_node("router");
        let prefix: IpNet = "10.1.2.3/8".parse().unwrap();
        let ops = allow_claim(&state, &node, prefix, testing::NOW).unwrap();
        testing::apply(&mut state, ops);
        let node = state.node(node.id).unwrap().clone();
        let Ok((_, Statement::Membership(membership))) = Statement::trust(&node.membership) else { panic!() };
        assert_eq!(membership.claims, ["10.0.0.0/8".parse::<IpNet>().unwrap()]);
        assert_eq!(allow_claim(&state, &node, prefix, testing::NOW), Ok(vec![]));
        let inside = "10.1.0.0/16".parse().unwrap();
        assert!(matches!(
            disallow_claim(&state, &node, inside, testing::NOW),
            Err(NodeError::NotAllowed { granted, .. }) if granted == "10.0.0.0/8"
        ));
        let ops = disallow_claim(&state, &node, prefix, testing::NOW).unwrap();
        testing::apply(&mut state, ops);
        let node = state.node(node.id).unwrap();
        let Ok((_, Statement::Membership(membership))) = Statement::trust(&node.membership) else { panic!() };
        assert!(membership.claims.is_empty() && node.claims.is_empty());
    }

    #[test]
    fn a_certificate_that_says_something_else_is_newer_even_if_the_clock_went_back() {
        let (mut state, node) = testing::with_node("router");
        let earlier = UnixTime(testing::NOW.0 - 3600);
        let ops = allow_claim(&state, &node, "10.0.0.0/8".parse().unwrap(), earlier).unwrap();
        testing::apply(&mut state, ops);
        let mut changed = Node::clone(state.node(node.id).unwrap());
        assert!(changed.issued_at > node.issued_at);
        let issued_at = changed.issued_at;
        changed.certify(&state, earlier);
        assert_eq!(changed.issued_at, issued_at, "it says the same");
    }

    #[test]
    fn a_name_is_taken_by_one_node() {
        let (mut state, first) = testing::with_node("a");
        let second = testing::enrol(&mut state, "b");
        assert_eq!(
            rename(&state, &second, "a", testing::NOW),
            Err(NodeError::NameTaken { name: "a".into(), owner: first.id })
        );
        assert!(matches!(rename(&state, &second, "-x", testing::NOW), Err(NodeError::InvalidName(_))));
        assert_eq!(rename(&state, &second, "b", testing::NOW), Ok(vec![]));
        let ops = rename(&state, &second, "c", testing::NOW).unwrap();
        testing::apply(&mut state, ops);
        assert_eq!(state.node_by_name("c").unwrap().id, second.id);
        assert!(state.node_by_name("b").is_none());
    }

    #[test]
    fn a_removed_node_leaves_a_signed_removal_and_its_address_is_held() {
        let (mut state, node) = testing::with_node("gone");
        let ops = remove(&state, &node, testing::NOW);
        testing::apply(&mut state, ops);
        assert!(state.node(node.id).is_none());
        let removed = state.removal(&node.key).unwrap();
        let statement = Statement::verify(&removed.signed, state.network_id, &state.root.public());
        assert!(matches!(statement, Ok(Statement::Removal(removal)) if removal.node_key == node.key));
        let next = testing::enrol(&mut state, "next");
        assert_ne!(next.address_v4, node.address_v4);
        assert_ne!(next.id, node.id);
    }

    #[test]
    fn facts_that_are_not_new_are_no_change() {
        let (_, node) = testing::with_node("a");
        assert_eq!(observe(&node, testing::NOW, Some(&node.facts), Some(&node.endpoints)), None);
        let moved = ["192.0.2.1:51820".parse().unwrap()];
        assert!(observe(&node, testing::NOW, None, Some(&moved)).is_some());
    }

    #[test]
    fn a_certificate_is_renewed_after_a_day_and_not_before() {
        let (state, node) = testing::with_node("a");
        let almost = UnixTime(testing::NOW.0 + DAY.as_secs() - 1);
        assert_eq!(renew(&state, &node, almost), None);
        assert!(renew(&state, &node, testing::NOW.saturating_add(DAY)).is_some());
    }
}
