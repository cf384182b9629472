//! TCP, then TLS with the cluster's root pinned.

use crate::{daemon::MARK, platform};
use agent_core::io::{Closed, Dial};
use proto::{
    auth::ChannelBinding,
    tls::{self, ServerFacts},
};
use rustls::ClientConfig;
use socket2::SockRef;
use std::{io, sync::Arc};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A connection to a server of our cluster.
pub(super) struct Connected {
    pub(super) stream: TlsStream<TcpStream>,
    pub(super) facts: ServerFacts,
    pub(super) binding: ChannelBinding,
}

pub(super) async fn connect(dial: &Dial, config: Arc<ClientConfig>) -> Result<Connected, Closed> {
    let tcp = match tokio::time::timeout(dial.connect_timeout, tcp(dial)).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => return Err(Closed::Connect(reason(&error))),
        Err(_elapsed) => return Err(Closed::TimedOut),
    };
    let stream = TlsConnector::from(config)
        .connect(tls::host_name(dial.url.host()), tcp)
        .await
        .map_err(|e| handshake_failed(&e))?;
    let (_, connection) = stream.get_ref();
    let facts = tls::server_facts(connection.peer_certificates().unwrap_or_default())
        .map_err(|error| Closed::NotOurs(error.to_string()))?;
    let binding = tls::client_binding(connection).map_err(|error| Closed::NotOurs(error.to_string()))?;
    Ok(Connected { stream, facts, binding })
}

async fn tcp(dial: &Dial) -> io::Result<TcpStream> {
    let socket = if dial.addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    platform::prepare_control_socket(&SockRef::from(&socket), MARK)?;
    socket.connect(dial.addr).await
}

fn handshake_failed(error: &io::Error) -> Closed {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner.map(|inner| (inner, tls::not_ours(inner))) {
        Some((_, Some(not_ours))) => Closed::NotOurs(not_ours.to_string()),
        // A proxy's certificate of another kind ends the handshake before it is looked at.
        Some((inner @ rustls::Error::AlertReceived(_), None)) => Closed::NotOurs(format!(
            "it refuses a Holdfast server's kind of TLS: something else answers, or a proxy terminates TLS (let it pass TCP through) ({inner})"
        )),
        Some((inner, None)) => {
            Closed::NotOurs(format!("something else than a Holdfast server answers there ({inner})"))
        }
        None if error.kind() == io::ErrorKind::UnexpectedEof => Closed::Connect(
            "it closed the connection before TLS was set up; is this a Holdfast server's port?".into(),
        ),
        None => Closed::Connect(reason(error)),
    }
}

/// The system's words without its number.
pub(super) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_core::ConnId;
    use proto::{
        root::RootSecret,
        session::ServerId,
        tls::{ServerIdentity, client_config},
    };
    use std::time::Duration;
    use tokio::{io::AsyncWriteExt, net::TcpListener};
    use tokio_rustls::TlsAcceptor;

    fn pinned(root: &RootSecret) -> Arc<ClientConfig> {
        client_config(vec![root.public().fingerprint()]).unwrap()
    }

    /// Sets no mark, which needs privileges: what is tested comes after TCP.
    async fn handshake(
        listener: TcpListener,
        config: Arc<ClientConfig>,
        answer: impl AsyncFnOnce(TcpStream),
    ) -> Closed {
        let addr = listener.local_addr().unwrap();
        let server = async { answer(listener.accept().await.unwrap().0).await };
        let client = async {
            let tcp = TcpStream::connect(addr).await.unwrap();
            handshake_failed(&TlsConnector::from(config).connect(tls::server_name(), tcp).await.unwrap_err())
        };
        tokio::join!(server, client).1
    }

    #[tokio::test]
    async fn a_server_of_another_cluster_is_named_as_that() {
        let (ours, theirs) = (RootSecret::generate().unwrap(), RootSecret::generate().unwrap());
        let identity = ServerIdentity::generate(&theirs, ServerId([1; 16])).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let why = handshake(listener, pinned(&ours), async |tcp| {
            assert!(TlsAcceptor::from(identity.tls).accept(tcp).await.is_err());
        });
        let why = why.await;
        assert!(matches!(&why, Closed::NotOurs(text) if text.contains("another cluster")), "{why}");
    }

    #[tokio::test]
    async fn a_port_that_speaks_something_else_is_named_as_that() {
        let root = RootSecret::generate().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let why = handshake(listener, pinned(&root), async |mut tcp| {
            tcp.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.unwrap();
        });
        let why = why.await;
        assert!(matches!(&why, Closed::NotOurs(text) if text.contains("something else")), "{why}");
    }

    #[tokio::test]
    async fn a_port_that_hangs_up_is_no_silent_failure() {
        let root = RootSecret::generate().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let why = handshake(listener, pinned(&root), async |tcp| drop(tcp)).await;
        assert!(matches!(why, Closed::Connect(_)), "{why}");
    }

    #[tokio::test]
    async fn a_port_where_nothing_listens_is_refused_in_plain_words() {
        let root = RootSecret::generate().unwrap();
        let addr = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let dial = Dial {
            conn: ConnId(1),
            url: addr.into(),
            addr,
            connect_timeout: Duration::from_secs(5),
            enrol: false,
        };
        let why = connect(&dial, pinned(&root)).await.err().unwrap();
        assert!(matches!(why, Closed::Connect(_)), "{why}");
        assert!(!why.to_string().contains("os error"), "{why}");
    }
}
