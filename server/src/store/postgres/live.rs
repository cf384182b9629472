//! What is beside the log, in SQL for Postgres: leases, presence, signals. All of it is told again within seconds, so its commits do not
//! wait for the disk.

use crate::store::{
    Hint, Incarnation, LeaseAnswer, LiveServer, SIGNAL_LIFETIME, SIGNALS_KEPT, SeenSession, ServerRow,
    SessionRow, column, number,
    postgres::{
        error::PgError,
        listen::{CHANNEL, payload},
        log::fixed,
        sql::{BEGIN_RELAXED, execute, in_one_flight, notify, query},
    },
    readable_report, readable_urls,
};
use proto::{
    session::{ServerId, SessionNumber},
    statement::NodeId,
};
use std::{collections::BTreeSet, time::Duration};
use tokio_postgres::{Client, GenericClient, Row, types::Json};

/// Milliseconds since 1970.
const NOW_MS: &str = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint";

pub(crate) async fn now_ms(client: &(impl GenericClient + Sync)) -> Result<u64, PgError> {
    let rows = query(client, &format!("SELECT {NOW_MS}"), &[]).await?;
    rows.first().map_or(Ok(0), |row| Ok(number(row.try_get(0)?)))
}

pub(crate) async fn renew_lease(
    client: &Client,
    server: &ServerRow,
    ttl: Duration,
) -> Result<LeaseAnswer, PgError> {
    let (id, incarnation) = (server.id.0.as_slice(), server.incarnation.0.as_slice());
    let (urls, report) = (Json(&server.urls), Json(&server.report));
    let (ttl_s, hint) = (ttl.as_secs_f64(), payload(Hint::Leases));
    let renewal = query(
        client,
        RENEWAL,
        &[
            &id,
            &incarnation,
            &server.name,
            &server.host,
            &urls,
            &server.version,
            &server.clock_ahead_ms,
            &ttl_s,
            &CHANNEL,
            &hint,
            &report,
        ],
    );
    let renewed = in_one_flight(client, BEGIN_RELAXED, renewal).await?;
    let Some(row) = renewed.first() else { return Err(PgError::unreadable("a renewal without an answer")) };
    if row.try_get(0)? {
        return Ok(LeaseAnswer::Held { begins_period: row.try_get(1)?, now_ms: number(row.try_get(2)?) });
    }
    // Whoever it is, also if the lease has ended meanwhile.
    let other = query(client, &format!("{SERVERS} WHERE id = $1"), &[&id]).await?;
    let gone = || PgError::unreadable("a server's row went while it was read");
    Ok(LeaseAnswer::Taken(Box::new(read_server(other.first().ok_or_else(gone)?)?)))
}

/// Each part sees the tables as they were before. Whoever finds no server alive begins a new time of service: nobody could be there before it. A
/// server is not forgotten before those that it served are known to be elsewhere, or gone.
const RENEWAL: &str = "WITH
    known AS (
        SELECT FROM servers
        WHERE id = $1 AND incarnation = $2 AND urls = $5 AND lease_until > clock_timestamp()),
    alive AS (SELECT FROM servers WHERE lease_until > clock_timestamp() LIMIT 1),
    renewed AS (
        INSERT INTO servers (id, incarnation, name, host, urls, version, clock_ahead_ms, lease_until, report)
        VALUES ($1, $2, $3, $4, $5, $6, $7, clock_timestamp() + $8 * interval '1 second', $11)
        ON CONFLICT (id) DO UPDATE SET incarnation = excluded.incarnation, name = excluded.name, host = excluded.host,
            urls = excluded.urls, version = excluded.version, clock_ahead_ms = excluded.clock_ahead_ms,
            lease_until = excluded.lease_until, report = excluded.report
        WHERE servers.incarnation = excluded.incarnation OR servers.lease_until <= clock_timestamp()
        RETURNING 1),
    begun AS (
        UPDATE presence SET served_since = clock_timestamp()
        WHERE NOT EXISTS (SELECT FROM alive) AND EXISTS (SELECT FROM renewed)
        RETURNING 1),
    forgotten AS (
        DELETE FROM servers v
        WHERE id <> $1 AND lease_until < clock_timestamp() - interval '1 day' AND NOT EXISTS (SELECT FROM known)
            AND NOT EXISTS (SELECT FROM sessions WHERE server_id = v.id AND online)),
    said AS (
        SELECT pg_notify($9, $10) WHERE NOT EXISTS (SELECT FROM known) AND EXISTS (SELECT FROM renewed))
    SELECT EXISTS (SELECT FROM renewed), EXISTS (SELECT FROM begun),
        (extract(epoch FROM clock_timestamp()) * 1000)::bigint, (SELECT count(*) FROM said)";

pub(crate) async fn inherit_lease(
    client: &(impl GenericClient + Sync),
    server: &ServerRow,
    from: Incarnation,
) -> Result<(), PgError> {
    let inherited = "UPDATE servers SET incarnation = $3 WHERE id = $1 AND incarnation = $2";
    let (id, from, to) = (server.id.0.as_slice(), from.0.as_slice(), server.incarnation.0.as_slice());
    execute(client, inherited, &[&id, &from, &to]).await.map(|_| ())
}

pub(crate) async fn release_lease(client: &Client, server: &ServerRow) -> Result<(), PgError> {
    let (id, incarnation) = (server.id.0.as_slice(), server.incarnation.0.as_slice());
    let release = async {
        tokio::try_join!(
            biased;
            execute(client, "DELETE FROM servers WHERE id = $1 AND incarnation = $2", &[&id, &incarnation]),
            notify(client, Hint::Leases),
        )
    };
    in_one_flight(client, BEGIN_RELAXED, release).await.map(|_| ())
}

const SERVERS: &str = "SELECT id, incarnation, name, host, urls, version, clock_ahead_ms,
        extract(epoch FROM lease_until - clock_timestamp())::float8, report
    FROM servers";

pub(crate) async fn live_servers(client: &(impl GenericClient + Sync)) -> Result<Vec<LiveServer>, PgError> {
    let live = format!("{SERVERS} WHERE lease_until > clock_timestamp() ORDER BY name, id");
    query(client, &live, &[]).await?.iter().map(read_server).collect()
}

fn read_server(row: &Row) -> Result<LiveServer, PgError> {
    let server = ServerRow {
        id: ServerId(fixed(row, 0)?),
        incarnation: Incarnation::stored(row.try_get(1)?),
        name: row.try_get(2)?,
        host: row.try_get(3)?,
        urls: readable_urls(row.try_get(4)?),
        version: row.try_get(5)?,
        clock_ahead_ms: row.try_get(6)?,
        report: readable_report(row.try_get(8)?),
    };
    // The clock went on between the two times that it was asked.
    let lease_remaining = Duration::try_from_secs_f64(row.try_get(7)?).unwrap_or_default();
    Ok(LiveServer { server, lease_remaining })
}

pub(crate) async fn put_sessions(client: &Client, rows: &[SessionRow]) -> Result<(), PgError> {
    let rows = newest_per_node(rows);
    let nodes: Vec<i64> = rows.iter().map(|row| column(row.node.0)).collect();
    let servers: Vec<&[u8]> = rows.iter().map(|row| row.server.0.as_slice()).collect();
    let boots: Vec<i64> = rows.iter().map(|row| column(row.number.boot)).collect();
    let counters: Vec<i64> = rows.iter().map(|row| column(row.number.counter)).collect();
    let online: Vec<bool> = rows.iter().map(|row| row.online).collect();
    // Of its own, so that the next statement sees what was committed before it.
    let lock = query(client, "SELECT FROM presence FOR UPDATE", &[]);
    // The lock on the node: one that is being removed gets no row behind the removal.
    let put = "WITH changed AS (
             INSERT INTO sessions AS s (node_id, server_id, boot, counter, online, sequence)
             SELECT r.*, (SELECT sequence + 1 FROM presence)
             FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bigint[], $5::boolean[]) AS r (node_id)
             JOIN nodes ON nodes.id = r.node_id FOR KEY SHARE OF nodes
             ON CONFLICT (node_id) DO UPDATE SET server_id = excluded.server_id, boot = excluded.boot,
                 counter = excluded.counter, online = excluded.online, sequence = excluded.sequence,
                 changed_at = CASE WHEN s.online OR excluded.online THEN clock_timestamp() ELSE s.changed_at END
             WHERE (excluded.boot, excluded.counter) > (s.boot, s.counter)
                 OR (excluded.server_id = s.server_id
                     AND (excluded.boot, excluded.counter, excluded.online) <> (s.boot, s.counter, s.online))
                 OR (excluded.server_id <> s.server_id AND excluded.online AND (NOT s.online OR NOT EXISTS (
                     SELECT 1 FROM servers WHERE servers.id = s.server_id AND lease_until > clock_timestamp())))
             RETURNING 1),
         counted AS (UPDATE presence SET sequence = sequence + 1 WHERE EXISTS (SELECT FROM changed))
         SELECT pg_notify($6, $7) WHERE EXISTS (SELECT FROM changed)";
    let hint = payload(Hint::Presence);
    let work = async {
        tokio::try_join!(
            biased;
            lock,
            query(client, put, &[&nodes, &servers, &boots, &counters, &online, &CHANNEL, &hint]),
        )
    };
    in_one_flight(client, BEGIN_RELAXED, work).await.map(|_| ())
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
    client: &(impl GenericClient + Sync),
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

pub(crate) async fn send_signals(client: &Client, signals: &[(ServerId, Vec<u8>)]) -> Result<(), PgError> {
    let ended = "DELETE FROM signals WHERE sent_at < clock_timestamp() - $1 * interval '1 second'";
    let lifetime_s = SIGNAL_LIFETIME.as_secs_f64();
    let receivers: Vec<&[u8]> = signals.iter().map(|(to, _)| to.0.as_slice()).collect();
    let payloads: Vec<&[u8]> = signals.iter().map(|(_, payload)| &payload[..]).collect();
    let put = "WITH waiting AS (SELECT to_server, count(*) FROM signals WHERE to_server = ANY ($1) GROUP BY to_server)
         INSERT INTO signals (to_server, payload)
         SELECT n.to_server, n.payload FROM (
             SELECT *, row_number() OVER (PARTITION BY to_server ORDER BY i) AS nth
             FROM unnest($1::bytea[], $2::bytea[]) WITH ORDINALITY AS r (to_server, payload, i)) AS n
         LEFT JOIN waiting USING (to_server) WHERE nth <= $3 - coalesce(count, 0) ORDER BY i";
    let hinted: BTreeSet<ServerId> = signals.iter().map(|(to, _)| *to).collect();
    let hinted: Vec<String> = hinted.into_iter().map(|to| payload(Hint::Signals(to))).collect();
    let hint = "SELECT pg_notify($1, hint) FROM unnest($2::text[]) AS h (hint)";
    let work = async {
        tokio::try_join!(
            biased;
            execute(client, ended, &[&lifetime_s]),
            execute(client, put, &[&receivers, &payloads, &SIGNALS_KEPT]),
            query(client, hint, &[&CHANNEL, &hinted]),
        )
    };
    in_one_flight(client, BEGIN_RELAXED, work).await.map(|_| ())
}

pub(crate) async fn take_signals(client: &Client, me: ServerId) -> Result<Vec<Vec<u8>>, PgError> {
    let (me, lifetime_s) = (me.0.as_slice(), SIGNAL_LIFETIME.as_secs_f64());
    let taken = query(
        client,
        "WITH taken AS (DELETE FROM signals WHERE to_server = $1 RETURNING id, payload, sent_at)
         SELECT payload FROM taken WHERE sent_at >= clock_timestamp() - $2 * interval '1 second' ORDER BY id",
        &[&me, &lifetime_s],
    );
    let rows = in_one_flight(client, BEGIN_RELAXED, taken).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}
