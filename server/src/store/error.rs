//! What can go wrong with a database, told apart by what the caller does about it. No text here ever holds a password.

use crate::cluster_key::UnlockError;

/// A call to the database failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It does not answer, or not in time. Trying again later may work.
    #[error("the database {location} is not available: {reason}; check that it runs and can be reached")]
    Unavailable { location: String, reason: String },
    /// A primary may come back, or another host become one.
    #[error(
        "the database {location} is read-only: a replica, or a primary that was demoted; changes wait for a primary"
    )]
    ReadOnly { location: String },
    #[error(
        "the database {location} has schema {found}, newer than the {known} of this program; update this server"
    )]
    NewerSchema { location: String, found: u32, known: u32 },
    /// Only a server brings it up to date.
    #[error(
        "the database {location} has schema {found}, older than the {known} of this program; start a server of this version first"
    )]
    OlderSchema { location: String, found: u32, known: u32 },
    #[error(
        "the database {location} holds no cluster yet; start a server on it (`server run`), or check the URL"
    )]
    NoCluster { location: String },
    /// The root cannot be used as it was asked for.
    #[error("the root key in the database {location} cannot be used: {reason}")]
    Locked { location: String, reason: UnlockError },
    /// It was migrated: what is here is read, and no longer changed.
    #[error(
        "the database {location} was moved to {to}; start the servers on that one (`server migrate --undo` takes the move back)"
    )]
    Moved { location: String, to: String },
    /// What is stored cannot be read.
    #[error("the database {location} holds what cannot be read: {reason}")]
    Corrupt { location: String, reason: String },
    #[error("the database {location} refused: {reason}")]
    Failed { location: String, reason: String },
}

impl StoreError {
    /// Whether the same call may succeed later.
    pub fn is_retriable(&self) -> bool {
        match self {
            // Once this server is started on the other database.
            Self::Unavailable { .. } | Self::ReadOnly { .. } | Self::Moved { .. } => true,
            Self::NewerSchema { .. }
            | Self::OlderSchema { .. }
            | Self::NoCluster { .. }
            | Self::Locked { .. }
            | Self::Corrupt { .. }
            | Self::Failed { .. } => false,
        }
    }

    pub(crate) fn is_read_only(&self) -> bool {
        matches!(self, Self::ReadOnly { .. })
    }

    pub(crate) fn unavailable(location: &str, reason: impl ToString) -> Self {
        Self::Unavailable { location: location.to_owned(), reason: reason.to_string() }
    }

    pub(crate) fn corrupt(location: &str, reason: impl ToString) -> Self {
        Self::Corrupt { location: location.to_owned(), reason: reason.to_string() }
    }

    pub(crate) fn failed(location: &str, reason: impl ToString) -> Self {
        Self::Failed { location: location.to_owned(), reason: reason.to_string() }
    }
}
