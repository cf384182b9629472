//! Leases of those who hold what is claimed exclusively, in SQL for Postgres. Rows are locked in the order of nodes.

use crate::store::{
    column, number,
    postgres::{
        error::PgError,
        sql::{execute, query},
    },
};
use proto::statement::NodeId;
use std::{collections::BTreeMap, time::Duration};
use tokio_postgres::GenericClient;

pub(crate) async fn renew(
    client: &(impl GenericClient + Sync),
    nodes: &[NodeId],
    ttl: Duration,
) -> Result<(), PgError> {
    let ids: Vec<i64> = nodes.iter().map(|node| column(node.0)).collect();
    let renew = "INSERT INTO holder_leases (node_id, until)
         SELECT id, clock_timestamp() + $2 * interval '1 second' FROM nodes WHERE id = ANY ($1) ORDER BY id
         ON CONFLICT (node_id) DO UPDATE SET until = excluded.until";
    execute(client, renew, &[&ids, &ttl.as_secs_f64()]).await.map(|_| ())
}

pub(crate) async fn release(client: &(impl GenericClient + Sync), node: NodeId) -> Result<(), PgError> {
    execute(client, "DELETE FROM holder_leases WHERE node_id = $1", &[&column(node.0)]).await.map(|_| ())
}

pub(crate) async fn remaining(
    client: &(impl GenericClient + Sync),
    nodes: &[NodeId],
) -> Result<BTreeMap<NodeId, Duration>, PgError> {
    let ids: Vec<i64> = nodes.iter().map(|node| column(node.0)).collect();
    let look = "SELECT node_id, extract(epoch FROM until - clock_timestamp())::float8 FROM holder_leases
         WHERE node_id = ANY ($1) AND until > clock_timestamp()";
    let rows = query(client, look, &[&ids]).await?;
    let lease = |row: &tokio_postgres::Row| {
        let left = Duration::try_from_secs_f64(row.try_get(1)?).unwrap_or_default();
        Ok((NodeId(number(row.try_get(0)?)), left))
    };
    rows.iter().map(lease).collect()
}

/// Inside a transaction: the rows stay locked until it ends.
pub(crate) async fn take_over(
    client: &(impl GenericClient + Sync),
    (from, to): (Option<NodeId>, NodeId),
    ttl: Duration,
) -> Result<bool, PgError> {
    if let Some(from) = from {
        let ids = vec![column(from.0), column(to.0)];
        let lock = "SELECT 1 FROM holder_leases WHERE node_id = ANY ($1) ORDER BY node_id FOR UPDATE";
        query(client, lock, &[&ids]).await?;
        // A statement of its own, which sees what was committed while that one waited.
        if remaining(client, &[from]).await?.contains_key(&from) {
            return Ok(false);
        }
    }
    renew(client, &[to], ttl).await.map(|()| true)
}
