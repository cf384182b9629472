//! `agent version`

use super::{failure::Failure, output};

pub(super) fn run() -> Result<(), Failure> {
    output::line(&format!("agent {} (protocol {})", env!("CARGO_PKG_VERSION"), proto::PROTOCOL_VERSION))?;
    Ok(())
}
