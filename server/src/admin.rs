//! The admin address: metrics and health, over plain HTTP, on loopback unless asked otherwise. It answers from the beginning, also while the server
//! still waits for its database.

use crate::{clock::machine_ms, health::Told, metrics::observe, serve::Server};
use anyhow::Context;
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;
use proto::{session::ServerId, time::UnixTime};
use serde::Serialize;
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};
use tokio::net::TcpListener;

/// How far a server is.
pub(crate) struct Stage {
    id: ServerId,
    name: String,
    /// Where the database is, without password.
    database: String,
    since: UnixTime,
    /// What is waited for.
    waits_for: Mutex<String>,
    server: OnceLock<Arc<Server>>,
}

impl Stage {
    pub(crate) fn new(id: ServerId, name: String, database: String) -> Self {
        let waits_for = Mutex::new("the database has not answered yet".to_owned());
        Self { id, name, database, since: UnixTime(machine_ms() / 1000), waits_for, server: OnceLock::new() }
    }

    pub(crate) fn handle_waiting(&self, reason: String) {
        *self.waits_for.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    pub(crate) fn handle_serving(&self, server: Arc<Server>) {
        // It begins once.
        let _before = self.server.set(server);
    }

    fn report(&self) -> Report {
        let Some(server) = self.server.get() else {
            return Report {
                status: Status::NotReady,
                server: self.id,
                name: self.name.clone(),
                database: self.database.clone(),
                database_ok: false,
                waits_for: Some(self.waits_for.lock().unwrap_or_else(PoisonError::into_inner).clone()),
                waits_since_unix_s: Some(self.since.0),
                ..Report::default()
            };
        };
        let (health, version) = (server.cluster.health(), server.cluster.state().version());
        let degraded = server.monitor.told();
        let draining = server.hub.is_draining();
        Report {
            status: match (draining, degraded.is_empty()) {
                (true, _) => Status::Draining,
                (false, true) => Status::Ok,
                (false, false) => Status::Degraded,
            },
            server: self.id,
            name: self.name.clone(),
            database: self.database.clone(),
            epoch: Some(version.epoch),
            revision: Some(version.revision),
            revision_age_seconds: Some(health.level_age.as_secs_f64()),
            database_ok: health.database_ok,
            draining,
            degraded,
            clock_ahead_seconds: Some(server.cluster.clock().machine_ahead_ms() as f64 / 1000.0),
            conflict: server.servers.conflict().map(str::to_owned),
            waits_for: None,
            waits_since_unix_s: None,
        }
    }
}

#[derive(Default, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Status {
    /// It waits for its database and serves nobody.
    #[default]
    NotReady,
    Ok,
    /// Agents are served; `degraded` says what else is wrong.
    Degraded,
    Draining,
}

/// What /healthz and /readyz answer.
#[derive(Serialize)]
struct Report {
    status: Status,
    server: ServerId,
    name: String,
    database: String,
    epoch: Option<u64>,
    revision: Option<u64>,
    revision_age_seconds: Option<f64>,
    database_ok: bool,
    draining: bool,
    degraded: Vec<Told>,
    /// By how much this machine's clock is ahead of the database's.
    clock_ahead_seconds: Option<f64>,
    /// Another server has this one's id: this one serves nobody.
    conflict: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waits_for: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waits_since_unix_s: Option<u64>,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            status: Status::NotReady,
            server: ServerId([0; 16]),
            name: String::new(),
            database: String::new(),
            epoch: None,
            revision: None,
            revision_age_seconds: None,
            database_ok: false,
            draining: false,
            degraded: Vec::new(),
            clock_ahead_seconds: None,
            conflict: None,
            waits_for: None,
            waits_since_unix_s: None,
        }
    }
}

#[derive(Clone)]
struct Admin {
    stage: Arc<Stage>,
    metrics: PrometheusHandle,
}

/// # Errors
/// The address cannot be bound; the error names it.
pub(crate) async fn listen(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr).await.with_context(|| {
        format!("cannot listen on the admin address {addr}; another server may hold it: choose another with --admin-listen")
    })
}

/// Answers, for ever.
pub(crate) async fn serve(listener: TcpListener, stage: Arc<Stage>, metrics: PrometheusHandle) {
    let router = Router::new()
        .route("/metrics", get(read_metrics))
        .route("/healthz", get(async |State(admin): State<Admin>| Json(admin.stage.report())))
        .route("/readyz", get(readiness))
        .with_state(Admin { stage, metrics });
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the admin address is no longer served");
    }
}

async fn read_metrics(State(admin): State<Admin>) -> impl IntoResponse {
    if let Some(server) = admin.stage.server.get() {
        observe(server);
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], admin.metrics.render())
}

/// Ready: agents may be sent here. A database that goes away does not make a server unready that has served, since every one would be.
async fn readiness(State(admin): State<Admin>) -> impl IntoResponse {
    let report = admin.stage.report();
    let status = match report.status {
        Status::Ok | Status::Degraded => StatusCode::OK,
        Status::NotReady | Status::Draining => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(report))
}
