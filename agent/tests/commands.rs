//! The built program from outside: exit codes, refusals, and what it leaves behind.
//!
//! Agents run in network namespaces of their own (`unshare -Urn`), so that these tests touch no interface of the machine.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

const AGENT: &str = env!("CARGO_BIN_EXE_agent");
const TIMEOUT: Duration = Duration::from_secs(60);

/// Without the variables of whoever runs the tests.
fn clean(mut command: Command) -> Command {
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HOLDFAST_")) {
        command.env_remove(name);
    }
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn agent(state: &Path, arguments: &[&str]) -> Command {
    let mut command = clean(Command::new(AGENT));
    command.arg("--state-dir").arg(state).args(arguments);
    command
}

/// The same in a network namespace of its own.
fn agent_apart(state: &Path, arguments: &[&str]) -> Command {
    let mut command = clean(Command::new("unshare"));
    command.args(["-Urn", AGENT, "--state-dir"]).arg(state).args(arguments);
    command
}

/// A shell script in a network namespace of its own; `$A` is the agent's command line.
fn script(state: &Path, text: &str) -> Output {
    let mut command = clean(Command::new("unshare"));
    command.args(["-Urn", "timeout", "-k", "1", "90", "sh", "-euc", text]);
    command.env("A", format!("{AGENT} --state-dir {}", state.display())).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn assert_fails(output: &Output, code: i32, word: &str) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(word), "{word:?} is not in: {said}");
}

fn setup_key() -> String {
    format!("hf1_{}_{}", "ab".repeat(20), "cd".repeat(16))
}

/// A daemon in the background; killed with the test.
struct Daemon(Child);

impl Daemon {
    /// Returns once it answers.
    fn start(state: &Path) -> Self {
        let child = agent_apart(state, &["daemon"]).stderr(Stdio::null()).spawn().unwrap();
        let mut daemon = Self(child);
        let give_up_at = Instant::now() + TIMEOUT;
        while !agent(state, &["status"]).output().unwrap().status.success() {
            assert!(Instant::now() < give_up_at, "the daemon does not answer");
            assert!(daemon.0.try_wait().unwrap().is_none(), "the daemon ended");
        }
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn without_an_agent_commands_say_so_with_code_3() {
    let state = TempDir::new().unwrap();
    for arguments in [
        &["status"][..],
        &["down"],
        &["drain"],
        &["logout"],
        &["ping", "b"],
        &["wait"],
        &["set", "--keepalive", "2s"],
    ] {
        assert_fails(&agent(state.path(), arguments).output().unwrap(), 3, "no agent runs");
    }
}

#[test]
fn the_json_of_a_stopped_agent_says_stopped() {
    let state = TempDir::new().unwrap();
    let output = agent(state.path(), &["status", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["state"], "stopped");
    assert_eq!(json["control"]["state"], "offline");
}

#[test]
fn wrong_usage_is_told_with_code_2_before_anything_is_started() {
    let state = TempDir::new().unwrap();
    let key = setup_key();
    for (arguments, word) in [
        (&["up", "--setup-key", &key][..], "--servers"),
        (&["up", "--servers", "", "--setup-key", &key], "empty entry"),
        (&["up", "--servers", "a,,b", "--setup-key", &key], "empty entry"),
        (&["up", "--servers", "http://a", "--setup-key", &key], "http"),
        (&["up", "--servers", "a:99999", "--setup-key", &key], "port"),
        (&["up", "--servers", "a", "--setup-key", "hf1_zz"], "setup key"),
        (&["up", "--servers", "a", "--setup-key", "file:/nowhere"], "/nowhere"),
        (&["up", "--servers", "a", "--setup-key", &key, "--peer-timeout", "1"], "--peer-timeout"),
        (&["up", "--servers", "a", "--setup-key", &key, "--keepalive", "soon"], "soon"),
        (&["up", "--servers", "a", "--setup-key", &key, "--peer-mode", "often"], "often"),
        (&["set"], "nothing to set"),
        (&["wait", "--for", "connected"], "peer"),
        (&["explode"], "explode"),
    ] {
        assert_fails(&agent(state.path(), arguments).output().unwrap(), 2, word);
    }
    assert!(!state.path().join("node.key").exists());
}

#[test]
fn a_node_that_is_not_enrolled_needs_a_setup_key() {
    let state = TempDir::new().unwrap();
    let output = agent(state.path(), &["up", "--servers", "127.0.0.1:1"]).output().unwrap();
    assert_fails(&output, 4, "--setup-key");
}

#[test]
fn a_bad_variable_and_a_bad_file_are_named() {
    let state = TempDir::new().unwrap();
    let mut command = agent(state.path(), &["up"]);
    let output = command.env("HOLDFAST_PEER_TIMEOUT", "soon").output().unwrap();
    assert_fails(&output, 2, "HOLDFAST_PEER_TIMEOUT");
    let file = state.path().join("agent.toml");
    fs::write(&file, "keep-alive = 3\n").unwrap();
    let output = agent(state.path(), &["--config", &file.display().to_string(), "up"]).output().unwrap();
    assert_fails(&output, 2, "keep-alive");
}

#[test]
fn version_and_completion_are_printed() {
    let state = TempDir::new().unwrap();
    let version = agent(state.path(), &["version"]).output().unwrap();
    assert!(version.status.success() && said(&version).contains(env!("CARGO_PKG_VERSION")));
    for shell in ["bash", "zsh", "fish"] {
        let script = agent(state.path(), &["completion", shell]).output().unwrap();
        assert!(script.status.success() && said(&script).contains("peer-mode"), "{shell}");
    }
}

#[test]
fn an_agent_answers_and_is_stopped_and_leaves_no_socket() {
    let state = TempDir::new().unwrap();
    let mut daemon = Daemon::start(state.path());
    let status = agent(state.path(), &["status", "--json"]).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(json["state"], "needs-enrolment");
    let down = agent(state.path(), &["down"]).output().unwrap();
    assert!(down.status.success(), "{}", said(&down));
    assert!(daemon.0.wait().unwrap().success());
    assert!(!state.path().join("agent.sock").exists());
    assert_fails(&agent(state.path(), &["down"]).output().unwrap(), 3, "no agent runs");
}

#[test]
fn commands_that_need_a_network_say_that_the_node_is_not_enrolled() {
    let state = TempDir::new().unwrap();
    let _daemon = Daemon::start(state.path());
    assert_fails(&agent(state.path(), &["logout"]).output().unwrap(), 4, "not enrolled");
    assert_fails(&agent(state.path(), &["ping", "nobody"]).output().unwrap(), 1, "nobody");
    let waited = agent(state.path(), &["wait", "--timeout", "100ms"]).output().unwrap();
    assert_fails(&waited, 1, "no server serves");
}

#[test]
fn a_watch_shows_the_state_at_once_and_ends_with_the_agent() {
    let state = TempDir::new().unwrap();
    let _daemon = Daemon::start(state.path());
    let mut watch =
        agent(state.path(), &["status", "--json", "--watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    let json: serde_json::Value = serde_json::from_str(&first).unwrap();
    assert_eq!(json["self"]["interface"], "hf0");
    assert!(agent(state.path(), &["set", "--peer-mode", "always"]).output().unwrap().status.success());
    assert!(agent(state.path(), &["down"]).output().unwrap().status.success());
    assert!(lines.all(|line| line.is_ok()) && watch.wait().unwrap().success());
}

#[test]
fn settings_are_changed_and_kept() {
    let state = TempDir::new().unwrap();
    let _daemon = Daemon::start(state.path());
    let set =
        agent(state.path(), &["set", "--idle-timeout", "10", "--peer-mode", "always=b"]).output().unwrap();
    assert!(set.status.success(), "{}", said(&set));
    assert!(
        said(&set).contains("idle-timeout") && said(&set).contains("no peer is known as b"),
        "{}",
        said(&set)
    );
    assert_fails(&agent(state.path(), &["set", "--keepalive", "9"]).output().unwrap(), 2, "--peer-timeout");
    assert!(agent(state.path(), &["down"]).output().unwrap().status.success());
    let kept = fs::read_to_string(state.path().join("settings.json")).unwrap();
    assert!(kept.contains("always=b") && !kept.contains("9s"), "{kept}");
}

#[test]
fn a_second_agent_on_one_state_directory_is_refused() {
    let state = TempDir::new().unwrap();
    let _daemon = Daemon::start(state.path());
    let second = agent_apart(state.path(), &["daemon"]).output().unwrap();
    assert_fails(&second, 1, "another agent");
    assert!(agent(state.path(), &["status"]).output().unwrap().status.success());
}

#[test]
fn a_damaged_key_file_is_refused_and_left_unchanged() {
    let state = TempDir::new().unwrap();
    let key = state.path().join("node.key");
    fs::write(&key, "damaged").unwrap();
    assert_fails(&agent_apart(state.path(), &["daemon"]).output().unwrap(), 1, "node.key");
    assert_eq!(fs::read_to_string(&key).unwrap(), "damaged");
    // `up` starts a daemon in the background, and still says why that failed.
    let up = agent_apart(state.path(), &["up", "--servers", "127.0.0.1:1", "--setup-key", &setup_key()]);
    let mut up = up;
    assert_fails(&up.output().unwrap(), 1, "node.key");
    assert_eq!(fs::read_to_string(&key).unwrap(), "damaged");
}

#[test]
fn an_interface_name_in_use_is_refused() {
    let state = TempDir::new().unwrap();
    let output = script(state.path(), "ip tuntap add dev hf0 mode tun; $A daemon");
    assert_fails(&output, 1, "hf0");
    assert!(said(&output).contains("already"), "{}", said(&output));
}

#[test]
fn without_permission_for_an_interface_the_error_says_what_is_needed() {
    let state = TempDir::new().unwrap();
    let root = fs::metadata("/proc/self").is_ok_and(|_| is_root());
    let mut command = match root {
        false => clean(Command::new(AGENT)),
        true => {
            let mut command = clean(Command::new("setpriv"));
            command.args(["--inh-caps=-all", "--bounding-set=-all", AGENT]);
            command
        }
    };
    let output = command.arg("--state-dir").arg(state.path()).arg("daemon").output().unwrap();
    assert_fails(&output, 1, "CAP_NET_ADMIN");
    assert!(!state.path().join("agent.sock").exists());
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

#[test]
fn sigterm_leaves_no_interface_rule_or_socket() {
    let state = TempDir::new().unwrap();
    let text = "
        $A daemon & daemon=$!
        until $A status >/dev/null 2>&1; do kill -0 $daemon; done
        ip link show hf0 >/dev/null
        kill -TERM $daemon
        wait $daemon
        if ip link show hf0 2>/dev/null; then exit 1; fi
        test -z \"$(ip rule show | grep 72)\"
        echo clean";
    let output = script(state.path(), text);
    assert!(output.status.success() && said(&output).contains("clean"), "{}", said(&output));
    assert!(!state.path().join("agent.sock").exists());
}

#[test]
fn what_a_killed_agent_left_is_cleaned_up_by_the_next() {
    let state = TempDir::new().unwrap();
    let text = "
        $A daemon & daemon=$!
        until $A status >/dev/null 2>&1; do kill -0 $daemon; done
        kill -KILL $daemon
        wait $daemon || true
        ip rule add not fwmark 0x4866 lookup 52999 protocol 72
        $A daemon & daemon=$!
        until $A status >/dev/null 2>&1; do kill -0 $daemon; done
        test -z \"$(ip rule show | grep 52999)\"
        kill -TERM $daemon
        wait $daemon
        echo clean";
    let output = script(state.path(), text);
    assert!(output.status.success() && said(&output).contains("clean"), "{}", said(&output));
}
