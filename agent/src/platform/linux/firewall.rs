//! Whether another firewall on this machine drops what a subnet router forwards: a chain of nftables (or of iptables above it) at the hook `forward` whose policy is to drop, where no rule of it, or of
//! a chain that it jumps to, names our interface. Looked at, never changed.

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
            "what is forwarded to claimed subnets, or their answers, may be dropped: the policy of the chain `{family} {table} {name}` is drop, and its rules do not let through both what comes from \
             {interface} and what goes there; to let it through run `nft insert rule {family} {table} {name} iifname {interface} accept` and the same with `oifname`, or what your firewall has for that"
        )
    }
}

/// Those that may drop what comes from the interface, or goes to it; `families`: IPv4, IPv6.
pub(super) async fn dropping(interface: &str, families: [bool; 2]) -> io::Result<Vec<Chain>> {
    // Without the elements of sets, which may be very many.
    let listed = nft::run(&["-j", "-t", "list", "chains"], "").await?;
    let mut dropping = Vec::new();
    for chain in chains(&listed, families)? {
        let table = nft::run(&["-j", "-t", "list", "table", &chain.family, &chain.table], "").await?;
        if !lets_through(&table, &chain.name, interface)? {
            dropping.push(chain);
        }
    }
    Ok(dropping)
}

/// Whether rules that packets meet from this chain on name the interface for both directions. Answers may be let through as such, by the state of their connection.
fn lets_through(table: &[u8], chain: &str, interface: &str) -> io::Result<bool> {
    let table: Value = serde_json::from_slice(table)?;
    let objects = table["nftables"].as_array().into_iter().flatten();
    let rules: Vec<&Value> = objects.map(|object| &object["rule"]).filter(|rule| rule.is_object()).collect();
    let mut met = vec![chain];
    let (mut is_in, mut is_out) = (false, false);
    let mut next = 0;
    while let Some(chain) = met.get(next).copied() {
        next += 1;
        for rule in rules.iter().filter(|rule| rule["chain"] == *chain) {
            let expressions = rule["expr"].as_array().map(Vec::as_slice).unwrap_or_default();
            targets(&rule["expr"], &mut met);
            if expressions
                .iter()
                .any(|expression| expression.get("drop").is_some() || expression.get("reject").is_some())
            {
                continue;
            }
            is_in |= expressions.iter().any(|expression| names(expression, ["iif", "iifname"], interface));
            is_out |= expressions.iter().any(|expression| {
                names(expression, ["oif", "oifname"], interface) || is_of_state(expression)
            });
        }
    }
    Ok(is_in && is_out)
}

/// Chains that a rule leads to, at whatever depth, each once.
fn targets<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field["target"].as_str() {
                    Some(target) if ["jump", "goto"].contains(&name.as_str()) => {
                        if !found.contains(&target) {
                            found.push(target);
                        }
                    }
                    Some(_) | None => targets(field, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| targets(item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Whether an expression is about this interface, under one of these keys.
fn names(expression: &Value, keys: [&str; 2], interface: &str) -> bool {
    let has_key = |value: &Value| value["meta"]["key"].as_str().is_some_and(|key| keys.contains(&key));
    let (comparison, map) = (&expression["match"], &expression["vmap"]);
    let is_compared =
        has_key(&comparison["left"]) && comparison["op"] != "!=" && has_name(&comparison["right"], interface);
    is_compared || has_key(&map["key"]) && has_name(&map["data"], interface)
}

/// A named set may hold everything.
fn has_name(value: &Value, interface: &str) -> bool {
    match value {
        Value::String(name) => {
            let is_of_prefix = name.strip_suffix('*').is_some_and(|prefix| interface.starts_with(prefix));
            name == interface || is_of_prefix || name.starts_with('@')
        }
        Value::Array(items) => items.iter().any(|item| has_name(item, interface)),
        Value::Object(fields) => fields.values().any(|field| has_name(field, interface)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Of iptables' own matches no more than the name is told.
fn is_of_state(expression: &Value) -> bool {
    let is_ct = |value: &Value| value["ct"]["key"] == "state";
    let xt = &expression["xt"]["name"];
    is_ct(&expression["match"]["left"])
        || is_ct(&expression["vmap"]["key"])
        || xt == "conntrack"
        || xt == "state"
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

    fn rule(chain: &str, expressions: &str) -> String {
        format!(
            r#"{{"rule": {{"family": "ip", "table": "filter", "chain": "{chain}", "handle": 5, "expr": [{expressions}]}}}}"#
        )
    }

    fn passes(rules: &[String]) -> bool {
        let table = format!(r#"{{"nftables": [{{"metainfo": {{}}}}, {}]}}"#, rules.join(", "));
        lets_through(table.as_bytes(), "FORWARD", "hf0").unwrap()
    }

    fn of_interface(key: &str, op: &str, name: &str, verdict: &str) -> String {
        format!(
            r#"{{"match": {{"op": "{op}", "left": {{"meta": {{"key": "{key}"}}}}, "right": {name}}}}}, {{"counter": {{"packets": 0, "bytes": 0}}}}, {{"{verdict}": null}}"#
        )
    }

    const STATE: &str = r#"{"xt": {"type": "match", "name": "conntrack"}}, {"accept": null}"#;

    #[test]
    fn rules_that_forwarded_packets_meet_count_for_their_direction_and_others_do_not() {
        let named = |chain: &str, key: &str| rule(chain, &of_interface(key, "==", r#""hf0""#, "accept"));
        assert!(!passes(&[named("INPUT", "iifname"), named("OUTPUT", "oifname")]));
        assert!(!passes(&[named("FORWARD", "iifname")]));
        assert!(!passes(&[named("FORWARD", "oifname"), rule("FORWARD", STATE)]));
        assert!(passes(&[named("FORWARD", "iifname"), named("FORWARD", "oifname")]));
        assert!(passes(&[named("FORWARD", "iifname"), rule("FORWARD", STATE)]));
        let refused = rule("FORWARD", &of_interface("iifname", "==", r#""hf0""#, "drop"));
        assert!(!passes(&[refused, named("FORWARD", "oifname")]));
        let other = rule("FORWARD", &of_interface("iifname", "!=", r#""hf0""#, "accept"));
        assert!(!passes(&[other, named("FORWARD", "oifname")]));
    }

    #[test]
    fn chains_are_followed_once_wherever_they_lead() {
        let named =
            [rule("USER", &of_interface("iifname", "==", r#""hf0""#, "accept")), rule("FORWARD", STATE)];
        assert!(!passes(&named));
        let jump = |from: &str, to: &str| rule(from, &format!(r#"{{"jump": {{"target": "{to}"}}}}"#));
        let led = [jump("FORWARD", "USER"), jump("USER", "FORWARD")];
        assert!(passes(&[&named[..], &led].concat()));
        let map = r#"{"vmap": {"key": {"meta": {"key": "oifname"}}, "data": {"set": [["x", {"drop": null}], ["y", {"goto": {"target": "USER"}}]]}}}"#;
        assert!(passes(&[&named[..], &[rule("FORWARD", map)]].concat()));
    }

    #[test]
    fn an_interface_is_known_in_sets_maps_and_patterns() {
        for (name, expected) in [
            (r#""hf*""#, true),
            (r#""h0*""#, false),
            (r#"{"set": ["eth0", "hf0"]}"#, true),
            (r#"{"set": ["eth0", "hf00"]}"#, false),
            (r#""@trusted""#, true),
            ("5", false),
        ] {
            let named = rule("FORWARD", &of_interface("iifname", "==", name, "accept"));
            assert_eq!(passes(&[named, rule("FORWARD", STATE)]), expected, "{name}");
        }
        assert!(lets_through(b"no json", "FORWARD", "hf0").is_err());
        assert!(!lets_through(b"{}", "FORWARD", "hf0").unwrap());
    }
}
