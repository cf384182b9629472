//! One session: the stream of what the server says, which polls the stream of what the agent says. There is no task and no channel per
//! session: whoever has news leaves it in shared state and wakes the stream, which then looks what changed since it last spoke. So bursts
//! merge, nothing queues, and an agent that reads slowly costs nothing.
//!
//! ```text
//! greeting --Hello (unknown here: look again)--> standby <--Activate / Deactivate, demoted--> serving
//!    |                                              |                                         |
//!    +----------- Refused, Leave, end of stream, silence (the connection's deadline) ---------+--> over
//! ```

use crate::{
    cluster::{Actor, Node, remove},
    connection::{ConnectionState, LAST_WORDS_TIMEOUT},
    exclusive,
    follow::WriteError,
    metrics::database_error,
    presence::{GOODBYE_GRACE, VANISHED_GRACE},
    serve::Server,
    session::{
        Slot,
        catch_up::{Heard, News, Serving},
        greeting,
        rates::Rates,
        refusal,
        reports::Report,
    },
};
use futures_util::{Stream, future::BoxFuture};
use proto::{
    map::MapVersion,
    session::{AgentMessage, HeartbeatAck, Hello, MapState, Refused, ServerMessage, SessionNumber},
    statement::NodeId,
    wire,
};
use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep};
use tonic::{Status, Streaming};

pub(super) const SOFTWARE: &str = env!("CARGO_PKG_VERSION");

/// A serving session that hears nothing for three announced intervals ends, but never sooner than this.
const SILENCE_MINIMUM: Duration = Duration::from_secs(10);
const SILENCE_INTERVALS: u32 = 3;
/// A standby says something every 10 s.
const STANDBY_SILENCE: Duration = Duration::from_secs(40);
/// How long an activation waits for the database.
const SEATING_TIMEOUT: Duration = Duration::from_secs(1);
/// However long an interval an agent announces.
const SILENCE_MAXIMUM: Duration = Duration::from_secs(300);

/// A session as tonic polls it.
pub(crate) struct Session {
    server: Arc<Server>,
    connection: Arc<ConnectionState>,
    inbound: Streaming<wire::AgentMessage>,
    outbox: VecDeque<ServerMessage>,
    phase: Phase,
    rates: Rates,
    /// What came too fast, until it may be handled; nothing else is read meanwhile.
    held: Option<(wire::AgentMessage, Pin<Box<Sleep>>)>,
}

enum Phase {
    Greeting,
    /// The agent proved its key, but this server does not know the node, yet.
    LookingAgain(Box<Hello>, BoxFuture<'static, Result<Arc<Node>, Refused>>),
    Welcomed(Box<Welcomed>),
    Over,
}

struct Welcomed {
    seat: Seat,
    news: News,
    heartbeat_interval: Duration,
    /// Set while the session serves.
    serving: Option<Serving>,
    /// An activation that waits until the database knows of it.
    seating: Option<(SessionNumber, MapState, BoxFuture<'static, ()>)>,
    /// What the agent last said of itself; written while this session serves.
    report: Report,
}

/// A place in the hub; given up when dropped, however the session ends.
struct Seat {
    server: Arc<Server>,
    slot: Arc<Slot>,
    /// The agent said that it goes.
    leaves: bool,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.server.hub.leave(&self.slot) {
            let grace = if self.leaves { GOODBYE_GRACE } else { VANISHED_GRACE };
            self.server.presence.left(self.slot.node, self.slot.number(), grace);
        }
        self.slot.ends_within(LAST_WORDS_TIMEOUT);
        tracing::debug!(node = %self.slot.node, key = ?self.slot.key, "session ended");
    }
}

impl Session {
    pub(super) fn new(
        server: Arc<Server>,
        connection: Arc<ConnectionState>,
        inbound: Streaming<wire::AgentMessage>,
    ) -> Self {
        let rates = Rates::default();
        Self {
            server,
            connection,
            inbound,
            outbox: VecDeque::new(),
            phase: Phase::Greeting,
            rates,
            held: None,
        }
    }

    /// Handles a message, at once or when its time has come.
    fn take(&mut self, message: wire::AgentMessage) {
        match self.rates.delay(message.kind.as_ref(), Instant::now()) {
            Ok(None) => self.handle(message),
            Ok(Some(wait)) => self.held = Some((message, Box::pin(sleep(wait)))),
            Err(refused) => {
                tracing::info!(peer = %self.connection.peer, "session ended: {refused}");
                self.end(Some(refused));
            }
        }
    }

    fn handle(&mut self, message: wire::AgentMessage) {
        match (&self.phase, message.kind) {
            (Phase::Over | Phase::LookingAgain(..), _) | (_, None) => {}
            (Phase::Greeting, Some(wire::agent_message::Kind::Hello(hello))) => self.handle_hello(hello),
            (Phase::Greeting, Some(_)) => self.end(Some(refusal::missing("Hello before it"))),
            (Phase::Welcomed(_), kind) => match AgentMessage::from_wire(wire::AgentMessage { kind }) {
                Ok(Some(message)) => self.handle_message(message),
                // From a newer agent.
                Ok(None) => {}
                Err(error) => self.end(Some(refusal::invalid(&error))),
            },
        }
    }

    fn handle_hello(&mut self, wire: wire::Hello) {
        let (key, hello) = match greeting::greet(&self.server, &self.connection, wire) {
            Ok(guest) => guest,
            Err(refused) => return self.end(Some(refused)),
        };
        match greeting::member(&self.server, &key) {
            Ok(node) => self.welcome(&node, hello),
            // Another server may have taken it in, or back, a moment ago.
            Err(_) => {
                self.server.cluster.show_version(hello.map.version, &hello.map.receipt);
                let again = Box::pin(greeting::look_again(self.server.clone(), key, hello.clone()));
                self.phase = Phase::LookingAgain(Box::new(hello), again);
            }
        }
    }

    fn welcome(&mut self, node: &Node, hello: Hello) {
        let slot = self.server.hub.enter(node.id, node.key, &self.connection);
        let seat = Seat { server: self.server.clone(), slot: slot.clone(), leaves: false };
        if !self.connection.welcome(slot.clone()) {
            return self.end(Some(refusal::second_session()));
        }
        slot.set_number(hello.number);
        metrics::counter!("holdfast_sessions_started_total").increment(1);
        tracing::debug!(node = %node.id, name = node.name, peer = %self.connection.peer, "session started");
        let welcome = greeting::welcome(&self.server, &self.connection, node);
        self.outbox.push_back(ServerMessage::Welcome(welcome));
        self.phase = Phase::Welcomed(Box::new(Welcomed {
            seat,
            news: News::since(&self.server, node),
            heartbeat_interval: hello.heartbeat_interval,
            serving: None,
            seating: None,
            report: Report::new(hello.facts, hello.endpoints, self.server.observed(&self.connection))
                .with_root(hello.root),
        }));
        self.server.cluster.show_version(hello.map.version, &hello.map.receipt);
        match hello.activate {
            true => self.handle_activate(hello.number, hello.map),
            false => slot.raise_floor(hello.map.version),
        }
        self.listen_on();
    }

    fn handle_message(&mut self, message: AgentMessage) {
        let Phase::Welcomed(session) = &mut self.phase else { return };
        match message {
            AgentMessage::Hello(_) => return self.end(Some(refusal::second_session())),
            AgentMessage::Heartbeat { sequence, standby: _, interval } => {
                if !interval.is_zero() {
                    session.heartbeat_interval = interval;
                }
                let told = session.serving.as_ref().map(Serving::told).unwrap_or_default();
                self.outbox.push_back(ServerMessage::Heartbeat(ack(&self.server, sequence, told)));
            }
            AgentMessage::Activate { number, map } => self.handle_activate(number, map),
            AgentMessage::Deactivate => session.step_back(),
            AgentMessage::Signal(signal) => {
                self.server.signals.forward(&self.server, session.seat.slot.key, signal)
            }
            AgentMessage::Update { facts, endpoints } => {
                let root = session.report.root();
                session.report =
                    Report::new(facts, endpoints, self.server.observed(&self.connection)).with_root(root);
                session.publish();
            }
            AgentMessage::Root(root) => {
                session.report = session.report.clone().with_root(Some(root));
                session.publish();
            }
            AgentMessage::Leave { logout } => return self.handle_leave(logout),
            AgentMessage::Removal(signed) => self.server.cluster.show_removal(&signed),
        }
        self.listen_on();
    }

    fn handle_activate(&mut self, number: SessionNumber, map: MapState) {
        let Phase::Welcomed(session) = &mut self.phase else { return };
        let slot = &session.seat.slot;
        if self.server.hub.is_draining() {
            return self.end(Some(refusal::draining()));
        }
        if !number.is_sane() {
            return self.end(Some(refusal::session_number()));
        }
        let served_elsewhere = self.server.presence.newer_elsewhere(slot.node, number);
        if served_elsewhere || self.server.hub.activate(slot, number).is_err() {
            return self.end(Some(refusal::stale_session()));
        }
        self.server.cluster.show_version(map.version, &map.receipt);
        slot.raise_floor(map.version);
        let must_be_known = must_be_known(&self.server, slot.node);
        self.server.presence.served(slot.node, number);
        match must_be_known {
            true => {
                let seated = until_known(self.server.clone(), slot.node);
                session.seating = Some((number, map, Box::pin(seated)));
            }
            false => self.begin_serving(number, map),
        }
    }

    fn begin_serving(&mut self, number: SessionNumber, map: MapState) {
        let Phase::Welcomed(session) = &mut self.phase else { return };
        // An older number has nothing to wait for any more.
        session.seating = None;
        // What an earlier fetch on this connection ended with is older than what the agent says now.
        session.seat.slot.take_fetched();
        session.serving = Some(Serving::resuming(map));
        session.publish();
        let state = self.server.cluster.state();
        let (version, receipt) = (state.version(), state.receipt());
        self.outbox.push_back(ServerMessage::Activated { number, version, receipt });
    }

    fn handle_leave(&mut self, logout: bool) {
        let Phase::Welcomed(session) = &mut self.phase else { return };
        session.seat.leaves = true;
        let node = session.seat.slot.node;
        match logout {
            false => {
                self.end(None);
                tokio::spawn(exclusive::release(self.server.clone(), node));
            }
            true => {
                tokio::spawn(log_out(self.server.clone(), session.seat.slot.clone()));
            }
        }
    }

    /// The agent was heard: the connection's deadline moves.
    fn listen_on(&self) {
        if let Phase::Welcomed(session) = &self.phase {
            let interval = session.heartbeat_interval.max(self.server.settings.heartbeat);
            let announced = interval.saturating_mul(SILENCE_INTERVALS);
            let silence = match session.serving {
                Some(_) => announced.clamp(SILENCE_MINIMUM, SILENCE_MAXIMUM),
                None => STANDBY_SILENCE.max(announced.min(SILENCE_MAXIMUM)),
            };
            self.connection.ends_in(silence);
            session.seat.slot.hear(interval);
        }
    }

    /// Puts everything that is news to the agent into the outbox.
    fn catch_up(&mut self) {
        let Phase::Welcomed(session) = &mut self.phase else { return };
        let slot = &session.seat.slot;
        if session.serving.is_some() && !slot.is_serving() {
            session.serving = None;
        }
        let told = session.news.collect(&self.server, slot, &mut self.outbox);
        if let (Ok(_), Some(serving)) = (&told, &mut session.serving) {
            serving.collect(&self.server, slot, &mut self.outbox);
        }
        match told {
            Ok(Heard::Nothing) => {}
            Ok(Heard::Roots) => session.publish(),
            Err(refused) => self.end(Some(refused)),
        }
    }

    fn end(&mut self, refused: Option<Refused>) {
        if let Some(refused) = refused {
            tracing::debug!(peer = %self.connection.peer, reason = ?refused.reason, "session refused");
            metrics::counter!("holdfast_sessions_refused_total").increment(1);
            greeting::tell_of_proxy(&self.server, &self.connection, &refused);
            self.outbox.push_back(ServerMessage::Refused(refused));
        }
        self.connection.ends_within(LAST_WORDS_TIMEOUT);
        self.phase = Phase::Over;
    }
}

impl Welcomed {
    /// Serves no more, stays as standby.
    fn step_back(&mut self) {
        let Seat { server, slot, leaves: _ } = &self.seat;
        self.serving = None;
        self.seating = None;
        if server.hub.deactivate(slot) {
            server.presence.left(slot.node, slot.number(), VANISHED_GRACE);
        }
    }

    /// What a standby says of its node is kept until it serves: two sessions see the node from two sides.
    fn publish(&self) {
        if self.serving.is_some() {
            self.seat.server.reports.add(&self.seat.server, self.seat.slot.node, &self.report);
        }
    }
}

impl Stream for Session {
    type Item = Result<wire::ServerMessage, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(message) = this.outbox.pop_front() {
                return Poll::Ready(Some(Ok(message.into_wire(SOFTWARE))));
            }
            match &mut this.phase {
                Phase::Over => return Poll::Ready(None),
                Phase::Greeting => {}
                Phase::LookingAgain(hello, again) => {
                    let found = ready!(again.as_mut().poll(cx));
                    let hello = Hello::clone(hello);
                    match found {
                        Ok(node) => this.welcome(&node, hello),
                        Err(refused) => this.end(Some(refused)),
                    }
                    continue;
                }
                Phase::Welcomed(session) => {
                    // Before looking, so that news in between wakes again.
                    session.seat.slot.register(cx.waker());
                    if let Some((_, _, seated)) = &mut session.seating
                        && seated.as_mut().poll(cx).is_ready()
                        && let Some((number, map, _)) = session.seating.take()
                        && session.seat.slot.is_serving()
                    {
                        this.begin_serving(number, map);
                    }
                    this.catch_up();
                    if !this.outbox.is_empty() {
                        continue;
                    }
                }
            }
            if let Some((message, until)) = &mut this.held {
                ready!(until.as_mut().poll(cx));
                let message = std::mem::take(message);
                this.held = None;
                this.take(message);
                continue;
            }
            match Pin::new(&mut this.inbound).poll_next(cx) {
                Poll::Ready(Some(Ok(message))) => this.take(message),
                Poll::Ready(Some(Err(_)) | None) => this.end(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// An ephemeral node that comes back may be about to be removed for its absence: that is decided by what the database knows. While that is away,
/// nobody is removed.
fn must_be_known(server: &Server, node: NodeId) -> bool {
    let is_ephemeral = server.cluster.state().node(node).is_some_and(|node| node.ephemeral);
    is_ephemeral && !server.presence.online().contains(&node) && server.cluster.health().database_ok
}

/// Waits, not for long, until the database knows where the node is served.
async fn until_known(server: Arc<Server>, node: NodeId) {
    let known = tokio::time::timeout(SEATING_TIMEOUT, server.presence.until_saved(node));
    if known.await.is_err() {
        tracing::debug!(%node, "served before the database knows of it");
    }
}

fn ack(server: &Server, sequence: u64, map: MapVersion) -> HeartbeatAck {
    let (health, state) = (server.cluster.health(), server.cluster.state());
    HeartbeatAck {
        sequence,
        server: server.id,
        at: state.version(),
        revision_age: health.level_age,
        database_ok: health.database_ok,
        spread: spread(server.hub.counts().0),
        heartbeat_interval: server.settings.heartbeat,
        unix_ms: server.cluster.clock().now_ms(),
        receipt: state.receipt(),
        map,
    }
}

/// The time over which so many agents spread a failover: a server takes in 5,000 a second and more, so that 200 ms are enough.
fn spread(serving: usize) -> Duration {
    Duration::from_millis((serving / 20).min(200) as u64)
}

/// Ends the node's membership. The session hears of the removal like everybody else, and ends by it.
async fn log_out(server: Arc<Server>, slot: Arc<Slot>) {
    let node = slot.node;
    let removed = server.cluster.write::<_, Infallible>(Actor::Node(slot.key), |state, now| {
        Ok((state.node(node).map_or_else(Vec::new, |node| remove(state, node, now)), ()))
    });
    match removed.await {
        Ok(()) => tracing::info!(%node, key = ?slot.key, "node logged out"),
        Err(WriteError::Refused(never)) => match never {},
        Err(WriteError::Database(error) | WriteError::Unknown(error)) => {
            database_error("write");
            slot.refuse(refusal::database(error));
        }
    }
}

#[cfg(test)]
mod spread_tests {
    use super::*;

    #[test]
    fn few_agents_fail_over_at_once_and_thousands_within_200_ms() {
        assert_eq!(spread(10), Duration::ZERO);
        assert_eq!(spread(1000), Duration::from_millis(50));
        assert_eq!(spread(100_000), Duration::from_millis(200));
    }
}
