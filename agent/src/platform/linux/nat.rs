//! Masquerading by nftables, in a table of our own. The `nft` program does it: the libraries that speak its protocol are in C or under another kind of licence.

use ipnet::IpNet;
use std::{io, process::Stdio, time::Duration};
use tokio::{io::AsyncWriteExt, process::Command};

/// Services may have no `sbin` in their PATH.
const PROGRAMS: [&str; 3] = ["nft", "/usr/sbin/nft", "/sbin/nft"];
/// It answers within milliseconds.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The table of an interface's agent. nftables takes fewer characters than names of interfaces have.
pub(super) fn table(interface: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    format!("holdfast-{}", interface.chars().map(plain).collect::<String>())
}

/// What comes from the interface to these subnets leaves with the address of the interface that it leaves by. Takes the place of what was there, in one step.
pub(super) async fn masquerade(table: &str, interface: &str, subnets: &[IpNet]) -> io::Result<()> {
    run(&script(table, interface, subnets)).await
}

/// Also where there is none.
pub(super) async fn remove(table: &str) -> io::Result<()> {
    run(&emptied(table)).await
}

fn emptied(table: &str) -> String {
    format!("add table inet {table}\ndelete table inet {table}\n")
}

fn script(table: &str, interface: &str, subnets: &[IpNet]) -> String {
    let rules = subnets.iter().map(|subnet| {
        let family = if subnet.addr().is_ipv4() { "ip" } else { "ip6" };
        format!("    iifname \"{interface}\" {family} daddr {subnet} masquerade\n")
    });
    let chain = "type nat hook postrouting priority srcnat; policy accept;";
    let rules: String = rules.collect();
    format!("{}table inet {table} {{\n  chain postrouting {{\n    {chain}\n{rules}  }}\n}}\n", emptied(table))
}

async fn run(script: &str) -> io::Result<()> {
    for program in PROGRAMS {
        match tokio::time::timeout(TIMEOUT, run_by(program, script)).await {
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(done) => return done,
            Err(_) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{program} does not answer")));
            }
        }
    }
    Err(io::Error::other("the program nft is missing: install nftables"))
}

async fn run_by(program: &str, script: &str) -> io::Result<()> {
    let mut command = Command::new(program);
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first: String = said.lines().next().unwrap_or("it said nothing").chars().take(200).collect();
    Err(io::Error::other(format!("nft failed: {first}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_replaces_the_one_before_it_in_one_script() {
        let subnets: Vec<IpNet> = vec!["10.1.0.0/24".parse().unwrap(), "fd07::/64".parse().unwrap()];
        let script = script(&table("hf0"), "hf0", &subnets);
        let expected = "add table inet holdfast-hf0\ndelete table inet holdfast-hf0\ntable inet holdfast-hf0 {\n  \
            chain postrouting {\n    type nat hook postrouting priority srcnat; policy accept;\n    \
            iifname \"hf0\" ip daddr 10.1.0.0/24 masquerade\n    iifname \"hf0\" ip6 daddr fd07::/64 masquerade\n  }\n}\n";
        assert_eq!(script, expected);
    }

    #[test]
    fn an_odd_name_of_an_interface_makes_a_plain_name_of_a_table() {
        assert_eq!(table("wg 0;x"), "holdfast-wg_0_x");
    }
}
