//! The admin address: metrics and health, over plain HTTP, on loopback unless asked otherwise.

use crate::{metrics::observe, serve::Server};
use anyhow::Context;
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use std::{net::SocketAddr, sync::Arc};
use tokio::net::TcpListener;

#[derive(Clone)]
struct Admin {
    server: Arc<Server>,
    metrics: PrometheusHandle,
}

#[derive(Serialize)]
struct Readiness {
    server: String,
    name: String,
    epoch: u64,
    revision: u64,
    revision_age_seconds: f64,
    database_ok: bool,
    draining: bool,
    /// By how much this machine's clock is ahead of the database's.
    clock_ahead_seconds: f64,
    /// Another server has this one's id: this one serves nobody.
    conflict: Option<String>,
}

/// # Errors
/// The address cannot be bound; the error names it.
pub(crate) async fn listen(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr).await.with_context(|| {
        format!("cannot listen on the admin address {addr}; another server may hold it: choose another with --admin-listen")
    })
}

/// Answers, for ever.
pub(crate) async fn serve(listener: TcpListener, server: Arc<Server>, metrics: PrometheusHandle) {
    let router = Router::new()
        .route("/metrics", get(read_metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readiness))
        .with_state(Admin { server, metrics });
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the admin address is no longer served");
    }
}

async fn read_metrics(State(admin): State<Admin>) -> impl IntoResponse {
    observe(&admin.server);
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], admin.metrics.render())
}

/// Ready: agents may be sent here. A database that is away does not make it unready, since every server would be.
async fn readiness(State(Admin { server, .. }): State<Admin>) -> impl IntoResponse {
    let (health, version) = (server.cluster.health(), server.cluster.state().version());
    let draining = server.hub.is_draining();
    let readiness = Readiness {
        server: server.id.to_string(),
        name: server.name.clone(),
        epoch: version.epoch,
        revision: version.revision,
        revision_age_seconds: health.level_age.as_secs_f64(),
        database_ok: health.database_ok,
        draining,
        clock_ahead_seconds: server.cluster.clock().machine_ahead_ms() as f64 / 1000.0,
        conflict: server.servers.conflict().map(str::to_owned),
    };
    let status = if draining { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (status, Json(readiness))
}
