//! Takes connections in: listens, and does each TLS handshake in a task of its own, with a deadline. Everyone is accepted and let
//! handshake at once, since a storm that waits in the backlog costs its agents seconds of SYN retries; only above the bounds of
//! connections (see `gate`) are new ones closed. Where descriptors run out, one that is kept for it turns newcomers away, so that they go to another
//! server at once and the listener does not spin.

use crate::{
    connection::{Connection, ConnectionState},
    gate::Pass,
    serve::Server,
};
use anyhow::Context;
use proto::tls::server_binding;
use socket2::{Domain, Protocol, Socket, Type};
use std::{fs::File, io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

const BACKLOG: i32 = 4096;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Data unacknowledged for so long ends a connection: the peer's machine or link is gone. Longer than the stall of a
/// [`Connection`], which says of a peer that takes nothing why it was ended.
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(40);
/// After a failed accept that nothing helps against, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// An address that is held, at which nobody is let in yet.
pub(crate) struct Bound {
    socket: Socket,
    asked: SocketAddr,
    addr: SocketAddr,
}

impl Bound {
    /// Binds `addr`; `[::]` serves both families, and means 0.0.0.0 on a host without IPv6.
    ///
    /// # Errors
    /// The address cannot be bound; the error names it.
    pub(crate) fn new(asked: SocketAddr) -> anyhow::Result<Self> {
        let bound = match bind(asked) {
            Err(error) if asked.is_ipv6() && asked.ip().is_unspecified() && lacks_ipv6(&error) => {
                bind(SocketAddr::from(([0, 0, 0, 0], asked.port())))
            }
            bound => bound,
        };
        let socket = named(bound, asked)?;
        let addr = socket.local_addr().and_then(|addr| addr.as_socket().ok_or(io::ErrorKind::Other.into()));
        Ok(Self { socket, asked, addr: addr.context("cannot read the address listened on")? })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Lets agents in.
    ///
    /// # Errors
    /// Somebody else has begun to listen there.
    pub(crate) fn listen(self) -> anyhow::Result<TcpListener> {
        named(self.socket.listen(BACKLOG), self.asked)?;
        TcpListener::from_std(self.socket.into()).context("cannot listen")
    }
}

fn named<T>(result: io::Result<T>, addr: SocketAddr) -> anyhow::Result<T> {
    result.with_context(|| match addr.port() {
        0 => format!("cannot listen on {addr}"),
        port => format!(
            "cannot listen on {addr}; see what holds port {port} (ss -ltnp), or choose another address with --listen"
        ),
    })
}

fn bind(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // On Windows it would mean to take a port that somebody listens on.
    #[cfg(not(windows))]
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported)
        || error.raw_os_error() == Some(ADDRESS_FAMILY_UNSUPPORTED)
}

/// EAFNOSUPPORT, for which `io::ErrorKind` has no stable word.
#[cfg(target_os = "linux")]
const ADDRESS_FAMILY_UNSUPPORTED: i32 = 97;
#[cfg(windows)]
const ADDRESS_FAMILY_UNSUPPORTED: i32 = 10047;
#[cfg(not(any(target_os = "linux", windows)))]
const ADDRESS_FAMILY_UNSUPPORTED: i32 = 47;

/// Accepts until `ready` is closed or the task is aborted; handshakes under way end with it.
pub(crate) async fn accept(mut listener: TcpListener, server: Arc<Server>, ready: mpsc::Sender<Connection>) {
    let mut spare = Spare::new();
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => match server.gate.admit(peer.ip()) {
                    Ok(pass) => {
                        let acceptor = TlsAcceptor::from(server.tls());
                        handshakes.spawn(welcome(acceptor, stream, peer, pass, ready.clone()));
                    }
                    Err(full) => refused(full.label()),
                },
                Err(error) => {
                    tracing::debug!(%error, "a connection could not be accepted");
                    metrics::counter!("holdfast_accept_errors_total").increment(1);
                    if !(is_out_of_descriptors(&error) && spare.turn_away(&mut listener).await) {
                        sleep(ACCEPT_PAUSE).await;
                    }
                }
            },
            Some(_done) = handshakes.join_next() => {}
            () = ready.closed() => return,
        }
    }
}

fn refused(reason: &'static str) {
    metrics::counter!("holdfast_connections_refused_total", "reason" => reason).increment(1);
}

/// A descriptor that is kept to be able to accept once more, and close.
struct Spare(Option<File>);

impl Spare {
    fn new() -> Self {
        Self(File::open(NULL_DEVICE).ok())
    }

    /// Closes the connection that waits first; `false`: it could not.
    async fn turn_away(&mut self, listener: &mut TcpListener) -> bool {
        if self.0.take().is_none() {
            *self = Self::new();
            return false;
        }
        // Somebody may have given up, or taken the descriptor: nobody waits for that.
        let turned_away = matches!(timeout(ACCEPT_PAUSE, listener.accept()).await, Ok(Ok(_closed)));
        if turned_away {
            refused("descriptors");
        }
        *self = Self::new();
        turned_away
    }
}

#[cfg(unix)]
const NULL_DEVICE: &str = "/dev/null";
#[cfg(not(unix))]
const NULL_DEVICE: &str = "NUL";

/// EMFILE and ENFILE; WSAEMFILE.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24 | 10024))
}

/// TLS, and on to be served.
async fn welcome(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    pass: Pass,
    ready: mpsc::Sender<Connection>,
) {
    let Some((stream, binding)) = handshake(&acceptor, stream, peer).await else { return };
    let state = Arc::new(ConnectionState::new(binding, peer, pass));
    // Closed only when the server ends.
    let _ended = ready.send(Connection::new(stream, state)).await;
}

async fn handshake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
) -> Option<(tokio_rustls::server::TlsStream<TcpStream>, proto::auth::ChannelBinding)> {
    if let Err(error) = prepare(&stream) {
        tracing::debug!(%peer, %error, "a connection ended before it began");
        return None;
    }
    let failed =
        |reason: &'static str| metrics::counter!("holdfast_handshakes_failed_total", "reason" => reason);
    match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            let binding = server_binding(stream.get_ref().1).ok()?;
            Some((stream, binding))
        }
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "TLS handshake failed");
            failed("tls").increment(1);
            None
        }
        Err(_elapsed) => {
            tracing::debug!(%peer, "TLS handshake took too long");
            failed("slow").increment(1);
            None
        }
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_address_is_named_in_the_error() {
        let first = Bound::new("127.0.0.1:0".parse().unwrap()).unwrap().listen().unwrap();
        let addr = first.local_addr().unwrap();
        let Err(error) = Bound::new(addr) else { panic!("it was bound twice") };
        let error = format!("{error:#}");
        assert!(error.contains(&addr.to_string()), "{error}");
    }
}
