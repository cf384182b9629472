//! `agent debug`: looking into a tunnel that runs.

mod capture;
mod recording;
mod size;
mod target;

use super::{Context, failure::Failure};
use clap::Subcommand;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Capture what goes through the tunnel, decrypted, as Wireshark and tcpdump read it (pcapng)
    ///
    /// With --interface the tunnel of another program of ours on this machine, as `agent wg wg0`.
    Capture(capture::Args),
}

pub(super) async fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    match &args.command {
        Command::Capture(args) => capture::run(context, args).await,
    }
}
