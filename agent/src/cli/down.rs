//! `agent down`: returns when the agent is gone, with its interface, routes and socket.

use super::{Context, failure::Failure, output};
use crate::{
    local::{Done, Request},
    state_dir::wait_released,
};
use anyhow::anyhow;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn run(context: &Context) -> Result<(), Failure> {
    stop(context, &Request::Down).await
}

/// Asks for the end, waits for it, and says so.
pub(super) async fn stop(context: &Context, request: &Request) -> Result<(), Failure> {
    let done: Done = context.client().call(request).await?;
    if !wait_released(&context.state_dir, TIMEOUT).await {
        return Err(Failure::Failed(anyhow!(
            "the agent said goodbye, but its process still holds the state directory"
        )));
    }
    output::line(&done.message)?;
    Ok(())
}
