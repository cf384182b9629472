//! The configuration socket's callers. Each has a task of its own, so one that stalls in the middle of a request holds
//! up nobody, and is let go after a while.

use crate::{
    capture::{CaptureError, Names, Source},
    platform::{LocalStream, UapiListener, interface_index},
};
use agent_tunnel::{
    ConfigureError, Tunnel,
    capture::Wanted,
    uapi::{self, Decoder, Refusal, Request, errno},
};
use std::{
    io,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};
use zeroize::Zeroizing;

const MAX_CALLERS: usize = 64;
/// For a whole request, and for reading its answer. The largest take a second.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Between requests on one connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const BUFFER_BYTES: usize = 64 * 1024;

/// What callers may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    ReadOnly,
    ReadAndWrite,
}

/// Serves for as long as it is polled.
pub(crate) async fn serve(listener: &UapiListener, tunnel: Weak<Tunnel>, access: Access) {
    let permits = Arc::new(Semaphore::new(MAX_CALLERS));
    let mut callers = JoinSet::new();
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        let stream = listener.accept().await;
        while callers.try_join_next().is_some() {}
        let tunnel = tunnel.clone();
        callers.spawn(async move {
            if let Err(error) = converse(stream, &tunnel, access).await {
                tracing::debug!(%error, "a caller at the configuration socket is gone");
            }
            drop(permit);
        });
    }
}

async fn converse(mut stream: LocalStream, tunnel: &Weak<Tunnel>, access: Access) -> io::Result<()> {
    let mut decoder = Decoder::new(interface_index);
    let mut buffer = Zeroizing::new(vec![0; BUFFER_BYTES]);
    let mut begun_at = Instant::now();
    loop {
        let give_up_at = match decoder.is_within_request() {
            true => begun_at + REQUEST_TIMEOUT,
            false => {
                begun_at = Instant::now();
                begun_at + IDLE_TIMEOUT
            }
        };
        let len = timeout_at(give_up_at, stream.read(&mut buffer)).await??;
        let mut input = &buffer[..len];
        if input.is_empty() {
            return Ok(());
        }
        if !decoder.is_within_request() {
            begun_at = Instant::now();
        }
        while let Some(request) = decoder.next(&mut input) {
            if let Ok(Request::Capture(wanted)) = request {
                return capture(stream, tunnel.clone(), wanted).await;
            }
            let answer = answer(request, tunnel, access).await?;
            timeout(REQUEST_TIMEOUT, stream.write_all(answer.as_bytes())).await??;
        }
        if decoder.is_lost() {
            return Ok(());
        }
    }
}

/// The connection's last request: the answer is followed by the stream.
async fn capture(mut stream: LocalStream, tunnel: Weak<Tunnel>, wanted: Wanted) -> io::Result<()> {
    let begun = Source { tunnel, wanted, names: Names::default() }.begin();
    let done = begun.as_ref().map(|_| ()).map_err(|why| Refusal {
        errno: match why {
            CaptureError::NoTunnel => errno::EIO,
            CaptureError::TooMany => errno::EBUSY,
        },
        what: why.to_string(),
    });
    stream.write_all(uapi::answer(&done).as_bytes()).await?;
    let (read, write) = tokio::io::split(stream);
    match begun {
        Ok(begun) => crate::capture::stream(begun, read, write).await,
        Err(_) => Ok(()),
    }
}

async fn answer(
    request: Result<Request, Refusal>,
    tunnel: &Weak<Tunnel>,
    access: Access,
) -> io::Result<Zeroizing<String>> {
    let tunnel = tunnel.clone();
    // The tunnel's thread answers between two batches: that is waited for elsewhere.
    let carried_out = tokio::task::spawn_blocking(move || {
        let mut text = Zeroizing::new(String::new());
        let done = request.and_then(|request| carry_out(request, &tunnel, access));
        let done = done.map(|described| text = described);
        if let Err(refusal) = &done {
            tracing::info!(
                errno = refusal.errno,
                reason = refusal.what,
                "a configuration request is refused"
            );
        }
        text.push_str(&uapi::answer(&done));
        text
    });
    carried_out.await.map_err(io::Error::other)
}

fn carry_out(request: Request, tunnel: &Weak<Tunnel>, access: Access) -> Result<Zeroizing<String>, Refusal> {
    let gone = || Refusal { errno: errno::EIO, what: "the interface is gone".into() };
    let tunnel = tunnel.upgrade().ok_or_else(gone)?;
    match request {
        Request::Capture(_) => {
            Err(Refusal { errno: errno::EIO, what: "a capture is not one of these".into() })
        }
        Request::Get => Ok(tunnel.describe().ok_or_else(gone)?.to_text()),
        Request::Set(_) if access == Access::ReadOnly => {
            let what = "servers configure this interface: use `agent set` and `server node`".into();
            Err(Refusal { errno: errno::EOPNOTSUPP, what })
        }
        Request::Set(changes) => {
            tunnel.configure(*changes).map(|()| Zeroizing::default()).map_err(|error| refusal(&error))
        }
    }
}

fn refusal(error: &ConfigureError) -> Refusal {
    let source = match error {
        ConfigureError::Port { source, .. } | ConfigureError::Mark(source) => source.raw_os_error(),
        ConfigureError::Stopped => None,
    };
    Refusal { errno: source.unwrap_or(errno::EIO), what: error.to_string() }
}
