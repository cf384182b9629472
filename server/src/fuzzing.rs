//! What fuzzers call: one function per decoder of bytes that come from a database, a file or another server. The seeds in `fuzz/corpus/`
//! run as an ordinary test, too.

use proto::fuzzing::Target;

use crate::{
    cluster::{Node, Op, SetupKey},
    config,
    session::decode_signal,
    store::{DatabaseUrl, read_hint},
};

/// Every target by its name: that of its binary, and of its folder in the corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("change", change),
    ("config", config),
    ("database_url", database_url),
    ("hint", hint),
    ("mailbox", mailbox),
];

/// Ops and rows, as the log and the tables hold them.
pub fn change(bytes: &[u8]) {
    if let Ok(ops) = serde_json::from_slice::<Vec<Op>>(bytes) {
        let again = serde_json::to_vec(&ops).map(|text| serde_json::from_slice::<Vec<Op>>(&text).ok());
        assert_eq!(again.ok().flatten(), Some(ops));
    }
    let _either = serde_json::from_slice::<Node>(bytes);
    let _either = serde_json::from_slice::<SetupKey>(bytes);
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
