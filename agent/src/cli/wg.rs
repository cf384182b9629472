//! `agent wg`: a plain WireGuard interface. Returns when `wg` can configure it, and leaves a process in the background.
//!
//! The environment is that of other userspace implementations: WG_PROCESS_FOREGROUND, WG_TUN_FD, WG_UAPI_FD, LOG_LEVEL. As
//! `wg-quick` starts a program with the interface as its only argument, a link named `agent-wg` to this program is `agent wg`.

use super::{Global, failure::Failure, output};
use crate::{
    platform,
    wg::{Given, Interface},
};
use anyhow::{Context as _, anyhow};
use std::{
    ffi::{OsStr, OsString},
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

/// The name under which this program is `agent wg`.
const LINK_NAME: &str = "agent-wg";
/// What the process in the background says once `wg` can configure the interface.
const READY: &str = "ready";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The interface to make
    #[arg(value_name = "IFACE")]
    name: String,
    /// Stay in this process, logging to standard error [env: WG_PROCESS_FOREGROUND=1]
    #[arg(long, short)]
    foreground: bool,
    /// Leave the terminal, and say on standard output how it went
    #[arg(long, hide = true)]
    detached: bool,
}

/// The command line, with the subcommand that the program's name stands for.
pub(super) fn arguments(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = given.collect();
    let name = arguments.first().and_then(|program| Path::new(program).file_name());
    if name == Some(OsStr::new(LINK_NAME)) {
        arguments.insert(1, "wg".into());
    }
    arguments
}

pub(super) async fn run(mut global: Global, args: Args) -> Result<(), Failure> {
    let level = std::env::var("LOG_LEVEL").ok();
    if global.log_level.is_none() {
        global.log_level = level.as_deref().map(filter).map(str::to_owned);
    }
    let is_foreground = std::env::var_os("WG_PROCESS_FOREGROUND").is_some_and(|value| value == "1");
    if args.detached {
        return detached(&global, &args.name).await;
    }
    if args.foreground || is_foreground {
        global.start_log()?;
        Interface::open(&args.name, given()?).map_err(Failure::failed)?.run().await;
        return Ok(());
    }
    let is_heard = global.log_level.as_deref().is_some_and(|filter| filter != "off");
    start(&global, &args.name, is_heard)
}

/// Names of levels as other implementations have them; anything else is a filter as in RUST_LOG.
fn filter(level: &str) -> &str {
    match level {
        "verbose" => "debug",
        "silent" => "off",
        other => other,
    }
}

async fn detached(global: &Global, name: &str) -> Result<(), Failure> {
    platform::detach().map_err(Failure::failed)?;
    global.start_log()?;
    let opened = given().and_then(|given| Interface::open(name, given).map_err(Failure::failed));
    match opened {
        Ok(interface) => {
            output::line(READY)?;
            interface.run().await;
            Ok(())
        }
        Err(failure) => {
            output::line(&failure.to_string())?;
            Err(failure)
        }
    }
}

/// Starts this program again in the background, and waits for what it says.
fn start(global: &Global, name: &str, is_heard: bool) -> Result<(), Failure> {
    let mut command = Command::new(std::env::current_exe().map_err(Failure::failed)?);
    if let Some(filter) = &global.log_level {
        command.args(["--log-level", filter]);
    }
    command
        .args(["wg", "--detached", "--", name])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    if !is_heard {
        command.stderr(Stdio::null());
    }
    let mut child =
        command.spawn().context("cannot start a process in the background").map_err(Failure::Failed)?;
    let output = child.stdout.take().context("a piped output is there").map_err(Failure::Failed)?;
    let mut said = String::new();
    BufReader::new(output).read_line(&mut said).map_err(Failure::failed)?;
    match said.trim_end() {
        READY => Ok(()),
        "" => Err(Failure::Failed(anyhow!("the process in the background ended without a word"))),
        error => Err(Failure::Failed(anyhow!("{error}"))),
    }
}

/// What is left open for us.
#[cfg(unix)]
fn given() -> Result<Given, Failure> {
    let descriptor = |name: &str| {
        let Ok(number) = std::env::var(name) else { return Ok(None) };
        let descriptor = number.parse().ok().and_then(platform::inherited);
        descriptor.map(Some).ok_or_else(|| Failure::Usage(anyhow!("{name}={number} is no open descriptor")))
    };
    Ok(Given { tun: descriptor("WG_TUN_FD")?, uapi: descriptor("WG_UAPI_FD")? })
}

#[cfg(not(unix))]
fn given() -> Result<Given, Failure> {
    Ok(Given::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_stands_for_the_subcommand() {
        let arguments = |given: &[&str]| arguments(given.iter().map(OsString::from)).join(OsStr::new(" "));
        assert_eq!(arguments(&["/usr/bin/agent-wg", "wg0"]), "/usr/bin/agent-wg wg wg0");
        assert_eq!(arguments(&["agent", "wg", "wg0"]), "agent wg wg0");
        assert_eq!(arguments(&["agent-wg"]), "agent-wg wg");
        assert_eq!(arguments(&[]), "");
    }

    #[test]
    fn levels_of_other_implementations_are_understood() {
        assert_eq!(["verbose", "silent", "error"].map(filter), ["debug", "off", "error"]);
    }
}
