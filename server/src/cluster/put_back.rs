//! What a database lost that went back in time, put back from what a server remembers, or from what agents prove.
//!
//! The database's row wins wherever two collide: a lost node whose number or address was given away gets what is free, and a certificate that says so;
//! one whose name was, a numbered one. A removal wins over a node, whoever knows it, unless the node entered again after it. What no trusted root signed
//! is not put back.

use crate::cluster::{Entity, EntityId, Node, Op, Removed, SetupKey, State, address, name};
use proto::{
    key::PublicKey,
    statement::{NodeId, Removal, Statement},
    time::UnixTime,
};
use std::{cmp::Reverse, net::Ipv4Addr};

/// The next ops, at most about `limit`, that bring `state` nearer to what `memory` knows. None: it is there.
pub(crate) fn put_back(state: &State, memory: &State, limit: usize, now: UnixTime) -> Vec<Op> {
    let mut batch = Batch { state: state.clone(), ops: Vec::new(), limit, now };
    memory.removals().for_each(|removed| batch.removal(removed));
    memory.setup_keys().for_each(|key| batch.setup_key(key));
    // Who keeps all it had comes before who needs another name.
    let mut lost: Vec<_> = memory.nodes().filter(|node| state.node_by_key(&node.key).is_none()).collect();
    lost.sort_by_key(|node| Reverse(batch.has_room(node)));
    lost.into_iter().for_each(|node| batch.lost_node(node));
    // What another server remembered already was newer.
    let remembered = state.recovery().map(|recovery| recovery.remembered);
    if remembered.is_none_or(|remembered| memory.version() >= remembered) {
        memory.nodes().for_each(|node| batch.known_node(node));
    }
    batch.ops
}

/// The cluster's settings as `memory` has them: for whoever begins the epoch. Later it could be older than what people set since.
pub(crate) fn settings_back(state: &State, memory: &State) -> Option<Op> {
    let settings = *memory.settings();
    (settings != *state.settings()).then(|| Op::Put(Entity::Settings(Box::new(settings))))
}

/// A change in the making, and the state as it will be.
struct Batch {
    state: State,
    ops: Vec<Op>,
    limit: usize,
    now: UnixTime,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.ops.len() >= self.limit
    }

    fn put(&mut self, entity: Entity) {
        self.state.put(entity.clone());
        self.ops.push(Op::Put(entity));
    }

    fn delete(&mut self, id: EntityId) {
        self.state.delete(id);
        self.ops.push(Op::Delete(id));
    }

    fn removal(&mut self, removed: &Removed) {
        let has_ended = removed.until.is_some_and(|until| until < self.now);
        if self.is_full() || has_ended || !removal_is_news(&self.state, &removed.key, removed.removed_at) {
            return;
        }
        if !self.state.is_signed(removed) {
            return;
        }
        if let Some(node) = self.state.node_by_key(&removed.key).map(|node| node.id) {
            self.delete(EntityId::Node(node));
        }
        self.put(Entity::Removal(Box::new(removed.clone())));
    }

    /// What a key let in and that it was revoked stays; a number that was given away stays given away.
    fn setup_key(&mut self, key: &SetupKey) {
        if self.is_full() {
            return;
        }
        match self.state.setup_key(key.id) {
            None if self.state.setup_key_by_hash(&key.hash).is_none() => {
                self.put(Entity::SetupKey(Box::new(key.clone())));
            }
            Some(found) if found.hash == key.hash => {
                let merged = SetupKey {
                    uses: found.uses.max(key.uses),
                    last_used_at: found.last_used_at.max(key.last_used_at),
                    revoked_at: earliest(found.revoked_at, key.revoked_at),
                    ..SetupKey::clone(found)
                };
                if merged != **found {
                    self.put(Entity::SetupKey(Box::new(merged)));
                }
            }
            None | Some(_) => {}
        }
    }

    fn lost_node(&mut self, node: &Node) {
        if self.is_full()
            || is_removed(&self.state, &node.key, node.issued_at)
            || !self.state.is_certified(node)
        {
            return;
        }
        let Some(node) = settled(&self.state, node.clone(), &node.name, self.now) else { return };
        if self.state.removal(&node.key).is_some() {
            self.delete(EntityId::Removal(node.key));
        }
        self.put(Entity::Node(Box::new(node)));
    }

    /// A node that the copy has: with what changed of it after the copy was made.
    fn known_node(&mut self, node: &Node) {
        let Some(found) = self.state.node_by_key(&node.key).filter(|found| found.id == node.id) else {
            return;
        };
        let (told, has) = ((node.issued_at, node.updated_at), (found.issued_at, found.updated_at));
        if self.is_full() || told < has {
            return;
        }
        let owner = self.state.node_by_name(&node.name).map(|owner| owner.id);
        let name = if owner.is_none_or(|owner| owner == node.id) { &node.name } else { &found.name };
        // Who logged in again after the copy was made is not expired.
        let expires_at =
            if told > has { node.expires_at } else { earliest(found.expires_at, node.expires_at) };
        let node = Node { name: name.clone(), expires_at, ..node.clone() };
        let same_addresses = node.addresses() == found.addresses();
        let is_believed = node.membership == found.membership || self.state.is_certified(&node);
        if same_addresses && node != **found && is_believed {
            self.put(Entity::Node(Box::new(node)));
        }
    }

    fn has_room(&self, node: &Node) -> bool {
        has_room(&self.state, node.id, node.address_v4) && self.state.node_by_name(&node.name).is_none()
    }
}

fn earliest(one: Option<UnixTime>, other: Option<UnixTime>) -> Option<UnixTime> {
    [one, other].into_iter().flatten().min()
}

/// Whether this removal ends something, or is the first of its key.
fn removal_is_news(state: &State, key: &PublicKey, removed_at: UnixTime) -> bool {
    let is_known = state.removal(key).is_some_and(|known| known.removed_at >= removed_at);
    let entered_again = state.node_by_key(key).is_some_and(|node| node.issued_at > removed_at);
    !is_known && !entered_again
}

/// Whether the holder of a certificate of then was removed since.
pub(super) fn is_removed(state: &State, key: &PublicKey, issued_at: UnixTime) -> bool {
    state.removal(key).is_some_and(|removed| removed.removed_at >= issued_at)
}

fn has_room(state: &State, id: NodeId, address: Ipv4Addr) -> bool {
    state.node(id).is_none() && state.node_by_address(address.into()).is_none()
}

/// The node as `state` has room for it; `None`: there is no address left.
pub(super) fn settled(state: &State, mut node: Node, wanted: &str, now: UnixTime) -> Option<Node> {
    node.name = name::unique(wanted, |name| state.node_by_name(name).is_some());
    if !has_room(state, node.id, node.address_v4) {
        node.id = state.next_node_id();
        node.address_v4 = state.next_address()?;
        node.address_v6 = address::in_ula(state.network.overlay_v6, node.address_v4);
        node.certify(state, now);
    }
    Some(node)
}

/// Takes removals over that agents showed, verified and encoded as `Signed`.
pub(crate) fn take_over<'a>(
    state: &State,
    removals: impl Iterator<Item = (&'a Removal, &'a [u8])>,
    now: UnixTime,
) -> Vec<Op> {
    let mut batch = Batch { state: state.clone(), ops: Vec::new(), limit: usize::MAX, now };
    for (removal, signed) in removals {
        // The roots may have changed since it was looked at.
        let Ok((_, root)) = state.verify_shown(signed) else { continue };
        let node = state.node_by_key(&removal.node_key);
        batch.removal(&Removed {
            key: removal.node_key,
            node: node.map_or(NodeId(0), |node| node.id),
            name: node.map_or_else(String::new, |node| node.name.clone()),
            address_v4: node.map_or(Ipv4Addr::UNSPECIFIED, |node| node.address_v4),
            removed_at: removal.removed_at,
            until: removal.until,
            root,
            signed: signed.to_vec(),
        });
    }
    batch.ops
}

/// A removal under the cluster's root of which `state` does not know.
pub(crate) fn unknown_removal(state: &State, signed: &[u8]) -> Option<Removal> {
    // Read first, verified then: what is known costs no signature.
    let Ok((_, Statement::Removal(told))) = Statement::trust(signed) else { return None };
    if !removal_is_news(state, &told.node_key, told.removed_at) {
        return None;
    }
    match state.verify_shown(signed) {
        Ok((Statement::Removal(removal), _)) => Some(removal),
        Ok((Statement::Membership(_) | Statement::NextRoot(_) | Statement::Unknown, _)) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{expire, remove, rename, set_membership_lifetime, testing};

    const ALL: usize = usize::MAX;

    fn brought_up(copy: &State, memory: &State) -> State {
        let mut state = copy.clone();
        let ops = put_back(&state, memory, ALL, testing::NOW);
        testing::apply(&mut state, ops);
        assert_eq!(put_back(&state, memory, ALL, testing::NOW), [], "once is enough");
        state
    }

    #[test]
    fn nodes_that_enrolled_after_the_copy_are_as_they_were() {
        let (copy, _) = testing::with_node("kept");
        let mut memory = copy.clone();
        let lost = testing::enrol(&mut memory, "lost");
        let state = brought_up(&copy, &memory);
        assert_eq!(**state.node(lost.id).unwrap(), lost);
        assert!(state.setup_keys().eq(memory.setup_keys()), "what was used up stays used up");
    }

    #[test]
    fn a_removal_that_was_lost_takes_the_node_out_again() {
        let (copy, node) = testing::with_node("gone");
        let mut memory = copy.clone();
        let ops = remove(&memory, &node, testing::NOW);
        testing::apply(&mut memory, ops);
        let state = brought_up(&copy, &memory);
        assert!(state.node(node.id).is_none());
        assert_eq!(state.removal(&node.key), memory.removal(&node.key));
    }

    #[test]
    fn a_removal_told_by_anybody_wins_over_a_node_that_was_remembered() {
        let (memory, node) = testing::with_node("gone");
        let mut copy = memory.clone();
        let ops = remove(&copy, &node, testing::NOW);
        testing::apply(&mut copy, ops);
        assert!(brought_up(&copy, &memory).node_by_key(&node.key).is_none());
    }

    #[test]
    fn where_two_collide_the_row_of_the_database_wins() {
        let copy = testing::state();
        let (mut memory, mut state) = (copy.clone(), copy);
        let lost = testing::enrol(&mut memory, "web");
        let new = testing::enrol(&mut state, "web");
        assert_eq!((lost.id, lost.address_v4), (new.id, new.address_v4));
        let state = brought_up(&state, &memory);
        assert_eq!(**state.node(new.id).unwrap(), new);
        let back = state.node_by_key(&lost.key).unwrap();
        assert_ne!((back.id, back.address_v4), (lost.id, lost.address_v4));
        assert_eq!(back.name, "web-1");
        assert!(back.issued_at > lost.issued_at, "its certificate replaces the one it holds");
    }

    #[test]
    fn what_changed_of_a_node_is_put_back_and_an_ended_login_stays_ended() {
        let (mut copy, node) = testing::with_node("old-name");
        let mut memory = copy.clone();
        let ops = rename(&memory, &node, "new-name", testing::NOW).unwrap();
        testing::apply(&mut memory, ops);
        let ops = expire(&node, testing::NOW);
        testing::apply(&mut copy, ops);
        let state = brought_up(&copy, &memory);
        assert_eq!(state.node(node.id).unwrap().name, "new-name");
        assert!(state.node(node.id).unwrap().is_expired(testing::NOW));
    }

    #[test]
    fn who_logged_in_again_after_the_copy_is_not_expired_by_it() {
        let (mut copy, node) = testing::with_node("a");
        let ops = expire(&node, testing::NOW);
        testing::apply(&mut copy, ops);
        let mut memory = copy.clone();
        let later = UnixTime(testing::NOW.0 + 60);
        let back = Node { expires_at: None, updated_at: later, ..node.clone() };
        testing::apply(&mut memory, vec![Op::put_node(back)]);
        assert!(!brought_up(&copy, &memory).node(node.id).unwrap().is_expired(later));
        assert!(brought_up(&memory, &copy).node(node.id).unwrap().expires_at.is_none(), "an older memory");
    }

    #[test]
    fn settings_that_were_lost_are_put_back() {
        let copy = testing::state();
        let mut memory = copy.clone();
        let ops = set_membership_lifetime(&memory, None, testing::NOW).unwrap();
        testing::apply(&mut memory, ops);
        let mut state = copy.clone();
        assert_eq!(settings_back(&copy, &copy), None);
        testing::apply(&mut state, settings_back(&copy, &memory).into_iter().collect());
        assert_eq!(state.settings(), memory.settings());
    }

    #[test]
    fn it_comes_in_batches_and_ends() {
        let copy = testing::state();
        let (mut memory, mut state) = (copy.clone(), copy);
        let first: Vec<_> = (0..20).map(|n| testing::enrol(&mut memory, &format!("n{n}"))).collect();
        let ops = remove(&memory, &first[3], testing::NOW);
        testing::apply(&mut memory, ops);
        let mut batches = 0;
        loop {
            let ops = put_back(&state, &memory, 4, testing::NOW);
            if ops.is_empty() {
                break;
            }
            assert!(ops.len() <= 6, "{}", ops.len());
            testing::apply(&mut state, ops);
            batches += 1;
            assert!(batches < 40);
        }
        assert!(batches > 3 && state.nodes().eq(memory.nodes()) && state.removals().eq(memory.removals()));
    }

    #[test]
    fn a_removal_that_an_agent_shows_is_taken_over_once_and_only_under_the_root() {
        let (copy, node) = testing::with_node("gone");
        let mut past = copy.clone();
        let ops = remove(&past, &node, testing::NOW);
        testing::apply(&mut past, ops);
        let signed = past.removal(&node.key).unwrap().signed.clone();
        let removal = unknown_removal(&copy, &signed).unwrap();
        let mut state = copy.clone();
        let ops = take_over(&state, [(&removal, &signed[..])].into_iter(), testing::NOW);
        testing::apply(&mut state, ops);
        assert!(state.node(node.id).is_none() && state.removal(&node.key).is_some());
        assert_eq!(unknown_removal(&state, &signed), None);
        let foreign = testing::state();
        assert_eq!(unknown_removal(&foreign, &signed), None, "another cluster's");
        assert_eq!(unknown_removal(&copy, b"nonsense"), None);
    }

    #[test]
    fn what_no_trusted_root_signed_is_neither_put_back_nor_taken_over() {
        let copy = testing::state();
        let (mut memory, _) = testing::with_node("foreign");
        let removed = testing::enrol(&mut memory, "gone");
        let ops = remove(&memory, &removed, testing::NOW);
        testing::apply(&mut memory, ops);
        memory.network_id = copy.network_id;
        let state = brought_up(&copy, &memory);
        assert_eq!((state.node_count(), state.removals().count()), (0, 0));
        let removed = memory.removals().next().unwrap();
        let removal = Removal { node_key: removed.key, removed_at: removed.removed_at, until: removed.until };
        let shown = [(&removal, removed.signed.as_slice())];
        assert_eq!(take_over(&copy, shown.into_iter(), testing::NOW), []);
    }

    #[test]
    fn a_removal_of_before_the_node_entered_again_ends_nothing() {
        let (state, node) = testing::with_node("back");
        let removal = Removal { node_key: node.key, removed_at: UnixTime(node.issued_at.0 - 1), until: None };
        let signed = state.sign(&Statement::Removal(removal));
        assert_eq!(unknown_removal(&state, &signed), None);
    }
}
