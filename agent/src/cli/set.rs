//! `agent set`: changes an agent that runs.

use super::{Context, failure::Failure, output};
use crate::{
    config::Options,
    local::{Done, Request},
};
use anyhow::anyhow;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    options: Options,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<(), Failure> {
    if args.options.is_empty() {
        return Err(Failure::Usage(anyhow!("nothing to set; `agent set --help` lists what can be")));
    }
    let done: Done = context.client().call(&Request::Set { options: args.options }).await?;
    output::line(&done.message)?;
    Ok(())
}
