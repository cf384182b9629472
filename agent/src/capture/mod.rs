//! Captures of what goes through a tunnel, decrypted: from the data plane's copies to a stream of pcapng blocks for one caller.
//!
//! The data plane never waits: copies go into a [`queue`] that is bounded in bytes, and what it cannot take is counted. The
//! stream ends with the count. Whoever shuts down his sending side asks for the end; one who goes away ends it, too.

pub(crate) mod pcapng;
mod queue;
mod stream;

use agent_tunnel::{PublicKey, Tunnel, capture::Wanted};
use std::{collections::HashMap, sync::Weak};
pub(crate) use stream::stream;

/// Whole packets.
pub(crate) const DEFAULT_SNAPLEN: u32 = 262_144;

/// What is to be streamed, and how it is labelled.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) tunnel: Weak<Tunnel>,
    pub(crate) wanted: Wanted,
    pub(crate) names: Names,
}

/// What people call the peers; one without a name is called by its key.
#[derive(Debug, Default)]
pub(crate) struct Names(pub(crate) HashMap<[u8; 32], String>);

impl Names {
    fn of(&self, key: &PublicKey) -> String {
        self.0.get(&key.0).cloned().unwrap_or_else(|| key.to_string())
    }
}

/// Why nothing is captured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaptureError {
    #[error("there is no tunnel to look into")]
    NoTunnel,
    #[error("{} captures run already: end one of them first", agent_tunnel::capture::MAX_CAPTURES)]
    TooMany,
}
