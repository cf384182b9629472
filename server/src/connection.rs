//! One TLS connection of an agent: what tonic reads and writes, and what the calls on it share.
//!
//! Every connection has a deadline, and only one place enforces it: here, where bytes go in and out. Until a session is
//! welcomed it is that of a newcomer; a session moves it with every message it hears; an ended one leaves a moment for its
//! last words. So a silent agent costs no timer beside this one, even if its session is never polled again.

use crate::session::Slot;
use futures_util::task::AtomicWaker;
use proto::auth::ChannelBinding;
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep_until},
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

/// How long a connection may stay without a welcomed session; an enrolment fits in.
pub(crate) const NEWCOMER_TIMEOUT: Duration = Duration::from_secs(15);
/// What an ended session has to send its last message and the agent to close.
pub(crate) const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(5);

/// What the calls on a connection know of it.
pub(crate) struct ConnectionState {
    pub(crate) binding: ChannelBinding,
    /// IPv4 as IPv4, also on a socket for both families.
    pub(crate) peer: SocketAddr,
    opened_at: Instant,
    /// Milliseconds after `opened_at`.
    deadline_ms: AtomicU64,
    moved: AtomicWaker,
    /// Counts the connection among those without a session, until it has one.
    newcomer: Mutex<Option<OwnedSemaphorePermit>>,
    session: OnceLock<Arc<Slot>>,
}

impl ConnectionState {
    pub(crate) fn new(binding: ChannelBinding, peer: SocketAddr, newcomer: OwnedSemaphorePermit) -> Self {
        Self {
            binding,
            peer: SocketAddr::new(peer.ip().to_canonical(), peer.port()),
            opened_at: Instant::now(),
            deadline_ms: AtomicU64::new(millis(NEWCOMER_TIMEOUT)),
            moved: AtomicWaker::new(),
            newcomer: Mutex::new(Some(newcomer)),
            session: OnceLock::new(),
        }
    }

    /// The connection's session, once it is welcomed.
    pub(crate) fn session(&self) -> Option<&Arc<Slot>> {
        self.session.get()
    }

    /// Makes the connection that of a welcomed session; `false` if it is one already.
    pub(crate) fn welcome(&self, slot: Arc<Slot>) -> bool {
        self.newcomer.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.session.set(slot).is_ok()
    }

    /// The connection ends unless it is told to go on before `span` is over.
    pub(crate) fn ends_in(&self, span: Duration) {
        let deadline = millis(self.opened_at.elapsed().saturating_add(span));
        let before = self.deadline_ms.swap(deadline, Ordering::Relaxed);
        if deadline < before {
            self.moved.wake();
        }
    }

    /// The connection has nothing more to say: it ends before `span` is over, or when it would have ended anyway.
    pub(crate) fn ends_within(&self, span: Duration) {
        let deadline = millis(self.opened_at.elapsed().saturating_add(span));
        if deadline < self.deadline_ms.fetch_min(deadline, Ordering::Relaxed) {
            self.moved.wake();
        }
    }

    fn deadline(&self) -> Instant {
        self.opened_at + Duration::from_millis(self.deadline_ms.load(Ordering::Relaxed))
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// A connection whose TLS handshake is done.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    state: Arc<ConnectionState>,
    timer: Pin<Box<Sleep>>,
}

impl Connection {
    pub(crate) fn new(stream: TlsStream<TcpStream>, state: Arc<ConnectionState>) -> Self {
        let timer = Box::pin(sleep_until(state.deadline()));
        Self { stream, state, timer }
    }

    fn check_deadline(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.state.moved.register(cx.waker());
        loop {
            let deadline = self.state.deadline();
            // A deadline that moved on is looked at when the timer fires: no timer work per message.
            if deadline < self.timer.deadline() {
                self.timer.as_mut().reset(deadline);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            if deadline <= Instant::now() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.timer.as_mut().reset(deadline);
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<ConnectionState>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.state.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_deadline(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check_deadline(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_deadline(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_deadline(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
