//! From the cluster's state to the maps of its nodes.
//!
//! The objects of all maps are encoded and hashed once per change, into an [`Atlas`]: a persistent map that every session shares, with
//! the digest of all of it. What one node sees is worked out from that, never copied: for now everybody sees everybody but itself, so
//! its digest is the atlas's less one hash. [`Atlas::seen_by`] is the one place where policy will say otherwise.

use crate::cluster::{Node, State, Touched};
use imbl::{OrdMap, ordmap::DiffItem};
use proto::{
    key::PublicKey,
    map::{Content, ContentHash, Delta, MapDigest, MapVersion, Object, ObjectId, Peer},
    receipt::Receipt,
    rule::Rule,
};
use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

/// Of the one rule that there is without policies.
const DEFAULT_RULE: &[u8] = b"default";

/// An encoded object.
#[derive(Clone)]
struct Encoded {
    hash: ContentHash,
    content: Arc<[u8]>,
}

impl PartialEq for Encoded {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

/// Every object of the cluster at one version.
#[derive(Clone, Default)]
pub(crate) struct Atlas {
    version: MapVersion,
    receipt: Receipt,
    objects: OrdMap<ObjectId, Encoded>,
    digest: MapDigest,
}

impl Atlas {
    pub(crate) fn of(state: &State) -> Self {
        let mut atlas = Self { version: state.version(), receipt: state.receipt(), ..Self::default() };
        atlas.put(ObjectId::network(), Content::Network(state.network.clone()));
        atlas.put(ObjectId::rule(DEFAULT_RULE.to_vec()), default_rule());
        atlas.put_holdings(state);
        state.nodes().for_each(|node| atlas.put(ObjectId::peer(node.key), peer(state, node)));
        state.removals().for_each(|removed| {
            atlas.put(ObjectId::removal(removed.key), Content::Removal(removed.signed.clone()));
        });
        atlas
    }

    /// The atlas of `state`, made from this one where the state still knows what changed.
    pub(crate) fn advanced(&self, state: &State) -> Self {
        let Some(changed) = state.changed_since(self.version) else { return Self::of(state) };
        let mut atlas = Self { version: state.version(), receipt: state.receipt(), ..self.clone() };
        for touched in changed {
            let content = match touched {
                Touched::Holdings => holdings(state),
                Touched::Node(key) => state.node_by_key(&key).map(|node| peer(state, node)),
                Touched::Removal(key) => {
                    state.removal(&key).map(|removed| Content::Removal(removed.signed.clone()))
                }
            };
            match content {
                Some(content) => atlas.put(touched.object_id(), content),
                None => atlas.drop(&touched.object_id()),
            }
        }
        atlas
    }

    pub(crate) fn version(&self) -> MapVersion {
        self.version
    }

    pub(crate) fn object_count(&self) -> usize {
        self.objects.len()
    }

    /// What the node with this key sees.
    pub(crate) fn seen_by(&self, node: PublicKey) -> NodeMap<'_> {
        NodeMap { atlas: self, own: ObjectId::peer(node) }
    }

    fn put_holdings(&mut self, state: &State) {
        if let Some(content) = holdings(state) {
            self.put(ObjectId::holdings(), content);
        }
    }

    fn put(&mut self, id: ObjectId, content: Content) {
        let Some(object) = Object::new(&content, id.id) else { return };
        let hash = object.hash();
        self.digest.add(hash);
        let encoded = Encoded { hash, content: object.content.into() };
        if let Some(old) = self.objects.insert(object.id, encoded) {
            self.digest.subtract(old.hash);
        }
    }

    fn drop(&mut self, id: &ObjectId) {
        if let Some(old) = self.objects.remove(id) {
            self.digest.subtract(old.hash);
        }
    }
}

/// Without policies: everybody may open everything.
fn default_rule() -> Content {
    Content::Rule(Rule::all())
}

/// Nothing where nothing was ever held: older agents need not know of it.
fn holdings(state: &State) -> Option<Content> {
    let held = state.holdings().held();
    (!held.is_empty()).then(|| Content::Holdings(held.to_vec()))
}

fn peer(state: &State, node: &Node) -> Content {
    Content::Peer(Peer {
        node_id: node.id,
        name: node.name.clone(),
        membership: node.membership.clone(),
        endpoints: node.endpoints.clone(),
        os: node.facts.os.clone(),
        agent_version: node.facts.agent_version.clone(),
        expires_at: node.expires_at,
        ephemeral: node.ephemeral,
        claims: node.granted_claims(state).collect(),
    })
}

/// A node's map.
pub(crate) struct NodeMap<'a> {
    atlas: &'a Atlas,
    own: ObjectId,
}

/// A part of a map, and where the next one begins.
pub(crate) struct Chunk {
    pub(crate) delta: Delta,
    pub(crate) end: Option<ObjectId>,
}

impl NodeMap<'_> {
    pub(crate) fn digest(&self) -> MapDigest {
        let mut digest = self.atlas.digest;
        if let Some(own) = self.atlas.objects.get(&self.own) {
            digest.subtract(own.hash);
        }
        digest
    }

    /// The step from `before` to this map, if it is one and its objects take up less than `limit_bytes`.
    pub(crate) fn step_from(&self, before: &Atlas, limit_bytes: usize) -> Step {
        let mut delta = self.empty_delta(true);
        let mut size = 0;
        let changes = before.objects.diff(&self.atlas.objects);
        for change in changes {
            match change {
                DiffItem::Add(id, _) | DiffItem::Update { new: (id, _), .. } | DiffItem::Remove(id, _)
                    if *id == self.own => {}
                DiffItem::Add(id, encoded) | DiffItem::Update { new: (id, encoded), .. } => {
                    size += size_of(id, &encoded.content);
                    delta.put.push(object(id, encoded));
                }
                DiffItem::Remove(id, _) => {
                    size += size_of(id, &[]);
                    delta.drop.push(id.clone());
                }
            }
            if size > limit_bytes {
                return Step::TooLarge;
            }
        }
        match delta.put.is_empty() && delta.drop.is_empty() {
            true => Step::None,
            false => Step::Delta(delta),
        }
    }

    /// What comes after `after` and is not in `have`, up to about `limit_bytes`. The last chunk also drops what `have` has too much.
    pub(crate) fn chunk(
        &self,
        after: Option<&ObjectId>,
        have: &BTreeMap<ObjectId, ContentHash>,
        limit_bytes: usize,
    ) -> Chunk {
        let mut delta = self.empty_delta(false);
        let mut size = 0;
        let start = after.map_or(Unbounded, Excluded);
        for (id, encoded) in self.atlas.objects.range::<_, ObjectId>((start, Unbounded)) {
            if *id == self.own || have.get(id) == Some(&encoded.hash) {
                continue;
            }
            size += size_of(id, &encoded.content);
            delta.put.push(object(id, encoded));
            if size >= limit_bytes {
                return Chunk { delta, end: Some(id.clone()) };
            }
        }
        let gone = |id: &&ObjectId| **id == self.own || !self.atlas.objects.contains_key(*id);
        delta.drop = have.keys().filter(gone).cloned().collect();
        delta.last = true;
        Chunk { delta, end: None }
    }

    fn empty_delta(&self, last: bool) -> Delta {
        let Atlas { version, receipt, .. } = *self.atlas;
        Delta { version, digest: self.digest(), put: Vec::new(), drop: Vec::new(), last, receipt }
    }
}

/// What leads from one map to the next.
pub(crate) enum Step {
    /// They are the same to this node.
    None,
    Delta(Delta),
    /// Better fetched.
    TooLarge,
}

fn object(id: &ObjectId, encoded: &Encoded) -> Object {
    Object { id: id.clone(), content: encoded.content.to_vec() }
}

/// About what an object takes on the wire.
fn size_of(id: &ObjectId, content: &[u8]) -> usize {
    id.id.len() + content.len() + 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{remove, rename, testing};
    use proptest::prelude::*;
    use proto::map::Map;

    const LARGE: usize = 1 << 30;

    fn fetched(atlas: &Atlas, node: PublicKey, from: &Map, limit: usize) -> Map {
        let have = proto::map::parse_refs(from.refs()).unwrap();
        let (mut map, mut after) = (from.clone(), None);
        loop {
            let chunk = atlas.seen_by(node).chunk(after.as_ref(), &have, limit);
            let last = chunk.delta.last;
            apply(&mut map, chunk.delta);
            after = chunk.end;
            assert_eq!(after.is_none(), last);
            if last {
                return map;
            }
        }
    }

    fn apply(map: &mut Map, delta: Delta) {
        delta.put.into_iter().for_each(|object| assert!(map.put(object), "an object that was there"));
        delta.drop.iter().for_each(|id| assert!(map.drop(id), "dropped what was not there"));
    }

    proptest! {
        #[test]
        fn steps_and_fetches_lead_to_the_same_map(steps in prop::collection::vec((0u8..4, 0u8..6), 1..30), limit in 1usize..2000) {
            let (mut state, own) = testing::with_node("own");
            let mut atlas = Atlas::of(&state);
            let mut live = fetched(&atlas, own.key, &Map::default(), LARGE);
            for (what, which) in steps {
                let others: Vec<_> = state.nodes().filter(|node| node.id != own.id).cloned().collect();
                let ops = match (what, others.get(usize::from(which))) {
                    (0, Some(node)) => rename(&state, node, &format!("n{which}-{}", state.version().revision), testing::NOW).unwrap(),
                    (1, Some(node)) => remove(&state, node, testing::NOW),
                    (2, _) => rename(&state, state.node(own.id).unwrap(), &format!("own{}", state.version().revision), testing::NOW).unwrap(),
                    (_, _) => {
                        testing::enrol(&mut state, "other");
                        Vec::new()
                    }
                };
                testing::apply(&mut state, ops);
                let next = atlas.advanced(&state);
                prop_assert_eq!(next.digest, Atlas::of(&state).digest);
                match next.seen_by(own.key).step_from(&atlas, LARGE) {
                    Step::Delta(delta) => {
                        let digest = delta.digest;
                        apply(&mut live, delta);
                        prop_assert_eq!(live.digest(), digest);
                    }
                    Step::None => prop_assert_eq!(live.digest(), next.seen_by(own.key).digest()),
                    Step::TooLarge => prop_assert!(false, "too large"),
                }
                atlas = next;
            }
            let map = fetched(&atlas, own.key, &Map::default(), limit);
            prop_assert_eq!(map.digest(), live.digest());
            prop_assert!(map.content(&ObjectId::peer(own.key)).is_none());
        }
    }

    #[test]
    fn a_fetch_sends_only_what_differs_and_drops_what_is_gone() {
        let (mut state, own) = testing::with_node("own");
        let gone = testing::enrol(&mut state, "gone");
        testing::enrol(&mut state, "stays");
        let old = fetched(&Atlas::of(&state), own.key, &Map::default(), LARGE);
        let ops = remove(&state, &gone, testing::NOW);
        testing::apply(&mut state, ops);
        let atlas = Atlas::of(&state);
        let have = proto::map::parse_refs(old.refs()).unwrap();
        let chunk = atlas.seen_by(own.key).chunk(None, &have, LARGE);
        assert_eq!(chunk.delta.drop, [ObjectId::peer(gone.key)]);
        assert_eq!(chunk.delta.put.len(), 1, "the removal alone");
        assert!(chunk.delta.last);
    }

    #[test]
    fn without_policies_every_member_may_open_everything_everywhere() {
        let (state, own) = testing::with_node("own");
        let map = fetched(&Atlas::of(&state), own.key, &Map::default(), LARGE);
        let rules: Vec<_> = map.of_kind(proto::wire::ObjectKind::Rule).collect();
        let [(id, content)] = rules[..] else { panic!("{} rules", rules.len()) };
        assert_eq!(Content::decode(id, content), Ok(Content::Rule(Rule::all())));
    }

    #[test]
    fn a_large_step_is_left_to_a_fetch() {
        let (mut state, own) = testing::with_node("own");
        let before = Atlas::of(&state);
        testing::enrol(&mut state, "other");
        let after = before.advanced(&state);
        assert!(matches!(after.seen_by(own.key).step_from(&before, 10), Step::TooLarge));
    }
}
