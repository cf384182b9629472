//! `server status`: the cluster as the database knows it.

use crate::{
    cmd::{
        CommonArgs, Failure,
        holders::{self, Exclusive},
        text,
    },
    settings::{Shared, differences},
    store::{HealthReport, HostRole, HostState, Incarnation, JobRow, LiveServer, SeenSession, StoreStatus},
};
use proto::{root::Fingerprint, server_url::ServerUrl, session::ServerId, time::UnixTime};
use serde::Serialize;
use std::time::{Duration, Instant};

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
    /// What servers were told differently and should be told alike.
    settings_differ: Vec<String>,
    jobs: Vec<Job>,
    /// What is claimed exclusively.
    exclusive: Vec<Exclusive>,
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
    /// Of the question that this status is the answer to.
    answer_ms: u64,
    /// Each host of the URL, as it answers now.
    hosts: Vec<HostState>,
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
    /// Since it was renewed; `None`: a server that does not tell how long it lasts.
    lease_age_ms: Option<u64>,
    /// By how much its machine's clock is ahead of the database's.
    clock_ahead_ms: i64,
    sessions_online: usize,
    settings: Option<Shared>,
    /// As of its last renewal of the lease.
    health: Option<HealthReport>,
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
    let asked_at = Instant::now();
    let database = store.status().await.map_err(Failure::failed)?;
    let answer_ms = millis(asked_at.elapsed());
    let hosts = store.hosts().await;
    let servers = store.live_servers().await.map_err(Failure::failed)?;
    let jobs = store.jobs().await.map_err(Failure::failed)?;
    let (sessions, _) = store.sessions(0).await.map_err(Failure::failed)?;
    let online: Vec<&SeenSession> = sessions.iter().filter(|seen| seen.is_online()).collect();
    let status = Status {
        cluster: cluster.state().root.public().fingerprint(),
        epoch: database.head.version.epoch,
        revision: database.head.version.revision,
        settings_differ: differences(&told(&servers)),
        servers: servers.into_iter().map(|live| Server::of(live, &online)).collect(),
        jobs: jobs.into_iter().map(Job::of).collect(),
        exclusive: holders::all(&cluster).await.map_err(Failure::failed)?,
        database: Database::of(database, answer_ms, hosts),
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
    let Status { cluster, epoch, revision, database, servers, settings_differ, jobs, exclusive, .. } = status;
    let Status { nodes, sessions_online, .. } = status;
    text::print(&format!("cluster   {cluster}, revision {revision} of epoch {epoch}"));
    let Database { kind, version, location, schema, ok: _, answer_ms, hosts } = database;
    text::print(&format!(
        "database  {kind} {version}, {location}, schema {schema}, answers in {answer_ms} ms"
    ));
    hosts
        .iter()
        .filter(|_| hosts.len() > 1)
        .for_each(|host| text::print(&format!("          {}", told_of(host))));
    text::print(&format!("nodes     {nodes}, {sessions_online} online\n"));
    let rows: Vec<_> = servers.iter().map(row).collect();
    match rows.is_empty() {
        true => text::print("no server runs"),
        false => text::print_table(
            ["SERVER", "ID", "RUN", "VERSION", "LEASE", "CLOCK", "SESSIONS", "ADVERTISED"],
            &rows,
        ),
    }
    let rows: Vec<_> = servers.iter().filter_map(health_row).collect();
    if !rows.is_empty() {
        text::print("");
        text::print_table(["SERVER", "DATABASE HOST", "ANSWER", "LOG", "CONNECTIONS", "HINTS"], &rows);
    }
    print_faults(servers, settings_differ, now);
    let rows: Vec<_> = jobs.iter().map(|job| job_row(job, servers, now)).collect();
    if !rows.is_empty() {
        text::print("");
        text::print_table(["JOB", "SERVER", "STATE", "LAST RUN"], &rows);
    }
    holders::print(exclusive, now);
}

fn told(servers: &[LiveServer]) -> Vec<(String, Shared)> {
    let told = |live: &LiveServer| Some((live.server.name.clone(), live.server.report.settings?));
    servers.iter().filter_map(told).collect()
}

fn told_of(host: &HostState) -> String {
    let HostState { host, state, reason } = host;
    match (state, reason) {
        (HostRole::TakesWrites, _) => format!("{host} takes writes"),
        (HostRole::ReadOnly, _) => format!("{host} is read-only: a standby"),
        (HostRole::Away, reason) => format!("{host} is away: {}", reason.as_deref().unwrap_or("no reason")),
    }
}

/// How each server sees the database.
fn health_row(server: &Server) -> Option<[String; 6]> {
    let health = server.health.as_ref()?;
    let connections = health.connections_used.zip(health.connections_limit);
    Some([
        server.name.clone(),
        health.database_host.clone().unwrap_or_else(|| "-".to_owned()),
        format!("{} ms", health.database_answer_ms),
        format!("{} ms ago", health.log_age_ms),
        connections.map_or("-".to_owned(), |(used, limit)| format!("{used} of {limit}")),
        if health.is_hearing { "heard" } else { "polled" }.to_owned(),
    ])
}

fn print_faults(servers: &[Server], settings_differ: &[String], now: UnixTime) {
    for server in servers {
        for fault in server.health.iter().flat_map(|health| &health.degraded) {
            let since = text::moment(Some(UnixTime(fault.since_unix_s)), now);
            text::print(&format!("! {}: {}, since {since}: {}", server.name, fault.what, fault.reason));
        }
    }
    for line in settings_differ {
        text::print(&format!("! settings that should be the same: {line}"));
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
    let off = text::span(Duration::from_millis(ahead_ms.unsigned_abs()));
    match ahead_ms {
        -1999..2000 => "ok".to_owned(),
        2000.. => format!("{off} ahead"),
        ..-1999 => format!("{off} behind"),
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn row(server: &Server) -> [String; 8] {
    let lease = Duration::from_millis(server.lease_remaining_ms);
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
    fn of(status: StoreStatus, answer_ms: u64, hosts: Vec<HostState>) -> Self {
        let StoreStatus { kind, version, location, head: _, schema } = status;
        Self { kind, version, location, schema, ok: true, answer_ms, hosts }
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
        let lease_remaining_ms = millis(lease_remaining);
        let lease = server.report.settings.map(|settings| settings.lease_ms);
        Self {
            sessions_online: online.iter().filter(|seen| seen.row.server == server.id).count(),
            lease_remaining_ms,
            lease_age_ms: lease.map(|lease_ms| lease_ms.saturating_sub(lease_remaining_ms)),
            settings: server.report.settings,
            health: server.report.health,
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
