//! What is beside the log, in SQL for Postgres: leases, presence, signals. All of it is told again within seconds, so its commits do not
//! wait for the disk.

use crate::store::{
    Hint, LiveServer, SIGNAL_LIFETIME, SIGNALS_KEPT, SeenSession, ServerRow, SessionRow, column, number,
    postgres::{error::PgError, execute, log::fixed, notify, query},
    readable_urls,
};
use deadpool_postgres::{ClientWrapper, GenericClient, Transaction};
use proto::{
    session::{ServerId, SessionNumber},
    statement::NodeId,
};
use std::{collections::BTreeSet, time::Duration};
use tokio_postgres::{Row, types::Json};

async fn begin(client: &mut ClientWrapper) -> Result<Transaction<'_>, PgError> {
    let transaction = client.transaction().await?;
    transaction.batch_execute("SET LOCAL synchronous_commit = off").await?;
    Ok(transaction)
}

pub(crate) async fn renew_lease(
    client: &mut ClientWrapper,
    server: &ServerRow,
    ttl: Duration,
) -> Result<(), PgError> {
    let transaction = begin(client).await?;
    let known = "SELECT 1 FROM servers WHERE id = $1 AND lease_until > clock_timestamp() AND urls = $2";
    let is_news =
        query(&transaction, known, &[&server.id.0.as_slice(), &Json(&server.urls)]).await?.is_empty();
    execute(
        &transaction,
        "INSERT INTO servers (id, name, urls, version, lease_until)
         VALUES ($1, $2, $3, $4, clock_timestamp() + $5 * interval '1 second')
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, urls = excluded.urls, version = excluded.version,
             lease_until = excluded.lease_until",
        &[
            &server.id.0.as_slice(),
            &server.name,
            &Json(&server.urls),
            &server.version,
            &ttl.as_secs_f64(),
        ],
    )
    .await?;
    if is_news {
        let forgotten = "DELETE FROM servers WHERE lease_until < clock_timestamp() - interval '1 day'";
        execute(&transaction, forgotten, &[]).await?;
        notify(&transaction, Hint::Leases).await?;
    }
    Ok(transaction.commit().await?)
}

pub(crate) async fn release_lease(client: &mut ClientWrapper, server: ServerId) -> Result<(), PgError> {
    let transaction = begin(client).await?;
    execute(&transaction, "DELETE FROM servers WHERE id = $1", &[&server.0.as_slice()]).await?;
    notify(&transaction, Hint::Leases).await?;
    Ok(transaction.commit().await?)
}

pub(crate) async fn live_servers(client: &impl GenericClient) -> Result<Vec<LiveServer>, PgError> {
    let rows = query(
        client,
        "SELECT id, name, urls, version, extract(epoch FROM lease_until - clock_timestamp())::float8
         FROM servers WHERE lease_until > clock_timestamp() ORDER BY name, id",
        &[],
    );
    rows.await?.iter().map(read_server).collect()
}

fn read_server(row: &Row) -> Result<LiveServer, PgError> {
    let server = ServerRow {
        id: ServerId(fixed(row, 0)?),
        name: row.try_get(1)?,
        urls: readable_urls(row.try_get(2)?),
        version: row.try_get(3)?,
    };
    // The clock went on between the two times that it was asked.
    let lease_remaining = Duration::try_from_secs_f64(row.try_get(4)?).unwrap_or_default();
    Ok(LiveServer { server, lease_remaining })
}

pub(crate) async fn put_sessions(client: &mut ClientWrapper, rows: &[SessionRow]) -> Result<(), PgError> {
    let transaction = begin(client).await?;
    let next = "SELECT sequence + 1 FROM presence FOR UPDATE";
    let sequence: i64 = transaction.query_one(next, &[]).await?.try_get(0)?;
    let rows = newest_per_node(rows);
    let nodes: Vec<i64> = rows.iter().map(|row| column(row.node.0)).collect();
    let servers: Vec<&[u8]> = rows.iter().map(|row| row.server.0.as_slice()).collect();
    let boots: Vec<i64> = rows.iter().map(|row| column(row.number.boot)).collect();
    let counters: Vec<i64> = rows.iter().map(|row| column(row.number.counter)).collect();
    let online: Vec<bool> = rows.iter().map(|row| row.online).collect();
    // The lock on the node: one that is being removed gets no row behind the removal.
    let changed = execute(
        &transaction,
        "INSERT INTO sessions AS s (node_id, server_id, boot, counter, online, sequence)
         SELECT r.*, $6::bigint
         FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bigint[], $5::boolean[]) AS r (node_id)
         JOIN nodes ON nodes.id = r.node_id FOR KEY SHARE OF nodes
         ON CONFLICT (node_id) DO UPDATE SET server_id = excluded.server_id, boot = excluded.boot,
             counter = excluded.counter, online = excluded.online, sequence = excluded.sequence
         WHERE (excluded.boot, excluded.counter) > (s.boot, s.counter)
             OR (excluded.server_id = s.server_id
                 AND (excluded.boot, excluded.counter, excluded.online) <> (s.boot, s.counter, s.online))
             OR (excluded.server_id <> s.server_id AND excluded.online AND (NOT s.online OR NOT EXISTS (
                 SELECT 1 FROM servers WHERE servers.id = s.server_id AND lease_until > clock_timestamp())))",
        &[&nodes, &servers, &boots, &counters, &online, &sequence],
    )
    .await?;
    if changed > 0 {
        execute(&transaction, "UPDATE presence SET sequence = $1", &[&sequence]).await?;
        notify(&transaction, Hint::Presence).await?;
    }
    Ok(transaction.commit().await?)
}

/// One statement cannot change a row twice. Of rows with one number the later says more.
fn newest_per_node(rows: &[SessionRow]) -> Vec<SessionRow> {
    let mut newest = std::collections::BTreeMap::<NodeId, SessionRow>::new();
    for row in rows {
        let kept = newest.entry(row.node).or_insert(*row);
        if row.number >= kept.number {
            *kept = *row;
        }
    }
    newest.into_values().collect()
}

pub(crate) async fn sessions(
    client: &impl GenericClient,
    after: u64,
) -> Result<(Vec<SeenSession>, u64), PgError> {
    // One statement, so one moment.
    let rows = query(
        client,
        "SELECT p.sequence, s.node_id, s.server_id, s.boot, s.counter, s.online, s.sequence, EXISTS (
             SELECT 1 FROM servers WHERE servers.id = s.server_id AND lease_until > clock_timestamp())
         FROM presence p LEFT JOIN sessions s ON s.sequence > $1 ORDER BY s.sequence, s.node_id",
        &[&column(after)],
    )
    .await?;
    let latest = rows.first().map(|row| row.try_get(0)).transpose()?.map_or(after, number);
    let mut sessions = Vec::with_capacity(rows.len());
    for row in &rows {
        if let Some(node) = row.try_get::<_, Option<i64>>(1)? {
            sessions.push(read_session(row, NodeId(number(node)))?);
        }
    }
    Ok((sessions, latest))
}

fn read_session(row: &Row, node: NodeId) -> Result<SeenSession, PgError> {
    let session = SessionRow {
        node,
        server: ServerId(fixed(row, 2)?),
        number: SessionNumber { boot: number(row.try_get(3)?), counter: number(row.try_get(4)?) },
        online: row.try_get(5)?,
    };
    Ok(SeenSession { row: session, sequence: number(row.try_get(6)?), leased: row.try_get(7)? })
}

pub(crate) async fn send_signals(
    client: &mut ClientWrapper,
    signals: &[(ServerId, Vec<u8>)],
) -> Result<(), PgError> {
    let transaction = begin(client).await?;
    let ended = "DELETE FROM signals WHERE sent_at < clock_timestamp() - $1 * interval '1 second'";
    execute(&transaction, ended, &[&SIGNAL_LIFETIME.as_secs_f64()]).await?;
    let receivers: BTreeSet<ServerId> = signals.iter().map(|(to, _)| *to).collect();
    for to in receivers {
        let payloads: Vec<&[u8]> =
            signals.iter().filter(|(receiver, _)| *receiver == to).map(|(_, payload)| &payload[..]).collect();
        execute(
            &transaction,
            "INSERT INTO signals (to_server, payload) SELECT $1, p FROM unnest($2::bytea[]) WITH ORDINALITY AS n (p, i)
             ORDER BY i LIMIT greatest(0, $3 - (SELECT count(*) FROM signals WHERE to_server = $1))",
            &[&to.0.as_slice(), &payloads, &SIGNALS_KEPT],
        )
        .await?;
        notify(&transaction, Hint::Signals(to)).await?;
    }
    Ok(transaction.commit().await?)
}

pub(crate) async fn take_signals(client: &mut ClientWrapper, me: ServerId) -> Result<Vec<Vec<u8>>, PgError> {
    let transaction = begin(client).await?;
    let rows = query(
        &transaction,
        "WITH taken AS (DELETE FROM signals WHERE to_server = $1 RETURNING id, payload, sent_at)
         SELECT payload FROM taken WHERE sent_at >= clock_timestamp() - $2 * interval '1 second' ORDER BY id",
        &[&me.0.as_slice(), &SIGNAL_LIFETIME.as_secs_f64()],
    )
    .await?;
    let payloads = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    transaction.commit().await?;
    Ok(payloads)
}
