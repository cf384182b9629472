//! Presence: who is online, in the whole cluster. `board` has the rules; here they meet the database and the sessions. Seats of this server
//! are written in batches, those of others are followed, and what comes of both is
//! published, the less often the more sessions there are.

mod board;

pub(crate) use board::{GOODBYE_GRACE, VANISHED_GRACE};

use crate::{
    cluster::State,
    metrics::database_error,
    serve::Server,
    store::{Hint, SeenSession, SessionRow, StoreError},
};
use arc_swap::ArcSwap;
use board::{Board, Seat};
use imbl::OrdSet;
use proto::{
    session::{ServerId, SessionNumber},
    statement::NodeId,
};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::{Notify, broadcast::error::RecvError},
    time::{MissedTickBehavior, interval, sleep, sleep_until},
};

/// Changes gather for so long.
const GATHERING: Duration = Duration::from_millis(20);
const RETRY_DELAY: Duration = Duration::from_millis(500);
/// Other servers' seats are looked at so often, whatever hints come.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How long the seats that a restarted server finds under its name stay taken: its agents are on their way back.
const INHERITED_GRACE: Duration = Duration::from_secs(10);
/// Seats are written again so often: a database that crashed may have lost the last of them.
const REFRESH_INTERVAL: Duration = Duration::from_secs(30);
const SLOWEST_PACE: Duration = Duration::from_secs(1);
const NO_TIMER: Duration = Duration::from_secs(3600);

/// Who is online, and where.
pub(crate) struct Presence {
    me: ServerId,
    board: Mutex<Board>,
    online: ArcSwap<OrdSet<NodeId>>,
    changed: Notify,
    unsaved: Notify,
    saved: Notify,
}

impl Presence {
    pub(crate) fn new(me: ServerId) -> Self {
        Self {
            me,
            board: Mutex::new(Board::new(me)),
            online: ArcSwap::from_pointee(OrdSet::new()),
            changed: Notify::new(),
            unsaved: Notify::new(),
            saved: Notify::new(),
        }
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everyone who is online, as last published.
    pub(crate) fn online(&self) -> Arc<OrdSet<NodeId>> {
        self.online.load_full()
    }

    /// A session here serves the node.
    pub(crate) fn served(&self, node: NodeId, number: SessionNumber) {
        self.board().handle_served(node, number);
        self.changed.notify_one();
    }

    /// It serves no more; the node is offline unless it is back within `grace`.
    pub(crate) fn left(&self, node: NodeId, number: SessionNumber, grace: Duration) {
        self.board().handle_left(node, number, Instant::now() + grace);
        self.changed.notify_one();
    }

    /// Waits until the database knows where the node sits.
    pub(crate) async fn until_saved(&self, node: NodeId) {
        loop {
            let saved = self.saved.notified();
            if self.board().is_saved(node) {
                return;
            }
            saved.await;
        }
    }

    /// The other server that serves the node.
    pub(crate) fn served_by(&self, node: NodeId) -> Option<ServerId> {
        self.board().served_by(node)
    }

    /// Whether another server serves the node by a newer session.
    pub(crate) fn newer_elsewhere(&self, node: NodeId, number: SessionNumber) -> bool {
        self.board().newer_elsewhere(node, number).is_some()
    }

    pub(crate) fn handle_live(&self, live: BTreeSet<ServerId>) {
        self.board().handle_live(live);
        self.changed.notify_one();
    }

    /// Nodes were removed.
    pub(crate) fn handle_removed(&self, state: &State) {
        self.board().handle_removed(|node| state.is_gone(node));
        self.changed.notify_one();
    }

    /// Has the seats of this server written again.
    pub(crate) fn refresh(&self) {
        self.board().handle_refresh();
        self.unsaved.notify_one();
    }

    /// Ends all seats of this server, in the database too.
    ///
    /// # Errors
    /// The database did not take it; the lease ends them then.
    pub(crate) async fn end(&self, server: &Server) -> Result<(), StoreError> {
        self.board().handle_drained(Instant::now());
        self.save(server).await
    }

    async fn save(&self, server: &Server) -> Result<(), StoreError> {
        let seats = self.board().take_unsaved();
        if seats.is_empty() {
            return Ok(());
        }
        let rows: Vec<_> = seats.iter().map(|(node, seat)| row(*node, *seat)).collect();
        let saved = server.cluster.store().put_sessions(&rows).await;
        match &saved {
            Ok(()) => self.board().handle_saved(),
            Err(_) => self.board().restore_unsaved(seats),
        }
        self.saved.notify_waiters();
        saved
    }
}

fn row(node: NodeId, seat: Seat) -> SessionRow {
    SessionRow { node, server: seat.server, number: seat.number, online: seat.online }
}

/// Hands new seats on to be saved and publishes changes to the sessions here, for ever.
pub(crate) async fn publish(server: Arc<Server>) {
    let presence = &server.presence;
    // While there is something to publish.
    let mut publish_at: Option<Instant> = None;
    let mut earliest_at = Instant::now();
    loop {
        let timer = [presence.board().poll_timeout(), publish_at].into_iter().flatten().min();
        let timer = timer.unwrap_or_else(|| Instant::now() + NO_TIMER);
        tokio::select! {
            () = presence.changed.notified() => sleep(GATHERING).await,
            () = sleep_until(timer.into()) => {}
        }
        let now = Instant::now();
        let online = {
            let mut board = presence.board();
            board.handle_timeout(now);
            board.online().clone()
        };
        presence.unsaved.notify_one();
        // The handles differ after any change, also one that was undone; only a difference is news.
        let is_news = online != *presence.online.load_full();
        publish_at = (is_news && now < earliest_at).then_some(earliest_at);
        if is_news && publish_at.is_none() {
            presence.online.store(Arc::new(online));
            server.hub.wake_serving();
            earliest_at = now + pace(server.hub.counts().0);
        }
    }
}

/// Between two publications: news go to everyone, so what a storm of agents costs would grow with their number squared.
fn pace(serving: usize) -> Duration {
    Duration::from_millis((serving / 10) as u64).min(SLOWEST_PACE)
}

/// Writes the seats of this server, for ever.
pub(crate) async fn save(server: Arc<Server>) {
    let mut refreshes = interval(REFRESH_INTERVAL);
    refreshes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = server.presence.unsaved.notified() => {}
            _ = refreshes.tick() => server.presence.refresh(),
        }
        while let Err(error) = server.presence.save(&server).await {
            database_error("put-sessions");
            tracing::debug!(%error, "presence waits for the database");
            sleep(RETRY_DELAY).await;
        }
    }
}

/// Reads all seats, before this server holds a lease: so its own of before are told from those of long ago. Returns where to follow from.
pub(crate) async fn load(server: &Server) -> Result<u64, StoreError> {
    let (rows, next) = server.cluster.store().sessions(0).await?;
    take_in(server, &rows, Some(Instant::now()));
    Ok(next)
}

/// Follows what other servers write, for ever.
pub(crate) async fn follow(server: Arc<Server>, mut after: u64) {
    let mut hints = server.cluster.store().wake();
    let mut poll = interval(POLL_INTERVAL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_away = false;
    loop {
        tokio::select! {
            _ = poll.tick() => {}
            hint = hints.recv() => match hint {
                Ok(Hint::Presence | Hint::Anything) | Err(RecvError::Lagged(_)) => {}
                Ok(Hint::Log | Hint::Signals(_) | Hint::Leases) => continue,
                Err(RecvError::Closed) => return,
            },
        }
        match server.cluster.store().sessions(after).await {
            // It may have lost what it had, and what is there now is in no order with what was read.
            Ok((_, next)) if was_away || next < after => {
                (after, was_away) = (0, false);
                server.presence.refresh();
                poll.reset_immediately();
            }
            Ok((rows, next)) => {
                take_in(&server, &rows, None);
                after = next;
            }
            Err(error) => {
                was_away = true;
                database_error("sessions");
                tracing::debug!(%error, "the presence of other servers cannot be read");
            }
        }
    }
}

/// `loaded_at`: the rows are those found at the start, among them the seats that this server had before.
fn take_in(server: &Server, rows: &[SeenSession], loaded_at: Option<Instant>) {
    if rows.is_empty() {
        return;
    }
    let presence = &server.presence;
    let state = server.cluster.state();
    let mut replaced = Vec::new();
    let mut board = presence.board();
    for SeenSession { row, leased, sequence: _ } in rows {
        // Read before its removal, which was heard of first.
        if state.is_gone(row.node) {
            continue;
        }
        let seat = Seat { server: row.server, number: row.number, online: row.online };
        match loaded_at {
            Some(now) if row.server == presence.me => {
                let grace = if *leased { INHERITED_GRACE } else { Duration::ZERO };
                board.handle_inherited(row.node, seat, now + grace);
            }
            Some(_) | None => {
                if board.handle_row(row.node, seat) {
                    replaced.push((row.node, row.number));
                }
            }
        }
    }
    drop(board);
    replaced.into_iter().for_each(|(node, number)| server.hub.demote(node, number));
    presence.changed.notify_one();
}
