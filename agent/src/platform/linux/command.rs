//! Commands of the configuration, run by the shell: in a process group of their own, with little environment, no input, and output that nobody reads.
//!
//! When a command takes too long, or nobody waits for it any more, its whole group is killed, whatever it forked and whichever signals it ignores.

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use std::{
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::process::Command;

const SHELL: &str = "/bin/sh";
/// Arguments can be read by everybody on the machine, the environment cannot.
const SCRIPT: &str = "eval \"unset HOLDFAST_COMMAND\n$HOLDFAST_COMMAND\"";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What was killed is gone after this, or hangs in the kernel.
const DYING_TIME: Duration = Duration::from_secs(1);
/// Of the shell.
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// What becomes of processes that a command leaves in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leftovers {
    Kill,
    Keep,
}

/// Kills the group when it is dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may be empty by now. Its number is not used again so soon.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Runs a line of the shell to its end.
///
/// # Errors
/// Why it has failed, for people: it could not be started, ended with another exit code than 0, or took too long.
pub(crate) async fn run_shell(
    line: &str,
    environment: &[(&str, String)],
    timeout: Duration,
    leftovers: Leftovers,
) -> Result<(), String> {
    let mut command = Command::new(SHELL);
    command.arg("-c").arg(SCRIPT).current_dir("/").process_group(0);
    command.env_clear().env("PATH", PATH).env("HOLDFAST_COMMAND", line);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| format!("{SHELL} cannot be started: {error}"))?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let mut group = Group(group);
    match tokio::time::timeout(timeout, child.wait()).await {
        Ok(ended) => {
            if leftovers == Leftovers::Keep {
                group.0 = None;
            }
            judge(ended.map_err(|error| format!("its end cannot be waited for: {error}"))?)
        }
        Err(_) => {
            drop(group);
            let _ = tokio::time::timeout(DYING_TIME, child.wait()).await;
            Err(format!("did not end within {timeout:?} and was killed"))
        }
    }
}

fn judge(status: ExitStatus) -> Result<(), String> {
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(NOT_FOUND), _) => Err("exit code 127, the shell's for a command that is not there".into()),
        (Some(NOT_EXECUTABLE), _) => Err("exit code 126, the shell's for a file that cannot be run".into()),
        (Some(code), _) => Err(format!("exit code {code}")),
        (None, Some(signal)) => Err(format!("ended by signal {signal}")),
        (None, None) => Err(status.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(20);

    async fn run(line: &str) -> Result<(), String> {
        run_shell(line, &[("HOLDFAST_INTERFACE", "hf7".to_owned())], LONG, Leftovers::Kill).await
    }

    #[tokio::test]
    async fn a_line_of_the_shell_passes_or_says_why_not() {
        assert_eq!(run("test \"$HOLDFAST_INTERFACE\" = hf7 && test -z \"$HOME$USER\"").await, Ok(()));
        for (line, why) in [
            ("exit 3", "exit code 3"),
            ("/nowhere/nothing", "127"),
            ("/etc/passwd", "126"),
            ("kill -9 $$", "signal 9"),
            ("if", "exit code 2"),
        ] {
            let error = run(line).await.unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[tokio::test]
    async fn a_line_is_in_no_argument_and_not_in_the_environment_of_what_it_runs() {
        assert_eq!(run("! grep -q secret /proc/$$/cmdline && ! env | grep -q secret").await, Ok(()));
    }

    #[tokio::test]
    async fn one_that_hangs_forks_and_ignores_signals_is_gone_after_its_time() {
        let directory = tempfile::tempdir().unwrap();
        let pids = directory.path().join("pids");
        let line = format!(
            "trap '' TERM INT HUP; (trap '' TERM; echo $$ >> {0}; sleep 600) & echo $$ >> {0}; sleep 600",
            pids.display()
        );
        let begun = Instant::now();
        let error = run_shell(&line, &[], Duration::from_millis(300), Leftovers::Keep).await.unwrap_err();
        assert!(error.contains("within 300ms and was killed") && begun.elapsed() < LONG, "{error}");
        let leader: i32 = std::fs::read_to_string(&pids).unwrap().lines().next().unwrap().parse().unwrap();
        // Whoever is still being buried has been killed.
        while killpg(Pid::from_raw(leader), None).is_ok() {
            assert!(begun.elapsed() < LONG, "the group lives");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn one_that_floods_costs_no_memory_and_ends_with_its_time() {
        let error = run_shell("yes; yes >&2", &[], Duration::from_millis(200), Leftovers::Kill).await;
        assert!(error.unwrap_err().contains("was killed"));
    }

    #[tokio::test]
    async fn what_a_check_leaves_behind_goes_and_what_a_hook_starts_stays() {
        for (leftovers, stays) in [(Leftovers::Kill, false), (Leftovers::Keep, true)] {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("pid");
            let line = format!("sleep 600 & echo $$ > {}", file.display());
            assert_eq!(run_shell(&line, &[], LONG, leftovers).await, Ok(()));
            let group: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
            let begun = Instant::now();
            while !stays && killpg(Pid::from_raw(group), None).is_ok() {
                assert!(begun.elapsed() < LONG, "it stays");
                tokio::task::yield_now().await;
            }
            assert_eq!(killpg(Pid::from_raw(group), Signal::SIGKILL).is_ok(), stays);
        }
    }
}
