//! FetchMap: what a session would be too narrow for. The agent says what it has, by (object, hash); the difference comes in chunks, all of one
//! version. The next chunk is made when the last one is on its way. While a fetch runs the session says nothing of the map, and goes
//! on from what was fetched.

use crate::{
    connection::ConnectionState,
    map::Atlas,
    serve::Server,
    session::{
        greeting,
        slot::{FetchGuard, NoFetch},
    },
};
use futures_util::Stream;
use proto::{
    key::PublicKey,
    map::{ContentHash, ObjectId, parse_refs},
    wire,
};
use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};
use tonic::Status;

const CHUNK_BYTES: usize = 256 * 1024;

/// The chunks of one answer.
pub(crate) struct Chunks {
    node: PublicKey,
    atlas: Arc<Atlas>,
    have: BTreeMap<ObjectId, ContentHash>,
    progress: Progress,
}

enum Progress {
    After(Option<ObjectId>, FetchGuard),
    Complete,
}

/// The right to fetch, taken before the request is read: what it may hold in memory is there once per session.
#[derive(Clone)]
pub(super) struct Turn(Arc<Mutex<Option<FetchGuard>>>);

impl Turn {
    /// From here on the session says nothing of the map, so what is judged later stays true.
    ///
    /// # Errors
    /// There is no session, a fetch is under way, or there were too many.
    pub(super) fn take(connection: &ConnectionState) -> Result<Self, Status> {
        let slot = connection.session().ok_or_else(|| {
            Status::unauthenticated(
                "maps are for sessions: open one on this connection and wait for its welcome",
            )
        })?;
        let guard = slot.begin_fetch().map_err(|no| match no {
            NoFetch::Running => Status::aborted("a fetch is under way on this connection"),
            NoFetch::TooOften(wait) => {
                metrics::counter!("holdfast_map_fetches_refused_total").increment(1);
                Status::resource_exhausted(format!("too many fetches; the next in {} ms", wait.as_millis()))
            }
        })?;
        Ok(Self(Arc::new(Mutex::new(Some(guard)))))
    }

    fn guard(&self) -> Option<FetchGuard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Answers a FetchMap.
pub(super) fn fetch(
    server: &Server,
    connection: &ConnectionState,
    turn: Option<&Turn>,
    request: wire::FetchMapRequest,
) -> Result<Chunks, Status> {
    let (Some(slot), Some(guard)) = (connection.session(), turn.and_then(Turn::guard)) else {
        return Err(Status::internal("the request came without its turn"));
    };
    let is_member = greeting::member(server, &slot.key).is_ok_and(|node| node.id == slot.node);
    if !is_member || !server.hub.has(slot) {
        return Err(Status::permission_denied("the session is over; open another"));
    }
    let have = parse_refs(request.have).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let atlas = server.atlas.load_full();
    if atlas.version() < slot.floor() {
        return Err(Status::unavailable(
            "this server has not caught up with what the agent has seen; try again",
        ));
    }
    slot.raise_floor(atlas.version());
    metrics::counter!("holdfast_map_fetches_total").increment(1);
    Ok(Chunks { node: slot.key, atlas, have, progress: Progress::After(None, guard) })
}

impl Stream for Chunks {
    type Item = Result<wire::MapDelta, Status>;

    fn poll_next(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let (after, guard) = match std::mem::replace(&mut this.progress, Progress::Complete) {
            Progress::After(after, guard) => (after, guard),
            Progress::Complete => return Poll::Ready(None),
        };
        let chunk = this.atlas.seen_by(this.node).chunk(after.as_ref(), &this.have, CHUNK_BYTES);
        match chunk.end {
            Some(end) => this.progress = Progress::After(Some(end), guard),
            None => guard.complete(this.atlas.clone()),
        }
        Poll::Ready(Some(Ok(chunk.delta.into())))
    }
}
