//! The change log's record. A change is one step of the cluster, from one revision to the next: whole entities that are put or
//! deleted, so that a follower applies it without asking the database again. Its random id tells two logs apart
//! that have the same revision: after a database went back in time.

use crate::cluster::{Holdings, Node, Recovery, Removed, Roots, Settings, SetupKey, SetupKeyId};
use proto::{
    key::PublicKey, map::MapVersion, receipt::Mark, root::RootKey, session::ServerId, statement::NodeId,
    time::UnixTime,
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Random: tells a change from any other of the same revision.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChangeId(pub [u8; 16]);

/// Where a log, or whoever follows it, stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub version: MapVersion,
    pub id: ChangeId,
}

/// One step of the cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub head: Head,
    pub at: UnixTime,
    pub actor: Actor,
    pub ops: Vec<Op>,
}

/// Who asked for a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    CommandLine,
    /// A server that found the log gone back in time.
    Recovery,
    Server(ServerId),
    Node(PublicKey),
}

/// What a change does to one entity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    Put(Entity),
    Delete(EntityId),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entity {
    Node(Box<Node>),
    SetupKey(Box<SetupKey>),
    Removal(Box<Removed>),
    /// There is one at most.
    Recovery(Box<Recovery>),
    /// There is one at most.
    Settings(Box<Settings>),
    /// There is one at most.
    Roots(Box<Roots>),
    /// There is one at most.
    Holdings(Box<Holdings>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntityId {
    Node(NodeId),
    SetupKey(SetupKeyId),
    /// By the node key.
    Removal(PublicKey),
}

impl Op {
    pub fn put_node(node: Node) -> Self {
        Self::Put(Entity::Node(Box::new(node)))
    }

    pub fn put_setup_key(key: SetupKey) -> Self {
        Self::Put(Entity::SetupKey(Box::new(key)))
    }
}

impl Change {
    /// Whether another root is the current one after it.
    pub(crate) fn changes_root(&self, root: &RootKey) -> bool {
        self.ops.iter().any(|op| matches!(op, Op::Put(Entity::Roots(roots)) if roots.current != *root))
    }
}

impl ChangeId {
    /// What receipts carry of it.
    pub(crate) fn mark(&self) -> Mark {
        let mut mark = Mark::default();
        mark.copy_from_slice(&self.0[..8]);
        mark
    }

    /// # Errors
    /// The system has no random source.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }
}

impl fmt::Debug for ChangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u128::from_be_bytes(self.0) >> 96)
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine => f.write_str("command-line"),
            Self::Recovery => f.write_str("recovery"),
            Self::Server(id) => write!(f, "server:{id}"),
            Self::Node(key) => write!(f, "node:{key}"),
        }
    }
}

impl std::str::FromStr for Actor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("unknown actor {text:?}");
        match text.split_once(':') {
            None if text == "command-line" => Ok(Self::CommandLine),
            None if text == "recovery" => Ok(Self::Recovery),
            Some(("server", id)) => id.parse().map(Self::Server).map_err(|_| unknown()),
            Some(("node", key)) => key.parse().map(Self::Node).map_err(|_| unknown()),
            None | Some(_) => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_actor_survives_its_text() {
        let others = [Actor::Server(ServerId([7; 16])), Actor::Node(PublicKey([9; 32]))];
        for actor in [Actor::CommandLine, Actor::Recovery].into_iter().chain(others) {
            assert_eq!(actor.to_string().parse(), Ok(actor));
        }
        assert!("somebody".parse::<Actor>().is_err());
    }

    #[test]
    fn ops_are_kept_as_readable_json() {
        let op = Op::Delete(EntityId::Node(NodeId(3)));
        let text = serde_json::to_string(&op).unwrap();
        assert_eq!(text, r#"{"delete":{"node":3}}"#);
        assert_eq!(serde_json::from_str::<Op>(&text).unwrap(), op);
    }
}
