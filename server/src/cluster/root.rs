//! The cluster's root: as the database holds it, and as a process has it. A wrapped root is of no use without the cluster key, which no database holds.
//! Its public half stands beside it, so that what signs nothing needs no key.

use crate::cluster::{Entity, Op, State};
use proto::{
    root::{RootKey, RootSecret},
    statement::Statement,
};

/// As the database holds it.
#[derive(Debug, Clone)]
pub enum StoredRoot {
    Plain(RootSecret),
    Wrapped(WrappedRoot),
}

/// Encrypted under a cluster key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedRoot {
    pub public: RootKey,
    /// Nonce and ciphertext.
    pub sealed: Vec<u8>,
}

/// As a process has it.
#[derive(Debug, Clone)]
pub enum Root {
    Secret(RootSecret),
    /// This process signs nothing.
    Public(RootKey),
}

impl StoredRoot {
    pub fn public(&self) -> RootKey {
        match self {
            Self::Plain(secret) => secret.public(),
            Self::Wrapped(wrapped) => wrapped.public,
        }
    }

    pub fn is_wrapped(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Wrapped(_) => true,
        }
    }
}

impl Root {
    pub fn public(&self) -> RootKey {
        match self {
            Self::Secret(secret) => secret.public(),
            Self::Public(public) => *public,
        }
    }

    pub fn secret(&self) -> Option<&RootSecret> {
        match self {
            Self::Secret(secret) => Some(secret),
            Self::Public(_) => None,
        }
    }
}

impl From<StoredRoot> for Root {
    /// A wrapped one signs nothing until it is unwrapped.
    fn from(stored: StoredRoot) -> Self {
        match stored {
            StoredRoot::Plain(secret) => Self::Secret(secret),
            StoredRoot::Wrapped(wrapped) => Self::Public(wrapped.public),
        }
    }
}

impl State {
    /// An encoded `Signed`; empty where this process cannot sign: `Cluster::write` takes no op that lacks a signature.
    pub(crate) fn sign(&self, statement: &Statement) -> Vec<u8> {
        self.root.secret().map_or_else(Vec::new, |secret| statement.sign(self.network_id, secret))
    }
}

impl Op {
    /// It was decided by a process that cannot sign.
    pub(crate) fn lacks_signature(&self) -> bool {
        match self {
            Self::Put(Entity::Node(node)) => node.membership.is_empty(),
            Self::Put(Entity::Removal(removed)) => removed.signed.is_empty(),
            Self::Put(
                Entity::SetupKey(_)
                | Entity::Recovery(_)
                | Entity::Settings(_)
                | Entity::Roots(_)
                | Entity::Holdings(_),
            )
            | Self::Delete(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{remove, testing};

    #[test]
    fn what_a_process_without_the_secret_decides_lacks_its_signatures() {
        let (mut state, node) = testing::with_node("a");
        let signs = |state: &State| remove(state, &node, testing::NOW).iter().any(Op::lacks_signature);
        assert!(!signs(&state));
        state.root = Root::Public(state.root.public());
        assert!(signs(&state));
    }
}
