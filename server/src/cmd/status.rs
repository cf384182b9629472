//! `server status`: the cluster as the database knows it.

use crate::{
    cmd::{CommonArgs, Failure, text},
    store::{Incarnation, JobRow, LiveServer, SeenSession, StoreStatus},
};
use proto::{root::Fingerprint, server_url::ServerUrl, session::ServerId, time::UnixTime};
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
    jobs: Vec<Job>,
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
    /// Of this run of its process.
    incarnation: Incarnation,
    name: String,
    host: String,
    version: String,
    urls: Vec<ServerUrl>,
    lease_remaining_ms: u64,
    /// By how much its machine's clock is ahead of the database's.
    clock_ahead_ms: i64,
    sessions_online: usize,
}

/// What one server at a time does for all.
#[derive(Serialize)]
struct Job {
    name: String,
    /// Who ran it last, or does now.
    server: ServerId,
    running: bool,
    last_run_unix_s: Option<u64>,
}

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let cluster = args.common.database.load().await?;
    let store = cluster.store();
    let database = store.status().await.map_err(Failure::failed)?;
    let servers = store.live_servers().await.map_err(Failure::failed)?;
    let jobs = store.jobs().await.map_err(Failure::failed)?;
    let (sessions, _) = store.sessions(0).await.map_err(Failure::failed)?;
    let online: Vec<&SeenSession> = sessions.iter().filter(|seen| seen.is_online()).collect();
    let status = Status {
        cluster: cluster.state().root.public().fingerprint(),
        epoch: database.head.version.epoch,
        revision: database.head.version.revision,
        servers: servers.into_iter().map(|live| Server::of(live, &online)).collect(),
        jobs: jobs.into_iter().map(Job::of).collect(),
        database: Database::of(database),
        nodes: cluster.state().node_count(),
        sessions_online: online.len(),
    };
    match args.common.json {
        true => text::print_json(&status)?,
        false => print(&status, cluster.now()),
    }
    Ok(())
}

fn print(status: &Status, now: UnixTime) {
    let Status { cluster, epoch, revision, database, servers, jobs, nodes, sessions_online } = status;
    text::print(&format!("cluster   {cluster}, revision {revision} of epoch {epoch}"));
    let Database { kind, version, location, schema, ok: _ } = database;
    text::print(&format!("database  {kind} {version}, {location}, schema {schema}"));
    text::print(&format!("nodes     {nodes}, {sessions_online} online\n"));
    let rows: Vec<_> = servers.iter().map(row).collect();
    match rows.is_empty() {
        true => text::print("no server runs"),
        false => text::print_table(
            ["SERVER", "ID", "RUN", "VERSION", "LEASE", "CLOCK", "SESSIONS", "ADVERTISED"],
            &rows,
        ),
    }
    let rows: Vec<_> = jobs.iter().map(|job| job_row(job, servers, now)).collect();
    if !rows.is_empty() {
        text::print("");
        text::print_table(["JOB", "SERVER", "STATE", "LAST RUN"], &rows);
    }
}

fn job_row(job: &Job, servers: &[Server], now: UnixTime) -> [String; 4] {
    let name = servers.iter().find(|server| server.id == job.server).map(|server| server.name.clone());
    [
        job.name.clone(),
        name.unwrap_or_else(|| job.server.to_string()[..8].to_owned()),
        if job.running { "running" } else { "resting" }.to_owned(),
        text::moment(job.last_run_unix_s.map(UnixTime), now),
    ]
}

/// `ok` for a clock that is as good as the database's.
fn clock(ahead_ms: i64) -> String {
    let off = text::span(std::time::Duration::from_millis(ahead_ms.unsigned_abs()));
    match ahead_ms {
        -1999..2000 => "ok".to_owned(),
        2000.. => format!("{off} ahead"),
        ..-1999 => format!("{off} behind"),
    }
}

fn row(server: &Server) -> [String; 8] {
    let lease = std::time::Duration::from_millis(server.lease_remaining_ms);
    [
        server.name.clone(),
        server.id.to_string()[..8].to_owned(),
        format!("{:?}", server.incarnation),
        server.version.clone(),
        text::span(lease),
        clock(server.clock_ahead_ms),
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

impl Job {
    fn of(row: JobRow) -> Self {
        let JobRow { name, server, held_for, last_run } = row;
        Self { name, server, running: held_for.is_some(), last_run_unix_s: last_run.map(|at| at.0) }
    }
}

impl Server {
    fn of(live: LiveServer, online: &[&SeenSession]) -> Self {
        let LiveServer { server, lease_remaining } = live;
        Self {
            sessions_online: online.iter().filter(|seen| seen.row.server == server.id).count(),
            lease_remaining_ms: u64::try_from(lease_remaining.as_millis()).unwrap_or(u64::MAX),
            clock_ahead_ms: server.clock_ahead_ms,
            id: server.id,
            incarnation: server.incarnation,
            host: server.host,
            name: server.name,
            version: server.version,
            urls: server.urls,
        }
    }
}
