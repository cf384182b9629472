//! The command line: one file per command, and this list of them all.
//!
//! Exit codes are a contract with scripts: 0 done, 1 failed, 2 wrong usage, 3 not running, 4 not enrolled.

mod completion;
mod daemon;
mod debug;
mod down;
mod drain;
mod failure;
mod logout;
mod metrics;
mod output;
mod ping;
mod set;
mod setup_key;
mod start;
mod status;
mod up;
mod version;
mod view;
mod wait;
mod wg;

use crate::{
    config::{self, File, Options},
    local::{Client, ClientError, Request},
};
use clap::{Parser, Subcommand, ValueEnum};
use failure::Failure;
#[cfg(any(test, fuzzing))]
pub(crate) use status::shown;
use std::{path::PathBuf, process::ExitCode};
use tracing_subscriber::EnvFilter;

const DEFAULT_STATE_DIR: &str = "/var/lib/holdfast";
const DEFAULT_INTERFACE: &str = "hf0";

/// The Holdfast agent: a WireGuard mesh node that fails over by itself
#[derive(Debug, Parser)]
#[command(name = "agent", version, propagate_version = false)]
#[command(
    after_help = "Every option is also an environment variable (--peer-timeout is HOLDFAST_PEER_TIMEOUT) and a key of \
                        the TOML file (peer-timeout = \"3s\").\n\
                        Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not running, 4 not enrolled."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
struct Global {
    /// Where key, map, settings and socket are kept [default: /var/lib/holdfast]
    #[arg(long, global = true, value_name = "DIR", env = "HOLDFAST_STATE_DIR", hide_env = true)]
    state_dir: Option<PathBuf>,
    /// The tunnel's interface [default: hf0]
    #[arg(long, global = true, value_name = "NAME", env = "HOLDFAST_INTERFACE", hide_env = true)]
    interface: Option<String>,
    /// Settings as TOML [default: /etc/holdfast/agent.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE", env = "HOLDFAST_CONFIG", hide_env = true)]
    config: Option<PathBuf>,
    /// What is logged, as in RUST_LOG
    #[arg(long, global = true, value_name = "FILTER", env = "HOLDFAST_LOG_LEVEL", hide_env = true)]
    log_level: Option<String>,
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        env = "HOLDFAST_LOG_FORMAT",
        hide_env = true,
        default_value = "text"
    )]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl LogFormat {
    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Connect: start an agent if none runs, enrol if needed, and wait until it is served
    Up(up::Args),
    /// Stop the agent; its interface, routes and socket go
    Down,
    /// Show servers, map and peers
    Status(status::Args),
    /// Ask a peer's agent for an answer, through the tunnel
    Ping(ping::Args),
    /// Change settings of the agent that runs, and keep them
    Set(set::Args),
    /// Tell peers and servers, then stop
    Drain,
    /// Wait until the agent is served, or has tunnels to peers
    Wait(wait::Args),
    /// Leave the network for good; the node's key stays
    Logout,
    /// Run the agent here; for services
    Daemon(daemon::Args),
    /// Print what is counted, in Prometheus' text format
    Metrics(metrics::Args),
    /// Look into a running tunnel
    Debug(debug::Args),
    /// Serve a plain WireGuard interface, for wg and wg-quick; it knows nothing of the mesh
    Wg(wg::Args),
    /// Print the version
    Version,
    /// Print a script that completes this command line in a shell
    Completion(completion::Args),
}

pub(crate) fn main() -> ExitCode {
    let mut cli = Cli::parse_from(wg::arguments(std::env::args_os()));
    if let Command::Wg(args) = &mut cli.command {
        args.take_given();
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failure::report(&Failure::failed(error)),
    };
    let done = runtime.block_on(run(cli));
    // A name that is still being looked up must not delay the end.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure::report(&failure),
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { global, command } = cli;
    match command {
        Command::Up(args) => up::run(global, args).await,
        Command::Down => down::run(&Context::load(global)?).await,
        Command::Status(args) => status::run(&Context::load(global)?, &args).await,
        Command::Ping(args) => ping::run(&Context::load(global)?, &args).await,
        Command::Set(args) => set::run(&Context::load(global)?, args).await,
        Command::Drain => drain::run(&Context::load(global)?).await,
        Command::Wait(args) => wait::run(&Context::load(global)?, &args).await,
        Command::Logout => logout::run(&Context::load(global)?).await,
        Command::Daemon(args) => daemon::run(global, args).await,
        Command::Metrics(args) => metrics::run(&Context::load(global)?, &args).await,
        Command::Debug(args) => debug::run(&Context::load(global)?, &args).await,
        Command::Wg(args) => wg::run(global, args).await,
        Command::Version => version::run(),
        Command::Completion(args) => completion::run(&args),
    }
}

/// The global options, with file and defaults.
#[derive(Debug)]
struct Context {
    global: Global,
    file: File,
    state_dir: PathBuf,
    interface: String,
}

impl Context {
    fn load(global: Global) -> Result<Self, Failure> {
        let file = File::load(global.config.as_deref()).map_err(Failure::usage)?;
        let state_dir = global.state_dir.clone().or_else(|| file.state_dir.clone());
        let interface = global.interface.clone().or_else(|| file.interface.clone());
        Ok(Self {
            state_dir: state_dir.unwrap_or_else(|| DEFAULT_STATE_DIR.into()),
            interface: interface.unwrap_or_else(|| DEFAULT_INTERFACE.to_owned()),
            global,
            file,
        })
    }

    fn client(&self) -> Client {
        Client::new(&self.state_dir)
    }

    /// The interface that was asked for, if it is not that of the agent of this state directory.
    async fn foreign_interface(&self) -> Result<Option<String>, Failure> {
        let Some(asked) = &self.global.interface else { return Ok(None) };
        match self.client().call::<view::View>(&Request::Watch { peers: false }).await {
            Ok(view) => Ok((view.own.interface != *asked).then(|| asked.clone())),
            Err(ClientError::NotRunning(_)) => Ok(Some(asked.clone())),
            Err(error) => Err(error.into()),
        }
    }

    /// Flags over environment.
    fn given(&self, flags: Options) -> Result<Options, Failure> {
        let environment =
            config::from_environment(|name| std::env::var(name).ok()).map_err(Failure::usage)?;
        Ok(flags.or(&environment))
    }

    fn start_log(&self) -> Result<(), Failure> {
        self.global.start_log()
    }
}

impl Global {
    /// Logs go to standard error. The noise protocol's library calls ordinary things errors: its target is left out.
    fn start_log(&self) -> Result<(), Failure> {
        let filter = match &self.log_level {
            Some(filter) => filter.clone(),
            None => std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into()),
        };
        let filter = EnvFilter::try_new(format!("{filter},boringtun=off")).map_err(Failure::usage)?;
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        let log = log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
        match self.log_format {
            LogFormat::Text => log.init(),
            LogFormat::Json => log.json().init(),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
