//! The nodes with their indexes. Put and delete keep all of them in step; nothing else may change one.

use crate::cluster::Node;
use imbl::{HashMap, OrdMap};
use proto::{key::PublicKey, statement::NodeId};
use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

#[derive(Debug, Clone, Default)]
pub(crate) struct Nodes {
    by_id: OrdMap<NodeId, Arc<Node>>,
    by_key: HashMap<PublicKey, NodeId>,
    by_name: HashMap<String, NodeId>,
    by_v4: OrdMap<Ipv4Addr, NodeId>,
}

impl Nodes {
    pub(crate) fn put(&mut self, node: Node) {
        self.delete(node.id);
        self.by_key.insert(node.key, node.id);
        self.by_name.insert(node.name.clone(), node.id);
        self.by_v4.insert(node.address_v4, node.id);
        self.by_id.insert(node.id, Arc::new(node));
    }

    pub(crate) fn delete(&mut self, id: NodeId) -> Option<Arc<Node>> {
        let node = self.by_id.remove(&id)?;
        self.by_key.remove(&node.key);
        self.by_name.remove(&node.name);
        self.by_v4.remove(&node.address_v4);
        Some(node)
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<Node>> {
        self.by_id.values()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(crate) fn by_id(&self, id: NodeId) -> Option<&Arc<Node>> {
        self.by_id.get(&id)
    }

    pub(crate) fn by_key(&self, key: &PublicKey) -> Option<&Arc<Node>> {
        self.by_id.get(self.by_key.get(key)?)
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<&Arc<Node>> {
        self.by_id.get(self.by_name.get(name)?)
    }

    pub(crate) fn by_v4(&self, address: Ipv4Addr) -> Option<&Arc<Node>> {
        self.by_id.get(self.by_v4.get(&address)?)
    }

    /// An IPv6 address ends with the node's IPv4 address.
    pub(crate) fn by_address(&self, address: IpAddr) -> Option<&Arc<Node>> {
        match address {
            IpAddr::V4(v4) => self.by_v4(v4),
            IpAddr::V6(v6) => {
                let [.., a, b, c, d] = v6.octets();
                self.by_v4(Ipv4Addr::new(a, b, c, d)).filter(|node| node.address_v6 == v6)
            }
        }
    }

    pub(crate) fn highest_v4(&self) -> Option<Ipv4Addr> {
        self.by_v4.get_max().map(|(address, _)| *address)
    }
}
