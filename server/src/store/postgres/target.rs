//! Where a Postgres is: several hosts, one database. What libpq's URL says is understood, and `sslmode=verify-full` with `sslrootcert` besides, which the client library
//! does not know. Printed, it shows hosts, user and database, never the password.

use crate::store::InvalidDatabaseUrl;
use percent_encoding::percent_decode_str;
use std::{fmt, path::PathBuf, str::FromStr, time::Duration};
use tokio_postgres::config::{Config, Host, SslMode, TargetSessionAttrs};

/// To the TCP connection, for each address of a host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A host that takes data and acknowledges nothing is given up after this.
const USER_TIMEOUT: Duration = Duration::from_secs(5);
/// An idle connection to a host that is gone is found after 2 s and 3 times 1 s.
const KEEPALIVE: Duration = Duration::from_secs(2);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEPALIVE_RETRIES: u32 = 3;
const DEFAULT_PORT: u16 = 5432;
const POOL_SIZE: usize = 8;

/// How the connection is protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tls {
    /// As the mode of `Config` says; nobody's certificate is verified, as with libpq.
    Unverified,
    /// The certificate is verified under the roots in this file, whatever host it names.
    Issued(PathBuf),
    /// Host name and certificate are verified under the roots in this file.
    Verified(PathBuf),
}

#[derive(Clone)]
pub struct Target {
    pub(crate) config: Config,
    pub(crate) tls: Tls,
    /// Connections for everything but the lease, the log and listening.
    pub(crate) pool_size: usize,
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
        if config.get_target_session_attrs() == TargetSessionAttrs::ReadOnly {
            let reason = "target_session_attrs=read-only cannot be used: servers write; leave it out, or say read-write";
            return Err(InvalidDatabaseUrl::new(reason));
        }
        if tls != Tls::Unverified {
            config.ssl_mode(SslMode::Require);
        }
        let target = Self { config, tls, pool_size: POOL_SIZE };
        target.each()?;
        Ok(target)
    }
}

/// Takes out what only this program understands; the rest is the library's.
fn take_tls_options(text: &str) -> Result<(String, Tls), InvalidDatabaseUrl> {
    let Some((base, query)) = text.split_once('?') else { return Ok((text.to_owned(), Tls::Unverified)) };
    let (mut kept, mut mode, mut roots) = (Vec::new(), "", None);
    for option in query.split('&') {
        match option.split_once('=') {
            Some(("sslmode", verified @ ("verify-full" | "verify-ca"))) => mode = verified,
            Some(("sslmode", "require")) => {
                mode = "require";
                kept.push(option);
            }
            Some(("sslmode", "allow")) => {
                let known = "sslmode is one of disable, prefer, require, verify-ca, verify-full";
                return Err(InvalidDatabaseUrl::new(known));
            }
            Some(("sslrootcert", path)) => {
                let path = percent_decode_str(path).decode_utf8();
                let path = path.map_err(|_| InvalidDatabaseUrl::new("sslrootcert is no text"))?;
                roots = Some(PathBuf::from(&*path));
            }
            Some(_) | None => kept.push(option),
        }
    }
    let tls = match (mode, roots) {
        ("verify-full", Some(roots)) => Tls::Verified(roots),
        // With a root at hand `require` verifies as well: libpq's old habit, on which people rely.
        ("verify-ca" | "require", Some(roots)) => Tls::Issued(roots),
        ("verify-full" | "verify-ca", None) => {
            return Err(InvalidDatabaseUrl::new(format_args!("sslmode={mode} needs sslrootcert=FILE")));
        }
        (_, Some(_)) => {
            let reason = "sslrootcert needs sslmode=verify-full, verify-ca or require";
            return Err(InvalidDatabaseUrl::new(reason));
        }
        (_, None) => Tls::Unverified,
    };
    Ok((format!("{base}?{}", kept.join("&")), tls))
}

impl Target {
    pub(crate) fn handle_password(&mut self, password: &str) {
        self.config.password(password);
    }

    pub(crate) fn handle_pool_size(&mut self, size: usize) {
        self.pool_size = size;
    }

    /// The hosts, each with a name for messages and a configuration that has no other.
    ///
    /// # Errors
    /// Hosts and ports do not match.
    pub(crate) fn each(&self) -> Result<Vec<(String, Config)>, InvalidDatabaseUrl> {
        let (hosts, addresses) = (self.config.get_hosts(), self.config.get_hostaddrs());
        if !addresses.is_empty() && addresses.len() != hosts.len() {
            return Err(InvalidDatabaseUrl::new("it has another number of hosts than of hostaddr"));
        }
        let ports = self.config.get_ports();
        if ports.len() > 1 && ports.len() != hosts.len() {
            return Err(InvalidDatabaseUrl::new("it has another number of hosts than of ports"));
        }
        let each = hosts.iter().enumerate().map(|(index, host)| {
            let mut config = self.without_hosts();
            match host {
                Host::Tcp(name) => config.host(name),
                #[cfg(unix)]
                Host::Unix(directory) => config.host_path(directory),
            };
            if let Some(address) = addresses.get(index) {
                config.hostaddr(*address);
            }
            config.port(self.port(index));
            (self.name(index), config)
        });
        Ok(each.collect())
    }

    /// What all hosts have in common; the library's `Config` can only be added to.
    fn without_hosts(&self) -> Config {
        let known = &self.config;
        let mut config = Config::new();
        if let Some(user) = known.get_user() {
            config.user(user);
        }
        if let Some(password) = known.get_password() {
            config.password(password);
        }
        if let Some(database) = known.get_dbname() {
            config.dbname(database);
        }
        if let Some(options) = known.get_options() {
            config.options(options);
        }
        if let Some(name) = known.get_application_name() {
            config.application_name(name);
        }
        if let Some(timeout) = known.get_tcp_user_timeout() {
            config.tcp_user_timeout(*timeout);
        }
        config
            .ssl_mode(known.get_ssl_mode())
            .ssl_negotiation(known.get_ssl_negotiation())
            .channel_binding(known.get_channel_binding())
            .connect_timeout(known.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT))
            .keepalives(known.get_keepalives())
            .keepalives_idle(known.get_keepalives_idle())
            .keepalives_interval(KEEPALIVE_INTERVAL)
            .keepalives_retries(KEEPALIVE_RETRIES);
        config
    }

    fn port(&self, index: usize) -> u16 {
        let ports = self.config.get_ports();
        ports.get(index).or(ports.first()).copied().unwrap_or(DEFAULT_PORT)
    }

    fn name(&self, index: usize) -> String {
        let port = self.port(index);
        match &self.config.get_hosts()[index] {
            Host::Tcp(name) => format!("{name}:{port}"),
            #[cfg(unix)]
            Host::Unix(directory) => format!("{}:{port}", directory.display()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgres://")?;
        if let Some(user) = self.config.get_user() {
            write!(f, "{user}@")?;
        }
        let names: Vec<_> = (0..self.config.get_hosts().len()).map(|index| self.name(index)).collect();
        f.write_str(&names.join(","))?;
        write!(f, "/{}", self.config.get_dbname().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(options: &str) -> Result<Tls, String> {
        let target: Result<Target, _> = format!("postgres://me@a,b:5433/mesh{options}").parse();
        target.map(|target| target.tls).map_err(|error| error.to_string())
    }

    #[test]
    fn modes_of_tls_mean_what_they_mean_to_libpq() {
        let file = PathBuf::from("/etc/my ca.pem");
        let root = "sslrootcert=/etc/my%20ca.pem";
        assert_eq!(tls(""), Ok(Tls::Unverified));
        assert_eq!(tls("?sslmode=require"), Ok(Tls::Unverified));
        assert_eq!(tls(&format!("?sslmode=require&{root}")), Ok(Tls::Issued(file.clone())));
        assert_eq!(tls(&format!("?{root}&sslmode=verify-ca")), Ok(Tls::Issued(file.clone())));
        assert_eq!(tls(&format!("?sslmode=verify-full&{root}")), Ok(Tls::Verified(file)));
        for refused in ["?sslmode=verify-ca", "?sslmode=verify-full", "?sslmode=allow", "?sslrootcert=/x"] {
            assert!(tls(refused).unwrap_err().contains("sslmode"), "{refused}");
        }
    }

    #[test]
    fn each_host_keeps_what_all_have_in_common() {
        let target: Target =
            "postgres://me:pw@a,b:5433/mesh?target_session_attrs=read-write&connect_timeout=7"
                .parse()
                .unwrap();
        let each = target.each().unwrap();
        let names: Vec<_> = each.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a:5432", "b:5433"]);
        for (_, config) in each {
            assert_eq!(config.get_hosts().len(), 1);
            assert_eq!((config.get_user(), config.get_dbname()), (Some("me"), Some("mesh")));
            assert_eq!(config.get_password(), Some(&b"pw"[..]));
            assert_eq!(config.get_connect_timeout(), Some(&Duration::from_secs(7)));
            assert_eq!(config.get_target_session_attrs(), TargetSessionAttrs::Any, "asked by ourselves");
        }
    }

    #[test]
    fn a_server_that_may_only_read_is_refused() {
        let url = "postgres://me@a/mesh?target_session_attrs=read-only";
        let Err(error) = url.parse::<Target>() else { panic!("it was taken") };
        assert!(error.to_string().contains("read-write"), "{error}");
    }
}
