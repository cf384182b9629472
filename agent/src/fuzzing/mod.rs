//! What fuzzers call: what reads the state directory, the local socket and the command line's layers, and the decisions on what servers and peers say. The seeds in
//! `fuzz/corpus/` run as an ordinary test, too. The data plane has targets of its own (`agent_tunnel::fuzzing`), with seeds in the same place.

mod machine;

use crate::{
    cli,
    config::{self, File, Options, Settings},
    local::{self, Request},
    state_dir::State,
};
pub use machine::{conversation, map_cache, state};
use proto::{fuzzing::Target, key::NodeSecret};

/// Every target by its name: that of its binary, and of its folder in the corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("map_cache", map_cache),
    ("state", state),
    ("settings", settings),
    ("node_key", node_key),
    ("config", config),
    ("environment", environment),
    ("request", request),
    ("answer", answer),
    ("conversation", conversation),
];

/// `settings.json`: written again, it says the same.
pub fn settings(bytes: &[u8]) {
    let Ok(options) = serde_json::from_slice::<Options>(bytes) else { return };
    check_options(options);
}

fn check_options(options: Options) {
    let again = serde_json::to_vec(&options).map(|text| serde_json::from_slice::<Options>(&text).ok());
    assert_eq!(again.ok().flatten().as_ref(), Some(&options));
    let both = options.clone().or(&options);
    assert_eq!(both.servers, options.servers);
    if let Ok(settings) = Settings::resolve(options, "host".to_owned()) {
        let _config = settings.core("1".to_owned());
    }
}

/// `node.key`. What is refused is not shown.
pub fn node_key(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(secret) = NodeSecret::from_text(text) {
        let again = NodeSecret::from_text(&secret.to_text()).map(|again| again.public());
        assert_eq!(again, Ok(secret.public()));
    }
}

/// The TOML file.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(file) = File::parse(text) {
        check_options(file.options);
    }
}

/// Environment variables, a line for each. The command line is read by the same parsers.
pub fn environment(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let variable = |name: &str| {
        let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix('=')?.to_owned());
        text.lines().find_map(value)
    };
    if let Ok(options) = config::from_environment(variable) {
        check_options(options);
    }
}

/// What a caller of the local socket sends. Whatever it is, it ends in a request or a refusal.
pub fn request(mut bytes: &[u8]) {
    let mut read = std::pin::pin!(local::read_request(&mut bytes));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let std::task::Poll::Ready(request) = read.as_mut().poll(&mut context) else {
        panic!("bytes in memory are waited for");
    };
    if let Ok(request) = request {
        let again = serde_json::to_vec(&request).map(|text| serde_json::from_slice::<Request>(&text).ok());
        assert_eq!(again.ok().flatten(), Some(request));
    }
}

/// What the daemon answers to `agent status`.
pub fn answer(bytes: &[u8]) {
    let _text = cli::shown(bytes);
}

/// `state.json`, as far as this program knows its format.
fn decode_state(bytes: &[u8]) -> Option<State> {
    let state = State::decode(bytes).ok()?;
    let again = serde_json::to_vec(&state).ok().and_then(|text| State::decode(&text).ok());
    assert!(again.is_some_and(|again| again.boot == state.boot), "what was read cannot be written");
    Some(state)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_seed_is_survived() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        proto::fuzzing::replay(&corpus, super::TARGETS);
    }
}
