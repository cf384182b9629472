//! A system with IPv6 switched off: the overlay's IPv4 is routed into the tunnel all the same, and nothing of it stays behind.

mod enrolled;

use std::process::{Command, Stdio};

const AGENT: &str = env!("CARGO_BIN_EXE_agent");

#[test]
fn without_ipv6_the_rest_is_routed_and_no_rule_stays_behind() {
    let state = tempfile::tempdir().unwrap();
    let addresses = vec!["100.64.0.1".parse().unwrap(), "fd00:1:2::1".parse().unwrap()];
    enrolled::write_state(state.path(), addresses, |_| Vec::new());
    let text = "
        echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6
        echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6
        $A daemon & daemon=$!
        until ip route show table all | grep -q '^100.64.0.0/10 dev hf0'; do kill -0 $daemon; done
        until $A status >/dev/null; do kill -0 $daemon; done
        kill -TERM $daemon
        wait $daemon
        test -z \"$(ip -4 rule show | grep 52[0-9][0-9][0-9]; ip -6 rule show | grep 52[0-9][0-9][0-9])\"
        echo clean";
    let mut command = Command::new("unshare");
    command.args(["-Urn", "timeout", "-k", "1", "30", "sh", "-euc", text]).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HOLDFAST_")) {
        command.env_remove(name);
    }
    let output =
        command.env("A", format!("{AGENT} --state-dir {}", state.path().display())).output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("clean") && !said.contains("ERROR"), "{said}");
}
