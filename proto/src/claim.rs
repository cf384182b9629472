//! What nodes claim: prefixes that they serve, perhaps beside others.

use crate::{Invalid, wire};
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
}

impl Claim {
    pub(crate) fn to_wire(self) -> wire::Claim {
        wire::Claim {
            prefix: self.prefix.to_string(),
            priority: self.priority.into(),
            preempt: self.preempt,
            spread: self.spread,
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
        Ok(Self { prefix, priority, preempt: wire.preempt, spread: wire.spread })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(prefix: &str) -> wire::Claim {
        wire::Claim { prefix: prefix.into(), priority: 7, ..wire::Claim::default() }
    }

    #[test]
    fn claims_survive_the_wire_in_one_order() {
        let claims = Claim::from_wire(&[wire("fd00::/64"), wire("10.0.0.1/32")]).unwrap();
        assert_eq!(
            claims.iter().map(|claim| claim.prefix.to_string()).collect::<Vec<_>>(),
            ["10.0.0.1/32", "fd00::/64"]
        );
        let again: Vec<wire::Claim> = claims.iter().map(|claim| claim.to_wire()).collect();
        assert_eq!(Claim::from_wire(&again).unwrap(), claims);
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
