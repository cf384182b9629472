//! What Postgres and its client say, as one of our errors. The test is whether waiting helps: a database that restarts, fails over or is
//! overloaded is away; one that refuses the password is not.

use crate::store::StoreError;
use std::{error::Error, io};
use tokio_postgres::error::SqlState;

#[derive(Debug)]
pub(crate) enum PgError {
    Sql(tokio_postgres::Error),
    Unreadable(String),
    /// The cluster was migrated to there.
    Moved(String),
    /// A replica, or a primary that was demoted.
    ReadOnly,
    /// It did not answer in time.
    Silent,
    /// It ended the connection.
    Closed,
    /// Another host took over while a call waited.
    TakenOver,
}

impl From<tokio_postgres::Error> for PgError {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) {
            true => Self::ReadOnly,
            false => Self::Sql(error),
        }
    }
}

/// Never the detail of an error, which repeats values.
impl std::fmt::Display for PgError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sql(error) => f.write_str(&reason(error)),
            Self::Unreadable(reason) => f.write_str(reason),
            Self::ReadOnly => f.write_str("it is read-only"),
            Self::Silent => f.write_str("it did not answer in time"),
            Self::Closed => f.write_str("it closed the connection"),
            Self::Moved(to) => write!(f, "moved to {to}"),
            Self::TakenOver => f.write_str("another host has taken over meanwhile"),
        }
    }
}

impl PgError {
    pub(crate) fn unreadable(error: impl ToString) -> Self {
        Self::Unreadable(error.to_string())
    }

    pub(crate) fn at(self, location: &str) -> StoreError {
        match &self {
            Self::Unreadable(reason) => StoreError::corrupt(location, reason),
            Self::Moved(to) => StoreError::Moved { location: location.to_owned(), to: to.clone() },
            Self::ReadOnly => StoreError::ReadOnly { location: location.to_owned() },
            Self::Sql(error) if !is_passing(error) => StoreError::failed(location, self),
            Self::Sql(_) | Self::Silent | Self::Closed | Self::TakenOver => {
                StoreError::unavailable(location, self)
            }
        }
    }

    /// As [`Self::at`], of an error that something else wraps.
    pub(crate) fn reason_at(error: &tokio_postgres::Error, location: &str) -> StoreError {
        match is_passing(error) {
            true => StoreError::unavailable(location, reason(error)),
            false => StoreError::failed(location, reason(error)),
        }
    }

    pub(crate) fn is_of_missing_table(&self) -> bool {
        matches!(self, Self::Sql(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE))
    }

    pub(crate) fn is_read_only(&self) -> bool {
        matches!(self, Self::ReadOnly)
    }

    /// Whether waiting may help.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Sql(error) => is_passing(error),
            Self::Unreadable(_) | Self::Moved(_) => false,
            Self::ReadOnly | Self::Silent | Self::Closed | Self::TakenOver => true,
        }
    }

    /// Whether it is the connection that is of no use any more, and likely those made with it.
    pub(crate) fn is_of_connection(&self) -> bool {
        match self {
            Self::Sql(error) => match error.code() {
                Some(code) => [
                    SqlState::ADMIN_SHUTDOWN,
                    SqlState::CRASH_SHUTDOWN,
                    SqlState::CANNOT_CONNECT_NOW,
                    SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
                ]
                .contains(code),
                None => error.is_closed() || cause::<io::Error>(error).is_some(),
            },
            Self::ReadOnly | Self::Silent | Self::Closed | Self::TakenOver => true,
            Self::Unreadable(_) | Self::Moved(_) => false,
        }
    }
}

impl PgError {
    /// Whether the same call may do on another connection: nothing was waited for.
    pub(crate) fn is_of_dead_connection(&self) -> bool {
        self.is_of_connection() && !matches!(self, Self::Silent)
    }
}

fn is_passing(error: &tokio_postgres::Error) -> bool {
    const CLASSES: [&str; 3] = ["08", "53", "58"];
    let Some(code) = error.code() else { return !is_refusal(error) };
    let codes = [
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::QUERY_CANCELED,
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
    ];
    codes.contains(code) || CLASSES.iter().any(|class| code.code().starts_with(class))
}

/// What the client library refuses by itself: certificates, missing TLS, a missing password, parameters.
fn is_refusal(error: &tokio_postgres::Error) -> bool {
    if let Some(tls) = tls_cause(error) {
        return matches!(tls, rustls::Error::InvalidCertificate(_));
    }
    if error.is_closed() || cause::<io::Error>(error).is_some() {
        return false;
    }
    // The library's kinds are its own; their words are all that it shows.
    ["error performing TLS", "authentication error", "invalid configuration", "error serializing"]
        .iter()
        .any(|kind| error.to_string().starts_with(kind))
}

/// What rustls says travels inside an I/O error.
fn tls_cause(error: &tokio_postgres::Error) -> Option<&rustls::Error> {
    cause::<rustls::Error>(error)
        .or_else(|| cause::<io::Error>(error)?.get_ref()?.downcast_ref::<rustls::Error>())
}

fn cause<T: Error + 'static>(error: &tokio_postgres::Error) -> Option<&T> {
    causes(error).find_map(|error| error.downcast_ref())
}

fn causes(error: &tokio_postgres::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    let mut next = error.source();
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

fn reason(error: &tokio_postgres::Error) -> String {
    if let Some(error) = error.as_db_error() {
        return error.message().to_owned();
    }
    let mut text = error.to_string();
    for inner in causes(error) {
        let inner = inner.to_string();
        if !text.contains(&inner) {
            text = format!("{text}: {inner}");
        }
    }
    text
}
