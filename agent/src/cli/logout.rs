//! `agent logout`: the agent runs on, and can be enrolled again with `agent up`.

use super::{Context, failure::Failure, output};
use crate::local::{Done, Request};

pub(super) async fn run(context: &Context) -> Result<(), Failure> {
    let done: Done = context.client().call(&Request::Logout).await?;
    output::line(&done.message)?;
    Ok(())
}
