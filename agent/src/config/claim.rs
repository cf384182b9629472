//! A prefix to claim, as people write it: `10.1.0.0/24`, `10.99.0.1@100`; `none` takes back what was claimed before.

use ipnet::IpNet;
use proto::claim::Claim;
use serde::{Serialize, Serializer};
use std::{fmt, str::FromStr};

/// One entry of `--claim`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClaimRule {
    None,
    Prefix { prefix: IpNet, priority: u16 },
}

impl FromStr for ClaimRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text == "none" {
            return Ok(Self::None);
        }
        let (prefix, priority) = match text.split_once('@') {
            Some((prefix, priority)) => (prefix, priority_of(priority)?),
            None => (text, 0),
        };
        let prefix = Claim::parse_prefix(prefix).map_err(|error| error.to_string())?;
        Ok(Self::Prefix { prefix, priority })
    }
}

fn priority_of(text: &str) -> Result<u16, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is no priority: a number from 0 to 65535, the higher the better"))
}

impl fmt::Display for ClaimRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Prefix { prefix, priority: 0 } => prefix.fmt(f),
            Self::Prefix { prefix, priority } => write!(f, "{prefix}@{priority}"),
        }
    }
}

impl Serialize for ClaimRule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_or_an_address_may_have_a_priority() {
        for (text, written) in [
            ("10.1.0.0/24", "10.1.0.0/24"),
            ("10.99.0.1", "10.99.0.1/32"),
            (" fd00::1@65535 ", "fd00::1/128@65535"),
            ("10.99.0.1/32@0", "10.99.0.1/32"),
            ("none", "none"),
        ] {
            let rule: ClaimRule = text.parse().unwrap();
            assert_eq!(rule.to_string(), written);
            assert_eq!(written.parse(), Ok(rule));
        }
    }

    #[test]
    fn what_cannot_be_claimed_is_refused_with_its_reason() {
        for (text, reason) in [
            ("", "no prefix"),
            ("lan", "no prefix"),
            ("10.1.0.0/33", "no prefix"),
            ("10.1.0.7/24", "10.1.0.0/24 or 10.1.0.7/32 is meant"),
            ("10.1.0.0/24@", "no priority"),
            ("10.1.0.0/24@-1", "no priority"),
            ("10.1.0.0/24@65536", "no priority"),
            ("0.0.0.0/0", "exit node"),
            ("::/0", "exit node"),
            ("0.0.0.0", "no address of a host"),
            ("::", "no address of a host"),
            ("127.0.0.1", "loopback"),
            ("::1", "loopback"),
            ("126.0.0.0/7", "loopback"),
            ("169.254.1.0/24", "link-local"),
            ("fe80::/64", "link-local"),
            ("224.0.0.1", "multicast"),
            ("ff02::1", "multicast"),
        ] {
            let error = text.parse::<ClaimRule>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
