//! Whom to dial, and when: everyone by turns while nobody serves us, else one standby with another server.

use super::{Control, Output, State, candidate::Resolution, connection::Connection};
use crate::{
    io::{ConnId, Dial},
    time::{BootTime, Cause, Deadline},
};
use proto::server_url::ServerUrl;
use std::{net::SocketAddr, time::Duration};

/// Where a connection could be made.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) url: ServerUrl,
    pub(super) addr: SocketAddr,
    /// `None`: at once.
    pub(super) retry_at: Option<BootTime>,
    pub(super) connect_timeout: Duration,
    /// We have a session by this address, and hope for another server.
    pub(super) is_redial: bool,
}

impl Control {
    pub(super) fn resolve(&mut self, now: BootTime) {
        // While a server serves us and a standby waits, nothing is dialled, and no name needs to be known.
        if !self.wants_dial() {
            return;
        }
        for name in &mut self.names {
            if let Resolution::Wanted { at, .. } = name.resolution
                && now >= at
            {
                name.resolution = Resolution::UnderWay;
                self.outputs.push_back(Output::Resolve(name.url.clone()));
            }
        }
    }

    pub(super) fn resolve_deadline(&self) -> Option<Deadline> {
        if !self.wants_dial() {
            return None;
        }
        let wanted = self.names.iter().filter_map(|name| match name.resolution {
            Resolution::Wanted { at, .. } => Some(at),
            Resolution::Literal | Resolution::UnderWay => None,
        });
        wanted.min().map(|at| Deadline { at, cause: Cause::Resolve })
    }

    pub(super) fn dial(&mut self, now: BootTime) {
        if now < self.next_dial_at || !self.wants_dial() {
            return;
        }
        let ready = |place: &Place| place.retry_at.is_none_or(|at| now >= at);
        let Some(place) = self.dialable().into_iter().find(ready) else { return };
        if place.is_redial {
            self.on_redial(now);
        }
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        let Place { url, addr, connect_timeout, .. } = place;
        let dial = Dial { conn, url, addr, connect_timeout, enrol: self.enrol };
        let mut give_up_at = now + connect_timeout + self.config.greeting_timeout;
        if self.enrol {
            give_up_at = give_up_at + self.config.enrolment_timeout;
        }
        self.connections.insert(conn, Connection::new(&dial, give_up_at, now));
        self.next_dial_at = now + self.config.dial_stagger;
        self.outputs.push_back(Output::Dial(dial));
    }

    pub(super) fn dial_deadline(&self) -> Option<Deadline> {
        if !self.wants_dial() {
            return None;
        }
        let at =
            self.dialable().into_iter().map(|place| place.retry_at.unwrap_or(self.next_dial_at)).min()?;
        Some(Deadline { at: at.max(self.next_dial_at), cause: Cause::Retry })
    }

    fn wants_dial(&self) -> bool {
        let dialling = self.connections.values().filter(|c| !c.has_session()).count();
        if !self.is_served() {
            return dialling < self.config.max_dials;
        }
        let standby = |c: &Connection| match c.state {
            State::Standby | State::Activating { .. } | State::Suspect => !c.draining,
            State::Dialling { .. } | State::Greeting { .. } | State::Serving => false,
        };
        dialling == 0 && !self.connections.values().any(standby)
    }

    /// Candidates that a connection would gain something with, in the person's order, failing ones last; before those, what may lead to another server than the last time.
    fn dialable(&self) -> Vec<Place> {
        let mut places: Vec<(bool, Place)> = Vec::new();
        let is_served = self.is_served();
        for name in &self.names {
            let turn_at = Some(name.turn_at).filter(|_| is_served);
            for candidate in &name.candidates {
                let has_session = candidate.server.is_some_and(|server| self.has_session_with(server, None));
                let twin_until = candidate.twin_until().filter(|_| has_session);
                let is_there = |c: &Connection| c.is_at(&name.url, candidate.addr) && c.is_worth_keeping();
                if self.connections.values().any(is_there) {
                    continue;
                }
                let connect_timeout = candidate.connect_timeout();
                let (url, addr) = (name.url.clone(), candidate.addr);
                let retry_at = candidate.retry_at().max(twin_until).max(turn_at);
                let place = Place { url, addr, retry_at, connect_timeout, is_redial: false };
                places.push((candidate.is_failing(), place));
            }
        }
        places.extend(self.redial_place().map(|place| (false, place)));
        places.sort_by_key(|(failing, _)| *failing);
        places.into_iter().map(|(_, place)| place).collect()
    }
}
