//! `agent drain`

use super::{Context, down, failure::Failure};
use crate::local::Request;

pub(super) async fn run(context: &Context) -> Result<(), Failure> {
    down::stop(context, &Request::Drain).await
}
