//! Who may become a member, under which name and address. One node key is one node: enrolling again with the key it entered with gives the
//! same answer and uses nothing up, so an answer lost on the way costs nothing. A node whose login ended needs a key that is still good.

use crate::cluster::{EntityId, Node, Op, SetupKey, State, address, name};
use proto::{
    key::PublicKey,
    session::{Facts, Reason},
    time::UnixTime,
};
use std::{net::SocketAddr, time::Duration};

/// An ephemeral node that was not heard of for so long may be about to be removed.
const EPHEMERAL_REMINDER: Duration = Duration::from_secs(10);

/// Who asks to enter. The node key was proved before.
#[derive(Debug, Clone)]
pub struct Applicant {
    /// [`proto::setup_key::SetupSecret::hash`]
    pub setup_key_hash: [u8; 32],
    pub node_key: PublicKey,
    pub facts: Facts,
    pub endpoints: Vec<SocketAddr>,
}

/// Why somebody may not enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "this cluster does not know the setup key; check that it was pasted whole, or make another with `server setup-key create`"
    )]
    KeyUnknown,
    #[error(
        "the setup key was used up by another node; make another with `server setup-key create` (`--reusable` for several nodes)"
    )]
    KeyUsed,
    #[error("the setup key has expired; make another with `server setup-key create`")]
    KeyExpired,
    #[error("the setup key was revoked; make another with `server setup-key create`")]
    KeyRevoked,
    #[error("the cluster has no free address left; remove nodes that are no longer used")]
    NoAddress,
    #[error(
        "the cluster has {0} nodes, which is as many as it may have; remove nodes that are no longer used, or raise --max-nodes"
    )]
    NodeLimit(usize),
}

impl Refusal {
    pub fn reason(self) -> Reason {
        match self {
            Self::KeyUnknown => Reason::SetupKeyUnknown,
            Self::KeyUsed => Reason::SetupKeyUsed,
            Self::KeyExpired => Reason::SetupKeyExpired,
            Self::KeyRevoked => Reason::SetupKeyRevoked,
            Self::NoAddress | Self::NodeLimit(_) => Reason::Full,
        }
    }
}

/// Lets the applicant in, or says why not.
///
/// # Errors
/// [`Refusal`]
pub fn enrol(state: &State, now: UnixTime, applicant: &Applicant) -> Result<(Vec<Op>, Node), Refusal> {
    enrol_within(state, now, applicant, None)
}

/// As [`enrol`], where the cluster may have `max_nodes` at most.
///
/// # Errors
/// [`Refusal`]
pub fn enrol_within(
    state: &State,
    now: UnixTime,
    applicant: &Applicant,
    max_nodes: Option<usize>,
) -> Result<(Vec<Op>, Node), Refusal> {
    let setup_key = state.setup_key_by_hash(&applicant.setup_key_hash).ok_or(Refusal::KeyUnknown)?;
    let known = state.node_by_key(&applicant.node_key);
    if let Some(node) = known.filter(|node| node.setup_key == setup_key.id && !node.is_expired(now)) {
        return Ok((told_again(node, now), Node::clone(node)));
    }
    setup_key.check(now)?;
    let mut node = match known {
        Some(node) => returning(node, now, setup_key, applicant),
        None if max_nodes.is_some_and(|limit| state.node_count() >= limit) => {
            return Err(Refusal::NodeLimit(state.node_count()));
        }
        None => newcomer(state, now, setup_key, applicant)?,
    };
    node.certify(state, now);
    // It is told the root together with the certificate.
    node.confirmed_root = state.root_number();
    let mut ops = vec![Op::put_node(node.clone()), Op::put_setup_key(setup_key.used(now))];
    if state.removal(&applicant.node_key).is_some() {
        ops.push(Op::Delete(EntityId::Removal(applicant.node_key)));
    }
    Ok((ops, node))
}

/// An ephemeral node that asks again is on its way: it must not be removed for its absence before it arrives.
fn told_again(node: &Node, now: UnixTime) -> Vec<Op> {
    match node.ephemeral && now.since(node.updated_at) >= EPHEMERAL_REMINDER {
        true => vec![Op::put_node(Node { updated_at: now, ..node.clone() })],
        false => Vec::new(),
    }
}

fn newcomer(
    state: &State,
    now: UnixTime,
    setup_key: &SetupKey,
    applicant: &Applicant,
) -> Result<Node, Refusal> {
    let address_v4 = state.next_address().ok_or(Refusal::NoAddress)?;
    Ok(Node {
        id: state.next_node_id(),
        key: applicant.node_key,
        name: name::unique(&applicant.facts.hostname, |name| state.node_by_name(name).is_some()),
        address_v4,
        address_v6: address::in_ula(state.network.overlay_v6, address_v4),
        membership: Vec::new(),
        issued_at: now,
        not_after: None,
        root: 0,
        confirmed_root: 0,
        expires_at: None,
        created_at: now,
        updated_at: now,
        setup_key: setup_key.id,
        ephemeral: setup_key.ephemeral,
        groups: setup_key.groups.clone(),
        claims: setup_key.claims.clone(),
        facts: applicant.facts.clone(),
        endpoints: applicant.endpoints.clone(),
    })
}

/// Keeps its name, addresses and number; what the key allows is the new key's.
fn returning(node: &Node, now: UnixTime, setup_key: &SetupKey, applicant: &Applicant) -> Node {
    Node {
        expires_at: None,
        updated_at: now,
        setup_key: setup_key.id,
        ephemeral: setup_key.ephemeral,
        groups: setup_key.groups.clone(),
        claims: setup_key.claims.clone(),
        facts: applicant.facts.clone(),
        endpoints: applicant.endpoints.clone(),
        ..node.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{SetupKeyTerms, expire, remove, testing};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn applicant(secret: &proto::setup_key::SetupSecret, key: u8, hostname: &str) -> Applicant {
        Applicant {
            setup_key_hash: secret.hash(),
            node_key: PublicKey([key; 32]),
            facts: Facts { hostname: hostname.into(), ..Facts::default() },
            endpoints: vec![],
        }
    }

    #[test]
    fn a_lost_answer_does_not_burn_a_one_off_key() {
        let mut state = testing::state();
        let secret = testing::setup_key(&mut state, &SetupKeyTerms::default());
        let (ops, node) = enrol(&state, testing::NOW, &applicant(&secret, 1, "a")).unwrap();
        testing::apply(&mut state, ops);
        let (ops, again) = enrol(&state, testing::NOW, &applicant(&secret, 1, "a")).unwrap();
        assert!(ops.is_empty());
        assert_eq!(again, node);
        assert_eq!(enrol(&state, testing::NOW, &applicant(&secret, 2, "b")).unwrap_err(), Refusal::KeyUsed);
    }

    #[test]
    fn an_expired_login_needs_a_key_that_is_still_good() {
        let mut state = testing::state();
        let one_off = testing::setup_key(&mut state, &SetupKeyTerms::default());
        let (ops, node) = enrol(&state, testing::NOW, &applicant(&one_off, 1, "a")).unwrap();
        testing::apply(&mut state, ops);
        testing::apply(&mut state, expire(&node, testing::NOW));
        let same = enrol(&state, testing::NOW, &applicant(&one_off, 1, "a"));
        assert_eq!(same.unwrap_err(), Refusal::KeyUsed);
        let fresh = testing::setup_key(&mut state, &SetupKeyTerms::default());
        let (_, back) = enrol(&state, testing::NOW, &applicant(&fresh, 1, "a")).unwrap();
        assert_eq!((back.id, back.address_v4, back.expires_at), (node.id, node.address_v4, None));
    }

    #[test]
    fn a_removed_node_may_enter_again_with_a_newer_certificate_than_its_removal() {
        let mut state = testing::state();
        let terms = SetupKeyTerms { reusable: true, ..SetupKeyTerms::default() };
        let secret = testing::setup_key(&mut state, &terms);
        let (ops, node) = enrol(&state, testing::NOW, &applicant(&secret, 1, "a")).unwrap();
        testing::apply(&mut state, ops);
        let ops = remove(&state, &node, testing::NOW);
        testing::apply(&mut state, ops);
        let (ops, back) = enrol(&state, testing::NOW, &applicant(&secret, 1, "a")).unwrap();
        assert!(back.issued_at > state.removal(&node.key).unwrap().removed_at);
        testing::apply(&mut state, ops);
        assert!(state.removal(&node.key).is_none());
    }

    #[test]
    fn a_cluster_that_is_full_lets_in_only_whom_it_knows() {
        let (mut state, _first) = testing::with_node("first");
        let terms = SetupKeyTerms { reusable: true, ..SetupKeyTerms::default() };
        let secret = testing::setup_key(&mut state, &terms);
        let limited = |state: &State, key, limit| {
            enrol_within(state, testing::NOW, &applicant(&secret, key, "a"), Some(limit))
        };
        let (ops, _) = limited(&state, 1, 2).unwrap();
        testing::apply(&mut state, ops);
        assert_eq!(limited(&state, 2, 2).unwrap_err(), Refusal::NodeLimit(2));
        assert!(limited(&state, 1, 2).is_ok());
    }

    #[test]
    fn an_ephemeral_node_that_asks_again_is_heard_of() {
        let mut state = testing::state();
        let terms = SetupKeyTerms { ephemeral: true, ..SetupKeyTerms::default() };
        let secret = testing::setup_key(&mut state, &terms);
        let (ops, _) = enrol(&state, testing::NOW, &applicant(&secret, 1, "a")).unwrap();
        testing::apply(&mut state, ops);
        assert!(enrol(&state, testing::NOW, &applicant(&secret, 1, "a")).unwrap().0.is_empty());
        let later = testing::NOW.saturating_add(EPHEMERAL_REMINDER);
        let (ops, _) = enrol(&state, later, &applicant(&secret, 1, "a")).unwrap();
        testing::apply(&mut state, ops);
        assert_eq!(state.nodes().next().unwrap().updated_at, later);
        assert_eq!(state.setup_keys().next().unwrap().uses, 1, "the key is not used again");
    }

    #[test]
    fn every_refusal_has_its_own_reason() {
        let mut state = testing::state();
        let unknown = proto::setup_key::SetupSecret::generate().unwrap();
        assert_eq!(
            enrol(&state, testing::NOW, &applicant(&unknown, 1, "a")).unwrap_err().reason(),
            Reason::SetupKeyUnknown
        );
        let secret = testing::setup_key(&mut state, &SetupKeyTerms::default());
        let record = state.setup_key_by_hash(&secret.hash()).unwrap().clone();
        testing::apply(&mut state, record.revoke(testing::NOW));
        assert_eq!(
            enrol(&state, testing::NOW, &applicant(&secret, 1, "a")).unwrap_err(),
            Refusal::KeyRevoked
        );
    }

    proptest! {
        #[test]
        fn whoever_comes_and_goes_names_addresses_and_numbers_have_one_owner(
            steps in prop::collection::vec((0u8..12, any::<bool>()), 1..60),
        ) {
            let mut state = testing::state();
            let terms = SetupKeyTerms { reusable: true, ..SetupKeyTerms::default() };
            let secret = testing::setup_key(&mut state, &terms);
            let mut numbers = BTreeSet::new();
            for (key, leaves) in steps {
                let known = state.node_by_key(&PublicKey([key; 32])).cloned();
                match known {
                    Some(node) if leaves => {
                        let ops = remove(&state, &node, testing::NOW);
                        testing::apply(&mut state, ops);
                    }
                    known => {
                        let (ops, node) = enrol(&state, testing::NOW, &applicant(&secret, key, "host")).unwrap();
                        prop_assert_eq!(known.is_none(), numbers.insert(node.id));
                        testing::apply(&mut state, ops);
                    }
                }
                let nodes: Vec<_> = state.nodes().collect();
                let names: BTreeSet<_> = nodes.iter().map(|node| &node.name).collect();
                let addresses: BTreeSet<_> = nodes.iter().flat_map(|node| node.addresses()).collect();
                prop_assert_eq!((names.len(), addresses.len()), (nodes.len(), nodes.len() * 2));
            }
            let loaded = State::from_snapshot(testing::snapshot(&state));
            prop_assert!(loaded.nodes().eq(state.nodes()));
            prop_assert_eq!(loaded.next_address(), state.next_address());
        }
    }
}
