//! Whether another firewall on this machine drops what a subnet router forwards: a chain of nftables (or of iptables above it) at the hook `forward` whose policy is to drop, in a table that does
//! not mention our interface. Looked at, never changed.

use super::nft;
use serde_json::Value;
use std::io;

/// A base chain that drops what none of its rules accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    family: String,
    table: String,
    name: String,
}

impl Chain {
    /// For people: what it does, and what to do.
    pub(super) fn warning(&self, interface: &str) -> String {
        let Self { family, table, name } = self;
        format!(
            "what is forwarded to claimed subnets may be dropped: the policy of the chain `{family} {table} {name}` is drop, and nothing in its table mentions {interface}; to let it through run \
             `nft insert rule {family} {table} {name} iifname {interface} accept` and the same with `oifname`, or what your firewall has for that"
        )
    }
}

/// Those that may drop what comes from the interface, or goes to it; `families`: IPv4, IPv6.
pub(super) async fn dropping(interface: &str, families: [bool; 2]) -> io::Result<Vec<Chain>> {
    let listed = nft::run(&["-j", "list", "chains"], "").await?;
    let mut dropping = Vec::new();
    for chain in chains(&listed, families)? {
        let rules = nft::run(&["list", "table", &chain.family, &chain.table], "").await?;
        if !String::from_utf8_lossy(&rules).contains(&format!("\"{interface}\"")) {
            dropping.push(chain);
        }
    }
    Ok(dropping)
}

fn chains(listed: &[u8], families: [bool; 2]) -> io::Result<Vec<Chain>> {
    let listed: Value = serde_json::from_slice(listed)?;
    let objects = listed["nftables"].as_array().into_iter().flatten();
    let chain = |object: &Value| {
        let chain = &object["chain"];
        let concerns = match chain["family"].as_str()? {
            "ip" => families[0],
            "ip6" => families[1],
            "inet" => true,
            _ => false,
        };
        let drops = chain["hook"] == "forward" && chain["policy"] == "drop";
        let text = |key: &str| chain[key].as_str().map(str::to_owned);
        (concerns && drops)
            .then(|| Some(Chain { family: text("family")?, table: text("table")?, name: text("name")? }))?
    };
    Ok(objects.filter_map(chain).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_that_drop_what_is_forwarded_are_found_by_family() {
        let chain = |family: &str, hook: &str, policy: &str| {
            format!(
                r#"{{"chain": {{"family": "{family}", "table": "filter", "name": "FORWARD", "handle": 1, "type": "filter", "hook": "{hook}", "prio": 0, "policy": "{policy}"}}}}"#
            )
        };
        let listed = format!(
            r#"{{"nftables": [{{"metainfo": {{}}}}, {{"chain": {{"family": "ip", "table": "filter", "name": "DOCKER", "handle": 2}}}}, {}, {}, {}, {}, {}]}}"#,
            chain("ip", "forward", "drop"),
            chain("ip6", "forward", "drop"),
            chain("inet", "forward", "accept"),
            chain("ip", "input", "drop"),
            chain("bridge", "forward", "drop"),
        );
        let found = |families| -> Vec<String> {
            chains(listed.as_bytes(), families).unwrap().into_iter().map(|chain| chain.family).collect()
        };
        assert_eq!(found([true, true]), ["ip", "ip6"]);
        assert_eq!(found([true, false]), ["ip"]);
        assert_eq!(found([false, false]), [] as [&str; 0]);
        assert!(chains(b"no json", [true, true]).is_err());
        assert!(chains(b"{}", [true, true]).unwrap().is_empty());
    }
}
