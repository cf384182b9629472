//! What the cluster believes: what one of its trusted roots signed, or proved by a receipt. A former root is believed for what is of before it was replaced, and
//! what it signed is signed anew under the current one, but only after its signature was checked: whoever writes to the database without the root gets nothing signed.

use crate::cluster::{Entity, Node, Op, Removed, Roots, SetupKey, SetupKeyState, State, roots::open};
use proto::{
    map::MapVersion,
    receipt::Receipt,
    root::RootKey,
    statement::{Statement, StatementError},
    time::UnixTime,
};
use std::sync::Arc;

/// Rows that cannot be signed anew: no trusted root signed them.
#[derive(Debug, Clone, Default, PartialEq, Eq, thiserror::Error)]
#[error(
    "no trusted root signed what the database has for {}: no agent believes it, and it is not signed anew; remove such a node with `server node remove`, and let it in with a new setup key, which ends such a removal, too",
    some_of(names)
)]
pub struct NotSignable {
    /// As they are told to people.
    pub names: Vec<String>,
}

/// The first ten.
pub(crate) fn some_of(names: &[impl AsRef<str>]) -> String {
    const NAMED: usize = 10;
    let more = if names.len() > NAMED { ", .." } else { "" };
    names.iter().take(NAMED).map(AsRef::as_ref).collect::<Vec<_>>().join(", ") + more
}

/// The next ops, at most `limit`, that put what former roots signed under the current one: the same statements, signed anew. What no trusted root signed is left
/// as it is: [`State::not_signable_anew`].
pub fn sign_anew(state: &State, limit: usize) -> Vec<Op> {
    let number = state.root_number();
    let nodes = state.nodes().filter(|node| node.root < number).filter_map(|node| {
        let membership = state.sign(&state.statement_of_node(node)?);
        Some(Op::put_node(Node { membership, root: number, ..Node::clone(node) }))
    });
    let removals = state.removals().filter(|removed| removed.root < number).filter_map(|removed| {
        let signed = state.sign(&state.statement_of_removal(removed)?);
        let removed = Removed { signed, root: number, ..Removed::clone(removed) };
        Some(Op::Put(Entity::Removal(Box::new(removed))))
    });
    nodes.chain(removals).take(limit).collect()
}

impl State {
    /// `None`: the root was never changed.
    pub fn roots(&self) -> Option<&Arc<Roots>> {
        self.roots.as_ref()
    }

    /// The current root's: how often it was changed.
    pub fn root_number(&self) -> u32 {
        self.roots.as_ref().map_or(0, |roots| roots.number)
    }

    /// Checks what a trusted root signed; tells that root's number.
    ///
    /// # Errors
    /// No trusted root did, or it cannot be read.
    pub(crate) fn verify(&self, signed: &[u8]) -> Result<(Statement, u32), StatementError> {
        let number = self.root_number();
        let former = self.roots.iter().flat_map(|roots| roots.former.iter().rev());
        let keys = [self.root.public()].into_iter().chain(former.map(|former| former.key));
        for (key, back) in keys.zip(0..) {
            match Statement::verify(signed, self.network_id, &key) {
                Err(StatementError::Signature) => {}
                verified => return Ok((verified?, number.saturating_sub(back))),
            }
        }
        Err(StatementError::Signature)
    }

    /// As [`Self::verify`], of what an agent shows: under a former root, which somebody else may have by now, only what is of before that root was replaced.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn verify_shown(&self, signed: &[u8]) -> Result<(Statement, u32), StatementError> {
        let (statement, root) = self.verify(signed)?;
        let said_at = match &statement {
            Statement::Membership(membership) => membership.issued_at,
            Statement::Removal(removal) => removal.removed_at,
            Statement::NextRoot(_) | Statement::Unknown => return Ok((statement, root)),
        };
        match self.replaced_at(root).is_some_and(|replaced_at| said_at > replaced_at) {
            true => Err(StatementError::Signature),
            false => Ok((statement, root)),
        }
    }

    /// When a former root was replaced.
    fn replaced_at(&self, root: u32) -> Option<UnixTime> {
        let roots = self.roots.as_ref()?;
        let back = usize::try_from(roots.number.checked_sub(root)?.checked_sub(1)?).ok()?;
        let since =
            [Some(roots.since)].into_iter().chain(roots.former.iter().rev().map(|former| former.since));
        since.into_iter().nth(back)?
    }

    /// The root of this number, as far back as they are trusted.
    pub(crate) fn root_at(&self, number: u32) -> Option<RootKey> {
        let back = usize::try_from(self.root_number().checked_sub(number)?).ok()?;
        let former = self.roots.iter().flat_map(|roots| roots.former.iter().rev()).map(|former| former.key);
        [self.root.public()].into_iter().chain(former).nth(back)
    }

    /// What the node's certificate says, where a trusted root signed it and it is the node's.
    fn statement_of_node(&self, node: &Node) -> Option<Statement> {
        match self.verify(&node.membership) {
            Ok((Statement::Membership(told), _)) if told.node_key == node.key && told.node_id == node.id => {
                Some(Statement::Membership(told))
            }
            Ok(_) | Err(_) => None,
        }
    }

    fn statement_of_removal(&self, removed: &Removed) -> Option<Statement> {
        match self.verify(&removed.signed) {
            Ok((Statement::Removal(told), _)) if told.node_key == removed.key => {
                Some(Statement::Removal(told))
            }
            Ok(_) | Err(_) => None,
        }
    }

    /// Whether a trusted root signed the node's certificate.
    pub(crate) fn is_certified(&self, node: &Node) -> bool {
        self.statement_of_node(node).is_some()
    }

    /// Whether a trusted root signed the removal.
    pub(crate) fn is_signed(&self, removed: &Removed) -> bool {
        self.statement_of_removal(removed).is_some()
    }

    /// Names what counts as under a former root and that no trusted root signed. Looks at every signature under former roots.
    pub fn not_signable_anew(&self) -> NotSignable {
        let number = self.root_number();
        let nodes = self.nodes().filter(|node| node.root < number && !self.is_certified(node));
        let removals = self.removals().filter(|removed| removed.root < number && !self.is_signed(removed));
        let nodes = nodes.map(|node| format!("node {} ({})", node.id, node.name));
        let removals = removals.map(|removed| format!("the removal of {} ({})", removed.name, removed.key));
        NotSignable { names: nodes.chain(removals).collect() }
    }

    /// Setup keys that still let nodes in, but were made under a former root: once that is retired, who has one knows no server.
    pub fn setup_keys_of_former_roots(&self, now: UnixTime) -> impl Iterator<Item = &Arc<SetupKey>> {
        let number = self.root_number();
        self.setup_keys().filter(move |key| key.root < number && key.state(now) == SetupKeyState::Valid)
    }

    /// Certificates and removals that a former root signed.
    pub fn under_former_roots(&self) -> usize {
        let number = self.root_number();
        let nodes = self.nodes().filter(|node| node.root < number).count();
        nodes + self.removals().filter(|removed| removed.root < number).count()
    }

    /// Nodes whose agents did not say yet that they keep the current root.
    pub fn unconfirmed(&self) -> impl Iterator<Item = &Arc<Node>> {
        let number = self.root_number();
        self.nodes().filter(move |node| node.confirmed_root < number)
    }

    /// Whether a former root gave this receipt, while it was the current one. Not known in a process that cannot sign.
    pub(super) fn is_proved_by_former(&self, version: MapVersion, receipt: &Receipt) -> bool {
        let Some(secret) = self.root.secret() else { return false };
        let former = self.roots.iter().flat_map(|roots| &roots.former);
        let mut able = former.filter(|former| version <= former.last_version);
        able.any(|former| {
            open(self.network_id, secret, former).is_some_and(|key| key.verifies(version, receipt))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::{self, rotated};
    use proto::statement::Removal;

    #[test]
    fn what_no_trusted_root_signed_is_not_signed_anew_and_named() {
        let (state, node) = testing::with_node("forged");
        let mut state = rotated(&state, 1);
        let foreign = testing::with_node("forged").1;
        for membership in [foreign.membership, b"nonsense".to_vec()] {
            testing::apply(&mut state, vec![Op::put_node(Node { membership, ..node.clone() })]);
            assert_eq!(sign_anew(&state, 10), []);
            assert_eq!(state.not_signable_anew().names, [format!("node {} (forged)", node.id)]);
        }
        testing::apply(&mut state, vec![Op::put_node(node)]);
        assert_eq!((sign_anew(&state, 10).len(), state.not_signable_anew()), (1, NotSignable::default()));
    }

    #[test]
    fn what_agents_show_under_a_former_root_is_of_before_it_was_replaced() {
        let (state, node) = testing::with_node("a");
        let after = rotated(&state, 1);
        let shown = |state: &State, removed_at| {
            let removal = Removal { node_key: node.key, removed_at, until: None };
            after.verify_shown(&state.sign(&Statement::Removal(removal))).is_ok()
        };
        let later = UnixTime(testing::NOW.0 + 1);
        assert!(shown(&state, testing::NOW) && !shown(&state, later));
        assert!(shown(&after, later), "the current root's");
        assert!(after.verify_shown(&node.membership).is_ok());
    }
}
