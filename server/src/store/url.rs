//! What `--database` takes: `sqlite:PATH`, or `postgres://user:password@host1,host2/database?..`. Printed, it never shows the password.

use crate::store::postgres::Target;
use std::{fmt, path::PathBuf, str::FromStr};

/// Where the cluster is kept.
#[derive(Clone)]
pub enum DatabaseUrl {
    Sqlite(PathBuf),
    Postgres(Box<Target>),
}

/// A text that names no database. It does not repeat the text, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the database URL is not valid: {reason}; expected sqlite:PATH or postgres://user@host1,host2/database"
)]
pub struct InvalidDatabaseUrl {
    reason: String,
}

impl InvalidDatabaseUrl {
    pub(crate) fn new(reason: impl ToString) -> Self {
        Self { reason: reason.to_string() }
    }
}

impl FromStr for DatabaseUrl {
    type Err = InvalidDatabaseUrl;

    fn from_str(text: &str) -> Result<Self, InvalidDatabaseUrl> {
        let text = text.trim();
        match text.split_once(':') {
            Some(("sqlite", path)) => sqlite_path(path).map(Self::Sqlite),
            Some(("postgres" | "postgresql", _)) => {
                text.parse().map(|target| Self::Postgres(Box::new(target)))
            }
            Some((scheme, _)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                Err(InvalidDatabaseUrl::new(format_args!("databases of kind {scheme:?} are not supported")))
            }
            None | Some(_) => Err(InvalidDatabaseUrl::new("it names no kind of database")),
        }
    }
}

/// `sqlite:PATH` and `sqlite:///absolute/path` are both seen in the wild.
fn sqlite_path(path: &str) -> Result<PathBuf, InvalidDatabaseUrl> {
    let path = path.strip_prefix("//").unwrap_or(path);
    match path {
        "" => Err(InvalidDatabaseUrl::new("the path of the SQLite file is empty")),
        ":memory:" => {
            Err(InvalidDatabaseUrl::new("a database in memory would forget the cluster; name a file"))
        }
        path => Ok(PathBuf::from(path)),
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(target) => target.fmt(f),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_databases_are_named_by_a_url() {
        for (text, shown) in [
            ("sqlite:/var/lib/x.db", "sqlite:/var/lib/x.db"),
            ("sqlite:///var/lib/x.db", "sqlite:/var/lib/x.db"),
            ("sqlite:x.db", "sqlite:x.db"),
            ("postgres://me:secret@a,b:5433/mesh", "postgres://me@a:5432,b:5433/mesh"),
            ("postgresql://me@a/mesh?sslmode=require", "postgres://me@a:5432/mesh"),
        ] {
            assert_eq!(text.parse::<DatabaseUrl>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_database_is_refused_without_repeating_a_password() {
        for text in [
            "",
            "sqlite:",
            "sqlite::memory:",
            "mysql://me:secret@a/b",
            "/var/lib/x.db",
            "postgres://me:secret@a:port/b",
            "postgres://me:secret@a/b?nonsense=1",
            "postgres://me:secret@/",
            "postgres://me:secret@a/b?sslmode=secret",
        ] {
            let error = text.parse::<DatabaseUrl>().unwrap_err().to_string();
            assert!(!error.contains("secret"), "{text}: {error}");
        }
    }
}
