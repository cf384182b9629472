//! One connection to a server, from its dial to its end.

use super::heartbeat::Heartbeats;
use crate::{
    config::ControlConfig,
    io::Dial,
    time::{BootTime, Cause, Deadline},
};
use proto::{
    server_url::ServerUrl,
    session::{HeartbeatAck, ServerId, SessionNumber, Welcome},
};
use std::{net::SocketAddr, time::Duration};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Dialling {
        give_up_at: BootTime,
    },
    /// Hello is sent; `activate` if it asked to be served.
    Greeting {
        give_up_at: BootTime,
        activate: bool,
    },
    Standby,
    /// Activate is sent.
    Activating {
        late_at: BootTime,
    },
    Serving,
    /// Late; gets a last chance while another is activated.
    Suspect,
}

#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) state: State,
    pub(super) url: ServerUrl,
    pub(super) addr: SocketAddr,
    /// Of the last Hello or Activate.
    pub(super) number: SessionNumber,
    pub(super) server: Option<ServerId>,
    pub(super) heartbeats: Heartbeats,
    pub(super) draining: bool,
    /// How long ago the server was level with its database, by its last word ..
    pub(super) revision_age: Duration,
    /// .. and so, when it last was.
    pub(super) level_at: BootTime,
    /// When the Hello was sent: the answer measures the round trip.
    greeted_at: BootTime,
    /// The least interval that the server asked for.
    asked_interval: Duration,
    /// Messages since this moment, within a second.
    heard: (BootTime, u32),
}

impl Connection {
    pub(super) fn new(dial: &Dial, give_up_at: BootTime, now: BootTime) -> Self {
        Self {
            state: State::Dialling { give_up_at },
            url: dial.url.clone(),
            addr: dial.addr,
            number: SessionNumber::default(),
            server: None,
            heartbeats: Heartbeats::new(now),
            draining: false,
            revision_age: Duration::ZERO,
            level_at: now,
            greeted_at: now,
            asked_interval: Duration::ZERO,
            heard: (now, 0),
        }
    }

    pub(super) fn on_hello(&mut self, server: ServerId, number: SessionNumber, state: State, now: BootTime) {
        self.server = Some(server);
        self.number = number;
        self.state = state;
        self.greeted_at = now;
    }

    pub(super) fn on_welcome(
        &mut self,
        activate: bool,
        welcome: &Welcome,
        config: &ControlConfig,
        now: BootTime,
    ) {
        self.heartbeats = Heartbeats::new(now);
        self.heartbeats.rtt.sample(now.since(self.greeted_at));
        self.level_at = now;
        self.asked_interval = welcome.heartbeat_interval;
        self.server = Some(welcome.server);
        self.state = match activate {
            true => State::Activating { late_at: now + self.heartbeats.patience(config) },
            false => State::Standby,
        };
    }

    pub(super) fn on_heartbeat(&mut self, ack: &HeartbeatAck, config: &ControlConfig, now: BootTime) {
        self.asked_interval = ack.heartbeat_interval;
        self.revision_age = ack.revision_age;
        self.level_at = now - ack.revision_age;
        let own = match self.state {
            State::Standby => config.standby_keepalive,
            State::Dialling { .. }
            | State::Greeting { .. }
            | State::Activating { .. }
            | State::Serving
            | State::Suspect => config.keepalive,
        };
        // A server may ask for fewer heartbeats, but not so few that its death goes unnoticed for a minute.
        let interval = own.max(self.asked_interval.min(Duration::from_secs(30)));
        self.heartbeats.on_answer(ack.sequence, interval, now);
    }

    /// How many messages came within the present second.
    pub(super) fn on_message(&mut self, now: BootTime) -> u32 {
        let (since, count) = &mut self.heard;
        if now.since(*since) >= Duration::from_secs(1) {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        *count
    }

    /// A gateway may lead names that have one address to different servers.
    pub(super) fn is_at(&self, url: &ServerUrl, addr: SocketAddr) -> bool {
        self.addr == addr && self.url == *url
    }

    /// Welcomed and not ended.
    pub(super) fn has_session(&self) -> bool {
        match self.state {
            State::Standby | State::Activating { .. } | State::Serving | State::Suspect => true,
            State::Dialling { .. } | State::Greeting { .. } => false,
        }
    }

    /// Neither suspected nor about to end: a second connection to the same place would gain nothing.
    pub(super) fn is_worth_keeping(&self) -> bool {
        !self.draining && !matches!(self.state, State::Suspect)
    }

    /// May be activated.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.state, State::Standby) && !self.draining && !self.heartbeats.is_late()
    }

    pub(super) fn is_over(&self, config: &ControlConfig, now: BootTime) -> bool {
        match self.state {
            State::Dialling { give_up_at } | State::Greeting { give_up_at, .. } => now >= give_up_at,
            State::Standby | State::Activating { .. } | State::Serving | State::Suspect => {
                self.heartbeats.is_dead(config, now)
            }
        }
    }

    pub(super) fn deadline(&self, config: &ControlConfig) -> Option<Deadline> {
        let heartbeat = self.heartbeats.deadline(config);
        Some(match self.state {
            State::Dialling { give_up_at } | State::Greeting { give_up_at, .. } => {
                Deadline { at: give_up_at, cause: Cause::DialTimeout }
            }
            State::Activating { late_at } => {
                heartbeat.min(Deadline { at: late_at, cause: Cause::HeartbeatLate })
            }
            State::Standby | State::Serving | State::Suspect => heartbeat,
        })
    }
}
