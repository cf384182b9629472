//! A member that the database lost and nobody remembers is taken in again by its own certificate: with the number and the addresses that
//! stand in it, where they are free. Only in a database that once went back in time: everywhere else who is unknown stays unknown.
//!
//! The certificate bounds what an old one can do: it ends by itself, and a removal that is known, or told by any agent later, is newer.

use crate::cluster::{
    EntityId, Node, Op, Roots, SetupKeyId, State, address,
    put_back::{is_removed, settled},
};
use proto::{
    session::Facts,
    statement::{Membership, Statement},
    time::UnixTime,
};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// What nobody has: the key it logged in with went with the rest.
const NO_SETUP_KEY: SetupKeyId = SetupKeyId(0);

/// A node that proved its key, with its own certificate.
#[derive(Debug, Clone)]
pub(crate) struct Returning {
    membership: Membership,
    signed: Vec<u8>,
    /// The number of the root that signed it.
    root: u32,
    /// Those that were trusted then.
    roots: Option<Arc<Roots>>,
    facts: Facts,
    endpoints: Vec<SocketAddr>,
}

impl Returning {
    /// `None`: `signed` is no certificate under a root of the cluster.
    pub(crate) fn verified(
        state: &State,
        signed: Vec<u8>,
        facts: Facts,
        endpoints: Vec<SocketAddr>,
    ) -> Option<Self> {
        match state.verify_shown(&signed) {
            Ok((Statement::Membership(membership), root)) => {
                let roots = state.roots().cloned();
                Some(Self { membership, signed, root, roots, facts, endpoints })
            }
            Ok((Statement::Removal(_) | Statement::NextRoot(_) | Statement::Unknown, _)) | Err(_) => None,
        }
    }

    pub(crate) fn key(&self) -> proto::key::PublicKey {
        self.membership.node_key
    }
}

/// What came of a node that asked to be taken in again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readopted {
    In,
    /// Somebody was first.
    Known,
    /// Its certificate makes nobody a member.
    Outside,
}

/// One change that takes in all who may, and what came of each.
pub(crate) fn readopt_all(
    state: &State,
    now: UnixTime,
    returning: &[Returning],
) -> (Vec<Op>, Vec<Readopted>) {
    let (mut then, mut all) = (state.clone(), Vec::new());
    let mut take_in = |returning: &Returning| match readopt(&then, now, returning) {
        None => Readopted::Outside,
        Some(ops) if ops.is_empty() => Readopted::Known,
        Some(ops) => {
            ops.iter().for_each(|op| then.apply_op(op));
            all.extend(ops);
            Readopted::In
        }
    };
    let outcomes = returning.iter().map(&mut take_in).collect();
    (all, outcomes)
}

/// The ops that take it in again; none where it is known. `None`: it stays outside.
fn readopt(state: &State, now: UnixTime, returning: &Returning) -> Option<Vec<Op>> {
    let Returning { membership, signed, root, roots, facts, endpoints } = returning;
    if state.roots() != roots.as_ref() && state.verify_shown(signed).is_err() {
        return None;
    }
    if state.node_by_key(&membership.node_key).is_some() {
        return Some(Vec::new());
    }
    let has_ended = membership.not_after.is_some_and(|end| end <= now);
    let was_removed = is_removed(state, &membership.node_key, membership.issued_at);
    let (Some(IpAddr::V4(address_v4)), false) = (membership.addresses.first(), has_ended || was_removed)
    else {
        return None;
    };
    state.recovery()?;
    let node = Node {
        id: membership.node_id,
        key: membership.node_key,
        name: String::new(),
        address_v4: *address_v4,
        address_v6: address::in_ula(state.network.overlay_v6, *address_v4),
        membership: signed.clone(),
        issued_at: membership.issued_at,
        not_after: membership.not_after,
        root: *root,
        confirmed_root: 0,
        expires_at: None,
        created_at: now,
        updated_at: now,
        setup_key: NO_SETUP_KEY,
        ephemeral: false,
        groups: Vec::new(),
        claims: membership.claims.clone(),
        facts: facts.clone(),
        endpoints: endpoints.clone(),
    };
    let node = settled(state, node, &facts.hostname, now)?;
    let mut ops = vec![Op::put_node(node)];
    if state.removal(&membership.node_key).is_some() {
        ops.push(Op::Delete(EntityId::Removal(membership.node_key)));
    }
    Some(ops)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{ChangeId, remove, restored, retire, sign_anew, testing};

    /// A cluster restored from a copy of before `lost` enrolled.
    fn lost() -> (State, State, Node) {
        let copy = testing::state();
        let mut past = copy.clone();
        let node = testing::enrol(&mut past, "web");
        let restored = restored(testing::snapshot(&copy), ChangeId([7; 16]), testing::NOW).unwrap();
        (State::from_snapshot(restored), past, node)
    }

    fn returning(state: &State, node: &Node) -> Returning {
        let (signed, facts) = (node.membership.clone(), node.facts.clone());
        Returning::verified(state, signed, facts, node.endpoints.clone()).unwrap()
    }

    #[test]
    fn a_lost_member_is_as_it_was_with_the_certificate_it_holds() {
        let (mut state, _, node) = lost();
        let ops = readopt(&state, testing::NOW, &returning(&state, &node)).unwrap();
        testing::apply(&mut state, ops);
        let back = state.node_by_key(&node.key).unwrap();
        assert_eq!((back.id, back.addresses(), &back.name), (node.id, node.addresses(), &node.name));
        assert_eq!(back.membership, node.membership);
        assert_eq!(readopt(&state, testing::NOW, &returning(&state, &node)), Some(vec![]), "once");
    }

    #[test]
    fn what_others_have_by_now_it_gets_anew_with_a_newer_certificate() {
        let (mut state, _, node) = lost();
        let mut taken = testing::enrol(&mut state, "web");
        (taken.id, taken.address_v4) = (node.id, node.address_v4);
        taken.address_v6 = node.address_v6;
        testing::apply(&mut state, vec![Op::put_node(taken)]);
        let ops = readopt(&state, testing::NOW, &returning(&state, &node)).unwrap();
        testing::apply(&mut state, ops);
        let back = state.node_by_key(&node.key).unwrap();
        assert!(back.id != node.id && back.address_v4 != node.address_v4 && back.name == "web-1");
        assert!(back.issued_at > node.issued_at);
    }

    #[test]
    fn many_that_come_at_once_get_numbers_addresses_and_names_of_their_own() {
        let (mut state, mut past, node) = lost();
        let twin = testing::enrol(&mut past, "web");
        let mut taken = testing::enrol(&mut state, "other");
        (taken.id, taken.address_v4, taken.address_v6) = (node.id, node.address_v4, node.address_v6);
        testing::apply(&mut state, vec![Op::put_node(taken)]);
        let all = [returning(&past, &node), returning(&past, &twin), returning(&past, &node)];
        let (ops, outcomes) = readopt_all(&state, testing::NOW, &all);
        assert_eq!(outcomes, [Readopted::In, Readopted::In, Readopted::Known]);
        testing::apply(&mut state, ops);
        let back = [&node, &twin].map(|node| Node::clone(state.node_by_key(&node.key).unwrap()));
        assert_eq!((back[1].id, back[1].addresses()), (twin.id, twin.addresses()), "it kept its own");
        assert!(back[0].id != back[1].id && back[0].addresses() != back[1].addresses());
        assert!(back[0].name != back[1].name);
    }

    #[test]
    fn without_a_recovery_an_unknown_member_stays_unknown() {
        let (_, past, node) = lost();
        let mut state = past.clone();
        testing::apply(&mut state, vec![Op::Delete(EntityId::Node(node.id))]);
        assert_eq!(readopt(&state, testing::NOW, &returning(&state, &node)), None);
    }

    #[test]
    fn a_member_under_a_former_root_is_taken_in_again_until_that_is_retired() {
        let (state, _, node) = lost();
        let mut state = testing::rotated(&state, 9);
        let ops = readopt(&state, testing::NOW, &returning(&state, &node)).unwrap();
        testing::apply(&mut state, ops);
        let back = state.node_by_key(&node.key).unwrap();
        assert_eq!((back.id, back.addresses()), (node.id, node.addresses()));
        assert_eq!(state.verify(&back.membership).unwrap().1, back.root);
        let ops = sign_anew(&state, 10);
        testing::apply(&mut state, ops);
        let anew = state.node_by_key(&node.key).unwrap();
        assert_eq!((anew.root, anew.not_after), (1, node.not_after), "the same words under the new root");
        let ops = retire(&state, true).unwrap();
        testing::apply(&mut state, ops);
        let (signed, facts) = (node.membership.clone(), node.facts.clone());
        assert!(Returning::verified(&state, signed, facts, Vec::new()).is_none());
    }

    #[test]
    fn an_ended_certificate_a_removed_node_and_another_root_stay_outside() {
        let (mut state, mut past, node) = lost();
        let end = node.not_after.unwrap();
        assert_eq!(readopt(&state, end, &returning(&state, &node)), None);
        assert!(
            Returning::verified(&testing::state(), node.membership.clone(), node.facts.clone(), vec![])
                .is_none()
        );
        let ops = remove(&past, &node, testing::NOW);
        testing::apply(&mut past, ops);
        let removal = past.removal(&node.key).unwrap();
        let removal = crate::cluster::Entity::Removal(Box::new(crate::cluster::Removed::clone(removal)));
        testing::apply(&mut state, vec![Op::Put(removal)]);
        assert_eq!(readopt(&state, testing::NOW, &returning(&state, &node)), None);
    }
}
