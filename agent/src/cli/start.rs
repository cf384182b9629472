//! Starting a daemon in the background: this program again, detached, logging to the state directory.

use super::{Context, daemon::Handover, failure::Failure};
use crate::{
    local::{ClientError, Request, Watch},
    platform,
    state_dir::{log_path, prepare},
};
use anyhow::{Context as _, anyhow};
use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::time::Instant;

/// An interface, a socket and a few files: it takes milliseconds.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A longer log is put aside when a daemon starts; the one before it goes.
const MAX_LOG: u64 = 10 * 1024 * 1024;
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Starts a daemon, and returns the watch of its status once it listens.
pub(super) async fn start(
    context: &Context,
    handover: &Handover,
    request: &Request,
) -> Result<Watch, Failure> {
    prepare(&context.state_dir).map_err(Failure::failed)?;
    let path = log_path(&context.state_dir);
    let (log, begin) = open_log(&path)
        .with_context(|| format!("cannot log to {}", path.display()))
        .map_err(Failure::Failed)?;
    let mut daemon =
        spawn(context, log, handover).context("cannot start the agent").map_err(Failure::Failed)?;
    let give_up_at = Instant::now() + TIMEOUT;
    loop {
        match context.client().ask(request).await {
            Ok(watch) => return Ok(watch),
            Err(ClientError::NotRunning(_)) if Instant::now() < give_up_at => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(status) = daemon.try_wait().map_err(Failure::failed)? {
            return Err(Failure::of_process(status.code(), anyhow!("{}", last_error(&path, begin))));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn open_log(path: &Path) -> std::io::Result<(File, u64)> {
    if fs::metadata(path).is_ok_and(|log| log.len() > MAX_LOG) {
        fs::rename(path, path.with_extension("log.1"))?;
    }
    let log = File::options().create(true).append(true).open(path)?;
    platform::make_private(path)?;
    let begin = log.metadata()?.len();
    Ok((log, begin))
}

fn spawn(context: &Context, log: File, handover: &Handover) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--state-dir").arg(&context.state_dir).args(["--interface", &context.interface]);
    if let Some(config) = &context.global.config {
        command.arg("--config").arg(config);
    }
    if let Some(filter) = &context.global.log_level {
        command.args(["--log-level", filter]);
    }
    command.args(["daemon", "--handover"]).env_remove("HOLDFAST_SETUP_KEY").current_dir("/");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).spawn()?;
    let mut input = child.stdin.take().context("a piped input is there")?;
    let mut line = zeroize::Zeroizing::new(serde_json::to_vec(handover)?);
    line.push(b'\n');
    input.write_all(&line)?;
    Ok(child)
}

/// What the daemon said last, without the prefix that this process adds itself.
fn last_error(path: &Path, begin: u64) -> String {
    let mut text = String::new();
    let read = File::open(path).and_then(|mut log| {
        log.seek(SeekFrom::Start(begin))?;
        log.read_to_string(&mut text)
    });
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    match (read, last) {
        (Ok(_), Some(last)) => last.strip_prefix("error: ").unwrap_or(last).to_owned(),
        (Ok(_), None) | (Err(_), _) => "the agent ended at once, and did not say why".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_grew_long_is_put_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.log");
        let (log, begin) = open_log(&path).unwrap();
        assert_eq!(begin, 0);
        log.set_len(MAX_LOG).unwrap();
        assert_eq!(open_log(&path).unwrap().1, MAX_LOG);
        log.set_len(MAX_LOG + 1).unwrap();
        assert_eq!(open_log(&path).unwrap().1, 0);
        assert_eq!(fs::metadata(directory.path().join("agent.log.1")).unwrap().len(), MAX_LOG + 1);
    }
}
