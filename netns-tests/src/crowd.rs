//! Thousands of members that exist in the database only: enrolled over the real protocol, by a client that has no tunnel.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use futures_util::StreamExt;
use hyper_util::rt::TokioIo;
use proto::auth::{ChannelBinding, prove};
use proto::key::NodeSecret;
use proto::setup_key::SetupKey;
use proto::tls;
use proto::wire::control_client::ControlClient;
use proto::wire::{EnrolRequest, Facts, enrol_response::Outcome};
use tonic::transport::{Channel, Endpoint};

use crate::namespace::Namespace;

/// Enrolments on one connection: a server ends one that carries no session after a while.
const PER_CONNECTION: usize = 500;
/// Enrolments under way at once: a server allows few streams on one connection.
const AT_ONCE: usize = 4;

/// Enrols `count` nodes with fresh keys and the names `crowd-0`, `crowd-1`, .. at `server`, from inside `namespace`.
pub fn enrol(namespace: &Namespace, server: SocketAddr, setup_key: &str, count: usize) -> Result<()> {
    let key: SetupKey = setup_key.parse()?;
    namespace.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let starts = (0..count).step_by(PER_CONNECTION);
        let batches = starts.map(|start| start..count.min(start + PER_CONNECTION));
        batches.into_iter().try_for_each(|batch| runtime.block_on(enrol_some(server, &key, batch)))
    })?
}

async fn enrol_some(server: SocketAddr, key: &SetupKey, numbers: std::ops::Range<usize>) -> Result<()> {
    let (client, binding, server_key) = connect(server, key).await?;
    let count = numbers.len();
    let enrolments = numbers.map(|number| {
        let mut client = client.clone();
        async move {
            let secret = NodeSecret::generate()?;
            let request = EnrolRequest {
                version: Some(proto::session::own_version("crowd")),
                proof: Some(prove(&secret, &server_key, &binding)?),
                setup_key_secret: key.secret.expose(),
                facts: Some(Facts {
                    hostname: format!("crowd-{number}"),
                    os: "linux".into(),
                    os_version: "12".into(),
                    agent_version: "0.1.0".into(),
                }),
                endpoints: vec![format!("198.51.100.{}:51820", number % 250 + 1)],
            };
            match client.enrol(request).await?.into_inner().outcome {
                Some(Outcome::Enrolled(_)) => Ok(()),
                other => Err(anyhow!("number {number} was not enrolled: {other:?}")),
            }
        }
    });
    let mut done = futures_util::stream::iter(enrolments).buffer_unordered(AT_ONCE);
    let mut enrolled = 0;
    while let Some(result) = done.next().await {
        result?;
        enrolled += 1;
    }
    ensure!(enrolled == count, "{enrolled} of {count} were enrolled");
    Ok(())
}

type Connected = (ControlClient<Channel>, ChannelBinding, proto::key::PublicKey);

/// One TLS connection; proofs are bound to it, so it must not be replaced behind our back.
async fn connect(server: SocketAddr, key: &SetupKey) -> Result<Connected> {
    let config = tls::client_config(vec![key.fingerprint])?;
    let tcp = tokio::net::TcpStream::connect(server).await.context("cannot reach the server")?;
    let stream = tokio_rustls::TlsConnector::from(config).connect(tls::server_name(), tcp).await?;
    let connection = stream.get_ref().1;
    let binding = tls::client_binding(connection)?;
    let chain = connection.peer_certificates().context("a server shows its certificate")?;
    let facts = tls::server_facts(chain)?;
    let once = Arc::new(std::sync::Mutex::new(Some(TokioIo::new(stream))));
    let connector = tower::service_fn(move |_| {
        let stream = once.lock().ok().and_then(|mut stream| stream.take());
        async move { stream.ok_or_else(|| std::io::Error::other("the connection is used up")) }
    });
    let channel = Endpoint::from_static("http://holdfast.invalid").connect_with_connector(connector).await?;
    Ok((ControlClient::new(channel), binding, facts.session_key))
}
