//! What stays of a removed node: the signed removal, kept until the node's certificate would have ended by itself. As long, its addresses
//! are given to nobody else.

use crate::cluster::{Node, State, base64_text};
use proto::{
    key::PublicKey,
    statement::{NodeId, Removal, Statement},
    time::UnixTime,
};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// A node that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    pub key: PublicKey,
    pub node: NodeId,
    pub name: String,
    pub address_v4: Ipv4Addr,
    pub removed_at: UnixTime,
    /// When every certificate that the key was given has ended; `None`: one never does.
    pub until: Option<UnixTime>,
    /// An encoded `Signed` removal.
    #[serde(with = "base64_text")]
    pub signed: Vec<u8>,
    /// The number of the root that signed it.
    #[serde(default)]
    pub root: u32,
}

impl Removed {
    pub(crate) fn new(state: &State, node: &Node, now: UnixTime) -> Self {
        // A removal older than the certificate it ends would end nothing.
        let removed_at = now.max(node.issued_at);
        let removal =
            Removal { node_key: node.key, removed_at, until: state.settings().all_end_by(node.not_after) };
        let signed = state.sign(&Statement::Removal(removal));
        Self {
            key: node.key,
            node: node.id,
            name: node.name.clone(),
            address_v4: node.address_v4,
            removed_at: removal.removed_at,
            until: removal.until,
            signed,
            root: state.root_number(),
        }
    }
}
