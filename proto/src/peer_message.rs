//! What agents say to each other inside tunnels, typed. The tunnel vouches for the sender, so nothing here is signed but what the root signed.

use crate::{Invalid, endpoints, fixed, map::MAX_ENDPOINTS, root_list::MAX_ROOTS, wire};
use prost::Message;
use std::{net::SocketAddr, time::Duration};

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    pub id: u64,
    /// The sender sends packets to a prefix that the receiver serves.
    pub uses: bool,
}

/// The answer to a probe, and how its sender stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeReply {
    pub id: u64,
    /// How long its agent runs, to the millisecond; zero from one that does not say.
    pub uptime: Duration,
    /// It drains.
    pub is_leaving: bool,
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
    /// From a newer program.
    Unknown,
}

impl PeerMessage {
    pub fn encode(&self) -> Vec<u8> {
        use wire::peer_message::Kind;
        let kind = match &self.body {
            Body::Probe(probe) => Some(Kind::Probe(wire::Probe { id: probe.id, uses: probe.uses })),
            Body::ProbeReply(reply) => Some(Kind::ProbeReply(wire::ProbeReply {
                id: reply.id,
                uptime_ms: u64::try_from(reply.uptime.as_millis()).unwrap_or(u64::MAX),
                leaving: reply.is_leaving,
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
            Some(Kind::Probe(probe)) => Body::Probe(Probe { id: probe.id, uses: probe.uses }),
            Some(Kind::ProbeReply(reply)) => Body::ProbeReply(ProbeReply {
                id: reply.id,
                uptime: Duration::from_millis(reply.uptime_ms),
                is_leaving: reply.leaving,
            }),
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
            None => Body::Unknown,
        };
        Ok(Self { boot: wire.boot, body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_survive_the_wire() {
        let endpoint = "192.0.2.1:51820".parse().unwrap();
        for body in [
            Body::Probe(Probe { id: 1, uses: true }),
            Body::ProbeReply(ProbeReply {
                id: u64::MAX,
                uptime: Duration::from_millis(u64::MAX),
                is_leaving: true,
            }),
            Body::Endpoints(vec![endpoint]),
            Body::Leaving,
            Body::Removed { removals: vec![vec![1, 2]], id: 3 },
            Body::RemovedSeen(3),
            Body::RemovalSummary([7; 32]),
            Body::Roots(vec![vec![1], vec![2, 3]]),
            Body::RootsWanted,
            Body::Unknown,
        ] {
            let message = PeerMessage { boot: 9, body };
            assert_eq!(PeerMessage::decode(&message.encode()), Ok(message));
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..1400)) {
            let _either = PeerMessage::decode(&bytes);
        }
    }
}
