//! What servers say: maps, presence, signals, certificates.

use super::{Agent, Fetching, REMEMBERED_SIGNALS};
use crate::{
    io::{Closed, ConnId, Connected, Notice, Output},
    netmap::{Applied, Changes},
    time::BootTime,
    trust::Trust,
};
use proto::{
    Invalid,
    map::{Delta, MapVersion},
    receipt::Receipt,
    root::RootKey,
    root_list::RootList,
    server_url::ServerUrl,
    session::{HeartbeatAck, Presence, Reason, Refused, ServerMessage, Signal, Welcome},
    statement::{Membership, Removal, Statement, StatementError},
    time::UnixTime,
    wire,
};
use std::{net::SocketAddr, time::Duration};

/// A server whose maps never add up is left after this many fetches in a row.
const MAX_DIVERGED: u32 = 3;
/// A fetch that brings nothing for so long is over; a session is given up by then if nothing at all comes.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// .. and one that brings something all the time is over after this: the largest map over a slow line takes less.
const FETCH_END: Duration = Duration::from_secs(120);
/// Nodes of which presence is believed.
const MAX_ONLINE: usize = 100_000;
const TOO_LARGE: &str = "its map is larger than any network's";
/// Smaller corrections of the time judge nobody anew, seconds.
const CLOCK_TOLERANCE_S: u64 = 5;

impl Agent {
    /// The addresses of a server's name, or why there are none.
    pub fn handle_resolved(
        &mut self,
        url: &ServerUrl,
        result: Result<Vec<SocketAddr>, String>,
        now: BootTime,
    ) {
        self.advance(now);
        self.control.handle_resolved(url, result, self.now);
        self.drain_control();
    }

    /// The setup key was accepted. The driver goes on to open the session on the same connection.
    pub fn handle_enrolled(&mut self, conn: ConnId, enrolled: &wire::Enrolled, now: BootTime) {
        self.advance(now);
        if let Err(error) = self.on_enrolled(enrolled) {
            let why = Closed::Ended(format!("the server's answer to the enrolment is not valid: {error}"));
            self.control.handle_closed(conn, &why, self.now);
        }
        self.drain_control();
    }

    fn on_enrolled(&mut self, enrolled: &wire::Enrolled) -> Result<(), StatementError> {
        let root = RootKey::from_bytes(&enrolled.root)?;
        let roots = enrolled.roots.clone().map(RootList::try_from).transpose()?;
        let (network, _) = Statement::trust(&enrolled.membership)?;
        let trust = Trust::enrolled(network, root, roots.as_ref())?;
        let (membership, _) = self.own_certificate(&enrolled.membership, &trust)?;
        self.netmap.set_trust(trust);
        self.membership = Some((enrolled.membership.clone(), membership));
        self.control.set_enrol(false);
        self.configure_interface();
        self.outputs.push_back(Output::SaveState);
        self.outputs.push_back(Output::Notice(Notice::Enrolled));
        Ok(())
    }

    fn own_certificate(&self, signed: &[u8], trust: &Trust) -> Result<(Membership, usize), StatementError> {
        match trust.verify(signed)? {
            (Statement::Membership(membership), back) if membership.node_key == self.identity.key => {
                Ok((membership, back))
            }
            (
                Statement::Membership(_)
                | Statement::Removal(_)
                | Statement::NextRoot(_)
                | Statement::Unknown,
                _,
            ) => {
                let reason = "not this node's certificate".to_owned();
                Err(Invalid { field: "membership", reason }.into())
            }
        }
    }

    /// A session's stream is open: we say Hello.
    pub fn handle_connected(&mut self, conn: ConnId, connected: Connected, now: BootTime) {
        self.advance(now);
        self.control.handle_connected(conn, connected.server, self.now);
        self.drain_control();
    }

    pub fn handle_closed(&mut self, conn: ConnId, why: &Closed, now: BootTime) {
        self.advance(now);
        if let Closed::Broken(why) = why {
            tracing::warn!(why, "a server breaks the protocol and is left for a while");
        }
        self.control.handle_closed(conn, why, self.now);
        self.drain_control();
    }

    fn leave_broken(&mut self, conn: ConnId, why: &str) {
        tracing::warn!(why, "a server breaks the protocol and is left for a while");
        self.control.handle_closed(conn, &Closed::Broken(why.to_owned()), self.now);
    }

    pub fn handle_message(&mut self, conn: ConnId, message: ServerMessage, now: BootTime) {
        self.advance(now);
        if self.control.is_flood(conn, self.now) {
            self.leave_broken(conn, "it floods this agent with messages");
            return self.drain_control();
        }
        match message {
            ServerMessage::Welcome(welcome) => self.on_welcome(conn, &welcome),
            ServerMessage::Refused(refused) => self.control.handle_refused(conn, &refused, self.now),
            ServerMessage::Heartbeat(ack) => self.on_heartbeat(conn, &ack),
            ServerMessage::Activated { number: _, version, receipt } => {
                self.control.handle_activated(conn, self.now);
                self.on_level(conn, version, receipt);
            }
            ServerMessage::Map(delta) => self.on_map(conn, delta),
            ServerMessage::Fetch(version) => match &mut self.fetching {
                Some(fetching) if fetching.conn == conn => fetching.told = fetching.told.max(version),
                Some(_) | None => self.fetch(conn, 0),
            },
            ServerMessage::Presence(presence) => self.on_presence(conn, &presence),
            ServerMessage::Signal(signal) => self.on_signal(&signal),
            ServerMessage::Drain { .. } => self.control.handle_drain(conn, self.now),
            ServerMessage::Membership(signed) => self.on_own_certificate(&signed),
            ServerMessage::Servers(servers) => self.control.handle_servers(&servers, self.now),
            ServerMessage::Roots(list) => self.on_roots(&list),
        }
        self.release_roots();
        self.drain_control();
    }

    fn on_welcome(&mut self, conn: ConnId, welcome: &Welcome) {
        self.on_time_told(welcome.unix_ms);
        if let Some(roots) = &welcome.roots {
            self.on_roots(roots);
        }
        if !welcome.membership.is_empty() {
            self.on_own_certificate(&welcome.membership);
        }
        self.control.handle_welcome(conn, welcome, self.now);
        if let Some(observed) = welcome.observed_address
            && self.observed != Some(observed)
        {
            self.observed = Some(observed);
            self.publish_endpoints();
        }
        self.save_state_soon();
    }

    fn on_heartbeat(&mut self, conn: ConnId, ack: &HeartbeatAck) {
        self.on_time_told(ack.unix_ms);
        if self.control.serving() == Some(conn) {
            self.on_database_told(ack.database_ok);
        }
        self.control.handle_heartbeat(conn, ack, self.now);
        self.on_level(conn, ack.at, ack.receipt);
        self.on_map_told(conn, ack.map);
        self.confirm_root(conn);
        self.tell_server_of_removals(conn, ack.at);
    }

    fn on_time_told(&mut self, unix_ms: u64) {
        let before = self.time.at(self.now);
        self.time.on_told(UnixTime(unix_ms / 1000), self.now);
        // The first word, or the wall clock was wrong: who was judged by it is judged again.
        let moved = |before: UnixTime, after: UnixTime| before.0.abs_diff(after.0) > CLOCK_TOLERANCE_S;
        if before.zip(self.time.at(self.now)).is_none_or(|(before, after)| moved(before, after)) {
            self.judge_members();
        }
        self.judge_own();
    }

    /// The server that serves us is at this version: no server that is behind it will tell us anything.
    fn on_level(&mut self, conn: ConnId, version: MapVersion, receipt: Receipt) {
        if self.control.serving() == Some(conn) && version >= self.netmap.state().version {
            self.netmap.on_seen(version, receipt);
            self.level_at = Some(self.now);
        }
    }

    fn on_map(&mut self, conn: ConnId, delta: Delta) {
        if let Some(fetching) = self.fetching.as_mut().filter(|fetching| fetching.conn == conn) {
            // The two streams of a connection may overtake each other: a step is no use before the map that it starts from.
            fetching.told = fetching.told.max(delta.version);
            return;
        }
        match self.netmap.apply(delta) {
            Applied::Stale => {}
            Applied::Partial(changes) => self.on_map_changes(changes),
            Applied::Whole(changes) => {
                self.on_map_changes(changes);
                self.on_map_level();
            }
            Applied::Diverged(changes) => {
                self.on_map_changes(changes);
                self.fetch(conn, 0);
            }
            Applied::TooLarge(changes) => {
                self.on_map_changes(changes);
                self.leave_broken(conn, TOO_LARGE);
            }
        }
    }

    fn fetch(&mut self, conn: ConnId, diverged: u32) {
        let (told, give_up_at, ends_at) =
            (MapVersion::default(), self.now + FETCH_TIMEOUT, self.now + FETCH_END);
        self.fetching = Some(Fetching { conn, diverged, told, give_up_at, ends_at });
        self.outputs.push_back(Output::Fetch { conn, have: self.netmap.objects().refs() });
    }

    /// One part of a fetched map.
    pub fn handle_fetched(&mut self, conn: ConnId, delta: Delta, now: BootTime) {
        self.advance(now);
        let give_up_at = self.now + FETCH_TIMEOUT;
        let Some(fetching) = self.fetching.as_mut().filter(|fetching| fetching.conn == conn) else { return };
        // A part that holds nothing is no progress.
        if delta.last || !delta.put.is_empty() || !delta.drop.is_empty() {
            fetching.give_up_at = give_up_at.min(fetching.ends_at);
        }
        let Fetching { diverged, told, .. } = *fetching;
        match self.netmap.apply(delta) {
            Applied::Partial(changes) => self.on_map_changes(changes),
            Applied::Whole(changes) => {
                self.on_map_changes(changes);
                self.on_map_level();
                self.release_roots();
                self.on_fetched(conn, told);
            }
            Applied::Stale => self.on_fetched(conn, told),
            Applied::Diverged(changes) => {
                self.on_map_changes(changes);
                self.on_fetch_diverged(conn, diverged + 1);
            }
            Applied::TooLarge(changes) => {
                self.on_map_changes(changes);
                self.leave_fetch(conn, TOO_LARGE);
            }
        }
        self.drain_control();
    }

    fn on_fetched(&mut self, conn: ConnId, told: MapVersion) {
        self.fetching = None;
        if told > self.netmap.applied() {
            self.fetch(conn, 0);
        }
    }

    fn on_fetch_diverged(&mut self, conn: ConnId, diverged: u32) {
        if diverged < MAX_DIVERGED {
            return self.fetch(conn, diverged);
        }
        self.leave_fetch(conn, "its maps do not add up to the digest it names");
    }

    /// A server that lives but does not give its map is left.
    pub(super) fn expire_fetch(&mut self) {
        if let Some(fetching) = self.fetching.filter(|fetching| self.now >= fetching.give_up_at) {
            self.leave_fetch(fetching.conn, "it does not send its map");
            self.drain_control();
        }
    }

    fn leave_fetch(&mut self, conn: ConnId, why: &str) {
        self.fetching = None;
        self.leave_broken(conn, why);
    }

    pub(super) fn on_map_level(&mut self) {
        self.gossip.look_at_map();
        self.tell_rules();
        self.level_at = Some(self.now);
        if self.netmap.holdings().heard().next().is_some() {
            self.on_holdings_changed();
        }
        self.on_confirmed();
        self.save_map_soon();
        let revision = self.netmap.state().version.revision;
        self.outputs.push_back(Output::Notice(Notice::MapChanged { revision }));
    }

    pub(super) fn on_map_changes(&mut self, changes: Changes) {
        self.tell_removals(&changes.learned, None);
        self.on_rules_changed(changes.rules);
        self.apply_changes(changes);
    }

    pub(super) fn apply_changes(&mut self, changes: Changes) {
        if changes.network {
            self.configure_interface();
        }
        if let Some((key, reason)) = changes.refused.first() {
            let more = changes.refused.len() - 1;
            tracing::warn!(peer = %key.short(), reason, more, "a peer of the map is not believed");
        }
        for key in &changes.removed {
            self.remove_peer(key);
        }
        for key in &changes.upserted {
            self.configure_peer(key);
        }
        if !changes.upserted.is_empty() {
            self.judge_expiry();
        }
        if changes.holdings || !changes.upserted.is_empty() || !changes.removed.is_empty() {
            self.on_holdings_changed();
            self.follow_members();
        }
    }

    fn on_presence(&mut self, conn: ConnId, presence: &Presence) {
        if self.control.serving().is_some_and(|serving| serving != conn) {
            return;
        }
        if presence.whole {
            self.online.clear();
        }
        if self.online.len() + presence.online.len() > MAX_ONLINE {
            return self.leave_broken(conn, "it tells of more nodes than a network has");
        }
        self.online.extend(&presence.online);
        presence.offline.iter().for_each(|node| {
            self.online.remove(node);
        });
    }

    fn on_signal(&mut self, signal: &Signal) {
        if self.seen_signals.contains(&signal.id) {
            return;
        }
        if self.seen_signals.len() >= REMEMBERED_SIGNALS {
            self.seen_signals.pop_front();
        }
        self.seen_signals.push_back(signal.id);
        self.with_peer(&signal.peer, |peer, now| peer.on_signal(&signal.endpoints, now));
    }

    fn on_own_certificate(&mut self, signed: &[u8]) {
        if self.membership.as_ref().is_some_and(|(held, _)| held == signed) {
            return;
        }
        let Some(trust) = self.netmap.trust() else { return };
        let Ok((membership, back)) = self.own_certificate(signed, trust) else { return };
        let held = self.membership.as_ref().and_then(|(held, _)| trust.verify_held(held).ok());
        let is_under_newer_root = held.is_none_or(|(_, held_back)| back < held_back);
        self.time.on_signed(membership.issued_at);
        let known = self.membership.as_ref().map(|(_, known)| known);
        let is_same = |known: &Membership| *known == membership && !is_under_newer_root;
        if known.is_some_and(|known| known.issued_at > membership.issued_at || is_same(known)) {
            return;
        }
        let is_as_before = |known: &Membership| {
            (&known.addresses, &known.claims) == (&membership.addresses, &membership.claims)
        };
        let moved = !known.is_some_and(is_as_before);
        self.membership = Some((signed.to_vec(), membership));
        if moved {
            self.configure_interface();
        }
        self.judge_expiry();
        self.save_state_soon();
    }

    /// Only a removal that the root signed ends our membership; every other refusal leaves the tunnels alone.
    pub(super) fn on_refused(&mut self, refused: &Refused) {
        let Some(trust) = self.netmap.trust() else { return };
        if refused.reason != Reason::Removed {
            return;
        }
        if let Ok((Statement::Removal(removal), _)) = trust.verify(&refused.removal)
            && self.ends_us(&removal)
        {
            self.forget_network();
        }
    }

    /// A server or peer that lags may still hold the removal of a node that enrolled again.
    pub(super) fn ends_us(&self, removal: &Removal) -> bool {
        self.membership.as_ref().is_some_and(|(_, own)| removal.ends(own))
    }
}
