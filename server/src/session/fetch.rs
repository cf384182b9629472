//! FetchMap: what a session would be too narrow for. The agent says what it has, by (object, hash); the difference comes in chunks, all of one
//! version. The next chunk is made when the last one is on its way. While a fetch runs the session says nothing of the map, and goes
//! on from what was fetched.

use crate::{
    connection::ConnectionState,
    map::Atlas,
    serve::Server,
    session::{greeting, slot::FetchGuard},
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
    sync::Arc,
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

/// Answers a FetchMap.
pub(super) fn fetch(
    server: &Server,
    connection: &ConnectionState,
    request: wire::FetchMapRequest,
) -> Result<Chunks, Status> {
    let slot = connection.session().ok_or_else(|| {
        Status::unauthenticated("maps are for sessions: open one on this connection and wait for its welcome")
    })?;
    // First of all: from here on the session says nothing of the map, so what is judged below stays true.
    let guard =
        slot.begin_fetch().ok_or_else(|| Status::aborted("a fetch is under way on this connection"))?;
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
