//! What `agent status` shows of the control sessions.

use super::{
    Control,
    candidate::{Candidate, Name},
    connection::{Connection, State},
};
use crate::{status, time::BootTime};
use proto::session::Refused;
use std::time::Duration;

/// The machine's part of the status.
#[derive(Debug, Clone)]
pub struct ControlStatus {
    pub state: status::ControlState,
    pub server: Option<status::Server>,
    pub standby: Option<status::Server>,
    pub connected_since: Option<Duration>,
    pub servers: Vec<status::Candidate>,
    pub refused: Option<Refused>,
}

impl Control {
    /// What `agent status` shows.
    pub fn status(&self, now: BootTime) -> ControlStatus {
        let server = |connection: &Connection| {
            connection.server.map(|id| status::Server { id, url: connection.url.to_string() })
        };
        let standby = self.connections.values().find(|c| matches!(c.state, State::Standby) && !c.draining);
        let serving = self.serving().and_then(|conn| self.connections.get(&conn));
        let failing = self.names.iter().flat_map(|name| &name.candidates).all(Candidate::is_failing);
        ControlStatus {
            state: match serving {
                Some(_) => status::ControlState::Connected,
                None if failing => status::ControlState::Offline,
                None => status::ControlState::Connecting,
            },
            server: serving.and_then(server),
            standby: standby.and_then(server),
            connected_since: serving.and(self.served_by).map(|(_, at)| now.since(at)),
            servers: self.names.iter().map(|name| self.name_status(name)).collect(),
            refused: self
                .bad_news
                .as_ref()
                .filter(|news| news.believe_at.is_none())
                .map(|news| news.refused.clone()),
        }
    }

    fn name_status(&self, name: &Name) -> status::Candidate {
        let best = name.candidates.iter().min_by_key(|candidate| self.candidate_state(name, candidate));
        status::Candidate {
            url: name.url.to_string(),
            id: best.and_then(|c| c.server),
            state: best.map_or(status::ServerState::Unknown, |c| self.candidate_state(name, c)),
            rtt_ms: best.and_then(|c| c.rtt.smoothed()).map(|rtt| rtt.as_secs_f64() * 1e3),
            last_error: best.and_then(|c| c.last_error.clone()).or_else(|| name.error.clone()),
        }
    }

    fn candidate_state(&self, name: &Name, candidate: &Candidate) -> status::ServerState {
        let connections = self.connections.values().filter(|c| c.is_at(&name.url, candidate.addr));
        let of_connection = |c: &Connection| match c.state {
            State::Serving | State::Suspect => Some(status::ServerState::Active),
            State::Standby => Some(status::ServerState::Standby),
            State::Activating { .. } => Some(status::ServerState::Up),
            State::Dialling { .. } | State::Greeting { .. } => None,
        };
        connections.filter_map(of_connection).min().unwrap_or(
            match (candidate.is_failing(), candidate.server) {
                (true, _) => status::ServerState::Down,
                (false, Some(_)) => status::ServerState::Up,
                (false, None) => status::ServerState::Unknown,
            },
        )
    }
}
