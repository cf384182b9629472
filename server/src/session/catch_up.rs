//! What changed since a session last spoke. A session remembers what it told, as cheap handles on shared values; news are the difference
//! to the values of now.
//!
//! The map, of a serving session:
//!
//! ```text
//! Resuming --this server is as new, digests agree--> Level --step too large: FetchHint--> Fetching
//!     |                                               ^                                      ^ |
//!     |                                               +--------------FetchMap----------------|-+
//!     +--this server is as new, digests differ: FetchHint------------------------------------+
//! ```

use crate::{
    cluster::{Node, Roots},
    lease::LiveServers,
    map::{Atlas, Step},
    serve::Server,
    session::{Slot, refusal},
};
use imbl::{OrdSet, ordset::DiffItem};
use proto::{
    map::MapVersion,
    session::{MapState, Presence, Refused, ServerMessage},
    statement::NodeId,
    time::UnixTime,
};
use std::{collections::VecDeque, sync::Arc};

/// Larger changes are fetched: what goes through the session stays in its buffers.
const STEP_LIMIT_BYTES: usize = 32 * 1024;

/// Nodes in one message about presence, at up to 10 bytes each, mostly 3.
const PRESENCE_PART: usize = 4096;

type Outbox = VecDeque<ServerMessage>;

/// What a session heard of that bears on what its agent said before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    Nothing,
    /// The roots changed: the agent may have heard of it, and confirmed it, before this server knew.
    Roots,
}

/// What every welcomed session is told, standby or serving.
pub(super) struct News {
    state: MapVersion,
    membership: Vec<u8>,
    expires_at: Option<UnixTime>,
    servers: Arc<LiveServers>,
    roots: Option<Arc<Roots>>,
    drain_told: bool,
}

impl News {
    /// `node` has just been welcomed.
    pub(super) fn since(server: &Server, node: &Node) -> Self {
        Self {
            state: MapVersion::default(),
            membership: node.membership.clone(),
            expires_at: node.expires_at,
            servers: server.servers.current(),
            // As the welcome, or news to come: told twice does no harm.
            roots: None,
            drain_told: false,
        }
    }

    pub(super) fn collect(
        &mut self,
        server: &Server,
        slot: &Slot,
        outbox: &mut Outbox,
    ) -> Result<Heard, Refused> {
        if let Some(refused) = slot.take_refused() {
            return Err(refused);
        }
        if slot.fetch_is_stuck(server.gate.patience().fetch) {
            metrics::counter!("holdfast_connections_timed_out_total", "reason" => "fetches-too-slowly")
                .increment(1);
            return Err(refusal::stuck_fetch());
        }
        let heard = self.check_node(server, slot, outbox)?;
        let servers = server.servers.current();
        if !Arc::ptr_eq(&servers, &self.servers) {
            if *servers != *self.servers {
                outbox.push_back(ServerMessage::Servers(servers.told()));
            }
            self.servers = servers;
        }
        while let Some(message) = slot.next_message() {
            outbox.push_back(message);
        }
        if server.hub.is_draining() && !self.drain_told {
            self.drain_told = true;
            outbox.push_back(ServerMessage::Drain { reason: "this server is shutting down".to_owned() });
        }
        Ok(heard)
    }

    /// Whether the node may still be served, and its newest certificate.
    fn check_node(&mut self, server: &Server, slot: &Slot, outbox: &mut Outbox) -> Result<Heard, Refused> {
        if self.expires_at.is_some_and(|end| end <= server.cluster.now()) {
            return Err(refusal::expired());
        }
        let state = server.cluster.state();
        if state.version() == self.state {
            return Ok(Heard::Nothing);
        }
        self.state = state.version();
        let Some(node) = state.node_by_key(&slot.key).filter(|node| node.id == slot.node) else {
            return Err(match state.removal(&slot.key) {
                Some(removed) => refusal::removed(&removed.signed),
                None => refusal::unknown_node(),
            });
        };
        // Before anything that the newest root signed.
        let mut heard = Heard::Nothing;
        if let Some(roots) = state.roots().filter(|roots| self.roots.as_ref() != Some(*roots)) {
            self.roots = Some(roots.clone());
            heard = Heard::Roots;
            outbox.push_back(ServerMessage::Roots(roots.list(state.version())));
        }
        self.expires_at = node.expires_at;
        if node.is_expired(server.cluster.now()) {
            return Err(refusal::expired());
        }
        if node.membership != self.membership {
            self.membership.clone_from(&node.membership);
            outbox.push_back(ServerMessage::Membership(node.membership.clone()));
        }
        Ok(heard)
    }
}

/// What a serving session is told besides.
pub(super) struct Serving {
    map: MapProgress,
    /// `None`: nothing yet, so all of it is news.
    presence: Option<Arc<OrdSet<NodeId>>>,
}

enum MapProgress {
    /// The agent holds this; it is compared as soon as this server is as new.
    Resuming(MapState),
    /// The agent was asked to fetch; nothing is told until it has.
    Fetching,
    /// The agent holds this.
    Level(Arc<Atlas>),
}

impl Serving {
    pub(super) fn resuming(held: MapState) -> Self {
        Self { map: MapProgress::Resuming(held), presence: None }
    }

    /// Of the map that the agent was told in full; the default: of none.
    pub(super) fn told(&self) -> MapVersion {
        match &self.map {
            MapProgress::Level(told) => told.version(),
            MapProgress::Resuming(_) | MapProgress::Fetching => MapVersion::default(),
        }
    }

    pub(super) fn collect(&mut self, server: &Server, slot: &Slot, outbox: &mut Outbox) {
        if let Some(fetched) = slot.take_fetched() {
            self.map = MapProgress::Level(fetched);
        }
        if !slot.fetch_is_running() {
            self.collect_map(&server.atlas.load_full(), slot, outbox);
        }
        self.collect_presence(&server.presence.online(), slot.node, outbox);
    }

    fn collect_map(&mut self, atlas: &Arc<Atlas>, slot: &Slot, outbox: &mut Outbox) {
        let seen = atlas.seen_by(slot.key);
        match &self.map {
            // Never backwards: nothing is said of the map until this server is as new as what the agent saw.
            MapProgress::Resuming(_) if atlas.version() < slot.floor() => {}
            MapProgress::Resuming(held) if held.digest == seen.digest() => {
                self.map = MapProgress::Level(atlas.clone());
            }
            MapProgress::Resuming(_) => self.ask_to_fetch(atlas, outbox),
            MapProgress::Fetching => {}
            MapProgress::Level(told) if Arc::ptr_eq(told, atlas) || atlas.version() < told.version() => {}
            MapProgress::Level(_) if atlas.version() < slot.floor() => {}
            MapProgress::Level(told) => match seen.step_from(told, STEP_LIMIT_BYTES) {
                Step::None => self.map = MapProgress::Level(atlas.clone()),
                Step::Delta(delta) => {
                    metrics::counter!("holdfast_map_deltas_total").increment(1);
                    slot.raise_floor(atlas.version());
                    outbox.push_back(ServerMessage::Map(delta));
                    self.map = MapProgress::Level(atlas.clone());
                }
                Step::TooLarge => self.ask_to_fetch(atlas, outbox),
            },
        }
    }

    fn ask_to_fetch(&mut self, atlas: &Atlas, outbox: &mut Outbox) {
        outbox.push_back(ServerMessage::Fetch(atlas.version()));
        self.map = MapProgress::Fetching;
    }

    fn collect_presence(&mut self, online: &Arc<OrdSet<NodeId>>, own: NodeId, outbox: &mut Outbox) {
        let mut news = Presence::default();
        match &self.presence {
            Some(told) if Arc::ptr_eq(told, online) => return,
            Some(told) => {
                for change in told.diff(online) {
                    match change {
                        DiffItem::Add(id) if *id != own => news.online.push(*id),
                        DiffItem::Remove(id) if *id != own => news.offline.push(*id),
                        DiffItem::Add(_) | DiffItem::Remove(_) => {}
                    }
                }
            }
            None => {
                news.whole = true;
                news.online = online.iter().filter(|id| **id != own).copied().collect();
            }
        }
        self.presence = Some(online.clone());
        if news.whole || !news.online.is_empty() || !news.offline.is_empty() {
            outbox.extend(in_parts(news).map(ServerMessage::Presence));
        }
    }
}

/// What is large stays in a session's buffers. The agent puts the parts together: all but the first are changes.
fn in_parts(news: Presence) -> impl Iterator<Item = Presence> {
    let Presence { whole, online, offline } = news;
    let count = online.len().max(offline.len()).div_ceil(PRESENCE_PART).max(1);
    (0..count).map(move |part| {
        let of = |all: &[NodeId]| {
            all.iter().skip(part * PRESENCE_PART).take(PRESENCE_PART).copied().collect::<Vec<_>>()
        };
        Presence { whole: whole && part == 0, online: of(&online), offline: of(&offline) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_presence_is_told_in_parts_that_make_the_whole() {
        let all: Vec<NodeId> = (0..PRESENCE_PART as u64 * 2 + 1).map(NodeId).collect();
        let whole = Presence { whole: true, online: all.clone(), offline: vec![] };
        let parts: Vec<_> = in_parts(whole).collect();
        assert_eq!(parts.iter().map(|part| part.whole).collect::<Vec<_>>(), [true, false, false]);
        assert_eq!(parts.into_iter().flat_map(|part| part.online).collect::<Vec<_>>(), all);
        let nobody = Presence { whole: true, online: vec![], offline: vec![] };
        assert_eq!(in_parts(nobody.clone()).collect::<Vec<_>>(), [nobody]);
    }
}
