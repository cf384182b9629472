//! One TLS connection of an agent: what tonic reads and writes, and what the calls on it share.
//!
//! Every connection has a deadline, and only one place enforces it: here, where bytes go in and out. Until a session is
//! welcomed it is that of a newcomer; a session moves it with every message it hears; an ended one leaves a moment for its
//! last words. So a silent agent costs no timer beside this one, even if its session is never polled again. And bytes are read at a rate: whatever HTTP/2
//! lets a peer say without end (pings, settings, empty frames) costs this much at most.

use crate::{
    gate::Pass,
    limit::{Bucket, Rate},
    session::Slot,
};
use futures_util::task::AtomicWaker;
use proto::auth::ChannelBinding;
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep, sleep_until},
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

/// How long a connection may stay without a welcomed session after its handshake; an enrolment fits in.
pub(crate) const NEWCOMER_TIMEOUT: Duration = Duration::from_secs(15);
/// A peer that takes less than [`STALL_PROGRESS`] of what waits for it in so long is ended.
const STALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes: a peer that reads a byte a second makes no progress.
const STALL_PROGRESS: usize = 4096;
/// Bytes read of a connection without a session: an enrolment fits in many times.
const NEWCOMER_BYTES: Rate = Rate { burst: 256 << 10, per_second: 32.0 * 1024.0 };
/// .. and of a member: lists of all objects of a large cluster, some at once.
const MEMBER_BYTES: Rate = Rate { burst: 16 << 20, per_second: 256.0 * 1024.0 };
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
    pass: Pass,
    session: OnceLock<Arc<Slot>>,
}

impl ConnectionState {
    pub(crate) fn new(binding: ChannelBinding, peer: SocketAddr, pass: Pass) -> Self {
        Self {
            binding,
            peer: SocketAddr::new(peer.ip().to_canonical(), peer.port()),
            opened_at: Instant::now(),
            deadline_ms: AtomicU64::new(millis(pass.patience().first_call)),
            moved: AtomicWaker::new(),
            pass,
            session: OnceLock::new(),
        }
    }

    /// The connection's session, once it is welcomed.
    pub(crate) fn session(&self) -> Option<&Arc<Slot>> {
        self.session.get()
    }

    /// Makes the connection that of a welcomed session; `false` if it is one already.
    pub(crate) fn welcome(&self, slot: Arc<Slot>) -> bool {
        self.pass.welcomed();
        self.session.set(slot).is_ok()
    }

    /// The peer called for something: a newcomer has a little longer.
    pub(crate) fn called(&self) {
        if self.session.get().is_none() {
            let deadline = millis(NEWCOMER_TIMEOUT);
            let first = millis(self.pass.patience().first_call);
            // Moved once, and never against a session that ends.
            let _other =
                self.deadline_ms.compare_exchange(first, deadline, Ordering::Relaxed, Ordering::Relaxed);
        }
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

    /// Its deadline came.
    fn count_end(&self, stalled: bool) {
        let reason = match (stalled, self.session.get()) {
            (true, _) => "reads-too-slowly",
            (false, Some(_)) => "silent",
            (false, None) => "no-session",
        };
        metrics::counter!("holdfast_connections_timed_out_total", "reason" => reason).increment(1);
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
    stall: Stall,
    reading: Reading,
}

/// How fast is read what comes.
struct Reading {
    bucket: Bucket,
    is_member: bool,
    /// Nothing is read until then; boxed, as hardly any connection ever has one.
    paused: Option<Pin<Box<Sleep>>>,
}

impl Reading {
    fn new(now: Instant) -> Self {
        Self { bucket: Bucket::full(NEWCOMER_BYTES, now), is_member: false, paused: None }
    }

    fn welcome(&mut self, now: Instant) {
        *self = Self { bucket: Bucket::full(MEMBER_BYTES, now), is_member: true, paused: None };
    }

    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(paused) = &mut self.paused {
            ready!(paused.as_mut().poll(cx));
            self.paused = None;
        }
        Poll::Ready(())
    }

    fn spend(&mut self, bytes: usize) {
        let rate = if self.is_member { MEMBER_BYTES } else { NEWCOMER_BYTES };
        if let Some(debt) = self.bucket.spend(rate, bytes, Instant::now()) {
            metrics::counter!("holdfast_messages_delayed_total", "kind" => "bytes").increment(1);
            self.paused = Some(Box::pin(sleep(debt)));
        }
    }
}

/// Whether the peer takes what is written.
#[derive(Debug, Default)]
struct Stall {
    /// Since when it does not, and what it took since.
    since: Option<(Instant, usize)>,
}

impl Stall {
    fn wrote(&mut self, bytes: usize) {
        if let Some((_, written)) = &mut self.since {
            *written += bytes;
            if *written >= STALL_PROGRESS {
                self.since = None;
            }
        }
    }

    fn blocked(&mut self, now: Instant) {
        self.since.get_or_insert((now, 0));
    }

    /// Nothing waits.
    fn cleared(&mut self) {
        self.since = None;
    }

    fn deadline(&self) -> Option<Instant> {
        self.since.map(|(since, _)| since + STALL_TIMEOUT)
    }
}

impl Connection {
    pub(crate) fn new(stream: TlsStream<TcpStream>, state: Arc<ConnectionState>) -> Self {
        let timer = Box::pin(sleep_until(state.deadline()));
        Self { stream, state, timer, stall: Stall::default(), reading: Reading::new(Instant::now()) }
    }

    fn deadline(&self) -> Instant {
        let deadline = self.state.deadline();
        self.stall.deadline().map_or(deadline, |stalled| stalled.min(deadline))
    }

    fn check_deadline(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.state.moved.register(cx.waker());
        loop {
            let deadline = self.deadline();
            // A deadline that moved on is looked at when the timer fires: no timer work per message.
            if deadline < self.timer.deadline() {
                self.timer.as_mut().reset(deadline);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            if deadline <= Instant::now() {
                self.state.count_end(self.stall.deadline() == Some(deadline));
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.timer.as_mut().reset(deadline);
        }
    }

    fn note_write(&mut self, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Ready(Ok(bytes)) => self.stall.wrote(*bytes),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.stall.blocked(Instant::now()),
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
        if !self.reading.is_member && self.state.session().is_some() {
            self.reading.welcome(Instant::now());
        }
        ready!(self.reading.poll_pause(cx));
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.reading.spend(buf.filled().len() - before);
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.note_write(&written);
        self.check_deadline(cx)?;
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.note_write(&written);
        self.check_deadline(cx)?;
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        match flushed {
            Poll::Pending => self.stall.blocked(Instant::now()),
            Poll::Ready(_) => self.stall.cleared(),
        }
        self.check_deadline(cx)?;
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_deadline(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_takes_nothing_or_a_byte_at_a_time_is_stalled() {
        let start = Instant::now();
        let mut stall = Stall::default();
        stall.wrote(100);
        assert_eq!(stall.deadline(), None);
        stall.blocked(start);
        for second in 1..20 {
            stall.wrote(1);
            stall.blocked(start + Duration::from_secs(second));
        }
        assert_eq!(stall.deadline(), Some(start + STALL_TIMEOUT));
        stall.wrote(STALL_PROGRESS);
        assert_eq!(stall.deadline(), None, "it reads after all");
        stall.blocked(start);
        stall.cleared();
        assert_eq!(stall.deadline(), None);
    }
}
