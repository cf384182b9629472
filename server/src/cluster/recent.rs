//! Which objects the latest changes touched: so that a session's next delta is found without comparing whole maps. Bounded: who is further
//! behind compares by content.

use crate::cluster::{Entity, EntityId, Op};
use imbl::Vector;
use proto::{key::PublicKey, map::ObjectId, receipt::Mark};
use std::{collections::BTreeSet, sync::Arc};

const CHANGES_KEPT: usize = 4096;

/// An object of the map that a change touched: put or deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Touched {
    Node(PublicKey),
    Removal(PublicKey),
    Holdings,
}

impl Touched {
    pub fn object_id(self) -> ObjectId {
        match self {
            Self::Node(key) => ObjectId::peer(key),
            Self::Removal(key) => ObjectId::removal(key),
            Self::Holdings => ObjectId::holdings(),
        }
    }

    /// What `op` touches. `key_of` knows the key of a node that is about to go.
    pub(crate) fn by(
        op: &Op,
        key_of: impl Fn(proto::statement::NodeId) -> Option<PublicKey>,
    ) -> Option<Self> {
        match op {
            Op::Put(Entity::Node(node)) => Some(Self::Node(node.key)),
            Op::Put(Entity::Removal(removed)) => Some(Self::Removal(removed.key)),
            Op::Put(Entity::Holdings(_)) => Some(Self::Holdings),
            Op::Delete(EntityId::Node(id)) => key_of(*id).map(Self::Node),
            Op::Delete(EntityId::Removal(key)) => Some(Self::Removal(*key)),
            Op::Put(Entity::SetupKey(_) | Entity::Recovery(_) | Entity::Settings(_) | Entity::Roots(_))
            | Op::Delete(EntityId::SetupKey(_)) => None,
        }
    }
}

/// The changes after `complete_from`, oldest first.
#[derive(Debug, Clone)]
pub(crate) struct Recent {
    complete_from: u64,
    changes: Vector<Record>,
}

#[derive(Debug, Clone)]
struct Record {
    revision: u64,
    mark: Mark,
    touched: Arc<[Touched]>,
}

impl Recent {
    /// Nothing is known of what came up to `revision`.
    pub(crate) fn from(revision: u64) -> Self {
        Self { complete_from: revision, changes: Vector::new() }
    }

    pub(crate) fn push(&mut self, revision: u64, mark: Mark, touched: Vec<Touched>) {
        self.changes.push_back(Record { revision, mark, touched: touched.into() });
        if self.changes.len() > CHANGES_KEPT
            && let Some(dropped) = self.changes.pop_front()
        {
            self.complete_from = dropped.revision;
        }
    }

    /// Of the change of this revision, if it is known still.
    pub(crate) fn mark(&self, revision: u64) -> Option<Mark> {
        let at = self.changes.binary_search_by_key(&revision, |record| record.revision).ok()?;
        self.changes.get(at).map(|record| record.mark)
    }

    pub(crate) fn since(&self, revision: u64) -> Option<BTreeSet<Touched>> {
        if revision < self.complete_from {
            return None;
        }
        let newer = self.changes.iter().rev().take_while(|record| record.revision > revision);
        Some(newer.flat_map(|record| record.touched.iter().copied()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touched(key: u8) -> Touched {
        Touched::Node(PublicKey([key; 32]))
    }

    #[test]
    fn it_tells_what_changed_since_and_admits_what_it_forgot() {
        let mut recent = Recent::from(10);
        recent.push(11, [1; 8], vec![touched(1)]);
        recent.push(12, [2; 8], vec![touched(2), touched(1)]);
        assert_eq!(recent.since(9), None);
        assert_eq!(recent.since(10), Some(BTreeSet::from([touched(1), touched(2)])));
        assert_eq!(recent.since(12), Some(BTreeSet::new()));
        assert_eq!((recent.mark(10), recent.mark(12)), (None, Some([2; 8])));
        for revision in 13..13 + CHANGES_KEPT as u64 {
            recent.push(revision, [3; 8], vec![]);
        }
        assert_eq!(recent.since(11), None);
        assert_eq!(recent.since(12), Some(BTreeSet::new()));
    }
}
