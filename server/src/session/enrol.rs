//! Enrolment: a proved key and a setup key make a member. Who may enter is `cluster::admission`'s to decide.

use crate::{
    cluster::{self, Actor, Applicant, Node, Refusal, State},
    connection::ConnectionState,
    follow::WriteError,
    metrics::database_error,
    serve::Server,
    session::{greeting, refusal},
};
use proto::{
    session::{AgentMessage, Reason, Refused},
    setup_key::SetupSecret,
    wire::{self, agent_message::Kind, enrol_response::Outcome},
};

/// Answers an Enrol.
pub(super) async fn enrol(
    server: &Server,
    connection: &ConnectionState,
    request: wire::EnrolRequest,
) -> wire::EnrolResponse {
    let ip = connection.peer.ip();
    let admitted = match server.gate.may_enrol(ip) {
        Ok(()) => admit(server, connection, request).await,
        Err(wait) => Err(refusal::too_many_enrolments(wait)),
    };
    let (label, outcome) = match admitted {
        Ok(node) => {
            tracing::info!(node = %node.id, name = node.name, address = %node.address_v4, key = ?node.key, "node enrolled");
            ("enrolled".to_owned(), Outcome::Enrolled(enrolled(server, node)))
        }
        Err(refused) => {
            if is_the_applicants_fault(refused.reason) {
                server.gate.enrolment_failed(ip);
            }
            greeting::tell_of_proxy(server, connection, &refused);
            tracing::debug!(peer = %connection.peer, reason = ?refused.reason, "enrolment refused: {refused}");
            (format!("{:?}", refused.reason), Outcome::Refused(refused.into()))
        }
    };
    metrics::counter!("holdfast_enrolments_total", "outcome" => label).increment(1);
    wire::EnrolResponse { outcome: Some(outcome) }
}

/// What a guesser is told, not what the servers' own state is to blame for.
fn is_the_applicants_fault(reason: Reason) -> bool {
    match reason {
        Reason::SetupKeyUnknown
        | Reason::SetupKeyUsed
        | Reason::SetupKeyExpired
        | Reason::SetupKeyRevoked
        | Reason::BadProof
        | Reason::Invalid
        | Reason::Version => true,
        Reason::UnknownNode
        | Reason::Removed
        | Reason::Expired
        | Reason::TlsTerminated
        | Reason::Full
        | Reason::StaleSession
        | Reason::Database
        | Reason::Draining
        | Reason::Other => false,
    }
}

async fn admit(
    server: &Server,
    connection: &ConnectionState,
    request: wire::EnrolRequest,
) -> Result<Node, Refused> {
    if server.hub.is_draining() {
        return Err(refusal::draining());
    }
    let _place = server.gate.enrolments.try_acquire().map_err(|_full| refusal::busy())?;
    let applicant = applicant(server, connection, request)?;
    // Who asks again needs no change, so no database either.
    match judge(server, &applicant) {
        Ok((ops, node)) if ops.is_empty() => return Ok(node),
        Ok(_) => {}
        // The key may have been made on another server a moment ago. Strangers with useless keys must not take the lock that every change waits for.
        Err(_) if !greeting::until_level(server).await => return Err(refusal::database("not level with it")),
        Err(_) => drop(judge(server, &applicant).map_err(refuse)?),
    }
    let actor = Actor::Node(applicant.node_key);
    let max_nodes = server.settings.max_nodes;
    let enrol = |state: &State, now| cluster::enrol_within(state, now, &applicant, max_nodes);
    server.cluster.write(actor, enrol).await.map_err(|error| match error {
        WriteError::Refused(refused) => refuse(refused),
        WriteError::Database(error) | WriteError::Unknown(error) => {
            database_error("write");
            refusal::database(error)
        }
    })
}

fn judge(server: &Server, applicant: &Applicant) -> Result<(Vec<cluster::Op>, Node), Refusal> {
    let max_nodes = server.settings.max_nodes;
    cluster::enrol_within(&server.cluster.state(), server.cluster.now(), applicant, max_nodes)
}

fn refuse(refused: Refusal) -> Refused {
    refusal::setup_key(refused.reason(), refused)
}

fn applicant(
    server: &Server,
    connection: &ConnectionState,
    request: wire::EnrolRequest,
) -> Result<Applicant, Refused> {
    let node_key = greeting::prove(server, connection, request.version.as_ref(), request.proof.as_ref())?;
    let secret: SetupSecret = request
        .setup_key_secret
        .parse()
        .map_err(|error| refusal::setup_key(Reason::SetupKeyUnknown, format_args!("{error}")))?;
    let update = wire::NodeUpdate { facts: request.facts, endpoints: request.endpoints };
    let update = AgentMessage::from_wire(wire::AgentMessage { kind: Some(Kind::Update(update)) });
    match update.map_err(|error| refusal::invalid(&error))? {
        Some(AgentMessage::Update { facts, endpoints }) => {
            Ok(Applicant { setup_key_hash: secret.hash(), node_key, facts, endpoints })
        }
        Some(_) | None => Err(refusal::missing("facts")),
    }
}

fn enrolled(server: &Server, node: Node) -> wire::Enrolled {
    let state = server.cluster.state();
    wire::Enrolled {
        root: state.root.public().to_bytes().to_vec(),
        node_id: node.id.0,
        servers: server.servers.urls().iter().map(ToString::to_string).collect(),
        membership: node.membership,
        roots: state.roots().map(|roots| roots.list(state.version()).into()),
    }
}
