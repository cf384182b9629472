//! Control connections: one task each, from the dial to the end. A task reports what happens and does what it is told; when to dial, whom to believe and when to
//! give up is the core's.

mod dial;
mod session;

pub(super) use session::Turn;

use super::Event;
use agent_core::{
    ConnId,
    io::{Closed, Dial},
};
use proto::{
    key::NodeSecret,
    session::{AgentMessage, Facts},
    setup_key::SetupSecret,
    wire::ObjectRef,
};
use rustls::ClientConfig;
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    task::{AbortHandle, JoinSet},
};

/// Messages that wait for a connection. The core sends a few per second, but may ask many peers at once to open their sides.
const BACKLOG: usize = 256;
/// Of these, so many are for other messages than signals.
const KEPT_FOR_OTHERS: usize = 64;
/// What was said before a connection is closed is sent for at most this long.
const LINGER: Duration = Duration::from_millis(200);

/// What a connection needs to prove who we are.
#[derive(Clone)]
pub(super) struct Credentials {
    pub(super) secret: NodeSecret,
    pub(super) tls: Arc<ClientConfig>,
    pub(super) enrolment: Option<Enrolment>,
}

/// What Enrol is called with.
#[derive(Clone)]
pub(super) struct Enrolment {
    pub(super) setup_secret: SetupSecret,
    pub(super) facts: Facts,
    pub(super) endpoints: Vec<SocketAddr>,
}

/// All connections of the event loop.
pub(super) struct Connections {
    open: BTreeMap<ConnId, Handle>,
    tasks: JoinSet<()>,
    events: mpsc::Sender<Event>,
}

struct Handle {
    say: mpsc::Sender<AgentMessage>,
    fetch: mpsc::Sender<Vec<ObjectRef>>,
    /// Dropped to close: the task then ends by itself, once what was said is sent.
    closing: Option<oneshot::Sender<Linger>>,
    task: AbortHandle,
    connected: bool,
}

/// How a closed connection goes on for a while.
struct Linger {
    time: Duration,
    /// While it lives, our direction of the stream stays open.
    _say: mpsc::Sender<AgentMessage>,
}

/// The task's side of a connection.
struct Line {
    conn: ConnId,
    say: mpsc::Receiver<AgentMessage>,
    fetch: mpsc::Receiver<Vec<ObjectRef>>,
    events: mpsc::Sender<Event>,
}

impl Connections {
    pub(super) fn new(events: mpsc::Sender<Event>) -> Self {
        Self { open: BTreeMap::new(), tasks: JoinSet::new(), events }
    }

    pub(super) fn dial(&mut self, dial: Dial, credentials: Credentials) {
        let (say, said) = mpsc::channel(BACKLOG);
        let (fetch, fetches) = mpsc::channel(4);
        let (closing, closed) = oneshot::channel();
        let conn = dial.conn;
        let line = Line { conn, say: said, fetch: fetches, events: self.events.clone() };
        let task = self.tasks.spawn(async move {
            tokio::select! {
                () = run(dial, credentials, line) => {}
                () = linger(closed) => {}
            }
        });
        self.open.insert(conn, Handle { say, fetch, closing: Some(closing), task, connected: false });
    }

    /// Whether what this connection reports still counts.
    pub(super) fn is_open(&self, conn: ConnId) -> bool {
        self.open.contains_key(&conn)
    }

    pub(super) fn on_connected(&mut self, conn: ConnId) {
        if let Some(handle) = self.open.get_mut(&conn) {
            handle.connected = true;
        }
    }

    /// The reason to give up a server that does not read what it is told. Signals are hints, and leave room for the rest.
    pub(super) fn say(&mut self, conn: ConnId, message: AgentMessage) -> Result<(), Closed> {
        let Some(handle) = self.open.get(&conn) else { return Ok(()) };
        if matches!(message, AgentMessage::Signal(_)) && handle.say.capacity() <= KEPT_FOR_OTHERS {
            tracing::debug!(conn = conn.0, "a signal is left out: too many wait");
            return Ok(());
        }
        handle.say.try_send(message).map_err(|_| Closed::Ended("it does not read what it is told".into()))
    }

    pub(super) fn fetch(&mut self, conn: ConnId, have: Vec<ObjectRef>) -> Result<(), Closed> {
        let Some(handle) = self.open.get(&conn) else { return Ok(()) };
        handle.fetch.try_send(have).map_err(|_| Closed::Ended("it does not answer FetchMap".into()))
    }

    /// A connection that is still being made is given up at once; a session ends after what was said.
    pub(super) fn close(&mut self, conn: ConnId) {
        if let Some(handle) = self.open.remove(&conn)
            && !handle.connected
        {
            handle.task.abort();
        }
    }

    /// Connections that are closed from now on wait so long for the server's last words.
    pub(super) fn await_last_words(&mut self, time: Duration) {
        for handle in self.open.values_mut() {
            if let Some(closing) = handle.closing.take() {
                // A task that has ended waits for nothing.
                let _ = closing.send(Linger { time, _say: handle.say.clone() });
            }
        }
    }

    pub(super) fn close_all(&mut self) {
        let open: Vec<ConnId> = self.open.keys().copied().collect();
        open.into_iter().for_each(|conn| self.close(conn));
    }

    /// Whether every task is done, closed connections included.
    pub(super) fn all_ended(&self) -> bool {
        self.tasks.is_empty()
    }

    /// The end of a task. Cancel-safe; pending while there is none.
    pub(super) async fn task_ended(&mut self) {
        match self.tasks.join_next().await {
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

async fn linger(closed: oneshot::Receiver<Linger>) {
    match closed.await {
        Ok(linger) => tokio::time::sleep(linger.time).await,
        Err(_dropped) => tokio::time::sleep(LINGER).await,
    }
}

async fn run(dial: Dial, credentials: Credentials, line: Line) {
    let (conn, events) = (line.conn, line.events.clone());
    let why = match dial::connect(&dial, credentials.tls.clone()).await {
        Ok(connected) => session::run(connected, dial.enrol, credentials, line).await,
        Err(why) => why,
    };
    // Without an event loop nobody is interested any more.
    let _ = events.send(Event::Closed(conn, why)).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{key::PublicKey, session::Signal};

    #[tokio::test]
    async fn many_signals_leave_room_for_the_rest_and_close_nothing() {
        let (events, _happened) = mpsc::channel(1);
        let mut connections = Connections::new(events);
        let (say, _said) = mpsc::channel(BACKLOG);
        let (fetch, _fetches) = mpsc::channel(1);
        let task = connections.tasks.spawn(std::future::pending());
        let conn = ConnId(1);
        connections.open.insert(conn, Handle { say, fetch, closing: None, task, connected: true });
        for id in 0..2 * BACKLOG as u64 {
            let signal = Signal { peer: PublicKey([1; 32]), id, endpoints: Vec::new() };
            assert_eq!(connections.say(conn, AgentMessage::Signal(signal)), Ok(()));
        }
        let heartbeat = || AgentMessage::Heartbeat { sequence: 1, standby: false, interval: Duration::ZERO };
        for _ in 0..KEPT_FOR_OTHERS {
            assert_eq!(connections.say(conn, heartbeat()), Ok(()));
        }
        assert!(connections.say(conn, heartbeat()).is_err());
    }
}
