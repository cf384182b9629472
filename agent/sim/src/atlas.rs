//! Everything the servers know, as of one version: the objects of every map. An agent's map is all of them but its own entry.

use crate::members;
use proto::{
    key::PublicKey,
    map::{Content, ContentHash, Delta, Map, MapDigest, MapVersion, Network, Object, ObjectId, Peer},
    receipt::{Mark, Receipt},
    rule::Rule,
    statement::NodeId,
};
use std::{collections::BTreeMap, net::SocketAddr};

/// A version of everything.
#[derive(Debug, Clone, Default)]
pub(crate) struct Atlas {
    pub(crate) version: MapVersion,
    /// Of its change: another in every timeline.
    pub(crate) mark: Mark,
    map: Map,
    nodes: BTreeMap<PublicKey, Vec<SocketAddr>>,
    removals: BTreeMap<PublicKey, Vec<u8>>,
}

/// A change of the cluster's state.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Enrol(usize),
    Endpoints(usize, Vec<SocketAddr>),
    /// A change that no other agent's map shows.
    Unseen,
    Rename(usize, String),
    Remove(usize),
}

impl Atlas {
    pub(crate) fn first() -> Self {
        let network = Network {
            name: "sim".to_owned(),
            overlay_v4: ipnet::Ipv4Net::new_assert([100, 64, 0, 0].into(), 10).into(),
            overlay_v6: ipnet::Ipv6Net::new_assert([0xfd00, 0, 0, 0, 0, 0, 0, 0].into(), 48).into(),
        };
        let mut atlas = Self { version: MapVersion { epoch: 1, revision: 1 }, ..Self::default() };
        let everybody = Rule::all_from(vec![network.overlay_v4, network.overlay_v6]);
        put(&mut atlas.map, &Content::Network(network), Vec::new());
        put(&mut atlas.map, &Content::Rule(everybody), b"default".to_vec());
        atlas
    }

    pub(crate) fn after(&self, change: &Change) -> Self {
        let mut next = self.clone();
        next.version.revision += 1;
        match change {
            Change::Unseen => {}
            Change::Enrol(agent) => next.put_peer(*agent, Vec::new(), None),
            Change::Endpoints(agent, endpoints) => next.put_peer(*agent, endpoints.clone(), None),
            Change::Rename(agent, name) => {
                let endpoints = next.nodes.get(&members::of(*agent).key).cloned().unwrap_or_default();
                next.put_peer(*agent, endpoints, Some(name));
            }
            Change::Remove(agent) => next.remove(*agent),
        }
        next
    }

    /// Nodes and removals that `past` has and this lacks; a removal wins. Returns whether there were any.
    pub(crate) fn put_back(&mut self, past: &Self) -> bool {
        let removed = past.removals.keys().filter(|key| !self.removals.contains_key(key));
        let removed: Vec<usize> = removed.map(members::agent_of).collect();
        removed.iter().for_each(|agent| self.remove(*agent));
        let is_lost = |key: &&PublicKey| !self.nodes.contains_key(key) && !self.removals.contains_key(key);
        let lost: Vec<PublicKey> = past.nodes.keys().filter(is_lost).copied().collect();
        for key in &lost {
            let (id, endpoints) = (ObjectId::peer(*key), past.nodes[key].clone());
            if let Some(content) = past.map.content(&id) {
                self.map.put(Object { id, content: content.to_vec() });
            }
            self.nodes.insert(*key, endpoints);
        }
        !removed.is_empty() || !lost.is_empty()
    }

    fn put_peer(&mut self, agent: usize, endpoints: Vec<SocketAddr>, name: Option<&str>) {
        let member = members::of(agent);
        let peer = Peer {
            node_id: member.node,
            name: name.map_or_else(|| format!("agent{agent}"), ToOwned::to_owned),
            membership: member.certificate.clone(),
            endpoints: endpoints.clone(),
            os: "sim".to_owned(),
            agent_version: String::new(),
            expires_at: None,
            ephemeral: false,
        };
        put(&mut self.map, &Content::Peer(peer), member.key.0.to_vec());
        self.nodes.insert(member.key, endpoints);
    }

    fn remove(&mut self, agent: usize) {
        let member = members::of(agent);
        self.nodes.remove(&member.key);
        self.removals.insert(member.key, member.removal.clone());
        self.map.drop(&ObjectId::peer(member.key));
        put(&mut self.map, &Content::Removal(member.removal.clone()), member.key.0.to_vec());
    }

    pub(crate) fn receipt(&self) -> Receipt {
        members::receipts().issue(self.version, self.mark)
    }

    pub(crate) fn is_member(&self, key: &PublicKey) -> bool {
        self.nodes.contains_key(key)
    }

    pub(crate) fn is_node(&self, node: NodeId) -> bool {
        self.is_member(&members::of(members::agent_of_node(node)).key)
    }

    pub(crate) fn endpoints(&self, key: &PublicKey) -> Option<&[SocketAddr]> {
        self.nodes.get(key).map(Vec::as_slice)
    }

    pub(crate) fn removal(&self, key: &PublicKey) -> Option<&[u8]> {
        self.removals.get(key).map(Vec::as_slice)
    }

    /// The digest of the map that this node should have.
    pub(crate) fn digest_for(&self, key: &PublicKey) -> MapDigest {
        let mut digest = self.map.digest();
        if let Some(own) = self.map.hash(&ObjectId::peer(*key)) {
            digest.subtract(own);
        }
        digest
    }

    /// What a node needs that has `have`.
    pub(crate) fn step(&self, key: &PublicKey, have: &BTreeMap<ObjectId, ContentHash>) -> Delta {
        let own = ObjectId::peer(*key);
        let differs = |id: &ObjectId, hash: ContentHash| *id != own && have.get(id) != Some(&hash);
        let put = self.map.iter().filter(|(id, hash, _)| differs(id, *hash));
        Delta {
            version: self.version,
            digest: self.digest_for(key),
            put: put.map(|(id, _, content)| Object { id: id.clone(), content: content.to_vec() }).collect(),
            drop: have.keys().filter(|id| **id == own || self.map.hash(id).is_none()).cloned().collect(),
            last: true,
            receipt: self.receipt(),
        }
    }

    /// The objects of a node's map.
    pub(crate) fn objects_for(&self, key: &PublicKey) -> BTreeMap<ObjectId, ContentHash> {
        let own = ObjectId::peer(*key);
        let others = self.map.iter().filter(|(id, _, _)| **id != own);
        others.map(|(id, hash, _)| (id.clone(), hash)).collect()
    }
}

fn put(map: &mut Map, content: &Content, id: Vec<u8>) {
    if let Some(object) = Object::new(content, id) {
        map.put(object);
    }
}
