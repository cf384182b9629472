//! Who holds what is claimed exclusively, as `server status` and `server node show` tell it.

use crate::{cluster::State, cmd::text, follow::Cluster, store::StoreError};
use ipnet::IpNet;
use proto::{statement::NodeId, time::UnixTime};
use serde::Serialize;
use std::time::Duration;

/// A prefix that is claimed exclusively.
#[derive(Serialize)]
pub(super) struct Exclusive {
    prefix: IpNet,
    /// `None`: nobody holds it.
    holder: Option<Held>,
    /// Those who may have it, the best first, connected or not.
    claimers: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct Held {
    pub(super) prefix: IpNet,
    node: NodeId,
    name: String,
    fence: u64,
    since_unix_s: u64,
    /// Of its lease; zero: it is over, and whoever is next may have it.
    lease_remaining_ms: u64,
}

/// All that is claimed exclusively.
///
/// # Errors
/// The database does not tell whose leases run.
pub(super) async fn all(cluster: &Cluster) -> Result<Vec<Exclusive>, StoreError> {
    let (state, now) = (cluster.state(), cluster.now());
    let mut held = held(cluster, |_| true).await?;
    let exclusive = state.exclusive_prefixes().map(|prefix| Exclusive {
        prefix,
        holder: held.iter().position(|held| held.prefix == prefix).map(|place| held.swap_remove(place)),
        claimers: claimers(&state, &prefix, now),
    });
    Ok(exclusive.collect())
}

/// What these nodes hold.
///
/// # Errors
/// As there.
pub(super) async fn held(
    cluster: &Cluster,
    is_asked: impl Fn(NodeId) -> bool,
) -> Result<Vec<Held>, StoreError> {
    let (state, now) = (cluster.state(), cluster.now());
    let prefixes: Vec<IpNet> = state.exclusive_prefixes().collect();
    let held = prefixes.iter().filter_map(|prefix| state.holder(prefix, now));
    let held: Vec<_> = held.filter(|holding| is_asked(holding.node)).collect();
    if held.is_empty() {
        return Ok(Vec::new());
    }
    let nodes: Vec<NodeId> = held.iter().map(|holding| holding.node).collect();
    let leases = cluster.store().holder_leases(&nodes).await?;
    let told = held.iter().map(|holding| {
        let lease: Duration = leases.get(&holding.node).copied().unwrap_or_default();
        Held {
            prefix: holding.prefix,
            node: holding.node,
            name: name(&state, holding.node),
            fence: holding.fence,
            since_unix_s: holding.since.0,
            lease_remaining_ms: u64::try_from(lease.as_millis()).unwrap_or(u64::MAX),
        }
    });
    Ok(told.collect())
}

fn claimers(state: &State, prefix: &IpNet, now: UnixTime) -> Vec<String> {
    state.exclusive_claimers(prefix, now).into_iter().map(|(node, _)| name(state, node)).collect()
}

fn name(state: &State, node: NodeId) -> String {
    state.node(node).map_or_else(|| format!("node {node}"), |node| node.name.clone())
}

pub(super) fn print(exclusive: &[Exclusive], now: UnixTime) {
    let rows: Vec<[String; 6]> = exclusive.iter().map(|exclusive| row(exclusive, now)).collect();
    if !rows.is_empty() {
        text::print("");
        text::print_table(["EXCLUSIVE", "HOLDER", "FENCE", "SINCE", "LEASE", "CLAIMED BY"], &rows);
    }
}

fn row(exclusive: &Exclusive, now: UnixTime) -> [String; 6] {
    let Exclusive { prefix, holder, claimers } = exclusive;
    let told = |tell: &dyn Fn(&Held) -> String| holder.as_ref().map_or_else(|| "-".to_owned(), tell);
    [
        prefix.to_string(),
        told(&|held| held.name.clone()),
        told(&|held| held.fence.to_string()),
        told(&|held| text::moment(Some(UnixTime(held.since_unix_s)), now)),
        told(&|held| match held.lease_remaining_ms {
            0 => "over".to_owned(),
            left => text::span(Duration::from_millis(left)),
        }),
        text::list(claimers),
    ]
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (fence {})", self.prefix, self.fence)
    }
}
