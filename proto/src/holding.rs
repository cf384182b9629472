//! Who holds the prefixes that are claimed exclusively. A holder is named with its fence: every holder has a higher one than all before it, so of two that think they
//! hold a prefix, whoever knows both knows which one does.

use crate::{Invalid, statement::NodeId, time::UnixTime, wire};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A cluster has at most this many prefixes that are held.
pub const MAX_HOLDINGS: usize = 1024;
/// One node holds at most this many, so that nobody's wide grant takes them all.
pub const MAX_HELD_BY_NODE: usize = 64;

/// That a node holds a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Holding {
    /// Without host bits.
    pub prefix: IpNet,
    pub node: NodeId,
    /// Of two holdings of a prefix the one with the higher fence is the later one.
    pub fence: u64,
    /// By the database's clock.
    pub since: UnixTime,
}

impl Holding {
    pub(crate) fn to_wire(holdings: &[Self]) -> wire::Holdings {
        let held = holdings.iter().map(|holding| wire::Holding {
            prefix: holding.prefix.to_string(),
            node_id: holding.node.0,
            fence: holding.fence,
            since_unix_s: holding.since.0,
        });
        wire::Holdings { held: held.collect() }
    }

    /// Holdings as they travel, sorted; more than [`MAX_HOLDINGS`], or two of one prefix, are refused.
    pub(crate) fn from_wire(wire: &wire::Holdings) -> Result<Vec<Self>, Invalid> {
        if wire.held.len() > MAX_HOLDINGS {
            return Err(Invalid::new(
                "holdings",
                format_args!("{}, at most {MAX_HOLDINGS}", wire.held.len()),
            ));
        }
        let mut held: Vec<Self> = wire.held.iter().map(Self::try_from).collect::<Result<_, _>>()?;
        held.sort_unstable();
        match held.array_windows().find(|[one, two]: &&[Self; 2]| one.prefix == two.prefix) {
            Some([one, _]) => Err(Invalid::new("holdings", format_args!("{} is held twice", one.prefix))),
            None => Ok(held),
        }
    }
}

impl TryFrom<&wire::Holding> for Holding {
    type Error = Invalid;

    fn try_from(wire: &wire::Holding) -> Result<Self, Invalid> {
        let prefix: IpNet = wire.prefix.parse().map_err(|error| Invalid::new("holding", error))?;
        if prefix != prefix.trunc() {
            return Err(Invalid::new("holding", format_args!("{prefix} has host bits")));
        }
        Ok(Self { prefix, node: NodeId(wire.node_id), fence: wire.fence, since: UnixTime(wire.since_unix_s) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(prefix: &str) -> wire::Holding {
        wire::Holding { prefix: prefix.into(), node_id: 3, fence: u64::MAX, since_unix_s: 9 }
    }

    #[test]
    fn holdings_survive_the_wire_in_one_order() {
        let held = vec![wire("fd00::1/128"), wire("10.0.0.1/32")];
        let read = Holding::from_wire(&wire::Holdings { held }).unwrap();
        assert_eq!(read[0].prefix.to_string(), "10.0.0.1/32");
        assert_eq!(Holding::from_wire(&Holding::to_wire(&read)).unwrap(), read);
    }

    #[test]
    fn what_nobody_can_hold_is_refused_by_name() {
        for (held, word) in [
            (vec![wire("nowhere")], "holding"),
            (vec![wire("10.0.0.1/8")], "host bits"),
            (vec![wire("10.0.0.0/8"), wire("10.0.0.0/8")], "twice"),
            (vec![wire("10.0.0.0/8"); MAX_HOLDINGS + 1], "at most"),
        ] {
            let error = Holding::from_wire(&wire::Holdings { held }).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
