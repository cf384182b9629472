//! The daemon's end of the local socket. Callers are root or the agent's owner; all the same, what they send is bounded and never stops the event loop.

use super::{
    Answer, Done, MAX_REQUEST, Refusal, Request, Snapshot,
    render::{self, Form},
};
use crate::{
    capture,
    platform::{LocalListener, LocalStream},
};
use serde::Serialize;
use std::{collections::BTreeMap, io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

const MAX_CALLERS: usize = 64;
/// A caller that connects and says nothing is not kept.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

const MAX_PING_TIMEOUT: Duration = Duration::from_secs(60);

/// A request and where its answer goes.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) request: Request,
    pub(crate) answer: oneshot::Sender<Answer>,
}

pub(crate) type Asked = mpsc::Receiver<Call>;

/// Serves callers until it is dropped or the event loop is gone; then lets answers under way be written.
pub(crate) async fn serve(listener: LocalListener, calls: mpsc::Sender<Call>) {
    let mut callers = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if callers.len() < MAX_CALLERS => match accepted {
                Ok(stream) => { callers.spawn(speak(stream, calls.clone())); }
                // Out of file descriptors, most likely: better later than in a busy loop.
                Err(error) => {
                    tracing::warn!(%error, "the local socket cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = callers.join_next(), if !callers.is_empty() => {}
            () = calls.closed() => break,
        }
    }
    drop(listener);
    while callers.join_next().await.is_some() {}
}

async fn speak(stream: LocalStream, calls: mpsc::Sender<Call>) {
    let (read, write) = tokio::io::split(stream);
    if let Err(error) = converse(read, write, &calls, REQUEST_TIMEOUT).await {
        tracing::debug!(%error, "a caller on the local socket went away");
    }
}

async fn converse(
    read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
    calls: &mpsc::Sender<Call>,
    patience: Duration,
) -> io::Result<()> {
    let mut read = BufReader::new(read);
    let request = match tokio::time::timeout(patience, read_request(&mut read)).await {
        Ok(Ok(request)) => request,
        Ok(Err(refusal)) => return write_json(&mut write, &error(refusal)).await,
        Err(_elapsed) => return Err(io::ErrorKind::TimedOut.into()),
    };
    let form = match &request {
        Request::Watch { peers: false } => Form::StatusWithoutPeers,
        Request::Metrics { peers } => Form::Metrics { peers: *peers },
        Request::Status
        | Request::Watch { peers: true }
        | Request::Up { .. }
        | Request::Set { .. }
        | Request::Down
        | Request::Drain
        | Request::Logout
        | Request::Ping { .. }
        | Request::Capture { .. } => Form::Status,
    };
    match call(request, calls).await {
        Answer::Done { message } => write_json(&mut write, &Done { message }).await,
        Answer::Pong(pong) => write_json(&mut write, &pong).await,
        Answer::Refused(refusal) => write_json(&mut write, &error(refusal)).await,
        Answer::Status(snapshot) => write.write_all(&render::line(snapshot, form).await?).await,
        Answer::Capture(source) => match source.begin() {
            Ok(begun) => {
                let message = "capturing".into();
                write_json(&mut write, &Done { message }).await?;
                capture::stream(begun, read, write).await
            }
            Err(why) => write_json(&mut write, &error(Refusal::failed(why.to_string()))).await,
        },
        Answer::Watch(changes) => follow(read, write, changes, form).await,
    }
}

/// Asks the event loop.
async fn call(request: Request, calls: &mpsc::Sender<Call>) -> Answer {
    let ending = || Answer::Refused(Refusal::failed("the agent is ending"));
    let deadline = match &request {
        Request::Ping { timeout_ms, .. } => Some(Duration::from_millis(*timeout_ms).min(MAX_PING_TIMEOUT)),
        Request::Status
        | Request::Watch { .. }
        | Request::Up { .. }
        | Request::Set { .. }
        | Request::Down
        | Request::Drain
        | Request::Logout
        | Request::Capture { .. }
        | Request::Metrics { .. } => None,
    };
    let (answer, answered) = oneshot::channel();
    if calls.send(Call { request, answer }).await.is_err() {
        return ending();
    }
    match deadline {
        None => answered.await.unwrap_or_else(|_| ending()),
        Some(timeout) => match tokio::time::timeout(timeout, answered).await {
            Ok(answer) => answer.unwrap_or_else(|_| ending()),
            Err(_elapsed) => Answer::Refused(Refusal::failed(format!("no answer within {timeout:?}"))),
        },
    }
}

/// A status now and at every change, until the caller goes or the agent ends.
async fn follow(
    mut read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
    mut changes: watch::Receiver<Arc<Snapshot>>,
    form: Form,
) -> io::Result<()> {
    changes.mark_changed();
    let mut ignored = [0; 256];
    loop {
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let snapshot = Arc::clone(&changes.borrow_and_update());
                write.write_all(&render::line(snapshot, form).await?).await?;
            }
            // Nothing more is expected; the end of input says that the caller went.
            count = read.read(&mut ignored) => if count? == 0 { return Ok(()) },
        }
    }
}

pub(crate) async fn read_request(read: &mut (impl AsyncBufReadExt + Unpin)) -> Result<Request, Refusal> {
    let mut line = Vec::new();
    let bounded = read.take(MAX_REQUEST).read_until(b'\n', &mut line).await;
    bounded.map_err(|error| Refusal::failed(format!("the request cannot be read: {error}")))?;
    if line.last() != Some(&b'\n') {
        return Err(Refusal::usage(format!("a request is one line of at most {MAX_REQUEST} bytes")));
    }
    serde_json::from_slice(&line).map_err(|error| Refusal::usage(format!("not a request: {error}")))
}

fn error(refusal: Refusal) -> BTreeMap<&'static str, Refusal> {
    BTreeMap::from([("error", refusal)])
}

async fn write_json(write: &mut (impl AsyncWrite + Unpin), value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    write.write_all(&line).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::Code;

    /// What the daemon says to these bytes, with an event loop that answers everything with "done".
    async fn said(bytes: &[u8]) -> String {
        let (mut caller, daemon) = tokio::io::duplex(1 << 20);
        let (calls, mut asked) = mpsc::channel::<Call>(1);
        let event_loop = async {
            while let Some(call) = asked.recv().await {
                call.answer.send(Answer::Done { message: "done".into() }).unwrap();
            }
        };
        let (read, write) = tokio::io::split(daemon);
        let conversation = async {
            let ended = converse(read, write, &calls, REQUEST_TIMEOUT).await;
            drop(calls);
            ended
        };
        caller.write_all(bytes).await.unwrap();
        let (_, ended) = tokio::join!(event_loop, conversation);
        ended.unwrap();
        let mut answer = String::new();
        caller.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn code(answer: &str) -> Code {
        let answer: BTreeMap<String, Refusal> = serde_json::from_str(answer).unwrap();
        answer["error"].code
    }

    #[tokio::test]
    async fn a_request_is_answered() {
        assert_eq!(said(b"{\"ask\":\"down\"}\n").await, "{\"message\":\"done\"}\n");
    }

    #[tokio::test]
    async fn garbage_is_refused_and_reaches_no_event_loop() {
        for garbage in [&b"\n"[..], b"hello\n", b"\xff\xfe\x00\n", b"{}\n", b"{\"ask\":\"explode\"}\n"] {
            assert_eq!(code(&said(garbage).await), Code::Usage, "{garbage:?}");
        }
    }

    #[tokio::test]
    async fn an_oversized_line_is_refused() {
        let line = vec![b'x'; 2 * MAX_REQUEST as usize];
        let answer = said(&line).await;
        assert_eq!(code(&answer), Code::Usage);
        assert!(answer.contains("65536"), "{answer}");
    }

    #[tokio::test]
    async fn a_silent_caller_is_not_kept() {
        let (_caller, daemon) = tokio::io::duplex(64);
        let (calls, _asked) = mpsc::channel(1);
        let (read, write) = tokio::io::split(daemon);
        let ended = converse(read, write, &calls, Duration::from_millis(10)).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
