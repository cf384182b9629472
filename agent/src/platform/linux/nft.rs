//! The `nft` program: the libraries that speak its protocol are in C or under another kind of licence.

use std::{io, process::Stdio, time::Duration};
use tokio::{io::AsyncWriteExt, process::Command};

/// Services may have no `sbin` in their PATH.
const PROGRAMS: [&str; 3] = ["nft", "/usr/sbin/nft", "/sbin/nft"];
/// It answers within milliseconds. Two of them must end before an agent that goes gives up waiting.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Runs it to its end; what it printed.
pub(super) async fn run(arguments: &[&str], script: &str) -> io::Result<Vec<u8>> {
    for program in PROGRAMS {
        match tokio::time::timeout(TIMEOUT, run_by(program, arguments, script)).await {
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(done) => return done,
            Err(_) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{program} does not answer")));
            }
        }
    }
    Err(io::Error::other("the program nft is missing: install nftables"))
}

async fn run_by(program: &str, arguments: &[&str], script: &str) -> io::Result<Vec<u8>> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(script.as_bytes()).await {
            // It ended without reading: what it says tells why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            written => written?,
        }
    }
    let output = child.wait_with_output().await?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first: String = said.lines().next().unwrap_or("it said nothing").chars().take(200).collect();
    Err(io::Error::other(format!("nft failed: {first}")))
}
