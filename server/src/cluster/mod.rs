//! The cluster's state: pure data and rules, no I/O. A `State` is a value (cheap to clone, never changed under a reader) at one revision;
//! the next is made by applying a change of the log. Decisions (admission, what may be done to a node) look at a state and answer with ops.
//! Who makes changes durable and in which order is `store`'s and `follow`'s.

mod address;
mod admission;
pub(crate) mod base64_text;
mod change;
mod claims;
mod ending;
mod exclusive;
mod name;
mod node;
mod nodes;
mod put_back;
mod readoption;
mod recent;
mod recovery;
mod removal;
mod root;
mod roots;
mod settings;
mod setup_key;
#[cfg(test)]
pub(crate) mod testing;
mod trust;

pub(crate) use address::in_ula;
pub use admission::{Applicant, Refusal, enrol, enrol_within};
pub use change::{Actor, Change, ChangeId, Entity, EntityId, Head, Op};
pub use claims::claimable;
pub use ending::{absence, forget_ended};
pub use exclusive::{GrantError, Holdings};
pub(crate) use exclusive::{grant, holdings_back};
pub(crate) use name::is_valid as is_valid_name;
pub use node::{
    Node, NodeError, allow_claim, disallow_claim, expire, observe, remove, remove_all, rename, renew,
};
pub(crate) use put_back::{put_back, settings_back, take_over, unknown_removal};
pub(crate) use readoption::{Readopted, Returning, readopt_all};
pub use recent::Touched;
pub(crate) use recovery::{Loss, next_version};
pub use recovery::{Recovery, VersionsExhausted, restored};
pub use removal::Removed;
pub use root::{Root, StoredRoot, WrappedRoot};
pub(crate) use roots::confirm;
pub use roots::{FormerRoot, RetirementError, Roots, RotationError, retire, rotate};
pub use settings::{Settings, SettingsError, set_membership_lifetime};
pub use setup_key::{SetupKey, SetupKeyId, SetupKeyState, SetupKeyTerms};
pub(crate) use trust::some_of;
pub use trust::{NotSignable, sign_anew};

use claims::Taken;
use exclusive::Claimers;
use imbl::{HashMap, OrdMap};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nodes::Nodes;
use proto::{
    key::PublicKey,
    map::{MapVersion, Network},
    receipt::{Receipt, ReceiptKey},
    root::RootSecret,
    statement::{NetworkId, NodeId},
};
use recent::Recent;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

const NETWORK_NAME: &str = "holdfast";

/// What a cluster is made with, once.
#[derive(Debug, Clone)]
pub struct Founding {
    pub network_id: NetworkId,
    pub root: StoredRoot,
    pub network: Network,
}

/// The whole state as the database holds it.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub founding: Founding,
    pub head: Head,
    /// Above every number that a node ever had.
    pub next_node_id: NodeId,
    pub nodes: Vec<Node>,
    pub setup_keys: Vec<SetupKey>,
    pub removals: Vec<Removed>,
    /// The last time that the database went back, if it ever did.
    pub recovery: Option<Recovery>,
    /// `None`: the defaults.
    pub settings: Option<Settings>,
    /// `None`: the root was never changed.
    pub roots: Option<Roots>,
    /// `None`: nothing was ever held exclusively.
    pub holdings: Option<Holdings>,
}

/// The cluster at one revision.
#[derive(Debug, Clone)]
pub struct State {
    pub network_id: NetworkId,
    pub root: Root,
    pub network: Network,
    head: Head,
    next_node_id: NodeId,
    nodes: Nodes,
    setup_keys: OrdMap<SetupKeyId, Arc<SetupKey>>,
    /// By nodes' and setup keys' grants.
    taken: Taken,
    setup_keys_by_hash: HashMap<[u8; 32], SetupKeyId>,
    removals: OrdMap<PublicKey, Arc<Removed>>,
    /// The addresses of removed nodes.
    resting: OrdMap<Ipv4Addr, PublicKey>,
    recovery: Option<Arc<Recovery>>,
    settings: Settings,
    roots: Option<Arc<Roots>>,
    holdings: Arc<Holdings>,
    claimers: Claimers,
    recent: Recent,
}

impl Snapshot {
    /// Numbers that leave room for the next ones, in a column too.
    ///
    /// # Errors
    /// What is out of range.
    pub(crate) fn check(self) -> Result<Self, String> {
        self.check_ranges().map(|()| self)
    }

    /// As [`Self::check`].
    ///
    /// # Errors
    /// What is out of range.
    pub(crate) fn check_ranges(&self) -> Result<(), String> {
        const LIMIT: u64 = i64::MAX as u64;
        if let Some(node) = self.nodes.iter().find(|node| node.id.0 >= LIMIT) {
            return Err(format!("the number of node {} is out of range", node.id));
        }
        if let Some(key) = self.setup_keys.iter().find(|key| key.id.0 >= LIMIT || key.uses >= LIMIT) {
            return Err(format!("a number of setup key {} is out of range", key.id));
        }
        if self.roots.as_ref().is_some_and(|roots| roots.current != self.founding.root.public()) {
            return Err("its list of roots ends with another root than it holds".to_owned());
        }
        self.holdings.as_ref().map_or(Ok(()), Holdings::check)?;
        match self.next_node_id.0 >= LIMIT || self.head.version.revision >= LIMIT {
            true => Err("its counters are out of range".to_owned()),
            false => Ok(()),
        }
    }
}

impl Founding {
    /// A new cluster: root, number, and a ULA /48 of its own (RFC 4193).
    ///
    /// # Errors
    /// The system has no random source.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let (mut network_id, mut global_id) = ([0; 16], [0; 5]);
        getrandom::fill(&mut network_id)?;
        getrandom::fill(&mut global_id)?;
        let [a, b, c, d, e] = global_id.map(u16::from);
        let ula = [0xfd00 | a, b << 8 | c, d << 8 | e, 0, 0, 0, 0, 0];
        let network = Network {
            name: NETWORK_NAME.to_owned(),
            overlay_v4: Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10).into(),
            overlay_v6: Ipv6Net::new_assert(ula.into(), 48).into(),
        };
        Ok(Self {
            network_id: NetworkId(network_id),
            root: StoredRoot::Plain(RootSecret::generate()?),
            network,
        })
    }
}

impl State {
    /// A wrapped root signs nothing here.
    pub fn from_snapshot(snapshot: Snapshot) -> Self {
        let Founding { network_id, root, network } = snapshot.founding;
        let mut state = Self {
            network_id,
            root: root.into(),
            network,
            head: snapshot.head,
            next_node_id: snapshot.next_node_id,
            nodes: Nodes::default(),
            setup_keys: OrdMap::new(),
            taken: Taken::default(),
            setup_keys_by_hash: HashMap::new(),
            removals: OrdMap::new(),
            resting: OrdMap::new(),
            recovery: None,
            settings: snapshot.settings.unwrap_or_default(),
            roots: snapshot.roots.map(Arc::new),
            holdings: Arc::new(snapshot.holdings.unwrap_or_default()),
            claimers: Claimers::default(),
            recent: Recent::from(snapshot.head.version.revision),
        };
        let nodes = snapshot.nodes.into_iter().map(|node| Entity::Node(Box::new(node)));
        let keys = snapshot.setup_keys.into_iter().map(|key| Entity::SetupKey(Box::new(key)));
        let removals = snapshot.removals.into_iter().map(|removed| Entity::Removal(Box::new(removed)));
        let recovery = snapshot.recovery.map(|recovery| Entity::Recovery(Box::new(recovery)));
        nodes.chain(keys).chain(removals).chain(recovery).for_each(|entity| state.put(entity));
        state
    }

    /// The state after `change`, which must be the next of the log.
    pub fn apply(&mut self, change: &Change) {
        let key_of = |id| self.nodes.by_id(id).map(|node| node.key);
        let touched = change.ops.iter().filter_map(|op| Touched::by(op, key_of)).collect();
        // As in the tables: what goes makes room for what comes.
        for op in &change.ops {
            if let Op::Delete(id) = op {
                self.delete(*id);
            }
        }
        for op in &change.ops {
            if let Op::Put(entity) = op {
                self.put(entity.clone());
            }
        }
        if change.head.version.epoch != self.head.version.epoch {
            self.recent = Recent::from(change.head.version.revision);
        } else {
            self.recent.push(change.head.version.revision, change.head.id.mark(), touched);
        }
        self.head = change.head;
    }

    /// What one op of a change in the making does.
    fn apply_op(&mut self, op: &Op) {
        match op {
            Op::Put(entity) => self.put(entity.clone()),
            Op::Delete(id) => self.delete(*id),
        }
    }

    fn put(&mut self, entity: Entity) {
        match entity {
            Entity::Node(node) => {
                self.next_node_id = self.next_node_id.max(NodeId(node.id.0.saturating_add(1)));
                self.delete(EntityId::Node(node.id));
                self.taken.add(&node.claims);
                self.claimers.add(&node);
                self.nodes.put(*node);
            }
            Entity::SetupKey(key) => {
                self.delete(EntityId::SetupKey(key.id));
                self.taken.add(&key.claims);
                self.setup_keys_by_hash.insert(key.hash, key.id);
                self.setup_keys.insert(key.id, Arc::new(*key));
            }
            Entity::Removal(removed) => {
                self.resting.insert(removed.address_v4, removed.key);
                self.removals.insert(removed.key, Arc::new(*removed));
            }
            Entity::Recovery(recovery) => {
                self.next_node_id = self.next_node_id.max(recovery.next_node_id);
                self.recovery = Some(Arc::new(*recovery));
            }
            Entity::Settings(settings) => self.settings = *settings,
            Entity::Holdings(holdings) => self.holdings = Arc::new(*holdings),
            Entity::Roots(roots) => {
                // The secret of a new root does not come with the log.
                if roots.current != self.root.public() {
                    self.root = Root::Public(roots.current);
                }
                self.roots = Some(Arc::new(*roots));
            }
        }
    }

    fn delete(&mut self, id: EntityId) {
        match id {
            EntityId::Node(id) => {
                if let Some(node) = self.nodes.delete(id) {
                    self.taken.remove(&node.claims);
                    self.claimers.remove(&node);
                }
            }
            EntityId::SetupKey(id) => {
                if let Some(key) = self.setup_keys.remove(&id) {
                    self.setup_keys_by_hash.remove(&key.hash);
                    self.taken.remove(&key.claims);
                }
            }
            EntityId::Removal(key) => {
                if let Some(removed) = self.removals.remove(&key)
                    && self.resting.get(&removed.address_v4) == Some(&key)
                {
                    self.resting.remove(&removed.address_v4);
                }
            }
        }
    }

    pub fn version(&self) -> MapVersion {
        self.head.version
    }

    /// For agents to keep with the version; none from a process that cannot sign.
    pub fn receipt(&self) -> Receipt {
        self.receipt_key()
            .map_or_else(Receipt::default, |key| key.issue(self.head.version, self.head.id.mark()))
    }

    /// Whether a server of this cluster once was at this version.
    pub fn is_proved(&self, version: MapVersion, receipt: &Receipt) -> bool {
        self.receipt_key().is_some_and(|key| key.verifies(version, receipt))
            || self.is_proved_by_former(version, receipt)
    }

    /// Whether the change of this version is another than the one that the receipt is for: as far as this process has followed the log.
    pub(crate) fn has_forked_from(&self, version: MapVersion, receipt: &Receipt) -> bool {
        let known = match version == self.head.version {
            true => Some(self.head.id.mark()),
            false if version.epoch == self.head.version.epoch => self.recent.mark(version.revision),
            false => None,
        };
        known.is_some_and(|known| known != receipt.mark())
    }

    fn receipt_key(&self) -> Option<ReceiptKey> {
        self.root.secret().map(|root| ReceiptKey::new(self.network_id, root))
    }

    pub fn head(&self) -> Head {
        self.head
    }

    /// By number.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = &Arc<Node>> {
        self.nodes.iter()
    }

    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    pub fn node(&self, id: NodeId) -> Option<&Arc<Node>> {
        self.nodes.by_id(id)
    }

    /// Whether there was such a node and is no more. One that was enrolled on another server may not be known here yet.
    pub(crate) fn is_gone(&self, id: NodeId) -> bool {
        id < self.next_node_id && self.node(id).is_none()
    }

    pub fn node_by_key(&self, key: &PublicKey) -> Option<&Arc<Node>> {
        self.nodes.by_key(key)
    }

    pub fn node_by_name(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.by_name(name)
    }

    pub fn node_by_address(&self, address: IpAddr) -> Option<&Arc<Node>> {
        self.nodes.by_address(address)
    }

    /// The node that a person means: by name, overlay address, public key or number.
    ///
    /// # Errors
    /// There is none.
    pub fn find_node(&self, text: &str) -> Result<&Arc<Node>, NodeError> {
        let by_address = || self.node_by_address(text.parse().ok()?);
        let by_key = || self.node_by_key(&text.parse().ok()?);
        let by_id = || self.node(NodeId(text.parse().ok()?));
        let found = self.node_by_name(text).or_else(by_address).or_else(by_key).or_else(by_id);
        found.ok_or_else(|| NodeError::Unknown(text.to_owned()))
    }

    /// By number.
    pub fn setup_keys(&self) -> impl DoubleEndedIterator<Item = &Arc<SetupKey>> {
        self.setup_keys.values()
    }

    pub fn setup_key(&self, id: SetupKeyId) -> Option<&Arc<SetupKey>> {
        self.setup_keys.get(&id)
    }

    pub fn setup_key_by_hash(&self, hash: &[u8; 32]) -> Option<&Arc<SetupKey>> {
        self.setup_keys.get(self.setup_keys_by_hash.get(hash)?)
    }

    /// By node key.
    pub fn removals(&self) -> impl DoubleEndedIterator<Item = &Arc<Removed>> {
        self.removals.values()
    }

    pub fn removal(&self, key: &PublicKey) -> Option<&Arc<Removed>> {
        self.removals.get(key)
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The last time that the database went back, if it ever did.
    pub fn recovery(&self) -> Option<&Arc<Recovery>> {
        self.recovery.as_ref()
    }

    /// The objects that changed after `version`; `None`: that is too long ago, or another epoch, to know.
    pub fn changed_since(&self, version: MapVersion) -> Option<BTreeSet<Touched>> {
        match version.epoch == self.head.version.epoch {
            true => self.recent.since(version.revision),
            false => None,
        }
    }

    pub(crate) fn next_node_id(&self) -> NodeId {
        self.next_node_id
    }

    pub(crate) fn next_address(&self) -> Option<Ipv4Addr> {
        match self.network.overlay_v4 {
            IpNet::V4(prefix) => address::next_free(prefix, self),
            IpNet::V6(_) => None,
        }
    }
}

impl address::Used for State {
    fn highest(&self) -> Option<Ipv4Addr> {
        let resting = self.resting.get_max().map(|(address, _)| *address);
        let gaps = self.recovery.iter().flat_map(|recovery| &recovery.gaps);
        self.nodes.highest_v4().max(resting).max(gaps.map(|gap| gap.last).max())
    }

    fn is_owned(&self, address: Ipv4Addr) -> bool {
        self.nodes.by_v4(address).is_some() || self.taken.contains(address)
    }

    fn is_resting(&self, address: Ipv4Addr) -> bool {
        let gaps = self.recovery.iter().flat_map(|recovery| &recovery.gaps);
        self.resting.contains_key(&address) || gaps.into_iter().any(|gap| gap.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_found_by_whatever_names_it() {
        let (state, node) = testing::with_node("web");
        let texts = ["web".to_owned(), node.address_v4.to_string(), node.address_v6.to_string()];
        for text in texts.into_iter().chain([node.key.to_string(), node.id.to_string()]) {
            assert_eq!(state.find_node(&text).map(|found| found.id), Ok(node.id), "{text}");
        }
        assert!(matches!(state.find_node("nobody"), Err(NodeError::Unknown(_))));
    }

    #[test]
    fn a_state_from_a_snapshot_is_the_state_that_the_log_made() {
        let (mut state, first) = testing::with_node("a");
        testing::enrol(&mut state, "b");
        let ops = remove(&state, &first, testing::NOW);
        testing::apply(&mut state, ops);
        let snapshot = testing::snapshot(&state);
        let loaded = State::from_snapshot(snapshot);
        assert_eq!(loaded.head(), state.head());
        assert!(loaded.nodes().eq(state.nodes()));
        assert!(loaded.removals().eq(state.removals()));
        assert_eq!(loaded.next_address(), state.next_address());
        assert_eq!(loaded.next_node_id(), state.next_node_id());
        assert_eq!(loaded.settings(), state.settings());
        assert_eq!(loaded.holdings(), state.holdings());
    }

    #[test]
    fn a_change_tells_what_it_touched_and_only_within_its_epoch() {
        let (mut state, node) = testing::with_node("a");
        let before = state.version();
        let ops = remove(&state, &node, testing::NOW);
        testing::apply(&mut state, ops);
        let touched = BTreeSet::from([Touched::Node(node.key), Touched::Removal(node.key)]);
        assert_eq!(state.changed_since(before), Some(touched));
        assert_eq!(state.changed_since(state.version()), Some(BTreeSet::new()));
        assert_eq!(state.changed_since(MapVersion { epoch: 9, ..before }), None);
    }

    #[test]
    fn every_cluster_has_a_ula_of_its_own() {
        let (one, other) = (Founding::generate().unwrap(), Founding::generate().unwrap());
        assert_ne!(one.network.overlay_v6, other.network.overlay_v6);
        assert_eq!(one.network.overlay_v6.trunc(), one.network.overlay_v6);
        assert!(one.network.overlay_v6.to_string().starts_with("fd"));
    }
}
