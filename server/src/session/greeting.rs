//! The first message of a session: who it is, whether they may be served, and the welcome.

use crate::{
    cluster::{Node, Readopted, Returning},
    connection::ConnectionState,
    metrics::database_error,
    serve::Server,
    session::{refusal, taking_in::take_in},
};
use proto::{
    auth,
    key::PublicKey,
    map::MapVersion,
    session::{AgentMessage, Hello, Reason, Refused, Welcome},
    wire,
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// How long a node that is not known here yet may have been enrolled on another server without this one having heard.
/// A slow database answers within it; a look may have begun just before.
const LOOK_AGAIN_TIMEOUT: Duration = Duration::from_secs(2);
const LOOK_AGAIN_INTERVAL: Duration = Duration::from_millis(25);

/// Judges a Hello: who says it, and what.
pub(super) fn greet(
    server: &Server,
    connection: &ConnectionState,
    wire: wire::Hello,
) -> Result<(PublicKey, Hello), Refused> {
    if server.hub.is_draining() {
        return Err(refusal::draining());
    }
    let key = prove(server, connection, wire.version.as_ref(), wire.proof.as_ref())?;
    let message = wire::AgentMessage { kind: Some(wire::agent_message::Kind::Hello(wire)) };
    match AgentMessage::from_wire(message).map_err(|error| refusal::invalid(&error))? {
        Some(AgentMessage::Hello(hello)) if !hello.number.is_sane() => Err(refusal::session_number()),
        Some(AgentMessage::Hello(hello)) => Ok((key, hello)),
        Some(_) | None => Err(refusal::missing("Hello")),
    }
}

/// The node of `key`, of which nothing good is known here: looked for again, or taken in again where the database lost it.
pub(super) async fn look_again(
    server: Arc<Server>,
    key: PublicKey,
    hello: Hello,
) -> Result<Arc<Node>, Refused> {
    match look_closely(&server, key, hello.map.version).await {
        Err(refused) if refused.reason == Reason::UnknownNode => {
            match take_in_again(&server, key, hello).await {
                None => Err(refused),
                Some(found) => found,
            }
        }
        found => found,
    }
}

/// `None`: its certificate does not make it a member, or nothing was ever lost.
async fn take_in_again(server: &Server, key: PublicKey, hello: Hello) -> Option<Result<Arc<Node>, Refused>> {
    let state = server.cluster.state();
    state.recovery()?;
    let returning = Returning::verified(&state, hello.membership, hello.facts, hello.endpoints)?;
    if returning.key() != key {
        return None;
    }
    match take_in(server, &returning).await {
        Ok(Readopted::In | Readopted::Known) => Some(member(server, &key)),
        Ok(Readopted::Outside) => None,
        Err(error) => {
            database_error("write");
            Some(Err(refusal::database(error)))
        }
    }
}

/// The node of `key`, of which nothing good is known here: until this server was level with the database once, so that an agent may
/// enrol on one server, even after a removal, and go to another in the same breath. A server that does not get level, or that is behind what the agent `saw`, has
/// no bad news to tell: it does not know.
async fn look_closely(server: &Server, key: PublicKey, saw: MapVersion) -> Result<Arc<Node>, Refused> {
    let asked_at = Instant::now();
    server.cluster.look();
    loop {
        let was_level = server.cluster.health().level_age < asked_at.elapsed();
        let found = member(server, &key);
        let is_level =
            was_level && server.cluster.state().version() >= saw && !server.cluster.lacks_what_was_proved();
        if found.is_ok() || is_level {
            return found;
        }
        if asked_at.elapsed() > LOOK_AGAIN_TIMEOUT {
            return found.map_err(|_| refusal::unknown_node());
        }
        sleep(LOOK_AGAIN_INTERVAL).await;
    }
}

/// Waits until this server was level with the database once; `false` if it does not get level.
pub(super) async fn until_level(server: &Server) -> bool {
    let asked_at = Instant::now();
    server.cluster.look();
    while server.cluster.health().level_age >= asked_at.elapsed() {
        if asked_at.elapsed() > LOOK_AGAIN_TIMEOUT {
            return false;
        }
        sleep(LOOK_AGAIN_INTERVAL).await;
    }
    true
}

/// Checks version and proof; returns the node key that is proved.
pub(super) fn prove(
    server: &Server,
    connection: &ConnectionState,
    version: Option<&wire::Version>,
    proof: Option<&wire::Proof>,
) -> Result<PublicKey, Refused> {
    // A newer agent knows from the welcome what is spoken here.
    let protocol = version.map_or(0, |version| version.protocol);
    if protocol < proto::PROTOCOL_VERSION {
        return Err(refusal::version(protocol));
    }
    let proof = proof.ok_or_else(|| refusal::missing("proof"))?;
    auth::verify(proof, &server.session_secret, &connection.binding).map_err(|error| refusal::proof(&error))
}

/// A proxy that terminates TLS is the operator's to mend: each is told once in a while.
pub(super) fn tell_of_proxy(server: &Server, connection: &ConnectionState, refused: &Refused) {
    if refused.reason == Reason::TlsTerminated && server.gate.may_tell_of_proxy(connection.peer.ip()) {
        tracing::warn!(proxy = %connection.peer.ip(), "an agent was refused: {refused}");
    }
}

/// The node of `key`, if it may be served. Unknown is not removed: only a signed removal is.
pub(super) fn member(server: &Server, key: &PublicKey) -> Result<Arc<Node>, Refused> {
    let state = server.cluster.state();
    match state.node_by_key(key) {
        Some(node) if node.is_expired(server.cluster.now()) => Err(refusal::expired()),
        Some(node) => Ok(node.clone()),
        None => Err(match state.removal(key) {
            Some(removed) => refusal::removed(&removed.signed),
            None => refusal::unknown_node(),
        }),
    }
}

pub(super) fn welcome(server: &Server, connection: &ConnectionState, node: &Node) -> Welcome {
    let state = server.cluster.state();
    Welcome {
        server: server.id,
        server_name: server.name.clone(),
        servers: server.servers.current().told(),
        heartbeat_interval: server.settings.heartbeat,
        at: state.version(),
        unix_ms: server.cluster.clock().now_ms(),
        observed_address: server.observed(connection),
        membership: node.membership.clone(),
        roots: state.roots().map(|roots| roots.list(state.version())),
    }
}
