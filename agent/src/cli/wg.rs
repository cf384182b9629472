//! `agent wg`: a plain WireGuard interface. Returns when `wg` can configure it, and leaves a process in the background.
//!
//! The environment is that of other userspace implementations: WG_PROCESS_FOREGROUND, WG_TUN_FD, WG_UAPI_FD, LOG_LEVEL. As
//! `wg-quick` starts a program with the interface as its only argument, a link named `agent-wg` to this program is `agent wg`.

use super::{Global, failure::Failure, output};
use crate::{
    platform,
    wg::{Given, Interface},
};
use agent_tunnel::{WantedWorkers, Workers};
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
const DETACHED: &str = "--detached";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The interface to make
    #[arg(value_name = "IFACE")]
    name: String,
    /// Threads that carry packets, 1 to 8 [env: HOLDFAST_WORKERS] [default: one; half the cores from 4 cores on, 4 at most]
    #[arg(long, value_name = "N")]
    workers: Option<Workers>,
    /// Stay in this process, logging to standard error [env: WG_PROCESS_FOREGROUND=1]
    #[arg(long, short)]
    foreground: bool,
    /// Leave the terminal, and say on standard output how it went
    #[arg(long, hide = true)]
    detached: bool,
    #[arg(skip)]
    given: Option<Result<Given, Failure>>,
}

impl Args {
    /// Takes what whoever started us left open: to be called before anything of ours is. The process in the background
    /// gets it from the one that starts it, which takes nothing.
    pub(super) fn take_given(&mut self) {
        if self.detached || self.is_foreground() {
            self.given = Some(given(|name| std::env::var(name).ok()));
        }
    }

    fn is_foreground(&self) -> bool {
        self.foreground || std::env::var_os("WG_PROCESS_FOREGROUND").is_some_and(|value| value == "1")
    }
}

/// The command line, with the subcommand that the program's name stands for. Who starts itself again names it, whatever
/// its file is called.
pub(super) fn arguments(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = given.collect();
    let name = arguments.first().and_then(|program| Path::new(program).file_name());
    let is_started_again = arguments.iter().any(|argument| argument == DETACHED);
    if name == Some(OsStr::new(LINK_NAME)) && !is_started_again {
        arguments.insert(1, "wg".into());
    }
    arguments
}

pub(super) async fn run(mut global: Global, mut args: Args) -> Result<(), Failure> {
    let level = std::env::var("LOG_LEVEL").ok();
    if global.log_level.is_none() {
        global.log_level = level.as_deref().map(filter).map(str::to_owned);
    }
    let workers = workers(args.workers, |name| std::env::var(name).ok())?;
    if let Some(given) = args.given.take() {
        return match args.detached {
            true => detached(&global, &args.name, workers, given).await,
            false => {
                global.start_log()?;
                serve(open(&args.name, workers, given).await?).await
            }
        };
    }
    let is_heard = global.log_level.as_deref().is_some_and(|filter| filter != "off");
    start(&global, &args.name, workers, is_heard)
}

fn workers(
    flag: Option<Workers>,
    variable: impl FnOnce(&str) -> Option<String>,
) -> Result<WantedWorkers, Failure> {
    const NAME: &str = "HOLDFAST_WORKERS";
    match (flag, variable(NAME).filter(|value| !value.is_empty())) {
        (Some(workers), _) => Ok(WantedWorkers::Exactly(workers)),
        (None, Some(value)) => value
            .parse::<Workers>()
            .map(WantedWorkers::Exactly)
            .map_err(|error| Failure::Usage(anyhow!("environment variable {NAME}: {error}"))),
        (None, None) => Ok(WantedWorkers::of_this_machine()),
    }
}

/// Names of levels as other implementations have them; anything else is a filter as in RUST_LOG.
fn filter(level: &str) -> &str {
    match level {
        "verbose" => "debug",
        "silent" => "off",
        other => other,
    }
}

async fn open(
    name: &str,
    workers: WantedWorkers,
    given: Result<Given, Failure>,
) -> Result<Interface, Failure> {
    Interface::open(name, workers, given?).await.map_err(Failure::failed)
}

async fn serve(interface: Interface) -> Result<(), Failure> {
    interface.run().await.map_err(Failure::failed)
}

async fn detached(
    global: &Global,
    name: &str,
    workers: WantedWorkers,
    given: Result<Given, Failure>,
) -> Result<(), Failure> {
    platform::detach().map_err(Failure::failed)?;
    platform::open_system_log();
    global.start_log()?;
    match open(name, workers, given).await {
        Ok(interface) => {
            output::line(READY)?;
            let ended = serve(interface).await;
            // Standard error may lead nowhere.
            if let Err(failure) = &ended {
                platform::log_to_system(&format!("wg {name}: {failure}"));
            }
            ended
        }
        Err(failure) => {
            output::line(&failure.to_string())?;
            Err(failure)
        }
    }
}

/// Starts this program again in the background, and waits for what it says.
fn start(global: &Global, name: &str, workers: WantedWorkers, is_heard: bool) -> Result<(), Failure> {
    let mut command = Command::new(std::env::current_exe().map_err(Failure::failed)?);
    if let Some(filter) = &global.log_level {
        command.args(["--log-level", filter]);
    }
    command
        .args(["--log-format", global.log_format.name()])
        .arg("wg")
        .args(match workers {
            WantedWorkers::Exactly(count) => vec!["--workers".to_owned(), count.to_string()],
            WantedWorkers::AtMost(_) => Vec::new(),
        })
        .args([DETACHED, "--", name])
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
fn given(environment: impl Fn(&str) -> Option<String>) -> Result<Given, Failure> {
    let number = |name: &str| {
        let Some(text) = environment(name) else { return Ok(None) };
        let number: Result<i32, _> = text.parse();
        number.map(Some).map_err(|_| Failure::Usage(anyhow!("{name}={text} is no descriptor's number")))
    };
    let (tun, uapi) = (number("WG_TUN_FD")?, number("WG_UAPI_FD")?);
    if let (Some(tun), Some(uapi)) = (tun, uapi)
        && tun == uapi
    {
        return Err(Failure::Usage(anyhow!("WG_TUN_FD and WG_UAPI_FD are both {tun}: each needs its own")));
    }
    let take = |name: &str, number: Option<i32>| {
        let Some(number) = number else { return Ok(None) };
        let descriptor = platform::inherited(number);
        descriptor.map(Some).ok_or_else(|| Failure::Usage(anyhow!("{name}={number} is no open descriptor")))
    };
    Ok(Given { tun: take("WG_TUN_FD", tun)?, uapi: take("WG_UAPI_FD", uapi)? })
}

#[cfg(not(unix))]
fn given(_environment: impl Fn(&str) -> Option<String>) -> Result<Given, Failure> {
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
        let again = ["/usr/bin/agent-wg", "--log-format", "text", "wg", "--detached", "--", "wg0"];
        assert_eq!(arguments(&again), again.join(" ").as_str());
        assert_eq!(arguments(&[]), "");
    }

    #[cfg(unix)]
    #[test]
    fn descriptors_that_cannot_be_meant_are_refused() {
        use std::os::fd::IntoRawFd;
        let refusal = |tun: &str, uapi: Option<&str>| {
            let given =
                given(|name| if name == "WG_TUN_FD" { Some(tun.into()) } else { uapi.map(str::to_owned) });
            given.unwrap_err().to_string()
        };
        assert!(refusal("three", None).contains("WG_TUN_FD=three"));
        assert!(refusal("0", None).contains("no open descriptor"));
        assert!(refusal("999999", None).contains("no open descriptor"));
        let file = std::fs::File::open("/dev/null").unwrap().into_raw_fd().to_string();
        assert!(refusal(&file, Some(&file)).contains("both"));
        let taken = given(|name| (name == "WG_TUN_FD").then(|| file.clone())).unwrap();
        assert!(taken.tun.is_some() && taken.uapi.is_none());
    }

    #[test]
    fn the_flag_goes_before_the_environment_and_a_bad_value_names_its_variable() {
        let two = Workers::new(2);
        let exactly_two = two.map(WantedWorkers::Exactly);
        let of = |flag, value: &str| workers(flag, |_| Some(value.to_owned()));
        assert_eq!(of(two, "3").ok(), exactly_two);
        assert_eq!(of(None, "2").ok(), exactly_two);
        assert_eq!(of(None, "").ok(), Some(WantedWorkers::of_this_machine()));
        let error = of(None, "many").unwrap_err().to_string();
        assert!(error.contains("HOLDFAST_WORKERS") && error.contains("many"), "{error}");
    }

    #[test]
    fn levels_of_other_implementations_are_understood() {
        assert_eq!(["verbose", "silent", "error"].map(filter), ["debug", "off", "error"]);
    }
}
