//! The refusals of the control service: one place for what agents are told, and what to do about it.

use proto::{
    Invalid,
    auth::ProofError,
    session::{Reason, Refused},
};
use std::time::Duration;

/// When a change that found the database away may be tried again.
const DATABASE_RETRY: Duration = Duration::from_secs(2);
const DRAINING_RETRY: Duration = Duration::from_secs(1);
const TOO_FAST_RETRY: Duration = Duration::from_secs(30);

fn refused(reason: Reason, detail: impl ToString) -> Refused {
    Refused { reason, detail: detail.to_string(), retry_after: None, removal: Vec::new() }
}

pub(crate) fn proof(error: &ProofError) -> Refused {
    let reason = match error {
        ProofError::Malformed(_) => Reason::Invalid,
        ProofError::TlsTerminated => Reason::TlsTerminated,
        ProofError::Wrong(_) => Reason::BadProof,
    };
    refused(reason, error)
}

pub(crate) fn invalid(error: &Invalid) -> Refused {
    refused(Reason::Invalid, format_args!("the message is not valid: {error}"))
}

pub(crate) fn missing(what: &str) -> Refused {
    refused(Reason::Invalid, format_args!("the message is not valid: no {what}"))
}

pub(crate) fn setup_key(reason: Reason, detail: impl ToString) -> Refused {
    refused(reason, detail)
}

pub(crate) fn version(found: u32) -> Refused {
    let detail = format!(
        "protocol {found} is not spoken here, but {}; install the agent that belongs to this server's version",
        proto::PROTOCOL_VERSION
    );
    refused(Reason::Version, detail)
}

pub(crate) fn unknown_node() -> Refused {
    refused(
        Reason::UnknownNode,
        "this server does not know the node; if other servers do not either, enrol it again with a setup key",
    )
}

/// `signed` proves it.
pub(crate) fn removed(signed: &[u8]) -> Refused {
    let detail =
        "the node was removed from the network; enrol it again with a setup key if that was a mistake";
    Refused { removal: signed.to_vec(), ..refused(Reason::Removed, detail) }
}

pub(crate) fn expired() -> Refused {
    refused(Reason::Expired, "the node's login has expired; run `agent up --setup-key` with a new key")
}

pub(crate) fn stale_session() -> Refused {
    refused(
        Reason::StaleSession,
        "a newer session of this node is served; is its state directory used twice?",
    )
}

pub(crate) fn second_session() -> Refused {
    refused(Reason::Invalid, "this connection has a session already; open another connection")
}

/// It said too much for too long.
pub(crate) fn too_fast(what: &str, per_second: f64) -> Refused {
    let detail = format!(
        "this agent sends {what} faster than {per_second} a second, for a long time: it is broken, or its key is used by somebody else"
    );
    Refused { retry_after: Some(TOO_FAST_RETRY), ..refused(Reason::Full, detail) }
}

/// Its map waits, half sent.
pub(crate) fn stuck_fetch() -> Refused {
    let detail = "the agent asked for its map and does not take it";
    Refused { retry_after: Some(DATABASE_RETRY), ..refused(Reason::Full, detail) }
}

pub(crate) fn too_many_enrolments(retry_after: Duration) -> Refused {
    let detail = "too many enrolments from here were refused; check the setup key, and try again later";
    Refused { retry_after: Some(retry_after), ..refused(Reason::Full, detail) }
}

pub(crate) fn busy() -> Refused {
    let detail = "this server enrols as many nodes at once as it can; try again in a moment";
    Refused { retry_after: Some(DATABASE_RETRY), ..refused(Reason::Full, detail) }
}

/// A number that no agent ever counts to would outrank the node's real sessions for good.
pub(crate) fn session_number() -> Refused {
    refused(
        Reason::Invalid,
        "the message is not valid: the session number is beyond what an agent counts to; is the state directory damaged?",
    )
}

/// Where the database is, and what it says, is for the operator's log, not for whoever asks.
pub(crate) fn database(error: impl std::fmt::Display) -> Refused {
    tracing::debug!(%error, "a change that an agent asked for was not made");
    Refused {
        retry_after: Some(DATABASE_RETRY),
        ..refused(Reason::Database, "the servers' database is not available; try again in a moment")
    }
}

pub(crate) fn draining() -> Refused {
    Refused {
        retry_after: Some(DRAINING_RETRY),
        ..refused(Reason::Draining, "this server is shutting down; use another")
    }
}
