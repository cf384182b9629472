//! Status as JSON, off the event loop: with 10,000 peers it is megabytes.

use super::Snapshot;
use agent_tunnel::PeerStats;
use std::{collections::HashMap, io, sync::Arc};

/// One line with its end, traffic counters filled in.
pub(super) async fn line(snapshot: Arc<Snapshot>, peers: bool) -> io::Result<Vec<u8>> {
    tokio::task::spawn_blocking(move || render(&snapshot, peers)).await.map_err(io::Error::other)?
}

fn render(snapshot: &Snapshot, peers: bool) -> io::Result<Vec<u8>> {
    let mut status = snapshot.status.clone();
    if !peers {
        status.peers.clear();
    }
    if let Some(tunnel) = snapshot.tunnel.upgrade().filter(|_| peers) {
        let stats: HashMap<[u8; 32], PeerStats> =
            tunnel.stats().into_iter().map(|peer| (peer.key.0, peer)).collect();
        for peer in &mut status.peers {
            let Some(counted) = stats.get(&peer.public_key.0) else { continue };
            peer.rx_bytes = counted.rx_bytes;
            peer.tx_bytes = counted.tx_bytes;
            peer.last_handshake_seconds = counted.last_handshake.map(|ago| ago.as_secs());
        }
    }
    let mut line = serde_json::to_vec(&status)?;
    line.push(b'\n');
    Ok(line)
}
