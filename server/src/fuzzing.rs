//! What fuzzers call: one function per decoder of bytes that come from a database, a file or another server. The seeds in `fuzz/corpus/`
//! run as an ordinary test, too.

use crate::{
    backup,
    cluster::{Actor, Change, ChangeId, Founding, Head, Node, Op, Settings, SetupKey, Snapshot, State},
    config,
    map::Atlas,
    session::decode_signal,
    store::{DatabaseUrl, read_hint, readable_report, readable_urls},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use blake2::{Blake2s256, Digest};
use proto::{fuzzing::Target, map::MapVersion, statement::NodeId, time::UnixTime};
use std::sync::LazyLock;

/// Every target by its name: that of its binary, and of its folder in the corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("backup", backup),
    ("change", change),
    ("config", config),
    ("database_url", database_url),
    ("hint", hint),
    ("mailbox", mailbox),
    ("server_row", server_row),
];

/// A cluster of nobody, as of its first revision.
static STATE: LazyLock<State> = LazyLock::new(|| {
    let founding = Founding::generate().expect("a random source");
    State::from_snapshot(Snapshot {
        founding,
        head: head(1),
        next_node_id: NodeId(1),
        nodes: Vec::new(),
        setup_keys: Vec::new(),
        removals: Vec::new(),
        recovery: None,
        settings: None,
        roots: None,
        holdings: None,
    })
});

fn head(revision: u64) -> Head {
    Head { version: MapVersion { epoch: 1, revision }, id: ChangeId([revision as u8; 16]) }
}

/// Ops and rows, as the log and the tables hold them; and a server that follows such a log.
pub fn change(bytes: &[u8]) {
    if let Ok(ops) = serde_json::from_slice::<Vec<Op>>(bytes) {
        let again = serde_json::to_vec(&ops).map(|text| serde_json::from_slice::<Vec<Op>>(&text).ok());
        assert_eq!(again.ok().flatten().as_ref(), Some(&ops));
        let mut state = STATE.clone();
        let atlas = Atlas::of(&state);
        state.apply(&Change { head: head(2), at: UnixTime(1), actor: Actor::CommandLine, ops });
        let _atlas = atlas.advanced(&state);
    }
    let _either = serde_json::from_slice::<Node>(bytes);
    let _either = serde_json::from_slice::<SetupKey>(bytes);
    let _either = serde_json::from_slice::<Settings>(bytes).map(|settings| settings.is_valid());
}

/// A backup: as it is, and as if its checksum were right.
pub fn backup(bytes: &[u8]) {
    let _either = backup::read(bytes);
    let lines = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let checksum = STANDARD.encode(Blake2s256::digest(&bytes[..lines]));
    let trailer = format!("{{\"end\":{{\"checksum\":\"{checksum}\"}}}}\n");
    if let Ok(backup) = backup::read(&[&bytes[..lines], trailer.as_bytes()].concat()[..]) {
        let _state = State::from_snapshot(backup.snapshot);
    }
}

/// What another server says of itself in its row: what cannot be read hides nothing else.
pub fn server_row(bytes: &[u8]) {
    let Ok(stored) = serde_json::from_slice::<serde_json::Value>(bytes) else { return };
    let urls = readable_urls(stored.clone());
    assert!(urls.len() <= stored.as_array().map_or(0, Vec::len));
    let _report = readable_report(stored);
}

/// The TOML file of options.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _either = config::check_file(text);
}

/// What `--database` takes. Whatever it is, no password is printed.
pub fn database_url(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match text.parse::<DatabaseUrl>() {
        Ok(url) => drop(url.to_string()),
        Err(error) => drop(error.to_string()),
    }
}

/// The payload of a notification.
pub fn hint(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _hint = read_hint(text);
    }
}

/// A signal in a server's mailbox.
pub fn mailbox(bytes: &[u8]) {
    let _signal = decode_signal(bytes);
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_seed_is_survived() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        proto::fuzzing::replay(&corpus, super::TARGETS);
    }
}
