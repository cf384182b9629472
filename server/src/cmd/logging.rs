//! Logs go to standard error: text for people, JSON lines for collectors.

use crate::{
    cmd::Failure,
    config::{ConfigError, LogArgs, LogFormat},
};
use std::io::IsTerminal;
use tracing_subscriber::{EnvFilter, fmt};

/// What is told where nobody said how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verbosity {
    /// What a user would notice.
    Service,
    /// A command says what it did; logs only where something is wrong.
    Command,
}

pub(crate) fn start(args: &LogArgs, verbosity: Verbosity) -> Result<(), Failure> {
    let default = match verbosity {
        // Of refinery, the tables it finds in order are no news; of the pool, each of many connections that a restart of the database ends.
        Verbosity::Service => "info,refinery_core=warn,deadpool=error",
        Verbosity::Command => "warn,deadpool=error",
    };
    let from_environment = std::env::var(EnvFilter::DEFAULT_ENV).ok();
    let level = args.log_level.clone().or(from_environment).unwrap_or_else(|| default.to_owned());
    let filter = EnvFilter::try_new(&level)
        .map_err(|error| ConfigError::LogLevel { level, reason: error.to_string() })?
        // At debug it tells the parameters of every statement: keys, hashes of setup keys, certificates.
        .add_directive("tokio_postgres=info".parse().expect("a directive"));
    let has_colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let logs = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(has_colours);
    let started = match args.log_format.unwrap_or_default() {
        LogFormat::Text => logs.try_init(),
        LogFormat::Json => logs.json().try_init(),
    };
    started.map_err(|error| Failure::Failed(anyhow::anyhow!("cannot start logging: {error}")))
}
