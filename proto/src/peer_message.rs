//! What agents say to each other inside tunnels, typed. The tunnel vouches for the sender, so nothing here is signed but what the root signed.

use crate::{Invalid, endpoints, fixed, holding::Holding, map::MAX_ENDPOINTS, root_list::MAX_ROOTS, wire};
use ipnet::IpNet;
use prost::Message;
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// The largest datagram taken, bytes.
pub const MAX_LEN: usize = 1200;

/// A datagram from a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerMessage {
    /// The sender's start number: a new one means that it restarted.
    pub boot: u64,
    pub body: Body,
}

/// A question whether the receiver is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    pub id: u64,
    pub uses: Uses,
}

/// Which prefixes that the receiver serves the sender sends packets to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Uses {
    #[default]
    None,
    /// One of them at least, and at most [`MAX_USED`].
    These(Vec<IpNet>),
    /// Too many to name, or from a program that names none.
    Some,
}

/// A probe names at most so many prefixes: it is one small datagram.
pub const MAX_USED: usize = 40;

impl Uses {
    /// Of as many as there are.
    pub fn of(prefixes: Vec<IpNet>) -> Self {
        match prefixes.len() {
            0 => Self::None,
            1..=MAX_USED => Self::These(prefixes),
            _ => Self::Some,
        }
    }

    /// Whether there is any.
    pub fn is_any(&self) -> bool {
        match self {
            Self::None => false,
            Self::These(_) | Self::Some => true,
        }
    }

    /// Whether this prefix is one of them, as far as is known.
    pub fn includes(&self, prefix: &IpNet) -> bool {
        match self {
            Self::None => false,
            Self::These(these) => these.contains(prefix),
            Self::Some => true,
        }
    }

    fn to_wire(&self) -> Vec<Vec<u8>> {
        match self {
            Self::None | Self::Some => Vec::new(),
            Self::These(these) => these.iter().map(packed).collect(),
        }
    }

    fn from_wire(probe: &wire::Probe) -> Result<Self, Invalid> {
        if probe.used.len() > MAX_USED {
            let found = probe.used.len();
            return Err(Invalid::new("used prefixes", format_args!("{found}, at most {MAX_USED}")));
        }
        match (probe.uses, probe.used.is_empty()) {
            (false, _) => Ok(Self::None),
            (true, true) => Ok(Self::Some),
            (true, false) => {
                probe.used.iter().map(|bytes| unpacked(bytes)).collect::<Result<_, _>>().map(Self::These)
            }
        }
    }
}

/// The length, then the bytes of the address.
fn packed(prefix: &IpNet) -> Vec<u8> {
    let mut bytes = vec![prefix.prefix_len()];
    match prefix.addr() {
        IpAddr::V4(address) => bytes.extend(address.octets()),
        IpAddr::V6(address) => bytes.extend(address.octets()),
    }
    bytes
}

fn unpacked(bytes: &[u8]) -> Result<IpNet, Invalid> {
    let invalid = || Invalid::new("used prefix", format_args!("{} bytes are none", bytes.len()));
    let (length, address) = bytes.split_first().ok_or_else(invalid)?;
    let v4 = <[u8; 4]>::try_from(address).map(IpAddr::from);
    let address = v4.or_else(|_| <[u8; 16]>::try_from(address).map(IpAddr::from)).map_err(|_| invalid())?;
    let prefix = IpNet::new(address, *length).map_err(|error| Invalid::new("used prefix", error))?;
    Ok(prefix.trunc())
}

/// At most so many claims are told apart: an answer is one small datagram.
pub const MAX_APART: usize = 32;

/// An answer lists at most so many claims.
pub const MAX_LISTED: usize = 56;

/// How one claim stands, where that is otherwise than its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Apart {
    pub prefix: IpNet,
    /// How long it is served again, to the millisecond; `None`: it is withdrawn.
    pub uptime: Option<Duration>,
}

impl Apart {
    fn to_wire(self) -> wire::ClaimApart {
        wire::ClaimApart {
            prefix: packed(&self.prefix),
            withdrawn: self.uptime.is_none(),
            uptime_ms: self.uptime.map_or(0, millis),
        }
    }

    fn from_wire(wire: &wire::ClaimApart) -> Result<Self, Invalid> {
        let uptime = (!wire.withdrawn).then_some(Duration::from_millis(wire.uptime_ms));
        Ok(Self { prefix: unpacked(&wire.prefix)?, uptime })
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// The answer to a probe, and how its sender stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeReply {
    pub id: u64,
    /// How long its agent runs, or its claims are restored if that is shorter, to the millisecond; zero from one that does not say.
    pub uptime: Duration,
    /// It drains.
    pub is_leaving: bool,
    /// It does not serve what it claims now.
    pub is_withdrawn: bool,
    /// Claims that stand otherwise, at most [`MAX_APART`].
    pub apart: Vec<Apart>,
    /// All that it claims, at most [`MAX_LISTED`]: the receiver's map may be old. `None`: there is no room, or it is an older program.
    pub claims: Option<Vec<IpNet>>,
}

impl ProbeReply {
    /// Whether anything is not served that its sender claims.
    pub fn withdraws(&self) -> bool {
        self.is_withdrawn || self.apart.iter().any(|apart| apart.uptime.is_none())
    }

    /// Whether an answer with so many claims apart, in bytes at worst 34 each, can list so many at 20 each.
    pub const fn can_list(claims: usize, apart: usize) -> bool {
        claims <= MAX_LISTED && claims * 20 + apart * 34 <= MAX_LEN - 60
    }

    fn from_wire(reply: &wire::ProbeReply) -> Result<Self, Invalid> {
        if reply.claims.len() > MAX_LISTED {
            let found = reply.claims.len();
            return Err(Invalid::new("listed claims", format_args!("{found}, at most {MAX_LISTED}")));
        }
        if reply.apart.len() > MAX_APART {
            let found = reply.apart.len();
            return Err(Invalid::new("claims apart", format_args!("{found}, at most {MAX_APART}")));
        }
        Ok(Self {
            id: reply.id,
            uptime: Duration::from_millis(reply.uptime_ms),
            is_leaving: reply.leaving,
            is_withdrawn: reply.withdrawn,
            apart: reply.apart.iter().map(Apart::from_wire).collect::<Result<_, _>>()?,
            claims: match reply.lists_claims {
                true => Some(reply.claims.iter().map(|bytes| unpacked(bytes)).collect::<Result<_, _>>()?),
                false => None,
            },
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    Probe(Probe),
    ProbeReply(ProbeReply),
    /// Where the sender may be reached now.
    Endpoints(Vec<SocketAddr>),
    /// The sender goes away.
    Leaving,
    /// Encoded `Signed` removals; an `id` other than 0 is to be answered by `RemovedSeen`.
    Removed {
        removals: Vec<Vec<u8>>,
        id: u64,
    },
    RemovedSeen(u64),
    /// What the newest removals that the sender knows hash to.
    RemovalSummary([u8; 32]),
    /// Encoded `Signed` statements, each of which names the root that follows upon the one that signed it; oldest first.
    Roots(Vec<Vec<u8>>),
    /// The sender was told what no root signed that it knows.
    RootsWanted,
    /// What the sender holds of what is claimed exclusively.
    Holdings(Vec<Holding>),
    /// From a newer program.
    Unknown,
}

impl PeerMessage {
    pub fn encode(&self) -> Vec<u8> {
        use wire::peer_message::Kind;
        let kind = match &self.body {
            Body::Probe(probe) => Some(Kind::Probe(wire::Probe {
                id: probe.id,
                uses: probe.uses.is_any(),
                used: probe.uses.to_wire(),
            })),
            Body::ProbeReply(reply) => Some(Kind::ProbeReply(wire::ProbeReply {
                id: reply.id,
                uptime_ms: millis(reply.uptime),
                leaving: reply.is_leaving,
                withdrawn: reply.is_withdrawn,
                apart: reply.apart.iter().map(|apart| apart.to_wire()).collect(),
                lists_claims: reply.claims.is_some(),
                claims: reply.claims.iter().flatten().map(packed).collect(),
            })),
            Body::Endpoints(endpoints) => {
                let endpoints = endpoints.iter().map(ToString::to_string).collect();
                Some(Kind::Endpoints(wire::Endpoints { endpoints }))
            }
            Body::Leaving => Some(Kind::Leaving(wire::Leaving {})),
            Body::Removed { removals, id } => {
                Some(Kind::Removed(wire::Removed { removals: removals.clone(), id: *id }))
            }
            Body::RemovedSeen(id) => Some(Kind::RemovedSeen(wire::RemovedSeen { id: *id })),
            Body::RemovalSummary(digest) => {
                Some(Kind::RemovalSummary(wire::RemovalSummary { digest: digest.to_vec() }))
            }
            Body::Roots(next) => Some(Kind::Roots(wire::Roots { next: next.clone() })),
            Body::RootsWanted => Some(Kind::RootsWanted(wire::RootsWanted {})),
            Body::Holdings(held) => Some(Kind::Holdings(Holding::to_wire(held))),
            Body::Unknown => None,
        };
        wire::PeerMessage { boot: self.boot, kind }.encode_to_vec()
    }

    /// # Errors
    /// The datagram is too long or no valid message.
    pub fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
        use wire::peer_message::Kind;
        if bytes.len() > MAX_LEN {
            return Err(Invalid::new(
                "peer message",
                format_args!("{} bytes, at most {MAX_LEN}", bytes.len()),
            ));
        }
        let wire = wire::PeerMessage::decode(bytes).map_err(|error| Invalid::new("peer message", error))?;
        let body = match wire.kind {
            Some(Kind::Probe(probe)) => Body::Probe(Probe { id: probe.id, uses: Uses::from_wire(&probe)? }),
            Some(Kind::ProbeReply(reply)) => Body::ProbeReply(ProbeReply::from_wire(&reply)?),
            Some(Kind::Endpoints(list)) => {
                Body::Endpoints(endpoints("endpoint", &list.endpoints, MAX_ENDPOINTS)?)
            }
            Some(Kind::Leaving(_)) => Body::Leaving,
            Some(Kind::Removed(removed)) => Body::Removed { removals: removed.removals, id: removed.id },
            Some(Kind::RemovedSeen(seen)) => Body::RemovedSeen(seen.id),
            Some(Kind::RemovalSummary(summary)) => {
                Body::RemovalSummary(fixed("removal summary", &summary.digest)?)
            }
            Some(Kind::Roots(roots)) if roots.next.len() >= MAX_ROOTS => {
                let found = roots.next.len();
                return Err(Invalid::new("roots", format_args!("{found} links, fewer than {MAX_ROOTS} are")));
            }
            Some(Kind::Roots(roots)) => Body::Roots(roots.next),
            Some(Kind::RootsWanted(_)) => Body::RootsWanted,
            Some(Kind::Holdings(held)) => Body::Holdings(Holding::from_wire(&held)?),
            None => Body::Unknown,
        };
        Ok(Self { boot: wire.boot, body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{statement::NodeId, time::UnixTime};
    use proptest::prelude::*;

    #[test]
    fn messages_survive_the_wire() {
        let endpoint = "192.0.2.1:51820".parse().unwrap();
        let used: Vec<IpNet> =
            ["10.9.0.1/32", "10.1.0.0/24", "fd00::/64"].map(|text| text.parse().unwrap()).to_vec();
        for body in [
            Body::Probe(Probe { id: 1, uses: Uses::None }),
            Body::Probe(Probe { id: 1, uses: Uses::Some }),
            Body::Probe(Probe { id: 1, uses: Uses::of(used.clone()) }),
            Body::ProbeReply(ProbeReply {
                id: u64::MAX,
                uptime: Duration::from_millis(u64::MAX),
                is_leaving: true,
                is_withdrawn: true,
                apart: vec![
                    Apart { prefix: used[0], uptime: None },
                    Apart { prefix: used[2], uptime: Some(Duration::from_millis(7)) },
                ],
                claims: Some(used.to_vec()),
            }),
            Body::Endpoints(vec![endpoint]),
            Body::Leaving,
            Body::Removed { removals: vec![vec![1, 2]], id: 3 },
            Body::RemovedSeen(3),
            Body::RemovalSummary([7; 32]),
            Body::Roots(vec![vec![1], vec![2, 3]]),
            Body::RootsWanted,
            Body::Holdings(vec![Holding {
                prefix: "10.0.0.1/32".parse().unwrap(),
                node: NodeId(3),
                fence: u64::MAX,
                since: UnixTime(5),
            }]),
            Body::Unknown,
        ] {
            let message = PeerMessage { boot: 9, body };
            assert_eq!(PeerMessage::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn what_names_no_prefix_or_too_many_is_refused_and_the_most_that_may_be_named_is_one_datagram() {
        let probe = |used| wire::PeerMessage {
            boot: 1,
            kind: Some(wire::peer_message::Kind::Probe(wire::Probe { id: 1, uses: true, used })),
        };
        for bad in
            [vec![vec![]], vec![vec![33, 10, 0, 0, 0]], vec![vec![8, 10]], vec![vec![0; 5]; MAX_USED + 1]]
        {
            assert!(PeerMessage::decode(&probe(bad.clone()).encode_to_vec()).is_err(), "{bad:?}");
        }
        let long: Vec<IpNet> = (0..MAX_USED).map(|at| format!("fd00::{at:x}/128").parse().unwrap()).collect();
        let message = PeerMessage {
            boot: u64::MAX,
            body: Body::Probe(Probe { id: u64::MAX, uses: Uses::of(long.clone()) }),
        };
        assert_eq!(PeerMessage::decode(&message.encode()), Ok(message));
        assert_eq!(Uses::of([long, vec!["10.0.0.1/32".parse().unwrap()]].concat()), Uses::Some);
    }

    #[test]
    fn claims_that_stand_apart_are_one_datagram_and_more_than_that_are_refused() {
        let apart = |count: usize, uptime| -> Vec<Apart> {
            let prefixes = (0..count).map(|at| format!("fd00::{at:x}/128").parse().unwrap());
            prefixes.map(|prefix| Apart { prefix, uptime }).collect()
        };
        let longest = Some(Duration::from_millis(u64::MAX));
        let message = |apart: Vec<Apart>| {
            let (id, uptime) = (u64::MAX, Duration::from_millis(u64::MAX));
            let most = (0..).find(|count| !ProbeReply::can_list(count + 1, apart.len())).unwrap();
            let listed = (0..most).map(|at| format!("fd01::{at:x}/128").parse().unwrap());
            let claims = Some(listed.collect());
            let reply = ProbeReply { id, uptime, is_leaving: true, is_withdrawn: true, apart, claims };
            PeerMessage { boot: u64::MAX, body: Body::ProbeReply(reply) }
        };
        for (count, uptime) in [(MAX_APART, None), (MAX_APART, longest), (20, longest), (0, None)] {
            let most = message(apart(count, uptime));
            assert_eq!(PeerMessage::decode(&most.encode()), Ok(most));
        }
        assert!(PeerMessage::decode(&message(apart(MAX_APART + 1, None)).encode()).is_err());
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..1400)) {
            let _either = PeerMessage::decode(&bytes);
        }
    }
}
