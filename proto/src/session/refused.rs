//! Why an agent is not served.

use super::{clipped, millis};
use crate::wire;
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// Why an agent is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub reason: Reason,
    /// For people: what happened and what to do.
    pub detail: String,
    pub retry_after: Option<Duration>,
    /// An encoded `Signed` removal, with `Reason::Removed`.
    pub removal: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    UnknownNode,
    Removed,
    Expired,
    SetupKeyUnknown,
    SetupKeyUsed,
    SetupKeyExpired,
    SetupKeyRevoked,
    BadProof,
    TlsTerminated,
    Version,
    Full,
    StaleSession,
    Database,
    Invalid,
    Draining,
    /// Given by a newer server.
    Other,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl Reason {
    /// Whether the refusal is about the agent itself, so that a second server is asked before it is believed.
    pub fn is_about_the_agent(self) -> bool {
        match self {
            Self::UnknownNode
            | Self::Removed
            | Self::Expired
            | Self::SetupKeyUnknown
            | Self::SetupKeyUsed
            | Self::SetupKeyExpired
            | Self::SetupKeyRevoked => true,
            Self::BadProof
            | Self::TlsTerminated
            | Self::Version
            | Self::Full
            | Self::StaleSession
            | Self::Database
            | Self::Invalid
            | Self::Draining
            | Self::Other => false,
        }
    }

    fn to_wire(self) -> wire::refused::Reason {
        use wire::refused::Reason as W;
        match self {
            Self::UnknownNode => W::UnknownNode,
            Self::Removed => W::Removed,
            Self::Expired => W::Expired,
            Self::SetupKeyUnknown => W::SetupKeyUnknown,
            Self::SetupKeyUsed => W::SetupKeyUsed,
            Self::SetupKeyExpired => W::SetupKeyExpired,
            Self::SetupKeyRevoked => W::SetupKeyRevoked,
            Self::BadProof => W::BadProof,
            Self::TlsTerminated => W::TlsTerminated,
            Self::Version => W::Version,
            Self::Full => W::Full,
            Self::StaleSession => W::StaleSession,
            Self::Database => W::Database,
            Self::Invalid => W::Invalid,
            Self::Draining => W::Draining,
            Self::Other => W::Unspecified,
        }
    }

    fn from_wire(reason: i32) -> Self {
        use wire::refused::Reason as W;
        match W::try_from(reason) {
            Ok(W::UnknownNode) => Self::UnknownNode,
            Ok(W::Removed) => Self::Removed,
            Ok(W::Expired) => Self::Expired,
            Ok(W::SetupKeyUnknown) => Self::SetupKeyUnknown,
            Ok(W::SetupKeyUsed) => Self::SetupKeyUsed,
            Ok(W::SetupKeyExpired) => Self::SetupKeyExpired,
            Ok(W::SetupKeyRevoked) => Self::SetupKeyRevoked,
            Ok(W::BadProof) => Self::BadProof,
            Ok(W::TlsTerminated) => Self::TlsTerminated,
            Ok(W::Version) => Self::Version,
            Ok(W::Full) => Self::Full,
            Ok(W::StaleSession) => Self::StaleSession,
            Ok(W::Database) => Self::Database,
            Ok(W::Invalid) => Self::Invalid,
            Ok(W::Draining) => Self::Draining,
            Ok(W::Unspecified) | Err(_) => Self::Other,
        }
    }
}

impl From<wire::Refused> for Refused {
    fn from(wire: wire::Refused) -> Self {
        let retry_after = Duration::from_millis(wire.retry_after_ms.into());
        Self {
            reason: Reason::from_wire(wire.reason),
            detail: clipped(wire.detail),
            retry_after: (!retry_after.is_zero()).then_some(retry_after),
            removal: wire.removal,
        }
    }
}

impl From<Refused> for wire::Refused {
    fn from(refused: Refused) -> Self {
        Self {
            reason: refused.reason.to_wire().into(),
            detail: refused.detail,
            retry_after_ms: refused.retry_after.map_or(0, millis),
            removal: refused.removal,
        }
    }
}
