//! `server status`: the cluster as the database knows it.

use crate::{
    cmd::{CommonArgs, Failure, text},
    store::{LiveServer, SeenSession, StoreStatus},
};
use proto::{root::Fingerprint, server_url::ServerUrl, session::ServerId};
use serde::Serialize;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Serialize)]
struct Status {
    /// The root's fingerprint.
    cluster: Fingerprint,
    epoch: u64,
    revision: u64,
    database: Database,
    servers: Vec<Server>,
    nodes: usize,
    sessions_online: usize,
}

#[derive(Serialize)]
struct Database {
    kind: &'static str,
    version: String,
    location: String,
    schema: u32,
    /// It answered: a status that cannot be read is an error.
    ok: bool,
}

#[derive(Serialize)]
struct Server {
    id: ServerId,
    name: String,
    version: String,
    urls: Vec<ServerUrl>,
    lease_remaining_ms: u64,
    sessions_online: usize,
}

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let cluster = args.common.database.load().await?;
    let store = cluster.store();
    let database = store.status().await.map_err(Failure::failed)?;
    let servers = store.live_servers().await.map_err(Failure::failed)?;
    let (sessions, _) = store.sessions(0).await.map_err(Failure::failed)?;
    let online: Vec<&SeenSession> = sessions.iter().filter(|seen| seen.is_online()).collect();
    let status = Status {
        cluster: cluster.state().root.public().fingerprint(),
        epoch: database.head.version.epoch,
        revision: database.head.version.revision,
        servers: servers.into_iter().map(|live| Server::of(live, &online)).collect(),
        database: Database::of(database),
        nodes: cluster.state().node_count(),
        sessions_online: online.len(),
    };
    match args.common.json {
        true => text::print_json(&status)?,
        false => print(&status),
    }
    Ok(())
}

fn print(status: &Status) {
    let Status { cluster, epoch, revision, database, servers, nodes, sessions_online } = status;
    text::print(&format!("cluster   {cluster}, revision {revision} of epoch {epoch}"));
    let Database { kind, version, location, schema, ok: _ } = database;
    text::print(&format!("database  {kind} {version}, {location}, schema {schema}"));
    text::print(&format!("nodes     {nodes}, {sessions_online} online\n"));
    let rows: Vec<_> = servers.iter().map(row).collect();
    match rows.is_empty() {
        true => text::print("no server runs"),
        false => text::print_table(["SERVER", "ID", "VERSION", "LEASE", "SESSIONS", "ADVERTISED"], &rows),
    }
}

fn row(server: &Server) -> [String; 6] {
    let lease = std::time::Duration::from_millis(server.lease_remaining_ms);
    [
        server.name.clone(),
        server.id.to_string()[..8].to_owned(),
        server.version.clone(),
        text::span(lease),
        server.sessions_online.to_string(),
        text::list(&server.urls),
    ]
}

impl Database {
    fn of(status: StoreStatus) -> Self {
        let StoreStatus { kind, version, location, head: _, schema } = status;
        Self { kind, version, location, schema, ok: true }
    }
}

impl Server {
    fn of(live: LiveServer, online: &[&SeenSession]) -> Self {
        let LiveServer { server, lease_remaining } = live;
        Self {
            sessions_online: online.iter().filter(|seen| seen.row.server == server.id).count(),
            lease_remaining_ms: u64::try_from(lease_remaining.as_millis()).unwrap_or(u64::MAX),
            id: server.id,
            name: server.name,
            version: server.version,
            urls: server.urls,
        }
    }
}
