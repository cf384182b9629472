//! `agent set`: changes an agent that runs.

use super::{Context, failure::Failure, output, view::View};
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
    let claims = args.options.claim.is_some() || args.options.exclusive.is_some();
    let done: Done = context.client().call(&Request::Set { options: args.options }).await?;
    output::line(&done.message)?;
    // Some settings make the agent start anew: then it may not answer now, and what was set is set.
    if claims && let Ok(view) = context.client().call::<View>(&Request::Watch { peers: false }).await {
        view.refused_claims().iter().for_each(|refused| output::warn(refused));
    }
    Ok(())
}
