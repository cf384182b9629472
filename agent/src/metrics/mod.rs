//! What Prometheus reads of an agent, made from its status when it is asked for. Series of single peers are left out unless asked for,
//! so that the number of series does not grow with the network.
//!
//! ```text
//! holdfast_agent_info{version}, holdfast_enrolled, holdfast_warnings
//! holdfast_served, holdfast_server_info{server_id, url, role}, holdfast_served_seconds, holdfast_failovers_total
//! holdfast_servers{state}                active, standby, up, down, unknown
//! holdfast_map_epoch, holdfast_map_revision, holdfast_map_age_seconds, holdfast_map_live
//! holdfast_certificate_end_timestamp_seconds, holdfast_clock_ahead_seconds
//! holdfast_peers{tunnel}, holdfast_peers_online        idle, connecting, connected
//! holdfast_sessions_live, holdfast_tunnel_workers
//! holdfast_bytes_total{direction}, holdfast_packets_total{direction}, holdfast_packets_handed_over_total, holdfast_handshakes_total
//! holdfast_connections_reset_total
//! holdfast_drops_total{reason}
//! holdfast_claims{state}, holdfast_users                served, refused, withdrawn: what this node claims
//! holdfast_claim_users{prefix}
//! holdfast_claim_switches_total{prefix}, holdfast_claim_active{prefix, peer}
//!     and of each peer, where asked for:
//! holdfast_peer_connected{peer}, holdfast_peer_bytes_total{peer, direction}, holdfast_peer_packets_total{peer, direction}
//! holdfast_peer_handshakes_total{peer}, holdfast_peer_handshake_age_seconds{peer}, holdfast_peer_drops_total{peer, reason}
//! ```

mod listener;
mod serving;

use agent_core::{
    cache::Source,
    status::{Control, ControlState, OwnClaimState, Peer, RunState, ServerState, Status, TunnelState},
};
use listener::Listener;
use metrics::{counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::PrometheusBuilder;
pub(crate) use serving::Serving;

/// Prometheus' text format, whose names the module lists.
pub(crate) fn render(status: &Status, peers: bool) -> String {
    // Everything is told anew: a recorder that is kept would keep series of what is gone.
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        describe();
        node(status);
        control(&status.control);
        tunnel(status);
        claims(status);
        if peers {
            status.peers.iter().for_each(peer);
        }
    });
    recorder.handle().render()
}

fn describe() {
    describe_gauge!("holdfast_agent_info", "The agent's version; always 1");
    describe_gauge!("holdfast_enrolled", "Whether this node is a member of a network");
    describe_gauge!("holdfast_warnings", "What `agent status` warns of");
    describe_gauge!("holdfast_certificate_end_timestamp_seconds", "When the membership certificate ends");
    describe_gauge!("holdfast_clock_ahead_seconds", "The wall clock less the servers' time");
    describe_gauge!("holdfast_served", "Whether a server serves this node");
    describe_gauge!("holdfast_server_info", "The server that serves this node, and its standby; always 1");
    describe_gauge!("holdfast_served_seconds", "For how long the current server has served");
    describe_counter!("holdfast_failovers_total", "Moves from one server to another");
    describe_gauge!("holdfast_servers", "Known servers by state");
    describe_gauge!("holdfast_map_epoch", "Epoch of the map in use");
    describe_gauge!("holdfast_map_revision", "Revision of the map in use");
    describe_gauge!("holdfast_map_age_seconds", "How long ago a server confirmed the map");
    describe_gauge!(
        "holdfast_map_live",
        "Whether a server confirms the map; 0: it is kept from earlier, or there is none"
    );
    describe_gauge!("holdfast_peers", "Peers by the state of their tunnel");
    describe_gauge!("holdfast_peers_online", "Peers that a server serves");
    describe_gauge!("holdfast_sessions_live", "Peers with a WireGuard session");
    describe_gauge!("holdfast_tunnel_workers", "Threads that carry packets");
    describe_counter!("holdfast_bytes_total", "Bytes of packets inside the tunnel");
    describe_counter!("holdfast_packets_total", "Packets inside the tunnel");
    describe_counter!("holdfast_handshakes_total", "WireGuard handshakes completed");
    describe_counter!("holdfast_packets_handed_over_total", "Packets that one worker had to give to another");
    describe_counter!(
        "holdfast_connections_reset_total",
        "TCP connections broken off, since another node serves their prefix now"
    );
    describe_counter!("holdfast_drops_total", "Packets dropped, by reason");
    describe_gauge!("holdfast_claims", "Prefixes that this node claims, by state");
    describe_gauge!("holdfast_users", "Peers that use what this node serves");
    describe_gauge!("holdfast_claim_users", "Peers that use a prefix that this node serves");
    describe_counter!("holdfast_claim_switches_total", "Moves of a shared prefix from one peer to another");
    describe_gauge!("holdfast_claim_active", "The peer that serves a shared prefix; always 1");
    describe_gauge!("holdfast_peer_connected", "Whether there is a tunnel to the peer");
    describe_counter!("holdfast_peer_bytes_total", "Bytes of packets inside the peer's tunnel");
    describe_counter!("holdfast_peer_packets_total", "Packets inside the peer's tunnel");
    describe_counter!("holdfast_peer_handshakes_total", "WireGuard handshakes completed with the peer");
    describe_gauge!("holdfast_peer_handshake_age_seconds", "How long ago the last handshake was completed");
    describe_counter!("holdfast_peer_drops_total", "Packets dropped that are laid to the peer, by reason");
}

fn node(status: &Status) {
    gauge!("holdfast_agent_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    gauge!("holdfast_enrolled").set(truth(status.state == RunState::Running));
    gauge!("holdfast_warnings").set(status.warnings.len() as f64);
    if let Some(end) = status.own.certificate_not_after {
        gauge!("holdfast_certificate_end_timestamp_seconds").set(end as f64);
    }
    if let Some(seconds) = status.own.clock_ahead_seconds {
        gauge!("holdfast_clock_ahead_seconds").set(seconds as f64);
    }
}

fn control(control: &Control) {
    gauge!("holdfast_served").set(truth(control.state == ControlState::Connected));
    for (role, server) in [("active", &control.server), ("standby", &control.standby)] {
        if let Some(server) = server {
            let labels = [
                ("server_id", server.id.to_string()),
                ("url", server.url.clone()),
                ("role", role.to_owned()),
            ];
            gauge!("holdfast_server_info", &labels).set(1.0);
        }
    }
    gauge!("holdfast_served_seconds").set(control.connected_since.unwrap_or_default());
    counter!("holdfast_failovers_total").absolute(control.failovers);
    use ServerState::{Active, Down, Standby, Unknown, Up};
    let states = [(Active, "active"), (Standby, "standby"), (Up, "up"), (Down, "down"), (Unknown, "unknown")];
    for (state, name) in states {
        let count = control.servers.iter().filter(|server| server.state == state).count();
        gauge!("holdfast_servers", "state" => name).set(count as f64);
    }
    gauge!("holdfast_map_epoch").set(control.epoch as f64);
    gauge!("holdfast_map_revision").set(control.revision as f64);
    gauge!("holdfast_map_live").set(truth(control.map_source == Source::Live));
    if let Some(age) = control.map_age_seconds {
        gauge!("holdfast_map_age_seconds").set(age as f64);
    }
}

fn tunnel(status: &Status) {
    use TunnelState::{Connected, Connecting, Idle};
    for (state, name) in [(Idle, "idle"), (Connecting, "connecting"), (Connected, "connected")] {
        let count = status.peers.iter().filter(|peer| peer.tunnel == state).count();
        gauge!("holdfast_peers", "tunnel" => name).set(count as f64);
    }
    let online = status.peers.iter().filter(|peer| peer.online).count();
    gauge!("holdfast_peers_online").set(online as f64);
    for (reason, count) in &status.drops {
        counter!("holdfast_drops_total", "reason" => *reason).absolute(*count);
    }
    let Some(traffic) = status.traffic else { return };
    gauge!("holdfast_sessions_live").set(traffic.sessions as f64);
    gauge!("holdfast_tunnel_workers").set(traffic.workers as f64);
    counter!("holdfast_packets_handed_over_total").absolute(traffic.handed_over);
    counter!("holdfast_connections_reset_total").absolute(traffic.reset_connections);
    counter!("holdfast_handshakes_total").absolute(traffic.handshakes);
    for (direction, bytes, packets) in
        [("rx", traffic.rx_bytes, traffic.rx_packets), ("tx", traffic.tx_bytes, traffic.tx_packets)]
    {
        counter!("holdfast_bytes_total", "direction" => direction).absolute(bytes);
        counter!("holdfast_packets_total", "direction" => direction).absolute(packets);
    }
}

fn claims(status: &Status) {
    use OwnClaimState::{Refused, Served, Standby, Withdrawn};
    let states = [(Served, "served"), (Standby, "standby"), (Refused, "refused"), (Withdrawn, "withdrawn")];
    for (state, name) in states {
        let count = status.own.claims.iter().filter(|claim| claim.state == state).count();
        gauge!("holdfast_claims", "state" => name).set(count as f64);
    }
    gauge!("holdfast_users").set(status.own.users as f64);
    for claim in &status.own.claims {
        gauge!("holdfast_claim_users", "prefix" => claim.prefix.to_string()).set(claim.users as f64);
    }
    for claim in &status.claims {
        let prefix = || claim.prefix.to_string();
        counter!("holdfast_claim_switches_total", "prefix" => prefix()).absolute(claim.switches);
        if let Some(active) = &claim.active {
            gauge!("holdfast_claim_active", "prefix" => prefix(), "peer" => active.clone()).set(1.0);
        }
    }
}

fn peer(peer: &Peer) {
    let name = || peer.name.clone();
    gauge!("holdfast_peer_connected", "peer" => name()).set(truth(peer.tunnel == TunnelState::Connected));
    counter!("holdfast_peer_handshakes_total", "peer" => name()).absolute(peer.handshakes);
    if let Some(age) = peer.last_handshake_seconds {
        gauge!("holdfast_peer_handshake_age_seconds", "peer" => name()).set(age as f64);
    }
    for (direction, bytes, packets) in
        [("rx", peer.rx_bytes, peer.rx_packets), ("tx", peer.tx_bytes, peer.tx_packets)]
    {
        counter!("holdfast_peer_bytes_total", "peer" => name(), "direction" => direction).absolute(bytes);
        counter!("holdfast_peer_packets_total", "peer" => name(), "direction" => direction).absolute(packets);
    }
    for (reason, count) in &peer.drops {
        counter!("holdfast_peer_drops_total", "peer" => name(), "reason" => *reason).absolute(*count);
    }
}

fn truth(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}
