//! What is said on a connection: Enrol where asked, then the session's stream, and FetchMap beside it.

use super::{Credentials, Enrolment, Line, dial::Connected};
use crate::daemon::Event;
use agent_core::{
    ConnId,
    io::{self, Closed},
};
use futures_util::{
    StreamExt,
    stream::{FuturesUnordered, iter},
};
use hyper_util::rt::TokioIo;
use proto::{
    Invalid,
    auth::prove,
    map::Delta,
    session::{AgentMessage, Refused, ServerMessage, own_version},
    wire::{self, ObjectRef, control_client::ControlClient},
};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

const SOFTWARE: &str = env!("CARGO_PKG_VERSION");
/// What was read of one connection and not yet handled, messages: more is left to the kernel, and to the server.
const TURNS: usize = 16;
/// Twice what servers send at once.
const MAX_MESSAGE_BYTES: usize = 512 * 1024;

/// Runs the connection to its end, and says why it ended.
pub(super) async fn run(
    connected: Connected,
    enrol: bool,
    credentials: Credentials,
    mut line: Line,
) -> Closed {
    let server = connected.facts.id;
    let proof = match prove(&credentials.secret, &connected.facts.session_key, &connected.binding) {
        Ok(proof) => proof,
        Err(error) => return Closed::NotOurs(error.to_string()),
    };
    let enrolment = credentials.enrolment.filter(|_| enrol);
    let mut hello = None;
    if enrolment.is_none() {
        line.report(Event::Connected(line.conn, io::Connected { server })).await;
        // A server that we have already is left here: so far it has but shaken hands.
        hello = line.say.recv().await;
        if hello.is_none() {
            return Closed::Ended("closed before anything was said".into());
        }
    }
    let mut client = match open(connected).await {
        Ok(channel) => ControlClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES),
        Err(error) => return Closed::Ended(error.to_string()),
    };
    if let Some(enrolment) = enrolment {
        match call_enrol(&mut client, proof.clone(), enrolment).await {
            Ok(enrolled) => line.report(Event::Enrolled(line.conn, enrolled)).await,
            Err(why) => return why,
        }
        line.report(Event::Connected(line.conn, io::Connected { server })).await;
    }
    converse(client, proof, hello, line).await
}

/// HTTP/2 over this very connection. The connector gives it out once: a channel that reconnected by itself would speak under
/// another channel binding, and hide the end of the first connection.
async fn open(connected: Connected) -> Result<Channel, tonic::transport::Error> {
    let stream = Arc::new(Mutex::new(Some(TokioIo::new(connected.stream))));
    let connector = tower::service_fn(move |_| {
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move { stream.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
    });
    Endpoint::from_static("http://holdfast.internal").connect_with_connector(connector).await
}

async fn call_enrol(
    client: &mut ControlClient<Channel>,
    proof: wire::Proof,
    enrolment: Enrolment,
) -> Result<wire::Enrolled, Closed> {
    use wire::enrol_response::Outcome;
    let request = wire::EnrolRequest {
        version: Some(own_version(SOFTWARE)),
        proof: Some(proof),
        setup_key_secret: enrolment.setup_secret.expose(),
        facts: Some(enrolment.facts.into()),
        endpoints: enrolment.endpoints.iter().map(ToString::to_string).collect(),
    };
    match client.enrol(request).await.map_err(|status| failed(&status))?.into_inner().outcome {
        Some(Outcome::Enrolled(enrolled)) => Ok(enrolled),
        Some(Outcome::Refused(refused)) => Err(Closed::Refused(Refused::from(refused))),
        None => {
            Err(Closed::Ended("it answered the enrolment with what this agent does not understand".into()))
        }
    }
}

async fn converse(
    mut client: ControlClient<Channel>,
    proof: wire::Proof,
    hello: Option<AgentMessage>,
    mut line: Line,
) -> Closed {
    let (nobody, nothing) = mpsc::channel(1);
    drop(nobody);
    let said = std::mem::replace(&mut line.say, nothing);
    let outgoing = iter(hello).chain(ReceiverStream::new(said)).map(move |message| {
        let proof = matches!(message, AgentMessage::Hello(_)).then(|| proof.clone());
        message.into_wire(proof, SOFTWARE)
    });
    let mut incoming = match client.session(outgoing).await {
        Ok(response) => response.into_inner(),
        Err(status) => return failed(&status),
    };
    let mut fetches = FuturesUnordered::new();
    let turns = Arc::new(Semaphore::new(TURNS));
    loop {
        tokio::select! {
            received = incoming.message() => match typed(received) {
                Ok(Some(message)) => {
                    let Some(turn) = turn(&turns).await else { return Closed::Ended("closed".into()) };
                    line.report(Event::Message(line.conn, Box::new(message), turn)).await;
                }
                Ok(None) => {}
                Err(why) => return why,
            },
            Some(have) = line.fetch.recv() => {
                fetches.push(fetch(client.clone(), have, (line.conn, line.events.clone()), turns.clone()));
            }
            Some(fetched) = fetches.next(), if !fetches.is_empty() => match fetched {
                Ok(()) => {}
                Err(why) => return why,
            },
        }
    }
}

/// A message of the session, if it is of a kind that is known.
fn typed(received: Result<Option<wire::ServerMessage>, Status>) -> Result<Option<ServerMessage>, Closed> {
    match received {
        Ok(Some(message)) => ServerMessage::from_wire(message).map_err(|error| invalid(&error)),
        Ok(None) => Err(Closed::Ended("it ended the session".into())),
        Err(status) => Err(failed(&status)),
    }
}

async fn fetch(
    mut client: ControlClient<Channel>,
    have: Vec<ObjectRef>,
    (conn, events): (ConnId, mpsc::Sender<Event>),
    turns: Arc<Semaphore>,
) -> Result<(), Closed> {
    let response = client.fetch_map(wire::FetchMapRequest { have }).await;
    let mut parts = response.map_err(|status| failed(&status))?.into_inner();
    let mut is_whole = false;
    while let Some(part) = parts.message().await.map_err(|status| failed(&status))? {
        let delta = Delta::try_from(part).map_err(|error| invalid(&error))?;
        is_whole = delta.last;
        // An event loop that is gone has dropped this task, too.
        let Some(turn) = turn(&turns).await else { break };
        let _ = events.send(Event::Fetched(conn, delta, turn)).await;
    }
    match is_whole {
        true => Ok(()),
        false => Err(Closed::Ended("it ended the map that was asked for before its end".into())),
    }
}

/// Held by what waits to be handled.
pub(in crate::daemon) type Turn = OwnedSemaphorePermit;

/// `None` never: nobody closes it.
async fn turn(turns: &Arc<Semaphore>) -> Option<Turn> {
    turns.clone().acquire_owned().await.ok()
}

impl Line {
    async fn report(&self, event: Event) {
        // An event loop that is gone has dropped this task, too.
        let _ = self.events.send(event).await;
    }
}

fn invalid(error: &Invalid) -> Closed {
    Closed::Broken(format!("it sent what cannot be valid: {error}"))
}

fn failed(status: &Status) -> Closed {
    let text = match status.message() {
        "" => status.code().to_string(),
        message => message.to_owned(),
    };
    Closed::Ended(text)
}
