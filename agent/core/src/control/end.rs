//! How a connection ends, and what follows for its address, for who serves us and for who stands by.

use super::{
    Control, Output,
    connection::{Connection, State},
};
use crate::{io::ConnId, time::BootTime};
use std::time::Duration;

impl Control {
    /// A connection ended against our will.
    pub(super) fn fail(&mut self, conn: ConnId, error: String, at_least: Duration, now: BootTime) {
        self.end(conn, error, at_least, now);
        self.run(now);
    }

    pub(super) fn end(&mut self, conn: ConnId, error: String, at_least: Duration, now: BootTime) {
        let Some(connection) = self.connections.get(&conn) else { return };
        let (server, is_draining) =
            (connection.server.filter(|_| connection.has_session()), connection.draining);
        let was_serving = matches!(connection.state, State::Serving) && !is_draining;
        // A server that drains comes back when it has restarted, not at once.
        let at_least = if is_draining { at_least.max(self.config.backoff_base) } else { at_least };
        let (url, addr) = (connection.url.clone(), connection.addr);
        self.close(conn);
        let is_there = |c: &Connection| c.is_at(&url, addr) && c.has_session() && c.is_worth_keeping();
        // Another machine may answer at the same address by now.
        if self.connections.values().any(is_there) {
            self.redial.wait_until(now + at_least);
        } else if let Some(name) = self.names.iter_mut().find(|name| name.url == url) {
            name.look_up_soon(now);
            let (config, rng) = (&self.config, &mut self.rng);
            if let Some(candidate) = name.candidates.iter_mut().find(|candidate| candidate.addr == addr) {
                candidate.on_failure(error, at_least, config, rng, now);
            }
        }
        if was_serving {
            self.on_unserved(now);
        }
        if server.is_some_and(|server| !is_draining && !self.has_session_with(server, None)) {
            self.redial_on_lost(now);
        }
    }

    pub(super) fn close(&mut self, conn: ConnId) {
        if self.connections.remove(&conn).is_some() {
            self.outputs.push_back(Output::Close { conn });
        }
    }
}
