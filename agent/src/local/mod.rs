//! What the command line and the daemon say to each other over the local socket: one JSON object per line.
//!
//! A connection carries one [`Request`]. The answer is one line: `{"error": {"code", "message"}}`, or what was asked for. `watch` is answered by a status now,
//! and another line at every change, for as long as the caller listens.

mod client;
mod render;
mod server;

pub(crate) use crate::platform::LocalStream;
pub(crate) use client::{Client, ClientError, Watch};
pub(crate) use render::{MetricsText, metrics_text};
#[cfg(any(test, fuzzing))]
pub(crate) use server::read_request;
pub(crate) use server::{Asked, Call, serve};

use crate::{capture::Source, config::Options};
use agent_core::status::Status;
use agent_tunnel::Tunnel;
use proto::setup_key::SetupKey;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};
use tokio::sync::watch;

/// The longest request, bytes.
const MAX_REQUEST: u64 = 64 * 1024;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Request {
    Status,
    /// `peers`: with the list of peers, which may be long.
    Watch {
        peers: bool,
    },
    /// Take these settings, keep them, and enrol if needed.
    Up {
        options: Options,
        setup_key: Option<SecretKey>,
    },
    /// Take these settings and keep them.
    Set {
        options: Options,
    },
    /// Leave servers and end.
    Down,
    /// Tell peers first; then as `Down`.
    Drain,
    /// Leave the network for good.
    Logout,
    /// Probe a peer once inside the tunnel.
    Ping {
        host: String,
        timeout_ms: u64,
    },
    /// Prometheus' text format; `peers`: with series of each peer.
    Metrics {
        peers: bool,
    },
    /// Copies of what goes through the tunnel, of one peer or all, each of at most `snaplen` bytes. The answer is followed
    /// by pcapng, until the caller shuts down its sending side.
    Capture {
        peer: Option<String>,
        snaplen: u32,
    },
}

/// A setup key on its way over the local socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct SecretKey(pub(crate) SetupKey);

impl TryFrom<String> for SecretKey {
    type Error = proto::Invalid;

    fn try_from(text: String) -> Result<Self, proto::Invalid> {
        text.parse().map(Self)
    }
}

impl From<SecretKey> for String {
    fn from(key: SecretKey) -> Self {
        key.0.expose()
    }
}

/// Why a request is not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    pub(crate) message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Code {
    Failed,
    Usage,
    NotEnrolled,
    /// The agent ends: its successor may be asked.
    Ending,
}

impl Refusal {
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self { code: Code::Failed, message: message.into() }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: Code::Usage, message: message.into() }
    }

    pub(crate) fn ending() -> Self {
        Self { code: Code::Ending, message: "the agent is ending".into() }
    }

    pub(crate) fn not_enrolled() -> Self {
        let message = "this node is not enrolled; run `agent up` with a setup key".into();
        Self { code: Code::NotEnrolled, message }
    }
}

/// What the event loop answers.
#[derive(Debug)]
pub(crate) enum Answer {
    Done { message: String },
    Status(Arc<Snapshot>),
    Watch(watch::Receiver<Arc<Snapshot>>),
    Pong(Pong),
    Capture(Source),
    Refused(Refusal),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) message: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pong {
    pub(crate) peer: String,
    pub(crate) rtt_ms: f64,
    /// `None`: over a relay.
    pub(crate) endpoint: Option<std::net::SocketAddr>,
}

/// The status at a moment. Traffic counters are asked of the data plane when it is rendered, off the event loop.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) status: Status,
    pub(crate) tunnel: Weak<Tunnel>,
}
