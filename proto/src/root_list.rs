//! The roots that a cluster trusts: an older one until it is retired, then the current. Each names the next under its own signature, so who trusts one of them
//! comes to trust the newer ones, and nobody is led to an older.

use crate::{
    Invalid,
    map::MapVersion,
    root::RootKey,
    statement::{NetworkId, Statement, StatementError},
    wire,
};

/// So many are trusted at a time at most: whoever changes roots more often retires one first. From the oldest a TLS chain leads over the others to the newest,
/// and webpki follows six certificates between.
pub const MAX_ROOTS: usize = 7;

/// The roots, oldest first. Not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootList {
    pub first: RootKey,
    /// Encoded `Signed` statements of [`Statement::NextRoot`], each under the root before.
    pub next: Vec<Vec<u8>>,
    /// Maps of this version, and later ones, need no other roots. Those before may.
    pub after: MapVersion,
}

impl RootList {
    /// The roots, each believed as far as the first is.
    ///
    /// # Errors
    /// A link is not signed by the root before, or something else than a root is.
    pub fn verified(&self, network: NetworkId) -> Result<Vec<RootKey>, StatementError> {
        let mut roots = vec![self.first];
        for signed in &self.next {
            let by = roots.last().unwrap_or(&self.first);
            match Statement::verify(signed, network, by)? {
                Statement::NextRoot(next) => roots.push(next),
                Statement::Membership(_) | Statement::Removal(_) | Statement::Unknown => {
                    return Err(Invalid::new("roots", "a statement that names no root").into());
                }
            }
        }
        Ok(roots)
    }
}

impl TryFrom<wire::RootList> for RootList {
    type Error = Invalid;

    fn try_from(wire: wire::RootList) -> Result<Self, Invalid> {
        if wire.next.len() >= MAX_ROOTS {
            let found = wire.next.len() + 1;
            return Err(Invalid::new("roots", format_args!("{found} entries, at most {MAX_ROOTS}")));
        }
        let after = MapVersion { epoch: wire.epoch, revision: wire.revision };
        Ok(Self { first: RootKey::from_bytes(&wire.first)?, next: wire.next, after })
    }
}

impl From<RootList> for wire::RootList {
    fn from(list: RootList) -> Self {
        let MapVersion { epoch, revision } = list.after;
        Self { first: list.first.to_bytes().to_vec(), next: list.next, epoch, revision }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::RootSecret;

    const NETWORK: NetworkId = NetworkId([1; 16]);

    fn root(seed: u8) -> RootSecret {
        RootSecret::from_seed(&[seed; 32])
    }

    fn next(by: u8, to: u8) -> Vec<u8> {
        Statement::NextRoot(root(to).public()).sign(NETWORK, &root(by))
    }

    #[test]
    fn each_root_vouches_for_the_next() {
        let after = MapVersion { epoch: 2, revision: 7 };
        let list = RootList { first: root(1).public(), next: vec![next(1, 2), next(2, 3)], after };
        let again = RootList::try_from(wire::RootList::from(list.clone())).unwrap();
        assert_eq!(again, list);
        assert_eq!(again.verified(NETWORK), Ok([1, 2, 3].map(|seed| root(seed).public()).to_vec()));
    }

    #[test]
    fn a_link_by_another_root_for_another_network_or_of_another_kind_breaks_the_chain() {
        let after = MapVersion::default();
        let of = |next| RootList { first: root(1).public(), next, after }.verified(NETWORK);
        assert_eq!(of(vec![next(1, 2), next(1, 3)]), Err(StatementError::Signature));
        let elsewhere = Statement::NextRoot(root(2).public()).sign(NetworkId([2; 16]), &root(1));
        assert_eq!(of(vec![elsewhere]), Err(StatementError::Network));
        let other = Statement::Unknown.sign(NETWORK, &root(1));
        assert!(matches!(of(vec![other]), Err(StatementError::Invalid(_))));
    }

    #[test]
    fn a_list_without_end_is_refused() {
        let first = root(1).public().to_bytes().to_vec();
        let wire = wire::RootList { first, next: vec![vec![]; MAX_ROOTS], ..Default::default() };
        assert!(RootList::try_from(wire).is_err());
    }
}
