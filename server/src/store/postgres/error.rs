//! What Postgres and its client say, as one of our errors. The test is whether waiting helps: a database that restarts, fails over or is
//! overloaded is away; one that refuses the password is not.

use crate::store::StoreError;
use tokio_postgres::error::SqlState;

#[derive(Debug, thiserror::Error)]
pub(crate) enum PgError {
    #[error(transparent)]
    Sql(#[from] tokio_postgres::Error),
    #[error("{0}")]
    Unreadable(String),
    #[error("moved to {0}")]
    Moved(String),
}

impl PgError {
    pub(crate) fn unreadable(error: impl ToString) -> Self {
        Self::Unreadable(error.to_string())
    }

    pub(crate) fn at(self, location: &str) -> StoreError {
        match &self {
            Self::Unreadable(reason) => StoreError::corrupt(location, reason),
            Self::Moved(to) => StoreError::Moved { location: location.to_owned(), to: to.clone() },
            Self::Sql(error) if is_passing(error) => StoreError::unavailable(location, reason(error)),
            Self::Sql(error) => StoreError::failed(location, reason(error)),
        }
    }
}

fn is_passing(error: &tokio_postgres::Error) -> bool {
    const CLASSES: [&str; 3] = ["08", "53", "58"];
    let Some(code) = error.code() else { return true };
    let codes = [
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::QUERY_CANCELED,
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
        SqlState::READ_ONLY_SQL_TRANSACTION,
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
    ];
    codes.contains(code) || CLASSES.iter().any(|class| code.code().starts_with(class))
}

/// Never the detail of an error, which repeats values.
fn reason(error: &tokio_postgres::Error) -> String {
    if let Some(error) = error.as_db_error() {
        return error.message().to_owned();
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}
