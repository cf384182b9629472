//! What fuzzers call: one function per decoder of foreign bytes. Each checks, beside that nothing panics, that what was read can be
//! written and read again as the same. The seeds in `fuzz/corpus/` run as an ordinary test, too: [`replay`], which other crates use for theirs.

use crate::{
    key::PublicKey,
    map::{Content, Delta, Map, Object, ObjectId, parse_refs},
    peer_message::PeerMessage,
    root::{RootKey, RootSecret},
    server_url::ServerUrl,
    session::{AgentMessage, ServerMessage},
    setup_key::{SetupKey, SetupSecret},
    statement::{NetworkId, Statement},
    wire,
};
use std::{path::Path, sync::LazyLock};

/// A decoder, and all that is checked of it.
pub type Target = fn(&[u8]);

/// Every target by its name: that of its binary, and of its folder in the corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("agent_message", agent_message),
    ("server_message", server_message),
    ("map_delta", map_delta),
    ("map_object", map_object),
    ("statement", statement),
    ("peer_message", peer_message),
    ("setup_key", setup_key),
    ("server_url", server_url),
    #[cfg(feature = "grpc")]
    ("certificates", certificates),
];

/// Runs every target over its folder of seeds in `corpus`.
///
/// # Panics
/// What a target finds; a target without seeds, and seeds without a target.
pub fn replay(corpus: &Path, targets: &[(&str, Target)]) {
    for (name, target) in targets {
        let folder = corpus.join(name);
        let seeds = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let mut seeds: Vec<_> = seeds.map(|seed| seed.path()).collect();
        assert!(!seeds.is_empty(), "no seeds in {}", folder.display());
        seeds.sort();
        for seed in seeds {
            let bytes = std::fs::read(&seed).unwrap_or_else(|error| panic!("{}: {error}", seed.display()));
            // The test's output is only shown if it panics: then the last line names the seed.
            eprintln!("{}", seed.display());
            target(&bytes);
        }
    }
}

/// Cuts an input into steps of a longer conversation: a byte that says of which kind, the length in two bytes, and so many bytes, or what is left.
pub fn steps(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let ([kind, low, high], rest) = bytes.split_first_chunk()?;
        let (step, rest) = rest.split_at(usize::from(u16::from_le_bytes([*low, *high])).min(rest.len()));
        bytes = rest;
        Some((*kind, step))
    })
}

/// What an agent says in a session, and with Enrol and FetchMap.
pub fn agent_message(bytes: &[u8]) {
    if let Ok(Ok(Some(message))) = crate::decode(bytes).map(AgentMessage::from_wire) {
        let again = message.clone().into_wire(None, "");
        assert_eq!(AgentMessage::from_wire(again), Ok(Some(message)));
    }
    let _either = crate::decode::<wire::EnrolRequest>(bytes);
    let _either = crate::decode::<wire::FetchMapRequest>(bytes).map(|request| parse_refs(request.have));
}

/// What a server says in a session, and to an Enrol.
pub fn server_message(bytes: &[u8]) {
    if let Ok(Ok(Some(message))) = crate::decode(bytes).map(ServerMessage::from_wire) {
        let again = message.clone().into_wire("");
        assert_eq!(ServerMessage::from_wire(again), Ok(Some(message)));
    }
    let _either = crate::decode::<wire::EnrolResponse>(bytes);
}

/// A part of a map, put into one.
pub fn map_delta(bytes: &[u8]) {
    let Ok(Ok(delta)) = crate::decode::<wire::MapDelta>(bytes).map(Delta::try_from) else { return };
    assert_eq!(Delta::try_from(wire::MapDelta::from(delta.clone())), Ok(delta.clone()));
    let mut map = Map::default();
    for object in delta.put {
        let _known = Content::decode(&object.id, &object.content);
        map.put(object);
    }
    for id in &delta.drop {
        map.drop(id);
    }
    assert_eq!(parse_refs(map.refs()).map(|refs| refs.len()), Ok(map.len()));
}

/// The content of one object; the first byte is its kind.
pub fn map_object(bytes: &[u8]) {
    let Some((kind, content)) = bytes.split_first() else { return };
    let id = ObjectId { kind: u32::from(*kind), id: Vec::new() };
    if let Ok(content @ (Content::Rule(_) | Content::Sources(_))) = Content::decode(&id, content) {
        let again = Object::new(&content, Vec::new()).expect("a kind that is written");
        assert_eq!(Content::decode(&again.id, &again.content), Ok(content));
    }
}

/// A signed statement as it comes in, and the same bytes as a statement that the root did sign.
pub fn statement(bytes: &[u8]) {
    static ROOT: LazyLock<(RootSecret, RootKey)> = LazyLock::new(|| {
        let root = RootSecret::from_seed(&[7; 32]);
        let public = root.public();
        (root, public)
    });
    const NETWORK: NetworkId = NetworkId([1; 16]);
    let (root, public) = &*ROOT;
    let _either = Statement::verify(bytes, NETWORK, public);
    let _either = Statement::trust(bytes);
    // A signature costs a hundred times what decoding does: only what decodes gets one.
    let Ok((network, statement)) = Statement::decode(bytes) else { return };
    assert_eq!(
        Statement::verify(&Statement::sign_bytes(bytes.to_vec(), root), network, public),
        Ok(statement.clone())
    );
    let signed = statement.sign(network, root);
    assert_eq!(Statement::trust(&signed), Ok((network, statement)));
}

/// A datagram between agents.
pub fn peer_message(bytes: &[u8]) {
    if let Ok(message) = PeerMessage::decode(bytes) {
        let again = message.encode();
        assert!(again.len() > crate::peer_message::MAX_LEN || PeerMessage::decode(&again) == Ok(message));
    }
}

/// What people paste: setup keys, their secrets, node keys.
pub fn setup_key(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(key) = text.parse::<SetupKey>() {
        assert_eq!(key.expose().parse::<SetupKey>().map(|key| key.expose()), Ok(key.expose()));
    }
    let _either = text.parse::<SetupSecret>();
    let _either = text.parse::<PublicKey>();
}

/// Addresses of servers, alone and as a list.
pub fn server_url(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(url) = text.parse::<ServerUrl>() {
        assert_eq!(url.to_string().parse(), Ok(url));
    }
    let _either = ServerUrl::parse_list(text);
}

/// A chain of certificates, each after its length in two bytes.
#[cfg(feature = "grpc")]
pub fn certificates(bytes: &[u8]) {
    let (mut chain, mut rest) = (Vec::new(), bytes);
    while let Some((length, tail)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(tail.len());
        let (certificate, tail) = tail.split_at(length);
        chain.push(certificate.to_vec().into());
        rest = tail;
    }
    crate::tls::verify_chain(&chain);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_is_survived() {
        replay(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus"), TARGETS);
    }

    #[test]
    fn steps_end_with_the_bytes_however_long_they_say_they_are() {
        let cut: Vec<_> = steps(&[1, 2, 0, 8, 9, 2, 0, 0, 3, 0xff, 0xff, 7]).collect();
        assert_eq!(cut, [(1, &[8, 9][..]), (2, &[]), (3, &[7])]);
        assert_eq!(steps(&[1, 2]).count(), 0);
    }
}
