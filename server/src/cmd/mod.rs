//! The command line: one file per command. All but `run` work on the database, whether or not a server runs. Exit codes: 0 done, 1 failed, 2 wrong usage.

mod backup;
mod cluster_key;
mod holders;
mod logging;
mod migrate;
mod network;
mod node;
mod root;
pub mod run;
mod setup_key;
mod status;
mod text;

use crate::{
    cluster_key::{ClusterKey, RootAccess},
    config::{ConfigError, DatabaseArgs, RunArgs},
    follow::Cluster,
    store::{self, Missing, Store},
};
use clap::{CommandFactory, Parser, Subcommand};
use std::{future::Future, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// The Holdfast control server: equal to every other, on one database
#[derive(Parser)]
#[command(name = "server", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve agents, until SIGTERM
    Run(RunArgs),
    /// Keys that let nodes in
    SetupKey {
        #[command(subcommand)]
        command: setup_key::Command,
    },
    /// The network and what holds for all of it
    Network {
        #[command(subcommand)]
        command: network::Command,
    },
    /// The nodes of the cluster
    Node {
        #[command(subcommand)]
        command: node::Command,
    },
    /// The key that the root in the database is wrapped under
    ClusterKey {
        #[command(subcommand)]
        command: cluster_key::Command,
    },
    /// The key that signs for the cluster, and its changes
    Root {
        #[command(subcommand)]
        command: root::Command,
    },
    /// Write the cluster to a file, while servers run
    Backup(backup::BackupArgs),
    /// Make a cluster from a backup
    Restore(backup::RestoreArgs),
    /// Move the cluster to another database, while servers run
    Migrate(migrate::Args),
    /// Servers, leases, sessions, revision, database
    Status(status::Args),
    /// The version of this program
    Version,
    /// A completion script for a shell
    Completion { shell: clap_complete::Shell },
}

/// Options of a command that reads or changes the cluster.
#[derive(clap::Args)]
struct CommonArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Usage(#[from] ConfigError),
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

impl Failure {
    fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Failed(error.into())
    }

    fn code(&self) -> ExitCode {
        match self {
            Self::Failed(_) => ExitCode::from(1),
            Self::Usage(_) => ExitCode::from(2),
        }
    }
}

/// The program.
pub fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = match &failure {
                Failure::Failed(error) => format!("{error:#}"),
                Failure::Usage(error) => error.to_string(),
            };
            eprintln!("error: {text}");
            failure.code()
        }
    }
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run(args) => {
            let (options, log) = args.resolve()?;
            logging::start(&log, logging::Verbosity::Service)?;
            let runtime = tokio::runtime::Runtime::new().map_err(Failure::failed)?;
            let done = runtime.block_on(run::run(options));
            // What still opens a file must not hold up who was told to end.
            runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
            done.map_err(Failure::Failed)
        }
        Command::SetupKey { command } => in_runtime(setup_key::run(command)),
        Command::Network { command } => in_runtime(network::run(command)),
        Command::Node { command } => in_runtime(node::run(command)),
        Command::ClusterKey { command } => in_runtime(cluster_key::run(command)),
        Command::Root { command } => in_runtime(root::run(command)),
        Command::Backup(args) => in_runtime(backup::backup(args)),
        Command::Restore(args) => in_runtime(backup::restore(args)),
        Command::Migrate(args) => in_runtime(migrate::run(args)),
        Command::Status(args) => in_runtime(status::run(args)),
        Command::Version => {
            text::print(&format!("server {}", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "server", &mut script);
            text::print(String::from_utf8_lossy(&script).trim_end());
            Ok(())
        }
    }
}

fn in_runtime(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Failure::failed)?.block_on(command)
}

impl DatabaseArgs {
    /// The cluster in the database, of which there must be one, for what signs nothing: a wrapped root stays closed.
    async fn load(self) -> Result<Cluster, Failure> {
        let (store, _) = self.open().await?;
        Cluster::load(store, RootAccess::AsFound).await.map_err(Failure::failed)
    }

    /// As [`Self::load`], for what signs.
    async fn load_to_sign(self) -> Result<Cluster, Failure> {
        let (store, cluster_key) = self.open().await?;
        let key = cluster_key.as_deref().map(ClusterKey::read).transpose().map_err(Failure::failed)?;
        Cluster::load(store, RootAccess::Sign(key)).await.map_err(Failure::failed)
    }

    /// The database, and the file of the cluster key that was named.
    async fn open(self) -> Result<(Arc<dyn Store>, Option<PathBuf>), Failure> {
        let options = self.resolve()?;
        logging::start(&options.log, logging::Verbosity::Command)?;
        let store = store::open(&options.url, Missing::Refuse).await.map_err(Failure::failed)?;
        Ok((store, options.cluster_key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_database_url_is_never_repeated_by_the_command_line() {
        let args = ["server", "status", "--database", "postgres://me:hunter2@a/b", "--nonsense"];
        let Err(error) = Cli::try_parse_from(args) else { panic!("an unknown flag was taken") };
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn a_prefix_to_claim_may_be_an_address_and_has_no_host_bits() {
        for command in ["node allow-claim a", "node disallow-claim a", "setup-key create --claims"] {
            let parse = |prefix: &str| {
                let words = std::iter::once("server").chain(command.split(' ')).chain([prefix]);
                Cli::try_parse_from(words).map(drop).map_err(|error| error.to_string())
            };
            for good in ["10.99.0.1", "10.99.0.1/32", "10.1.0.0/24", "fd00::1"] {
                assert_eq!(parse(good), Ok(()), "{command}");
            }
            for (bad, reason) in
                [("10.1.0.7/24", "10.1.0.0/24 or 10.1.0.7/32"), ("lan", "no prefix"), ("::1", "loopback")]
            {
                let error = parse(bad).unwrap_err();
                assert!(error.contains(reason), "{command} {bad}: {error}");
            }
        }
    }
}
