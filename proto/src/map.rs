//! The network map: typed objects with content hashes. Its digest is the sum of the hashes (as 256-bit numbers), so it does not depend on the order and
//! is kept up to date by one addition per change; two maps with one digest are the same, whichever servers they came from.

use crate::{
    Invalid,
    claim::Claim,
    endpoints, fixed,
    holding::Holding,
    receipt::Receipt,
    rule::{self, Rule},
    statement::NodeId,
    time::UnixTime,
    wire,
};
use blake2::{Blake2s256, Digest as _};
use ipnet::IpNet;
use prost::Message;
use std::{collections::BTreeMap, net::SocketAddr};

/// At most this many endpoints of a peer are published.
pub const MAX_ENDPOINTS: usize = 16;

/// (epoch, revision): the age of a map. An epoch is begun when the database went back in time; so maps compare by this pair.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct MapVersion {
    pub epoch: u64,
    pub revision: u64,
}

/// Which object: kinds that this code does not know are kept as numbers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    pub kind: u32,
    pub id: Vec<u8>,
}

/// BLAKE2s-256 over kind, id and content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContentHash(pub [u8; 32]);

/// The sum of the content hashes of a map, modulo 2^256.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct MapDigest([u64; 4]);

/// An object as it travels and is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub id: ObjectId,
    pub content: Vec<u8>,
}

/// What an object says, where its kind is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Peer(Peer),
    Network(Network),
    /// An encoded `Signed` removal.
    Removal(Vec<u8>),
    /// What others may open on the node whose map it is in.
    Rule(Rule),
    /// A part of a set that rules name.
    Sources(Vec<IpNet>),
    /// Who holds what is claimed exclusively.
    Holdings(Vec<Holding>),
    Unknown,
}

/// Another node, with its certificate still to be verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub node_id: NodeId,
    pub name: String,
    /// An encoded `Signed` membership.
    pub membership: Vec<u8>,
    pub endpoints: Vec<SocketAddr>,
    pub os: String,
    pub agent_version: String,
    /// When its login ends; an expired peer is never dialled.
    pub expires_at: Option<UnixTime>,
    pub ephemeral: bool,
    /// What it serves beside its own addresses, as far as its certificate grants it.
    pub claims: Vec<Claim>,
}

/// The network as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub name: String,
    pub overlay_v4: IpNet,
    pub overlay_v6: IpNet,
}

/// A step from one map to another.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Delta {
    pub version: MapVersion,
    pub digest: MapDigest,
    pub put: Vec<Object>,
    pub drop: Vec<ObjectId>,
    /// Another part of the same change follows if not set.
    pub last: bool,
    /// For the version.
    pub receipt: Receipt,
}

/// A set of objects and its digest.
#[derive(Debug, Clone, Default)]
pub struct Map {
    objects: BTreeMap<ObjectId, (ContentHash, Vec<u8>)>,
    digest: MapDigest,
    size_bytes: usize,
}

impl Object {
    pub fn new(content: &Content, id: Vec<u8>) -> Option<Self> {
        let (kind, content) = content.to_wire()?;
        Some(Self { id: ObjectId { kind: kind as u32, id }, content })
    }

    pub fn hash(&self) -> ContentHash {
        hash(&self.id, &self.content)
    }
}

fn hash(id: &ObjectId, content: &[u8]) -> ContentHash {
    let mut hasher = Blake2s256::new();
    hasher.update(id.kind.to_le_bytes());
    hasher.update((id.id.len() as u64).to_le_bytes());
    hasher.update(&id.id);
    hasher.update(content);
    ContentHash(hasher.finalize().into())
}

impl Map {
    pub fn digest(&self) -> MapDigest {
        self.digest
    }

    pub fn len(&self) -> usize {
        self.objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Of all contents.
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// Adds or replaces; returns whether the content is new.
    pub fn put(&mut self, object: Object) -> bool {
        let hash = object.hash();
        let replaced = self.content(&object.id).map_or(0, <[u8]>::len);
        self.size_bytes = self.size_bytes + object.content.len() - replaced;
        match self.objects.insert(object.id, (hash, object.content)) {
            Some((old, _)) if old == hash => false,
            old => {
                if let Some((old, _)) = old {
                    self.digest.subtract(old);
                }
                self.digest.add(hash);
                true
            }
        }
    }

    /// Returns whether it was there.
    pub fn drop(&mut self, id: &ObjectId) -> bool {
        let Some((hash, content)) = self.objects.remove(id) else { return false };
        self.size_bytes -= content.len();
        self.digest.subtract(hash);
        true
    }

    pub fn content(&self, id: &ObjectId) -> Option<&[u8]> {
        self.objects.get(id).map(|(_, content)| content.as_slice())
    }

    pub fn hash(&self, id: &ObjectId) -> Option<ContentHash> {
        self.objects.get(id).map(|(hash, _)| *hash)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&ObjectId, ContentHash, &[u8])> {
        self.objects.iter().map(|(id, (hash, content))| (id, *hash, content.as_slice()))
    }

    pub fn of_kind(&self, kind: wire::ObjectKind) -> impl Iterator<Item = (&ObjectId, &[u8])> {
        let first = |kind| ObjectId { kind, id: Vec::new() };
        let range = self.objects.range(first(kind as u32)..first(kind as u32 + 1));
        range.map(|(id, (_, content))| (id, content.as_slice()))
    }

    /// What is to be fetched against: every object with its hash.
    pub fn refs(&self) -> Vec<wire::ObjectRef> {
        self.objects.iter().map(|(id, (hash, _))| id.to_ref(Some(*hash))).collect()
    }
}

impl MapDigest {
    pub fn add(&mut self, hash: ContentHash) {
        self.combine(hash, u64::overflowing_add);
    }

    pub fn subtract(&mut self, hash: ContentHash) {
        self.combine(hash, u64::overflowing_sub);
    }

    fn combine(&mut self, hash: ContentHash, step: fn(u64, u64) -> (u64, bool)) {
        let mut carry = 0;
        for (limb, bytes) in self.0.iter_mut().zip(hash.0.chunks_exact(8)) {
            let mut word = [0; 8];
            word.copy_from_slice(bytes);
            let (value, first) = step(*limb, u64::from_le_bytes(word));
            let (value, second) = step(value, carry);
            *limb = value;
            carry = u64::from(first || second);
        }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|limb| limb.to_le_bytes()).collect()
    }

    /// # Errors
    /// Neither empty (the empty map) nor 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let bytes: [u8; 32] = fixed("digest", bytes)?;
        let mut digest = Self::default();
        digest.add(ContentHash(bytes));
        Ok(digest)
    }
}

impl std::fmt::Debug for MapDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0[0])
    }
}

impl std::fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&crate::hex::encode(&self.0[..8]))
    }
}

impl ObjectId {
    pub fn peer(key: crate::key::PublicKey) -> Self {
        Self { kind: wire::ObjectKind::Peer as u32, id: key.0.to_vec() }
    }

    pub fn removal(key: crate::key::PublicKey) -> Self {
        Self { kind: wire::ObjectKind::Removal as u32, id: key.0.to_vec() }
    }

    pub fn holdings() -> Self {
        Self { kind: wire::ObjectKind::Holdings as u32, id: Vec::new() }
    }

    pub fn network() -> Self {
        Self { kind: wire::ObjectKind::Network as u32, id: Vec::new() }
    }

    pub fn to_ref(&self, hash: Option<ContentHash>) -> wire::ObjectRef {
        let hash = hash.map_or_else(Vec::new, |hash| hash.0.to_vec());
        wire::ObjectRef { kind: self.kind, id: self.id.clone(), hash }
    }

    fn checked(kind: u32, id: Vec<u8>) -> Result<Self, Invalid> {
        match id.len() {
            0..=64 => Ok(Self { kind, id }),
            long => Err(Invalid::new("object id", format_args!("{long} bytes, at most 64"))),
        }
    }
}

impl Content {
    /// Reads the content of an object. A kind that is not known is no error.
    ///
    /// # Errors
    /// The content is not what its kind says.
    pub fn decode(id: &ObjectId, content: &[u8]) -> Result<Self, Invalid> {
        let malformed = |error| Invalid::new("object", error);
        match wire::ObjectKind::try_from(id.kind as i32) {
            Ok(wire::ObjectKind::Peer) => {
                wire::Peer::decode(content).map_err(malformed)?.try_into().map(Self::Peer)
            }
            Ok(wire::ObjectKind::Network) => {
                wire::Network::decode(content).map_err(malformed)?.try_into().map(Self::Network)
            }
            Ok(wire::ObjectKind::Removal) => Ok(Self::Removal(content.to_vec())),
            Ok(wire::ObjectKind::Rule) => {
                let rule = Rule::from_wire(wire::Rule::decode(content).map_err(malformed)?)?;
                Ok(rule.map_or(Self::Unknown, Self::Rule))
            }
            Ok(wire::ObjectKind::Sources) => {
                let sources = wire::Sources::decode(content).map_err(malformed)?;
                rule::sources_from_wire(&sources).map(Self::Sources)
            }
            Ok(wire::ObjectKind::Holdings) => {
                let holdings = wire::Holdings::decode(content).map_err(malformed)?;
                Holding::from_wire(&holdings).map(Self::Holdings)
            }
            Ok(wire::ObjectKind::Unspecified) | Err(_) => Ok(Self::Unknown),
        }
    }

    fn to_wire(&self) -> Option<(wire::ObjectKind, Vec<u8>)> {
        match self {
            Self::Peer(peer) => Some((wire::ObjectKind::Peer, peer.to_wire().encode_to_vec())),
            Self::Network(network) => Some((wire::ObjectKind::Network, network.to_wire().encode_to_vec())),
            Self::Removal(signed) => Some((wire::ObjectKind::Removal, signed.clone())),
            Self::Rule(rule) => Some((wire::ObjectKind::Rule, rule.to_wire().encode_to_vec())),
            Self::Sources(sources) => {
                Some((wire::ObjectKind::Sources, rule::sources_to_wire(sources).encode_to_vec()))
            }
            Self::Holdings(held) => {
                Some((wire::ObjectKind::Holdings, Holding::to_wire(held).encode_to_vec()))
            }
            Self::Unknown => None,
        }
    }
}

impl Peer {
    fn to_wire(&self) -> wire::Peer {
        wire::Peer {
            node_id: self.node_id.0,
            name: self.name.clone(),
            membership: self.membership.clone(),
            endpoints: self.endpoints.iter().map(ToString::to_string).collect(),
            os: self.os.clone(),
            agent_version: self.agent_version.clone(),
            expires_unix_s: UnixTime::to_wire(self.expires_at),
            ephemeral: self.ephemeral,
            claims: self.claims.iter().map(|claim| claim.to_wire()).collect(),
        }
    }
}

impl TryFrom<wire::Peer> for Peer {
    type Error = Invalid;

    fn try_from(wire: wire::Peer) -> Result<Self, Invalid> {
        // They are printed, and a server may be wrong.
        let unprintable = |text: &String| text.chars().any(char::is_control);
        let printed = [&wire.name, &wire.os, &wire.agent_version];
        if wire.name.len() > 253 || printed.into_iter().any(unprintable) {
            return Err(Invalid::new("name", "longer than 253 bytes, or with control characters"));
        }
        Ok(Self {
            node_id: NodeId(wire.node_id),
            name: wire.name,
            membership: wire.membership,
            endpoints: endpoints("endpoint", &wire.endpoints, MAX_ENDPOINTS)?,
            os: wire.os,
            agent_version: wire.agent_version,
            expires_at: UnixTime::from_wire(wire.expires_unix_s),
            ephemeral: wire.ephemeral,
            claims: Claim::from_wire(&wire.claims)?,
        })
    }
}

impl Network {
    fn to_wire(&self) -> wire::Network {
        wire::Network {
            name: self.name.clone(),
            overlay_v4: self.overlay_v4.to_string(),
            overlay_v6: self.overlay_v6.to_string(),
        }
    }
}

impl TryFrom<wire::Network> for Network {
    type Error = Invalid;

    fn try_from(wire: wire::Network) -> Result<Self, Invalid> {
        let prefix = |text: &str| text.parse().map_err(|error| Invalid::new("overlay prefix", error));
        Ok(Self {
            name: wire.name,
            overlay_v4: prefix(&wire.overlay_v4)?,
            overlay_v6: prefix(&wire.overlay_v6)?,
        })
    }
}

impl TryFrom<wire::MapDelta> for Delta {
    type Error = Invalid;

    fn try_from(wire: wire::MapDelta) -> Result<Self, Invalid> {
        let put = wire.put.into_iter().map(|object| {
            Ok(Object { id: ObjectId::checked(object.kind, object.id)?, content: object.content })
        });
        Ok(Self {
            version: MapVersion { epoch: wire.epoch, revision: wire.revision },
            digest: MapDigest::from_bytes(&wire.digest)?,
            put: put.collect::<Result<_, Invalid>>()?,
            drop: wire
                .drop
                .into_iter()
                .map(|object| ObjectId::checked(object.kind, object.id))
                .collect::<Result<_, _>>()?,
            last: wire.last,
            receipt: Receipt::from_bytes(&wire.receipt),
        })
    }
}

impl From<Delta> for wire::MapDelta {
    fn from(delta: Delta) -> Self {
        let put = delta.put.into_iter();
        Self {
            epoch: delta.version.epoch,
            revision: delta.version.revision,
            digest: delta.digest.to_bytes(),
            put: put.map(|o| wire::Object { kind: o.id.kind, id: o.id.id, content: o.content }).collect(),
            drop: delta.drop.iter().map(|id| id.to_ref(None)).collect(),
            last: delta.last,
            receipt: delta.receipt.to_bytes(),
        }
    }
}

/// The (object, hash) list that an agent sends with FetchMap.
///
/// # Errors
/// An entry has no valid id or hash.
pub fn parse_refs(refs: Vec<wire::ObjectRef>) -> Result<BTreeMap<ObjectId, ContentHash>, Invalid> {
    refs.into_iter()
        .map(|object| {
            let hash = ContentHash(fixed("object hash", &object.hash)?);
            Ok((ObjectId::checked(object.kind, object.id)?, hash))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn object(id: u8, content: u8) -> Object {
        Object { id: ObjectId { kind: 1, id: vec![id] }, content: vec![content] }
    }

    proptest! {
        #[test]
        fn the_digest_depends_on_the_content_alone(steps in prop::collection::vec((0u8..6, prop::option::of(0u8..4)), 0..40)) {
            let mut map = Map::default();
            let mut model = BTreeMap::new();
            for (id, content) in steps {
                match content {
                    Some(content) => prop_assert_eq!(map.put(object(id, content)), model.insert(id, content) != Some(content)),
                    None => prop_assert_eq!(map.drop(&object(id, 0).id), model.remove(&id).is_some()),
                }
            }
            let mut fresh = Map::default();
            for (id, content) in model.into_iter().rev() {
                fresh.put(object(id, content));
            }
            prop_assert_eq!(map.digest(), fresh.digest());
            prop_assert_eq!(MapDigest::from_bytes(&map.digest().to_bytes()).unwrap(), map.digest());
        }

        #[test]
        fn foreign_bytes_never_panic(kind in 0u32..7, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _either = Content::decode(&ObjectId { kind, id: vec![] }, &bytes);
        }
    }

    #[test]
    fn an_object_of_an_unknown_kind_is_kept_and_counted() {
        let object = Object { id: ObjectId { kind: 999, id: vec![1] }, content: vec![1, 2, 3] };
        assert_eq!(Content::decode(&object.id, &object.content), Ok(Content::Unknown));
        let mut map = Map::default();
        assert!(map.put(object));
        assert_ne!(map.digest(), MapDigest::default());
    }

    #[test]
    fn a_peer_with_a_malformed_endpoint_is_refused() {
        let wire = wire::Peer { endpoints: vec!["nowhere".into()], ..Default::default() };
        assert_eq!(Peer::try_from(wire).unwrap_err().field, "endpoint");
    }
}
