//! `agent ping HOST`: probes the peer's agent inside the tunnel, waking it first if it is idle.

use super::{Context, failure::Failure, output};
use crate::{
    config::Span,
    local::{ClientError, Pong, Request},
};
use anyhow::anyhow;
use std::time::Duration;

const INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A peer's name, overlay address or public key
    host: String,
    /// How often
    #[arg(short, long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// How long an answer is awaited
    #[arg(long, value_name = "SPAN", default_value = "5s")]
    timeout: Span,
}

pub(super) async fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let timeout_ms = u64::try_from(args.timeout.0.as_millis()).unwrap_or(u64::MAX);
    let request = Request::Ping { host: args.host.clone(), timeout_ms };
    let mut answered = 0;
    for number in 1..=args.count {
        let begun = tokio::time::Instant::now();
        match context.client().call::<Pong>(&request).await {
            Ok(pong) => {
                answered += 1;
                output::line(&describe(number, &pong))?;
            }
            Err(ClientError::Refused(refusal)) if refusal.message.starts_with("no answer") => {
                output::line(&format!("{number}: {refusal}"))?;
            }
            Err(error) => return Err(error.into()),
        }
        if number < args.count {
            tokio::time::sleep_until(begun + INTERVAL).await;
        }
    }
    match answered {
        0 => Err(Failure::Failed(anyhow!("{} did not answer", args.host))),
        _ => Ok(()),
    }
}

fn describe(number: u32, pong: &Pong) -> String {
    let path =
        pong.endpoint.map_or_else(|| "over a relay".to_owned(), |endpoint| format!("direct, {endpoint}"));
    format!("{number}: {} answered in {:.2} ms ({path})", pong.peer, pong.rtt_ms)
}
