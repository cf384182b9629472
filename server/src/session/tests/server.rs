//! A server as the tests need one: the whole service in this process, on loopback, with a SQLite store.

use crate::{
    accept,
    cluster::{Actor, Op, SetupKey, SetupKeyTerms, State},
    follow::Cluster,
    gate::{Gate, Limits},
    serve::{Running, Server, start},
    settings::Settings,
    store::{self, DatabaseUrl, Incarnation, Missing, ServerReport, ServerRow},
};
use proto::{root::Fingerprint, session::ServerId, setup_key::SetupSecret, time::UnixTime};
use std::{convert::Infallible, net::SocketAddr, path::Path, sync::Arc};
use tempfile::TempDir;

pub(super) struct TestServer {
    pub(super) running: Running,
    pub(super) addr: SocketAddr,
    /// The secret of a reusable setup key.
    pub(super) setup_key: String,
    /// Of those that share a database of their own; the last one removes it.
    directory: Option<Arc<TempDir>>,
}

impl TestServer {
    /// The only server of a cluster.
    pub(super) async fn alone() -> Self {
        Self::limited(Limits::default()).await
    }

    pub(super) async fn limited(limits: Limits) -> Self {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        let server = Self::start_limited(directory.path(), 1, Settings::default(), limits).await.unwrap();
        Self { directory: Some(directory), ..server }
    }

    pub(super) async fn two() -> (Self, Self) {
        let one = Self::alone().await;
        let two = Self::start(one.directory.as_ref().unwrap().path(), 2).await;
        let directory = one.directory.clone();
        (one, Self { directory, ..two })
    }

    /// A server with number `id` on the database in `dir`.
    pub(super) async fn start(dir: &Path, id: u8) -> Self {
        Self::start_with(dir, id, Settings::default()).await
    }

    pub(super) async fn start_with(dir: &Path, id: u8, settings: Settings) -> Self {
        Self::try_start(dir, id, settings).await.unwrap()
    }

    pub(super) async fn try_start(dir: &Path, id: u8, settings: Settings) -> anyhow::Result<Self> {
        Self::start_limited(dir, id, settings, Limits::default()).await
    }

    pub(super) async fn start_limited(
        dir: &Path,
        id: u8,
        settings: Settings,
        limits: Limits,
    ) -> anyhow::Result<Self> {
        let (server, listener) = Self::made(dir, id, settings, limits).await;
        Self::run(server, listener).await
    }

    /// A server that does not run yet, and where it will listen.
    pub(super) async fn made(
        dir: &Path,
        id: u8,
        settings: Settings,
        limits: Limits,
    ) -> (Arc<Server>, accept::Bound) {
        let gate = Gate::new(limits, None);
        let url: DatabaseUrl = format!("sqlite:{}/holdfast.db", dir.display()).parse().unwrap();
        let cluster = Cluster::open(store::open(&url, Missing::Create).await.unwrap()).await.unwrap();
        let listener = accept::Bound::new("127.0.0.1:0".parse().unwrap()).unwrap();
        let row = ServerRow {
            id: ServerId([id; 16]),
            incarnation: Incarnation::generate().unwrap(),
            name: format!("server-{id}"),
            host: "test".to_owned(),
            urls: vec![listener.addr().into()],
            version: "test".to_owned(),
            clock_ahead_ms: 0,
            report: ServerReport::default(),
        };
        (Arc::new(Server::new(row, cluster, settings, gate).unwrap()), listener)
    }

    pub(super) async fn run(server: Arc<Server>, listener: accept::Bound) -> anyhow::Result<Self> {
        let addr = listener.addr();
        let running = start(server, listener, Vec::new()).await?;
        let mut server = Self { running, addr, setup_key: String::new(), directory: None };
        server.setup_key = server.make_setup_key(true).await;
        Ok(server)
    }

    pub(super) async fn make_setup_key(&self, reusable: bool) -> String {
        let secret = SetupSecret::generate().unwrap();
        let terms = SetupKeyTerms { reusable, ..SetupKeyTerms::default() };
        self.write(|state, now| vec![Op::put_setup_key(SetupKey::new(state, now, &secret, &terms).0)]).await;
        secret.expose()
    }

    pub(super) async fn write(&self, mut decide: impl FnMut(&State, UnixTime) -> Vec<Op> + Send) {
        let cluster = &self.running.server.cluster;
        let written =
            cluster.write::<_, Infallible>(Actor::CommandLine, |state, now| Ok((decide(state, now), ())));
        written.await.unwrap();
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        self.running.server.cluster.state().root.public().fingerprint()
    }
}
