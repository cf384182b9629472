//! Options and where they come from: a flag, else the environment (`HOLDFAST_` and the flag's name), else the TOML file, else the default. The file has the
//! flags' names as keys; a key it cannot know is an error. A database URL is never repeated in an error: it may hold a password.

use crate::{
    cmd::run::RunOptions,
    gate::Limits,
    settings::Settings,
    store::{DatabaseUrl, InvalidDatabaseUrl},
};
use ipnet::IpNet;
use proto::{CONTROL_PORT, server_url::ServerUrl};
use serde::Deserialize;
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

const ADMIN_PORT: u16 = 7480;
const DATABASE_FILE: &str = "holdfast.db";
const MAX_NAME: usize = 63;

/// What every command that uses the database takes.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DatabaseArgs {
    /// A TOML file with these options as keys
    #[arg(long, env = "HOLDFAST_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// sqlite:PATH or postgres://user@host1,host2/database [default: sqlite:holdfast.db in the data directory]
    // Not parsed by clap, which would repeat the password in its error.
    #[arg(long, env = "HOLDFAST_DATABASE", value_name = "URL", hide_env_values = true)]
    pub database: Option<String>,
    /// A file whose first line is the password for Postgres
    #[arg(long, env = "HOLDFAST_DATABASE_PASSWORD_FILE", value_name = "FILE")]
    pub database_password_file: Option<PathBuf>,
    /// Connections to Postgres, besides four that are reserved [default: 8]
    #[arg(long, env = "HOLDFAST_DATABASE_POOL_SIZE", value_name = "N")]
    pub database_pool_size: Option<std::num::NonZeroU8>,
    /// What this server keeps on disk
    #[arg(long, env = "HOLDFAST_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The key that the cluster's root is wrapped under in the database
    #[arg(long, env = "HOLDFAST_CLUSTER_KEY", value_name = "FILE")]
    pub cluster_key: Option<PathBuf>,
    #[command(flatten)]
    pub log: LogArgs,
}

/// How much is told, on standard error.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct LogArgs {
    /// error, warn, info, debug or trace, or a filter as in RUST_LOG
    #[arg(long, env = "HOLDFAST_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,
    #[arg(long, env = "HOLDFAST_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// The options of `run`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Where agents connect to
    #[arg(
        long,
        env = "HOLDFAST_LISTEN",
        value_name = "ADDR",
        help = "Where agents connect to [default: [::]:7443]"
    )]
    pub listen: Option<SocketAddr>,
    /// What agents are told to connect to [default: the listen address, or every address of this host]
    #[arg(long, env = "HOLDFAST_ADVERTISE", value_name = "URL", value_delimiter = ',')]
    pub advertise: Vec<ServerUrl>,
    /// Metrics and health [default: 127.0.0.1:7480]
    #[arg(long, env = "HOLDFAST_ADMIN_LISTEN", value_name = "ADDR")]
    pub admin_listen: Option<SocketAddr>,
    /// What this server is called [default: the host's name]
    #[arg(long, env = "HOLDFAST_NAME")]
    pub name: Option<String>,
    /// How long this server counts as living without a sign of it, 2s to 5m [default: 10s]
    #[arg(long, env = "HOLDFAST_LEASE", value_name = "SPAN")]
    pub lease: Option<Span>,
    /// What agents are asked to leave between two heartbeats, 1s to 30s [default: as they like]
    #[arg(long, env = "HOLDFAST_HEARTBEAT", value_name = "SPAN")]
    pub heartbeat: Option<Span>,
    /// An ephemeral node that is absent for so long is removed, 30s or more [default: 10m]
    #[arg(long, env = "HOLDFAST_EPHEMERAL_TIMEOUT", value_name = "SPAN")]
    pub ephemeral_timeout: Option<Span>,
    /// How many nodes the cluster may have [default: as many as there are addresses]
    #[arg(long, env = "HOLDFAST_MAX_NODES", value_name = "N")]
    pub max_nodes: Option<usize>,
    /// Connections taken in; half of them at most from one address [default: 65536, or what open files allow]
    #[arg(long, env = "HOLDFAST_MAX_CONNECTIONS", value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub max_connections: Option<u32>,
    /// Load balancers in front of this server: their addresses are nobody's own, and not limited
    #[arg(long, env = "HOLDFAST_BEHIND_PROXY", value_name = "ADDR[/BITS]", value_delimiter = ',')]
    pub behind_proxy: Vec<AddressRange>,
}

/// The TOML file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct File {
    database: Option<String>,
    database_password_file: Option<PathBuf>,
    database_pool_size: Option<std::num::NonZeroU8>,
    data_dir: Option<PathBuf>,
    cluster_key: Option<PathBuf>,
    log_level: Option<String>,
    log_format: Option<LogFormat>,
    listen: Option<SocketAddr>,
    advertise: Option<Vec<ServerUrl>>,
    admin_listen: Option<SocketAddr>,
    name: Option<String>,
    lease: Option<Span>,
    heartbeat: Option<Span>,
    ephemeral_timeout: Option<Span>,
    max_nodes: Option<usize>,
    max_connections: Option<std::num::NonZeroU32>,
    behind_proxy: Option<Vec<AddressRange>>,
}

/// The options cannot be used: wrong usage.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("the configuration {} is not valid: {reason}", path.display())]
    Invalid { path: PathBuf, reason: String },
    #[error("cannot read the password of the database from {}: {reason}", path.display())]
    NoPassword { path: PathBuf, reason: String },
    #[error(transparent)]
    Database(#[from] InvalidDatabaseUrl),
    #[error("the log level {level:?} is not valid: {reason}")]
    LogLevel { level: String, reason: String },
    #[error("there is no home directory to keep data in; say where with --data-dir")]
    NoDataDir,
    #[error("--{option} cannot be {}: choose {} to {}", .found, Span(*.range.start()), Span(*.range.end()))]
    OutOfRange { option: &'static str, found: Span, range: RangeInclusive<Duration> },
    #[error("the name {0:?} cannot be a server's: use 1 to 63 characters, none of them a control character")]
    Name(String),
}

impl RunArgs {
    /// # Errors
    /// [`ConfigError`]
    pub fn resolve(self) -> Result<(RunOptions, LogArgs), ConfigError> {
        let file = File::read(self.database.config.as_deref())?;
        let log = self.database.log.clone().or(&file);
        let cluster_key = self.database.cluster_key.clone().or(file.cluster_key.clone());
        let settings = self.settings(&file)?;
        let name = self.name.or_else(|| file.name.clone()).map(checked_name).transpose()?;
        let (database, data_dir) = self.database.locate(&file)?;
        let options = RunOptions {
            database,
            data_dir,
            cluster_key,
            listen: self.listen.or(file.listen).unwrap_or((Ipv6Addr::UNSPECIFIED, CONTROL_PORT).into()),
            advertise: match self.advertise.is_empty() {
                true => file.advertise.unwrap_or_default(),
                false => self.advertise,
            },
            admin_listen: self
                .admin_listen
                .or(file.admin_listen)
                .unwrap_or((IpAddr::from(Ipv4Addr::LOCALHOST), ADMIN_PORT).into()),
            name,
            settings,
            limits: limits(
                self.max_connections.or(file.max_connections.map(Into::into)),
                match self.behind_proxy.is_empty() {
                    true => file.behind_proxy.unwrap_or_default(),
                    false => self.behind_proxy,
                },
            ),
        };
        Ok((options, log))
    }

    fn settings(&self, file: &File) -> Result<Settings, ConfigError> {
        let default = Settings::default();
        let spans = [
            ("lease", self.lease.or(file.lease), default.lease, Settings::LEASE),
            ("heartbeat", self.heartbeat.or(file.heartbeat), default.heartbeat, Settings::HEARTBEAT),
            (
                "ephemeral-timeout",
                self.ephemeral_timeout.or(file.ephemeral_timeout),
                default.ephemeral_timeout,
                Settings::EPHEMERAL_TIMEOUT,
            ),
        ];
        let checked = spans.map(|(option, said, default, range)| match said {
            Some(found) if !range.contains(&found.0) => Err(ConfigError::OutOfRange { option, found, range }),
            said => Ok(said.map_or(default, |span| span.0)),
        });
        let [lease, heartbeat, ephemeral_timeout] = checked;
        Ok(Settings {
            lease: lease?,
            heartbeat: heartbeat?,
            ephemeral_timeout: ephemeral_timeout?,
            max_nodes: self.max_nodes.or(file.max_nodes),
        })
    }
}

/// A name goes into logs, lists and messages.
fn checked_name(name: String) -> Result<String, ConfigError> {
    let name = name.trim().to_owned();
    match (1..=MAX_NAME).contains(&name.chars().count()) && !name.chars().any(char::is_control) {
        true => Ok(name),
        false => Err(ConfigError::Name(name)),
    }
}

/// What a command needs to know of the database.
#[derive(Debug, Clone)]
pub struct DatabaseOptions {
    pub url: DatabaseUrl,
    pub cluster_key: Option<PathBuf>,
    pub log: LogArgs,
}

impl DatabaseArgs {
    /// # Errors
    /// [`ConfigError`]
    pub fn resolve(self) -> Result<DatabaseOptions, ConfigError> {
        let file = File::read(self.config.as_deref())?;
        let log = self.log.clone().or(&file);
        let cluster_key = self.cluster_key.clone().or(file.cluster_key.clone());
        Ok(DatabaseOptions { url: self.locate(&file)?.0, cluster_key, log })
    }

    fn locate(self, file: &File) -> Result<(DatabaseUrl, PathBuf), ConfigError> {
        let data_dir = self.data_dir.or_else(|| file.data_dir.clone());
        let database = self.database.as_deref().or(file.database.as_deref());
        let data_dir = data_dir.or_else(default_data_dir).ok_or(ConfigError::NoDataDir)?;
        let database = match database {
            Some(url) => {
                let mut url: DatabaseUrl = url.parse()?;
                if let DatabaseUrl::Postgres(target) = &mut url {
                    if let Some(size) = self.database_pool_size.or(file.database_pool_size) {
                        target.handle_pool_size(size.get().into());
                    }
                    let path = self.database_password_file.or_else(|| file.database_password_file.clone());
                    if let Some(path) = path {
                        target.handle_password(&read_password(path)?);
                    }
                }
                url
            }
            None => DatabaseUrl::Sqlite(data_dir.join(DATABASE_FILE)),
        };
        Ok((database, data_dir))
    }
}

impl LogArgs {
    fn or(self, file: &File) -> Self {
        Self {
            log_level: self.log_level.or_else(|| file.log_level.clone()),
            log_format: self.log_format.or(file.log_format),
        }
    }
}

impl File {
    fn read(path: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = path else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|reason| ConfigError::Invalid { path: path.to_owned(), reason })
    }

    fn parse(text: &str) -> Result<Self, String> {
        // The parser's whole message quotes the line, which may be the database's.
        toml::from_str(text).map_err(|error: toml::de::Error| {
            let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
            format!("line {line}: {}", error.message().trim())
        })
    }
}

/// The first line; what is in the file is in no error.
fn read_password(path: PathBuf) -> Result<zeroize::Zeroizing<String>, ConfigError> {
    let text = std::fs::read_to_string(&path).map(zeroize::Zeroizing::new);
    match text.as_ref().map(|text| text.lines().next().unwrap_or_default()) {
        Ok("") => Err(ConfigError::NoPassword { path, reason: "its first line is empty".to_owned() }),
        Ok(line) => Ok(line.to_owned().into()),
        Err(error) => Err(ConfigError::NoPassword { path, reason: error.to_string() }),
    }
}

/// Whether the text is a file of options; if not, why.
pub(crate) fn check_file(text: &str) -> Result<(), String> {
    File::parse(text).map(drop)
}

fn limits(max_connections: Option<u32>, proxies: Vec<AddressRange>) -> Limits {
    let most = max_connections.and_then(|most| usize::try_from(most).ok());
    let usual = Limits::default();
    Limits {
        max_connections: most.unwrap_or(usual.max_connections),
        proxies: proxies.into_iter().map(|range| range.0).collect(),
        patience: usual.patience,
    }
}

/// An address, or a prefix of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct AddressRange(pub IpNet);

impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range = proto::prefix::parse(text).map(Self);
        range.map_err(|error| error.to_string())
    }
}

impl TryFrom<String> for AddressRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Where a service keeps its state; where the user does, if it is no service.
#[cfg(unix)]
fn default_data_dir() -> Option<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Some(PathBuf::from("/var/lib/holdfast-server"));
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let state = state.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")));
    Some(state?.join("holdfast-server"))
}

#[cfg(not(unix))]
fn default_data_dir() -> Option<PathBuf> {
    Some(PathBuf::from(std::env::var_os("ProgramData")?).join("Holdfast").join("server"))
}

/// A span of time as people write it: 90s, 15m, 12h, 7d; a bare number is seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "SpanText")]
pub struct Span(pub Duration);

/// In a file a span is text or a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum SpanText {
    Seconds(u64),
    Text(String),
}

impl TryFrom<SpanText> for Span {
    type Error = String;

    fn try_from(text: SpanText) -> Result<Self, String> {
        match text {
            SpanText::Seconds(seconds) => seconds.to_string().parse(),
            SpanText::Text(text) => text.parse(),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let units = [(24 * 3600, "d"), (3600, "h"), (60, "m")];
        match units.into_iter().find(|(size, _)| seconds >= *size && seconds.is_multiple_of(*size)) {
            Some((size, unit)) => write!(f, "{}{unit}", seconds / size),
            None => write!(f, "{seconds}s"),
        }
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid =
            || format!("{text:?} is no span of time: write 90s, 15m, 12h or 7d; a bare number is seconds");
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let seconds = match unit {
            "" | "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 24 * 3600,
            _ => return Err(invalid()),
        };
        let number: u64 = number.parse().map_err(|_| invalid())?;
        match number.checked_mul(seconds) {
            None | Some(0) => Err(invalid()),
            Some(seconds) => Ok(Self(Duration::from_secs(seconds))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_file(text: &str) -> (tempfile::TempDir, RunArgs) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.toml");
        std::fs::write(&path, text).unwrap();
        let database = DatabaseArgs { config: Some(path), ..DatabaseArgs::default() };
        (directory, RunArgs { database, ..RunArgs::default() })
    }

    #[test]
    fn a_flag_goes_before_the_file_and_the_file_before_the_default() {
        let (_directory, mut args) = with_file(
            "database = 'postgres://a/b'\nlisten = '127.0.0.1:1'\nadvertise = ['x', 'y:1']\nlog-format = 'json'\n",
        );
        args.listen = Some("127.0.0.1:2".parse().unwrap());
        let (options, log) = args.resolve().unwrap();
        assert_eq!(options.database.to_string(), "postgres://a:5432/b");
        assert_eq!(options.listen.port(), 2);
        assert_eq!(options.advertise.len(), 2);
        assert_eq!(options.admin_listen.to_string(), "127.0.0.1:7480");
        assert_eq!(log.log_format, Some(LogFormat::Json));
    }

    #[test]
    fn balancers_are_addresses_or_prefixes() {
        let (_directory, args) =
            with_file("max-connections = 10\nbehind-proxy = ['192.0.2.1', '10.0.0.0/8']\n");
        let limits = args.resolve().unwrap().0.limits;
        assert_eq!(limits.max_connections, 10);
        assert_eq!(limits.proxies, ["192.0.2.1/32".parse().unwrap(), "10.0.0.0/8".parse().unwrap()]);
        for (bad, reason) in [("balancer", "balancer"), ("10.0.0.7/8", "10.0.0.0/8 or 10.0.0.7/32 is meant")]
        {
            assert!(bad.parse::<AddressRange>().unwrap_err().contains(reason));
        }
    }

    #[test]
    fn the_database_is_in_the_data_directory_unless_it_is_named() {
        let args = DatabaseArgs { data_dir: Some(PathBuf::from("/srv/x")), ..DatabaseArgs::default() };
        assert_eq!(args.resolve().unwrap().url.to_string(), "sqlite:/srv/x/holdfast.db");
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_its_line_and_quotes_no_password() {
        let (_directory, args) = with_file("name = 'a'\ndatabase = 'postgres://me:hunter2@a/b' x\n");
        let error = args.resolve().unwrap_err().to_string();
        assert!(error.contains("line 2") && !error.contains("hunter2"), "{error}");
        let (_directory, args) = with_file("listne = '127.0.0.1:1'\n");
        let error = args.resolve().unwrap_err().to_string();
        assert!(error.contains("listne") && error.contains("line 1"), "{error}");
    }

    #[test]
    fn how_a_server_works_is_told_by_flag_or_file_within_limits() {
        let (_directory, mut args) = with_file(
            "lease = '20s'\nheartbeat = 5\nephemeral-timeout = '1h'\nmax-nodes = 7\nname = ' a '\n",
        );
        args.lease = Some(Span(Duration::from_secs(30)));
        let (options, _) = args.clone().resolve().unwrap();
        let expected = Settings {
            lease: Duration::from_secs(30),
            heartbeat: Duration::from_secs(5),
            ephemeral_timeout: Duration::from_secs(3600),
            max_nodes: Some(7),
        };
        assert_eq!((options.settings, options.name.as_deref()), (expected, Some("a")));
        args.lease = Some(Span(Duration::from_secs(1)));
        let error = args.clone().resolve().unwrap_err().to_string();
        assert!(error.contains("--lease cannot be 1s: choose 2s to 5m"), "{error}");
        args.lease = None;
        args.name = Some("a\nb".to_owned());
        assert!(matches!(args.resolve(), Err(ConfigError::Name(_))));
    }

    #[test]
    fn a_password_may_be_in_a_file_and_the_pool_has_a_size() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        let args = || DatabaseArgs {
            database: Some("postgres://me@a/b".to_owned()),
            database_password_file: Some(path.clone()),
            database_pool_size: std::num::NonZeroU8::new(3),
            ..DatabaseArgs::default()
        };
        assert!(args().resolve().unwrap_err().to_string().contains("password"));
        std::fs::write(&path, "hunter2\nanything\n").unwrap();
        let DatabaseUrl::Postgres(target) = args().resolve().unwrap().url else { panic!("another database") };
        assert_eq!((target.config.get_password(), target.pool_size), (Some(&b"hunter2"[..]), 3));
    }

    #[test]
    fn spans_have_units_and_a_bare_number_is_seconds() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("15m", 900), ("12h", 43_200), ("7d", 604_800)] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_secs(seconds))), "{text}");
        }
        for text in ["", "s", "-1", "1.5h", "0", "7 d", "1w", "99999999999999999999d"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }
}
