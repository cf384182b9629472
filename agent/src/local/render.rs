//! What is told of a snapshot, off the event loop: with 10,000 peers it is megabytes.

use super::Snapshot;
use crate::metrics;
use agent_core::status::{Peer, Status, Traffic};
use agent_tunnel::{Counters, PeerStats, Tunnel};
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, io, sync::Arc};

/// Metrics on their way over the local socket.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MetricsText {
    pub(crate) text: String,
}

/// How a snapshot is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Status,
    StatusWithoutPeers,
    Metrics { peers: bool },
}

/// One line with its end, counters filled in.
pub(super) async fn line(snapshot: Arc<Snapshot>, form: Form) -> io::Result<Vec<u8>> {
    let rendered = tokio::task::spawn_blocking(move || {
        let mut line = match form {
            Form::Status => serde_json::to_vec(&counted(&snapshot)),
            Form::StatusWithoutPeers => {
                let mut status = snapshot.status.clone();
                status.peers.clear();
                serde_json::to_vec(&status)
            }
            Form::Metrics { peers } => {
                serde_json::to_vec(&MetricsText { text: metrics::render(&counted(&snapshot), peers) })
            }
        }?;
        line.push(b'\n');
        Ok(line)
    });
    rendered.await.map_err(io::Error::other)?
}

/// The metrics alone.
pub(crate) async fn metrics_text(snapshot: Arc<Snapshot>, peers: bool) -> io::Result<String> {
    let rendered = tokio::task::spawn_blocking(move || metrics::render(&counted(&snapshot), peers));
    rendered.await.map_err(io::Error::other)
}

/// The status with what the data plane counted.
fn counted(snapshot: &Snapshot) -> Status {
    let mut status = snapshot.status.clone();
    if let Some(tunnel) = snapshot.tunnel.upgrade() {
        fill_in(&mut status, &tunnel);
    }
    status
}

fn fill_in(status: &mut Status, tunnel: &Tunnel) {
    let Counters { traffic, drops, sessions, workers, handed_over, reset_connections } = tunnel.counters();
    status.drops = drops.named().collect();
    status.traffic = Some(Traffic {
        rx_bytes: traffic.rx_bytes,
        tx_bytes: traffic.tx_bytes,
        rx_packets: traffic.rx_packets,
        tx_packets: traffic.tx_packets,
        handshakes: traffic.handshakes,
        sessions,
        workers,
        handed_over,
        reset_connections,
    });
    let stats: HashMap<[u8; 32], PeerStats> =
        tunnel.stats().into_iter().map(|peer| (peer.key.0, peer)).collect();
    for peer in &mut status.peers {
        if let Some(counted) = stats.get(&peer.public_key.0) {
            fill_in_peer(peer, counted);
        }
    }
}

fn fill_in_peer(peer: &mut Peer, counted: &PeerStats) {
    peer.rx_bytes = counted.rx_bytes;
    peer.tx_bytes = counted.tx_bytes;
    peer.rx_packets = counted.rx_packets;
    peer.tx_packets = counted.tx_packets;
    peer.handshakes = counted.handshakes;
    peer.drops = counted.drops.named().filter(|(_, count)| *count > 0).collect();
    peer.last_handshake_seconds = counted.last_handshake.map(|ago| ago.as_secs());
}
