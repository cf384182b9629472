//! Who serves: the choice among sessions that are there.

use super::{
    Control, Output, Served,
    connection::{Connection, State},
};
use crate::{io::ConnId, time::BootTime};
use proto::session::ServerId;
use rand::RngExt;

impl Control {
    /// Activates the best standby where nobody serves us.
    pub(super) fn elect(&mut self, now: BootTime) {
        if self.elect_at.is_none() && !self.is_served_or_activating() {
            self.activate(self.best_standby(), now);
        }
    }

    fn activate(&mut self, conn: Option<ConnId>, now: BootTime) {
        let Some(conn) = conn else { return };
        let number = self.next_number();
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let late_at = now + connection.heartbeats.patience(&self.config);
        connection.state = State::Activating { late_at };
        connection.number = number;
        // A standby is asked for life every 10 s only.
        connection.heartbeats.hasten(now);
        self.newest_asked = number;
        self.outputs.push_back(Output::Activate { conn, number });
    }

    fn best_standby(&self) -> Option<ConnId> {
        let ready = self.connections.iter().filter(|(_, c)| c.is_ready());
        let best = ready.min_by_key(|(_, c)| (self.is_stale(c), self.rank(c)));
        best.map(|(conn, _)| *conn)
    }

    /// The order in which the person named the server; told ones last.
    fn rank(&self, connection: &Connection) -> usize {
        self.names.iter().position(|name| name.url == connection.url).unwrap_or(usize::MAX)
    }

    /// A suspect that answers serves on, unless another took over meanwhile.
    pub(super) fn on_life(&mut self, conn: ConnId, now: BootTime) {
        let Some(connection) = self.connections.get(&conn) else { return };
        if !matches!(connection.state, State::Suspect) || connection.heartbeats.is_late() {
            return;
        }
        match self.connections.values().any(|c| matches!(c.state, State::Serving)) {
            true => self.stand_by(conn, now),
            false => self.on_serving(conn, now),
        }
    }

    pub(super) fn stand_by(&mut self, conn: ConnId, now: BootTime) {
        let server = self.connections.get(&conn).and_then(|c| c.server);
        if server.is_some_and(|server| self.has_session_with(server, Some(conn))) {
            return self.close(conn);
        }
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        connection.state = State::Standby;
        connection.heartbeats.hasten(now);
        self.outputs.push_back(Output::Deactivate { conn });
    }

    /// The session serves; whoever else did or was about to stands by or, where it drains, is left.
    pub(super) fn on_serving(&mut self, conn: ConnId, now: BootTime) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        connection.state = State::Serving;
        let (server, url) = (connection.server, connection.url.clone());
        for other in self.others_serving(conn) {
            let draining = self.connections.get(&other).is_some_and(|c| c.draining);
            match draining {
                true => self.end(other, "the server drains".into(), std::time::Duration::ZERO, now),
                false => self.stand_by(other, now),
            }
        }
        self.bad_news = None;
        self.stale_leaps = 0;
        self.elect_at = None;
        if let Some(server) = server {
            self.close_twins(server);
            self.note_served(server, url, now);
        }
    }

    /// A suspect is dialled beside its session. Once it serves on, a standby with the same server is none.
    pub(super) fn close_twins(&mut self, server: ServerId) {
        let serves = |c: &Connection| c.server == Some(server) && matches!(c.state, State::Serving);
        if !self.connections.values().any(serves) {
            return;
        }
        let is_twin = |c: &Connection| c.server == Some(server) && matches!(c.state, State::Standby);
        let twins = self.connections.iter().filter(|(_, c)| is_twin(c)).map(|(conn, _)| *conn);
        twins.collect::<Vec<_>>().into_iter().for_each(|twin| self.close(twin));
    }

    /// Servers believe the newest number that asked to serve, wherever it was said. Where the session that stays bears an older one (a suspect that
    /// answered after all, while another was asked), its server may have stepped back in silence: it is asked again.
    pub(super) fn renumber(&mut self) {
        if self.is_activating() || self.is_greeting_to_activate() {
            return;
        }
        let newest = self.newest_asked;
        let serving = |c: &Connection| matches!(c.state, State::Serving) && !c.draining && c.number < newest;
        let Some(conn) = self.connections.iter().find(|(_, c)| serving(c)).map(|(conn, _)| *conn) else {
            return;
        };
        let number = self.next_number();
        self.newest_asked = number;
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.number = number;
        }
        self.outputs.push_back(Output::Activate { conn, number });
    }

    /// While nobody served us several servers were dialled; one standby is kept of those that answered.
    pub(super) fn release_surplus(&mut self) {
        if !self.is_served() || self.connections.values().any(|c| matches!(c.state, State::Suspect)) {
            return;
        }
        let Some(best) = self.best_standby() else { return };
        let surplus = self.connections.iter().filter(|(conn, c)| **conn != best && c.is_ready());
        let surplus: Vec<ConnId> = surplus.map(|(conn, _)| *conn).collect();
        surplus.into_iter().for_each(|conn| self.close(conn));
    }

    fn others_serving(&self, conn: ConnId) -> Vec<ConnId> {
        let serves = |c: &Connection| match c.state {
            State::Serving | State::Activating { .. } => true,
            State::Dialling { .. } | State::Greeting { .. } | State::Standby | State::Suspect => false,
        };
        self.connections
            .iter()
            .filter(|(other, c)| **other != conn && serves(c))
            .map(|(other, _)| *other)
            .collect()
    }

    fn note_served(&mut self, server: ServerId, url: proto::server_url::ServerUrl, now: BootTime) {
        let after = self.unserved_since.take().map(|since| now.since(since));
        let told_unserved = std::mem::take(&mut self.told_unserved);
        let before = self.served_by.map(|(server, _)| server);
        if before != Some(server) || told_unserved {
            self.failovers += u64::from(before.is_some_and(|before| before != server));
            self.served_by = Some((server, now));
            self.outputs.push_back(Output::Served(Served { server, url, after }));
        }
    }

    pub(super) fn on_unserved(&mut self, now: BootTime) {
        self.unserved_since.get_or_insert(now);
        if !self.spread.is_zero() && self.elect_at.is_none() {
            self.elect_at = Some(now + self.spread.mul_f64(self.rng.random_range(0.0..=1.0)));
        }
        self.names.iter_mut().for_each(|name| name.look_up_soon(now));
        // The standby's last heartbeat may be 10 s old, so others are dialled beside it, and at once.
        self.next_dial_at = now;
    }

    /// A server that lost touch with the database is left, if another is better off: it was level later, by its word. (A standby that spoke last before the
    /// database went away looks fresh, but is not.)
    pub(super) fn leave_stale(&mut self, now: BootTime) {
        let Some(serving) = self.connections.values().find(|c| matches!(c.state, State::Serving)) else {
            return;
        };
        if !self.is_stale(serving) || self.is_activating() {
            return;
        }
        let level_at = serving.level_at + self.config.keepalive;
        let is_better = |c: &Connection| !self.is_stale(c) && c.level_at > level_at;
        let better = self.best_standby().filter(|conn| self.connections.get(conn).is_some_and(is_better));
        self.activate(better, now);
    }

    fn is_stale(&self, connection: &Connection) -> bool {
        connection.revision_age > self.config.stale_revision
    }

    pub(super) fn is_served_or_activating(&self) -> bool {
        self.is_activating() || self.is_served()
    }

    pub(super) fn is_served(&self) -> bool {
        self.connections.values().any(|c| matches!(c.state, State::Serving) && !c.draining)
    }

    fn is_activating(&self) -> bool {
        self.connections.values().any(|c| matches!(c.state, State::Activating { .. }))
    }

    /// A Hello that asks to be served is on its way. It keeps a second such Hello back, but not a standby from being activated.
    pub(super) fn is_greeting_to_activate(&self) -> bool {
        self.connections.values().any(|c| match c.state {
            State::Greeting { activate, .. } => activate,
            State::Dialling { .. }
            | State::Standby
            | State::Activating { .. }
            | State::Serving
            | State::Suspect => false,
        })
    }

    /// Whether a session with this server is there that is worth something.
    pub(super) fn has_session_with(&self, server: ServerId, except: Option<ConnId>) -> bool {
        self.connections
            .iter()
            .any(|(conn, c)| Some(*conn) != except && c.server == Some(server) && c.is_worth_keeping())
    }
}
