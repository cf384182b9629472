//! Host names become node names: one DNS label, unique in the cluster.

const MAX_BYTES: usize = 63;
const NAMELESS: &str = "node";

/// One DNS label of lower-case letters, digits and inner hyphens.
pub(crate) fn is_valid(name: &str) -> bool {
    (1..=MAX_BYTES).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// The name for a host that calls itself `hostname`, made unique with -1, -2 ..
pub(crate) fn unique(hostname: &str, is_taken: impl Fn(&str) -> bool) -> String {
    let base = from_hostname(hostname);
    if !is_taken(&base) {
        return base;
    }
    let numbered = (1_u64..).map(|number| with_suffix(&base, number));
    numbered
        .into_iter()
        .find(|name| !is_taken(name))
        .expect("the names taken are finite, the numbers are not")
}

/// The first label, with everything that is no letter or digit made a single hyphen.
fn from_hostname(hostname: &str) -> String {
    let label = hostname.split('.').next().unwrap_or_default();
    let mut name = String::with_capacity(label.len());
    for c in label.chars() {
        match c.to_ascii_lowercase() {
            c if c.is_ascii_alphanumeric() => name.push(c),
            _ if name.ends_with('-') || name.is_empty() => {}
            _ => name.push('-'),
        }
    }
    name.truncate(MAX_BYTES);
    match name.trim_end_matches('-') {
        "" => NAMELESS.to_owned(),
        name => name.to_owned(),
    }
}

fn with_suffix(base: &str, number: u64) -> String {
    let suffix = format!("-{number}");
    let kept = base.len().min(MAX_BYTES - suffix.len());
    format!("{}{suffix}", base[..kept].trim_end_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn host_names_become_labels() {
        for (hostname, name) in [
            ("web", "web"),
            ("Web-01.example.com", "web-01"),
            ("Anna's MacBook  Pro", "anna-s-macbook-pro"),
            ("--", "node"),
            ("", "node"),
            ("日本", "node"),
            ("a_b", "a-b"),
        ] {
            assert_eq!(unique(hostname, |_| false), name, "{hostname}");
        }
    }

    #[test]
    fn a_name_in_use_gets_the_first_free_number() {
        let taken = BTreeSet::from(["web".to_owned(), "web-1".to_owned()]);
        assert_eq!(unique("web", |name| taken.contains(name)), "web-2");
    }

    proptest! {
        #[test]
        fn any_host_names_give_valid_and_different_names(hostnames in prop::collection::vec("\\PC{0,80}|a{60,70}", 1..30)) {
            let mut taken = BTreeSet::new();
            for hostname in hostnames {
                let name = unique(&hostname, |name| taken.contains(name));
                prop_assert!(is_valid(&name), "{:?} -> {:?}", hostname, name);
                prop_assert!(taken.insert(name));
            }
        }
    }
}
