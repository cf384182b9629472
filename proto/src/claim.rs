//! What nodes claim: prefixes that they serve, perhaps beside others.

use crate::{
    Invalid,
    prefix::{self, PrefixError},
    wire,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// One node claims at most this many prefixes.
pub const MAX_CLAIMS: usize = 256;

/// A prefix that a node serves for others. It needs leave for each: its certificate says which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Claim {
    /// Without host bits.
    pub prefix: IpNet,
    /// The higher is preferred.
    #[serde(default)]
    pub priority: u16,
    /// Among equals, takes the prefix back after a failure.
    #[serde(default)]
    pub preempt: bool,
    /// Among equals that all say so, clients distribute themselves.
    #[serde(default)]
    pub spread: bool,
    /// What goes to it leaves the node with an address of the node's own.
    #[serde(default)]
    pub masquerade: bool,
    /// Only who holds the prefix serves it: a server gives it to one at a time.
    #[serde(default)]
    pub exclusive: bool,
    /// What it holds is to be given to another as soon as there is one; until then it serves.
    #[serde(default)]
    pub yields: bool,
}

/// A prefix that nobody can claim, whatever was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unclaimable {
    #[error(
        "{0} is every address, which an exit node would serve, and there are none yet: claim the networks behind the node"
    )]
    Everything(IpNet),
    #[error("{0} covers loopback addresses, which are every machine's own")]
    Loopback(IpNet),
    #[error("{0} covers multicast addresses, which have no owner")]
    Multicast(IpNet),
    #[error("{0} covers link-local addresses, which have a meaning on one link only")]
    LinkLocal(IpNet),
    #[error("{0} covers what is no address of a host")]
    Unspecified(IpNet),
    #[error(
        "{0} holds the whole overlay, where every node has its own address: claim the part that is to be shared"
    )]
    Overlay(IpNet),
}

/// Text that names nothing that can be claimed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadClaim {
    #[error(transparent)]
    Unclaimable(#[from] Unclaimable),
    #[error(transparent)]
    Prefix(#[from] PrefixError),
}

impl Claim {
    /// With nothing asked for beyond the prefix.
    pub fn new(prefix: IpNet) -> Self {
        Self {
            prefix,
            priority: 0,
            preempt: false,
            spread: false,
            masquerade: false,
            exclusive: false,
            yields: false,
        }
    }

    /// Whether a connection through the claiming node to what it claims ends on the node, or looks so to the other end: no other node
    /// could go on with it.
    pub fn holds_connections(&self) -> bool {
        self.masquerade || self.prefix.prefix_len() == self.prefix.max_prefix_len()
    }

    /// Refuses what nobody can serve for others. A prefix around such addresses is refused as well.
    ///
    /// # Errors
    /// What it is.
    pub fn check_prefix(prefix: &IpNet) -> Result<(), Unclaimable> {
        let overlaps = |text: &str| {
            let special: Option<IpNet> = text.parse().ok();
            special.is_some_and(|special| special.contains(prefix) || prefix.contains(&special))
        };
        let any = |texts: [&str; 2]| texts.into_iter().any(overlaps);
        let cases = [
            (prefix.prefix_len() == 0, Unclaimable::Everything(*prefix)),
            (any(["127.0.0.0/8", "::1/128"]), Unclaimable::Loopback(*prefix)),
            (any(["224.0.0.0/4", "ff00::/8"]), Unclaimable::Multicast(*prefix)),
            (any(["169.254.0.0/16", "fe80::/10"]), Unclaimable::LinkLocal(*prefix)),
            (any(["0.0.0.0/8", "::/128"]) || overlaps("240.0.0.0/4"), Unclaimable::Unspecified(*prefix)),
        ];
        cases.into_iter().find(|(is_it, _)| *is_it).map_or(Ok(()), |(_, why)| Err(why))
    }

    /// Reads a prefix to claim as people write it, an address alone included.
    ///
    /// # Errors
    /// It is no prefix, it has host bits, or nobody can claim it.
    pub fn parse_prefix(text: &str) -> Result<IpNet, BadClaim> {
        let parsed = prefix::parse(text);
        if let Ok(prefix) | Err(PrefixError::HostBits(prefix)) = &parsed {
            Self::check_prefix(&prefix.trunc())?;
        }
        Ok(parsed?)
    }

    pub(crate) fn to_wire(self) -> wire::Claim {
        wire::Claim {
            prefix: self.prefix.to_string(),
            priority: self.priority.into(),
            preempt: self.preempt,
            spread: self.spread,
            masquerade: self.masquerade,
            exclusive: self.exclusive,
            yields: self.yields,
        }
    }

    /// Claims as they travel; more than [`MAX_CLAIMS`], or one twice, are refused.
    pub(crate) fn from_wire(claims: &[wire::Claim]) -> Result<Vec<Self>, Invalid> {
        if claims.len() > MAX_CLAIMS {
            return Err(Invalid::new("claims", format_args!("{}, at most {MAX_CLAIMS}", claims.len())));
        }
        let mut read: Vec<Self> = claims.iter().map(Self::try_from).collect::<Result<_, _>>()?;
        read.sort_unstable();
        match read.windows(2).find(|pair| pair[0].prefix == pair[1].prefix) {
            Some(pair) => Err(Invalid::new("claims", format_args!("{} is claimed twice", pair[0].prefix))),
            None => Ok(read),
        }
    }
}

impl TryFrom<&wire::Claim> for Claim {
    type Error = Invalid;

    fn try_from(wire: &wire::Claim) -> Result<Self, Invalid> {
        let prefix: IpNet = wire.prefix.parse().map_err(|error| Invalid::new("claim", error))?;
        if prefix != prefix.trunc() {
            return Err(Invalid::new("claim", format_args!("{prefix} has host bits")));
        }
        let priority =
            u16::try_from(wire.priority).map_err(|error| Invalid::new("claim's priority", error))?;
        let wire::Claim { preempt, spread, masquerade, exclusive, yields, .. } = *wire;
        Ok(Self { prefix, priority, preempt, spread, masquerade, exclusive, yields })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_can_serve_is_refused_and_the_rest_is_not() {
        let check = |text: &str| Claim::check_prefix(&text.parse().unwrap());
        for bad in [
            "0.0.0.0/0",
            "::/0",
            "127.0.0.1/32",
            "126.0.0.0/7",
            "239.1.0.0/16",
            "ff02::1/128",
            "169.254.1.0/24",
        ]
        .into_iter()
        .chain(["fe80::1/128", "0.0.0.0/32", "255.255.255.255/32", "::/128", "::/8"])
        {
            let error = check(bad).unwrap_err().to_string();
            assert!(error.starts_with(bad), "{error}");
        }
        for good in ["10.0.0.0/8", "100.64.0.9/32", "192.168.1.0/24", "fd00::/48", "2001:db8::1/128"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn of_what_nobody_can_claim_nothing_else_is_told() {
        for (text, reason) in
            [("0.0.0.7/0", "exit node"), ("127.0.0.1/8", "loopback"), ("10.1.0.7/24", "10.1.0.7/32 is meant")]
        {
            let error = Claim::parse_prefix(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert_eq!(Claim::parse_prefix("10.99.0.1"), Ok("10.99.0.1/32".parse().unwrap()));
    }

    fn wire(prefix: &str) -> wire::Claim {
        wire::Claim { prefix: prefix.into(), priority: 7, masquerade: true, ..wire::Claim::default() }
    }

    #[test]
    fn claims_survive_the_wire_in_one_order() {
        let claims = Claim::from_wire(&[wire("fd00::/64"), wire("10.0.0.1/32")]).unwrap();
        assert_eq!(
            claims.iter().map(|claim| claim.prefix.to_string()).collect::<Vec<_>>(),
            ["10.0.0.1/32", "fd00::/64"]
        );
        assert!(claims.iter().all(|claim| claim.masquerade && claim.priority == 7));
        let again: Vec<wire::Claim> = claims.iter().map(|claim| claim.to_wire()).collect();
        assert_eq!(Claim::from_wire(&again).unwrap(), claims);
    }

    #[test]
    fn connections_are_held_by_whoever_has_the_address_or_masquerades() {
        let claim = |text: &str, masquerade| Claim { masquerade, ..Claim::new(text.parse().unwrap()) };
        assert!(
            claim("10.0.0.1/32", false).holds_connections()
                && claim("fd00::1/128", false).holds_connections()
        );
        assert!(claim("10.0.0.0/24", true).holds_connections());
        assert!(
            !claim("10.0.0.0/24", false).holds_connections()
                && !claim("fd00::/64", false).holds_connections()
        );
    }

    #[test]
    fn what_cannot_be_claimed_is_refused_by_name() {
        for (bad, word) in [
            (vec![wire("nowhere")], "claim"),
            (vec![wire("10.0.0.1/8")], "host bits"),
            (vec![wire::Claim { priority: 70_000, ..wire("10.0.0.0/8") }], "priority"),
            (vec![wire("10.0.0.0/8"), wire("10.0.0.0/8")], "twice"),
            (vec![wire("10.0.0.0/8"); MAX_CLAIMS + 1], "at most"),
        ] {
            let error = Claim::from_wire(&bad).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
