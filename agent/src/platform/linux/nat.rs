//! Masquerading by nftables, in a table of our own.

use super::nft;
use ipnet::IpNet;
use std::io;

/// The table of an interface's agent. nftables takes fewer characters than names of interfaces have.
pub(super) fn table(interface: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    format!("holdfast-{}", interface.chars().map(plain).collect::<String>())
}

/// What comes from the interface to these subnets leaves with the address of the interface that it leaves by. Takes the place of what was there, in one step.
pub(super) async fn masquerade(table: &str, interface: &str, subnets: &[IpNet]) -> io::Result<()> {
    nft::run(&["-f", "-"], &script(table, interface, subnets)).await.map(drop)
}

/// Also where there is none.
pub(super) async fn remove(table: &str) -> io::Result<()> {
    nft::run(&["-f", "-"], &emptied(table)).await.map(drop)
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
