//! `agent metrics`: what `--metrics-listen` serves, for a textfile collector or a script.

use super::{Context, failure::Failure, output};
use crate::local::{MetricsText, Request};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// With series of each peer
    #[arg(long)]
    peers: bool,
}

pub(super) async fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let answer: MetricsText = context.client().call(&Request::Metrics { peers: args.peers }).await?;
    output::line(answer.text.trim_end())?;
    Ok(())
}
