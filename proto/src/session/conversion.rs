//! Between the typed messages and what prost generates.

use super::{
    AgentMessage, Facts, HeartbeatAck, Hello, MAX_SERVERS, MAX_TEXT, MapState, Presence, ServerId,
    ServerList, ServerMessage, SessionNumber, Signal, Welcome, clipped, millis, own_version,
};
use crate::{
    Invalid,
    claim::Claim,
    endpoints, fixed,
    key::PublicKey,
    map::{MAX_ENDPOINTS, MapDigest, MapVersion},
    receipt::Receipt,
    root::Fingerprint,
    root_list::RootList,
    statement::NodeId,
    wire,
};
use std::{net::SocketAddr, time::Duration};

impl AgentMessage {
    /// # Errors
    /// A field holds what it cannot.
    pub fn from_wire(wire: wire::AgentMessage) -> Result<Option<Self>, Invalid> {
        use wire::agent_message::Kind;
        Ok(Some(match wire.kind {
            None => return Ok(None),
            Some(Kind::Hello(hello)) => Self::Hello(hello.try_into()?),
            Some(Kind::Heartbeat(h)) => Self::Heartbeat {
                sequence: h.sequence,
                standby: h.standby,
                interval: Duration::from_millis(h.interval_ms.into()),
            },
            Some(Kind::Activate(activate)) => {
                Self::Activate { number: activate.number.into(), map: activate.map.try_into()? }
            }
            Some(Kind::Deactivate(_)) => Self::Deactivate,
            Some(Kind::Signal(signal)) => Self::Signal(signal.try_into()?),
            Some(Kind::Update(update)) => Self::Update {
                facts: update.facts.try_into()?,
                endpoints: endpoints("endpoint", &update.endpoints, MAX_ENDPOINTS)?,
            },
            Some(Kind::Leave(leave)) => Self::Leave { logout: leave.logout },
            Some(Kind::Removal(removal)) => Self::Removal(removal.signed),
            Some(Kind::Root(known)) => Self::Root(Fingerprint(fixed("root", &known.root)?)),
        }))
    }

    /// `proof` goes into a Hello.
    pub fn into_wire(self, proof: Option<wire::Proof>, software: &str) -> wire::AgentMessage {
        use wire::agent_message::Kind;
        let kind = match self {
            Self::Hello(hello) => Kind::Hello(wire::Hello {
                version: Some(own_version(software)),
                proof,
                number: Some(hello.number.into()),
                facts: Some(hello.facts.into()),
                endpoints: texts(&hello.endpoints),
                map: Some(hello.map.into()),
                activate: hello.activate,
                heartbeat_interval_ms: millis(hello.heartbeat_interval),
                membership: hello.membership,
                root: hello.root.map_or_else(Vec::new, |root| root.0.to_vec()),
            }),
            Self::Heartbeat { sequence, standby, interval } => {
                Kind::Heartbeat(wire::Heartbeat { sequence, standby, interval_ms: millis(interval) })
            }
            Self::Activate { number, map } => {
                Kind::Activate(wire::Activate { number: Some(number.into()), map: Some(map.into()) })
            }
            Self::Deactivate => Kind::Deactivate(wire::Deactivate {}),
            Self::Signal(signal) => Kind::Signal(signal.into()),
            Self::Update { facts, endpoints } => {
                Kind::Update(wire::NodeUpdate { facts: Some(facts.into()), endpoints: texts(&endpoints) })
            }
            Self::Leave { logout } => Kind::Leave(wire::Leave { logout }),
            Self::Removal(signed) => Kind::Removal(wire::KnownRemoval { signed }),
            Self::Root(root) => Kind::Root(wire::RootKnown { root: root.0.to_vec() }),
        };
        wire::AgentMessage { kind: Some(kind) }
    }
}

impl ServerMessage {
    /// # Errors
    /// A field holds what it cannot.
    pub fn from_wire(wire: wire::ServerMessage) -> Result<Option<Self>, Invalid> {
        use wire::server_message::Kind;
        Ok(Some(match wire.kind {
            None => return Ok(None),
            Some(Kind::Welcome(welcome)) => Self::Welcome(welcome.try_into()?),
            Some(Kind::Refused(refused)) => Self::Refused(refused.into()),
            Some(Kind::Heartbeat(heartbeat)) => Self::Heartbeat(heartbeat.try_into()?),
            Some(Kind::Activated(activated)) => Self::Activated {
                number: activated.number.into(),
                version: MapVersion { epoch: activated.epoch, revision: activated.revision },
                receipt: Receipt::from_bytes(&activated.receipt),
            },
            Some(Kind::Map(delta)) => Self::Map(delta.try_into()?),
            Some(Kind::Fetch(fetch)) => {
                Self::Fetch(MapVersion { epoch: fetch.epoch, revision: fetch.revision })
            }
            Some(Kind::Presence(presence)) => Self::Presence(Presence {
                whole: presence.whole,
                online: presence.online.into_iter().map(NodeId).collect(),
                offline: presence.offline.into_iter().map(NodeId).collect(),
            }),
            Some(Kind::Signal(signal)) => Self::Signal(signal.try_into()?),
            Some(Kind::Drain(drain)) => Self::Drain { reason: clipped(drain.reason) },
            Some(Kind::Membership(membership)) => Self::Membership(membership.signed),
            Some(Kind::Servers(list)) => Self::Servers(list.into()),
            Some(Kind::Roots(list)) => Self::Roots(list.try_into()?),
        }))
    }

    pub fn into_wire(self, software: &str) -> wire::ServerMessage {
        use wire::server_message::Kind;
        let kind = match self {
            Self::Welcome(welcome) => Kind::Welcome(welcome.into_wire(software)),
            Self::Refused(refused) => Kind::Refused(refused.into()),
            Self::Heartbeat(heartbeat) => Kind::Heartbeat(heartbeat.into()),
            Self::Activated { number, version, receipt } => Kind::Activated(wire::Activated {
                number: Some(number.into()),
                epoch: version.epoch,
                revision: version.revision,
                receipt: receipt.to_bytes(),
            }),
            Self::Map(delta) => Kind::Map(delta.into()),
            Self::Fetch(version) => {
                Kind::Fetch(wire::FetchHint { epoch: version.epoch, revision: version.revision })
            }
            Self::Presence(presence) => Kind::Presence(wire::Presence {
                whole: presence.whole,
                online: presence.online.into_iter().map(|id| id.0).collect(),
                offline: presence.offline.into_iter().map(|id| id.0).collect(),
            }),
            Self::Signal(signal) => Kind::Signal(signal.into()),
            Self::Drain { reason } => Kind::Drain(wire::Drain { reason }),
            Self::Membership(signed) => Kind::Membership(wire::Membership { signed }),
            Self::Servers(list) => Kind::Servers(list.into()),
            Self::Roots(list) => Kind::Roots(list.into()),
        };
        wire::ServerMessage { kind: Some(kind) }
    }
}

impl TryFrom<wire::Hello> for Hello {
    type Error = Invalid;

    fn try_from(wire: wire::Hello) -> Result<Self, Invalid> {
        Ok(Self {
            number: wire.number.into(),
            facts: wire.facts.try_into()?,
            endpoints: endpoints("endpoint", &wire.endpoints, MAX_ENDPOINTS)?,
            map: wire.map.try_into()?,
            activate: wire.activate,
            heartbeat_interval: Duration::from_millis(wire.heartbeat_interval_ms.into()),
            membership: wire.membership,
            root: match wire.root.is_empty() {
                true => None,
                false => Some(Fingerprint(fixed("root", &wire.root)?)),
            },
        })
    }
}

impl Welcome {
    fn into_wire(self, software: &str) -> wire::Welcome {
        wire::Welcome {
            version: Some(own_version(software)),
            server_id: self.server.0.to_vec(),
            server_name: self.server_name,
            servers: Some(self.servers.into()),
            heartbeat_interval_ms: millis(self.heartbeat_interval),
            at: Some(MapState { version: self.at, ..MapState::default() }.into()),
            unix_ms: self.unix_ms,
            observed_address: self.observed_address.map_or_else(String::new, |address| address.to_string()),
            membership: self.membership,
            roots: self.roots.map(Into::into),
        }
    }
}

impl TryFrom<wire::Welcome> for Welcome {
    type Error = Invalid;

    fn try_from(wire: wire::Welcome) -> Result<Self, Invalid> {
        let at = wire.at.unwrap_or_default();
        Ok(Self {
            server: ServerId(fixed("server id", &wire.server_id)?),
            server_name: clipped(wire.server_name),
            servers: wire.servers.unwrap_or_default().into(),
            heartbeat_interval: Duration::from_millis(wire.heartbeat_interval_ms.into()),
            at: MapVersion { epoch: at.epoch, revision: at.revision },
            unix_ms: wire.unix_ms,
            observed_address: wire.observed_address.parse().ok(),
            membership: wire.membership,
            roots: wire.roots.map(RootList::try_from).transpose()?,
        })
    }
}

impl TryFrom<wire::HeartbeatAck> for HeartbeatAck {
    type Error = Invalid;

    fn try_from(wire: wire::HeartbeatAck) -> Result<Self, Invalid> {
        Ok(Self {
            sequence: wire.sequence,
            server: ServerId(fixed("server id", &wire.server_id)?),
            at: MapVersion { epoch: wire.epoch, revision: wire.revision },
            revision_age: Duration::from_millis(wire.revision_age_ms),
            database_ok: wire.database_ok,
            spread: Duration::from_millis(wire.spread_ms.into()),
            heartbeat_interval: Duration::from_millis(wire.heartbeat_interval_ms.into()),
            unix_ms: wire.unix_ms,
            receipt: Receipt::from_bytes(&wire.receipt),
            map: MapVersion { epoch: wire.map_epoch, revision: wire.map_revision },
        })
    }
}

impl From<HeartbeatAck> for wire::HeartbeatAck {
    fn from(ack: HeartbeatAck) -> Self {
        Self {
            sequence: ack.sequence,
            server_id: ack.server.0.to_vec(),
            epoch: ack.at.epoch,
            revision: ack.at.revision,
            revision_age_ms: u64::try_from(ack.revision_age.as_millis()).unwrap_or(u64::MAX),
            database_ok: ack.database_ok,
            spread_ms: millis(ack.spread),
            heartbeat_interval_ms: millis(ack.heartbeat_interval),
            unix_ms: ack.unix_ms,
            receipt: ack.receipt.to_bytes(),
            map_epoch: ack.map.epoch,
            map_revision: ack.map.revision,
        }
    }
}

impl TryFrom<wire::Signal> for Signal {
    type Error = Invalid;

    fn try_from(wire: wire::Signal) -> Result<Self, Invalid> {
        Ok(Self {
            peer: PublicKey(fixed("peer", &wire.peer)?),
            id: wire.id,
            endpoints: endpoints("endpoint", &wire.endpoints, MAX_ENDPOINTS)?,
        })
    }
}

impl From<Signal> for wire::Signal {
    fn from(signal: Signal) -> Self {
        Self { peer: signal.peer.0.to_vec(), id: signal.id, endpoints: texts(&signal.endpoints) }
    }
}

impl TryFrom<Option<wire::Facts>> for Facts {
    type Error = Invalid;

    fn try_from(wire: Option<wire::Facts>) -> Result<Self, Invalid> {
        let wire = wire.unwrap_or_default();
        for text in [&wire.hostname, &wire.os, &wire.os_version, &wire.agent_version] {
            if text.len() > MAX_TEXT || text.chars().any(char::is_control) {
                return Err(Invalid::new("facts", "a text is too long or has control characters"));
            }
        }
        Ok(Self {
            hostname: wire.hostname,
            os: wire.os,
            os_version: wire.os_version,
            agent_version: wire.agent_version,
            claims: Claim::from_wire(&wire.claims)?,
        })
    }
}

impl From<Facts> for wire::Facts {
    fn from(facts: Facts) -> Self {
        Self {
            hostname: facts.hostname,
            os: facts.os,
            os_version: facts.os_version,
            agent_version: facts.agent_version,
            claims: facts.claims.into_iter().map(Claim::to_wire).collect(),
        }
    }
}

impl TryFrom<Option<wire::MapState>> for MapState {
    type Error = Invalid;

    fn try_from(wire: Option<wire::MapState>) -> Result<Self, Invalid> {
        let wire = wire.unwrap_or_default();
        Ok(Self {
            version: MapVersion { epoch: wire.epoch, revision: wire.revision },
            digest: MapDigest::from_bytes(&wire.digest)?,
            receipt: Receipt::from_bytes(&wire.receipt),
        })
    }
}

impl From<MapState> for wire::MapState {
    fn from(state: MapState) -> Self {
        Self {
            epoch: state.version.epoch,
            revision: state.version.revision,
            digest: state.digest.to_bytes(),
            receipt: state.receipt.to_bytes(),
        }
    }
}

impl From<Option<wire::SessionNumber>> for SessionNumber {
    fn from(wire: Option<wire::SessionNumber>) -> Self {
        wire.map_or_else(Self::default, |n| Self { boot: n.boot, counter: n.counter })
    }
}

impl From<SessionNumber> for wire::SessionNumber {
    fn from(number: SessionNumber) -> Self {
        Self { boot: number.boot, counter: number.counter }
    }
}

/// An entry that cannot be read comes from a newer server or a mistaken `--advertise`; the others stay usable.
impl From<wire::ServerList> for ServerList {
    fn from(wire: wire::ServerList) -> Self {
        let id = |id: &Vec<u8>| Some(ServerId(fixed("server id", id).ok()?));
        Self {
            urls: wire.urls.iter().take(MAX_SERVERS).filter_map(|url| url.parse().ok()).collect(),
            ids: wire.ids.iter().take(MAX_SERVERS).filter_map(id).collect(),
        }
    }
}

impl From<ServerList> for wire::ServerList {
    fn from(list: ServerList) -> Self {
        Self {
            urls: list.urls.iter().map(ToString::to_string).collect(),
            ids: list.ids.iter().map(|id| id.0.to_vec()).collect(),
        }
    }
}

fn texts(endpoints: &[SocketAddr]) -> Vec<String> {
    endpoints.iter().map(ToString::to_string).collect()
}
