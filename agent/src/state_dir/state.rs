//! `state.json`: what the daemon must not forget, beside what the core keeps.

use agent_core::Saved;
use proto::root::Fingerprint;
use serde::{Deserialize, Serialize};
use std::time::{SystemTime, UNIX_EPOCH};

/// Raised when older programs could not read it any more.
const FORMAT: u32 = 1;

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct State {
    format: u32,
    /// Counts the starts of the agent, so that servers and peers tell a new start from an old one.
    pub(crate) boot: u64,
    pub(crate) core: Saved,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("it was written by a newer program (format {0})")]
    Newer(u32),
    #[error("damaged: {0}")]
    Damaged(#[from] serde_json::Error),
}

impl State {
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        match serde_json::from_slice(bytes)? {
            Format { format: FORMAT } => Ok(serde_json::from_slice(bytes)?),
            Format { format } => Err(StateError::Newer(format)),
        }
    }

    /// The state of a node that no server knows.
    pub(crate) fn fresh() -> Self {
        Self { format: FORMAT, boot: 0, core: Saved::default() }
    }

    /// The state for the next start. Its boot number is above all that were used, even if the file that counted them is
    /// lost later: at least the seconds since 1970.
    pub(crate) fn started(mut self) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.boot = wall.max(self.boot + 1);
        self
    }

    /// The state of the same start, whose number servers made us raise.
    pub(crate) fn counted(self, boot: u64) -> Self {
        Self { boot: boot.max(self.boot), ..self }
    }

    /// The state of the same start with what the core keeps by now.
    pub(crate) fn with(&self, core: Saved) -> Self {
        Self { format: FORMAT, boot: self.boot, core }
    }

    /// The newest root of the network that it is of.
    pub(crate) fn root(&self) -> Option<Fingerprint> {
        self.core.pins().map(|pins| pins.newest)
    }

    /// The state without a network.
    pub(crate) fn left(&self) -> Self {
        self.with(Saved::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_survives_its_file_and_counts_starts() {
        let mut first = State::fresh().started();
        // Later than any clock: starts are counted all the same.
        first.boot += 1 << 32;
        let bytes = serde_json::to_vec(&first).unwrap();
        let second = State::decode(&bytes).unwrap().started();
        assert_eq!(second.boot, first.boot + 1);
    }

    #[test]
    fn a_start_without_the_earlier_state_is_numbered_above_all_starts_with_it() {
        let mut early = State::fresh();
        early.boot = 7;
        let with = early.started().boot;
        assert!(with > 1_700_000_000 && State::fresh().started().boot >= with);
    }

    #[test]
    fn a_newer_or_damaged_state_is_told_apart() {
        assert!(matches!(State::decode(br#"{"format":2,"else":1}"#), Err(StateError::Newer(2))));
        for damage in [&b""[..], b"{}", b"{\"format\":1}", b"\xff"] {
            assert!(matches!(State::decode(damage), Err(StateError::Damaged(_))));
        }
    }
}
