//! `agent wait`: for scripts.

use super::{Context, failure::Failure, output::Progress, view::View};
use crate::{config::Span, local::Request};
use anyhow::anyhow;
use clap::ValueEnum;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to wait for
    #[arg(long = "for", value_name = "WHAT", default_value = "served")]
    what: What,
    /// With `connected`: the peers, by name, address or key
    peers: Vec<String>,
    #[arg(long, value_name = "SPAN", default_value = "30s")]
    timeout: Span,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// A server serves the agent, and has given it the map
    Served,
    /// There is a tunnel to each of the peers
    Connected,
}

pub(super) async fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    match (args.what, args.peers.is_empty()) {
        (What::Connected, true) => {
            return Err(Failure::Usage(anyhow!("connected to whom? name at least one peer")));
        }
        (What::Served, false) => return Err(Failure::Usage(anyhow!("peers go with --for connected"))),
        (What::Connected, false) | (What::Served, true) => {}
    }
    let progress = Progress::start("waiting");
    let waited = tokio::time::timeout(args.timeout.0, wait(context, args)).await;
    drop(progress);
    waited.unwrap_or_else(|_elapsed| {
        let what = match args.what {
            What::Served => "no server serves the agent".to_owned(),
            What::Connected => format!("not connected to all of: {}", args.peers.join(", ")),
        };
        Err(Failure::Failed(anyhow!("{what}, after {}", args.timeout)))
    })
}

async fn wait(context: &Context, args: &Args) -> Result<(), Failure> {
    let request = Request::Watch { peers: args.what == What::Connected };
    let mut watch = context.client().ask(&request).await?;
    while let Some(line) = watch.next_line().await? {
        let view: View = serde_json::from_str(&line).map_err(Failure::failed)?;
        let reached = match args.what {
            What::Served => view.ready_by().is_some(),
            What::Connected => args.peers.iter().all(|host| is_connected(&view, host)),
        };
        if reached {
            return Ok(());
        }
    }
    Err(Failure::Failed(anyhow!("the agent ended")))
}

fn is_connected(view: &View, host: &str) -> bool {
    view.peers.iter().any(|peer| peer.is(host) && peer.tunnel == "connected")
}
