//! `GET /metrics` over plain HTTP, where it is asked for. Whoever calls is bounded in number and time, one request each, and has no
//! part in anything else.

use crate::local::{Answer, Call, Request, metrics_text};
use hyper::{
    Method, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

const MAX_CALLERS: usize = 16;
/// For a whole request and its answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Out of descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An address that is served for as long as this is held.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Listener {
    /// # Errors
    /// The address cannot be had.
    pub(super) fn start(address: SocketAddr, calls: mpsc::Sender<Call>) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        tracing::info!(%address, "metrics are served");
        Ok(Self { address, task: tokio::spawn(serve(listener, calls)) })
    }

    /// Then the address is free.
    pub(super) async fn stop(mut self) {
        self.task.abort();
        // It ends by that.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, calls: mpsc::Sender<Call>) {
    let permits = Arc::new(Semaphore::new(MAX_CALLERS));
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let calls = calls.clone();
                tokio::spawn(async move {
                    // Whoever is slow or speaks something else is let go.
                    let _ = timeout(CALL_TIMEOUT, converse(stream, calls)).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a caller for metrics cannot be let in");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, calls: mpsc::Sender<Call>) {
    let answer = |request: hyper::Request<Incoming>| {
        let calls = calls.clone();
        async move { Ok::<_, Infallible>(respond(&request, &calls).await) }
    };
    let served =
        http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service_fn(answer));
    if let Err(error) = served.await {
        tracing::debug!(%error, "a caller for metrics is gone");
    }
}

async fn respond<B>(request: &hyper::Request<B>, calls: &mpsc::Sender<Call>) -> Response<String> {
    let told = |status: StatusCode, text: &str| {
        let mut response = Response::new(format!("{text}\n"));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return told(
            StatusCode::NOT_FOUND,
            "there is /metrics, and /metrics?peers=1 with series of each peer",
        );
    }
    if request.method() != Method::GET {
        let mut response = told(StatusCode::METHOD_NOT_ALLOWED, "GET");
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
        return response;
    }
    let peers = request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == "peers=1"));
    let Some(text) = ask(calls, peers).await else {
        return told(StatusCode::SERVICE_UNAVAILABLE, "the agent is ending");
    };
    let mut response = Response::new(text);
    let kind = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// `None`: nobody is there to answer.
async fn ask(calls: &mpsc::Sender<Call>, peers: bool) -> Option<String> {
    let (answer, answered) = oneshot::channel();
    calls.send(Call { request: Request::Metrics { peers }, answer }).await.ok()?;
    match answered.await.ok()? {
        Answer::Status(snapshot) => metrics_text(snapshot, peers).await.ok(),
        Answer::Done { .. }
        | Answer::Watch(_)
        | Answer::Pong(_)
        | Answer::Capture(_)
        | Answer::Refused(_) => None,
    }
}
