//! Where a Postgres is: several hosts, one database. What libpq's URL says is understood, and `sslmode=verify-full` with `sslrootcert` besides, which the client library
//! does not know. Printed, it shows hosts, user and database, never the password.

use crate::store::InvalidDatabaseUrl;
use std::{fmt, path::PathBuf, str::FromStr, time::Duration};
use tokio_postgres::config::{Config, Host, SslMode, TargetSessionAttrs};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A host that takes data and acknowledges nothing is given up after this.
const USER_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE: Duration = Duration::from_secs(5);
const DEFAULT_PORT: u16 = 5432;

/// How the connection is protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tls {
    /// As the mode of `Config` says; nobody's certificate is verified, as with libpq.
    Unverified,
    /// Host name and certificate are verified under the roots in this file.
    Verified(PathBuf),
}

#[derive(Clone)]
pub struct Target {
    pub(crate) config: Config,
    pub(crate) tls: Tls,
}

impl FromStr for Target {
    type Err = InvalidDatabaseUrl;

    fn from_str(text: &str) -> Result<Self, InvalidDatabaseUrl> {
        let (url, tls) = take_tls_options(text)?;
        // The library's message names the part and never repeats a value; its source might.
        let mut config: Config = url.parse().map_err(|_| InvalidDatabaseUrl::new("it cannot be parsed"))?;
        if config.get_hosts().is_empty() {
            return Err(InvalidDatabaseUrl::new("it names no host"));
        }
        config.application_name("holdfast");
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        config.tcp_user_timeout(USER_TIMEOUT).keepalives_idle(KEEPALIVE);
        if config.get_target_session_attrs() == TargetSessionAttrs::Any {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        if let Tls::Verified(_) = tls {
            config.ssl_mode(SslMode::Require);
        }
        Ok(Self { config, tls })
    }
}

/// Takes out what only this program understands; the rest is the library's.
fn take_tls_options(text: &str) -> Result<(String, Tls), InvalidDatabaseUrl> {
    let Some((base, query)) = text.split_once('?') else { return Ok((text.to_owned(), Tls::Unverified)) };
    let (mut kept, mut is_verified, mut roots) = (Vec::new(), false, None);
    for option in query.split('&') {
        match option.split_once('=') {
            Some(("sslmode", "verify-full")) => is_verified = true,
            Some(("sslmode", "verify-ca" | "allow")) => {
                let known = "sslmode is one of disable, prefer, require, verify-full";
                return Err(InvalidDatabaseUrl::new(known));
            }
            Some(("sslrootcert", path)) => roots = Some(PathBuf::from(path)),
            Some(_) | None => kept.push(option),
        }
    }
    let tls = match (is_verified, roots) {
        (true, Some(roots)) => Tls::Verified(roots),
        (false, None) => Tls::Unverified,
        (true, None) => return Err(InvalidDatabaseUrl::new("sslmode=verify-full needs sslrootcert=FILE")),
        (false, Some(_)) => return Err(InvalidDatabaseUrl::new("sslrootcert needs sslmode=verify-full")),
    };
    Ok((format!("{base}?{}", kept.join("&")), tls))
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgres://")?;
        if let Some(user) = self.config.get_user() {
            write!(f, "{user}@")?;
        }
        let ports = self.config.get_ports();
        for (index, host) in self.config.get_hosts().iter().enumerate() {
            let port = ports.get(index).or(ports.first()).copied().unwrap_or(DEFAULT_PORT);
            f.write_str(if index == 0 { "" } else { "," })?;
            match host {
                Host::Tcp(name) => write!(f, "{name}:{port}")?,
                #[cfg(unix)]
                Host::Unix(directory) => write!(f, "{}:{port}", directory.display())?,
            }
        }
        write!(f, "/{}", self.config.get_dbname().unwrap_or_default())
    }
}
