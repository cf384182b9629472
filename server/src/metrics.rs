//! What Prometheus reads. Counters are counted where things happen, under the names below; what can be read from the server's state is
//! read when it is asked for.
//!
//! ```text
//! holdfast_sessions{role}                 serving, standby
//! holdfast_sessions_started_total, holdfast_sessions_refused_total
//! holdfast_connections{phase}             all, newcomers (without a session)
//! holdfast_connections_refused_total{reason}    connections, newcomers, source, source-newcomers, descriptors
//! holdfast_connections_timed_out_total{reason}  reads-too-slowly, fetches-too-slowly (its map), silent, no-session
//! holdfast_accept_errors_total, holdfast_handshakes_failed_total{reason}   tls, slow
//! holdfast_messages_delayed_total{kind}   what agents said faster than they should; bytes: of any kind
//! holdfast_enrolments_total{outcome}      enrolled, or the reason of the refusal
//! holdfast_map_deltas_total, holdfast_map_fetches_total, holdfast_map_fetches_refused_total
//! holdfast_signals_total{route}           local, remote, undeliverable
//! holdfast_log_epoch, holdfast_log_revision, holdfast_log_age_seconds
//! holdfast_database_ok, holdfast_database_errors_total{call}
//! holdfast_database_seconds               histogram of calls, from the beginning to the answer
//! holdfast_database_connections{state}    used, limit: the pool, without the three reserved ones
//! holdfast_lease_age_seconds
//! holdfast_notifications_ok, holdfast_notifications_total{fate}   heard, missed (found by polling)
//! holdfast_signals_received_total, holdfast_signals_dropped_total  from other servers; on the way to them
//! holdfast_lookups_total{outcome}         found, missed: nodes looked for on other servers
//! holdfast_nodes, holdfast_nodes_online, holdfast_servers_live
//! holdfast_ephemeral_removed_total        by this server
//! holdfast_clock_ahead_seconds            this machine's clock, against the database's
//! ```

use crate::serve::Server;
use anyhow::Context;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::time::Duration;

/// Every call to the database, from its beginning to its answer.
pub(crate) const QUERY_SECONDS: &str = "holdfast_database_seconds";
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
const QUERY_BUCKETS_S: [f64; 7] = [0.001, 0.005, 0.025, 0.1, 0.25, 1.0, 5.0];

/// Makes this process count.
///
/// # Errors
/// It counts already.
pub(crate) fn install() -> anyhow::Result<PrometheusHandle> {
    let matcher = Matcher::Full(QUERY_SECONDS.to_owned());
    let builder = PrometheusBuilder::new().set_buckets_for_metric(matcher, &QUERY_BUCKETS_S);
    let recorder = builder.context("cannot set up metrics")?.install_recorder();
    recorder.context("cannot set up metrics")
}

/// What was counted since the last scrape is kept small, also where nobody scrapes. For ever.
pub(crate) async fn keep_small(recorder: PrometheusHandle) {
    let mut upkeeps = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        upkeeps.tick().await;
        recorder.run_upkeep();
    }
}

/// A call to the database failed.
pub(crate) fn database_error(call: &'static str) {
    metrics::counter!("holdfast_database_errors_total", "call" => call).increment(1);
}

/// Brings the gauges up to date; to be called before they are read.
pub(crate) fn observe(server: &Server) {
    let (serving, standby) = server.hub.counts();
    let health = server.cluster.health();
    let state = server.cluster.state();
    let gauges = [
        ("holdfast_log_epoch", state.version().epoch as f64),
        ("holdfast_log_revision", state.version().revision as f64),
        ("holdfast_log_age_seconds", health.level_age.as_secs_f64()),
        ("holdfast_database_ok", f64::from(u8::from(health.database_ok))),
        ("holdfast_clock_ahead_seconds", server.cluster.clock().machine_ahead_ms() as f64 / 1000.0),
        ("holdfast_notifications_ok", f64::from(u8::from(server.cluster.store().is_hearing()))),
        ("holdfast_nodes", state.node_count() as f64),
        ("holdfast_nodes_online", server.presence.online().len() as f64),
        ("holdfast_servers_live", server.servers.current().ids.len() as f64),
    ];
    if let Some(age) = server.servers.lease_age() {
        metrics::gauge!("holdfast_lease_age_seconds").set(age.as_secs_f64());
    }
    if let Some((used, size)) = server.cluster.store().connections() {
        metrics::gauge!("holdfast_database_connections", "state" => "used").set(used as f64);
        metrics::gauge!("holdfast_database_connections", "state" => "limit").set(size as f64);
    }
    for (name, value) in gauges {
        metrics::gauge!(name).set(value);
    }
    let (connections, newcomers) = server.gate.load();
    metrics::gauge!("holdfast_connections", "phase" => "all").set(connections as f64);
    metrics::gauge!("holdfast_connections", "phase" => "newcomers").set(newcomers as f64);
    metrics::gauge!("holdfast_sessions", "role" => "serving").set(serving as f64);
    metrics::gauge!("holdfast_sessions", "role" => "standby").set(standby as f64);
}
