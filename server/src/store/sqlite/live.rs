//! What is beside the log, in SQL for SQLite: leases, presence, signals. The clock is the machine's, which all servers on the file share.

use crate::store::{
    Incarnation, LeaseAnswer, LiveServer, SIGNAL_LIFETIME, SIGNALS_KEPT, SeenSession, ServerRow, SessionRow,
    column, number, readable_report, readable_urls, sqlite::SqliteError,
};
use proto::{
    session::{ServerId, SessionNumber},
    statement::NodeId,
};
use rusqlite::{Connection, Row, TransactionBehavior, params};
use std::time::Duration;

pub(super) const NOW_MS: &str = "CAST(unixepoch('subsec') * 1000 AS INTEGER)";
/// Servers that have been away for so long are forgotten.
const FORGET_SERVERS_AFTER: Duration = Duration::from_secs(24 * 3600);

pub(crate) fn now_ms(connection: &Connection) -> Result<u64, SqliteError> {
    Ok(connection.query_row(&format!("SELECT {NOW_MS}"), [], |row| row.get(0).map(number))?)
}

pub(crate) fn renew_lease(
    connection: &mut Connection,
    server: &ServerRow,
    ttl: Duration,
) -> Result<LeaseAnswer, SqliteError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let begins_period = begin_period(&transaction)?;
    if !write_lease(&transaction, server, ttl)? {
        // Whoever it is, also if the lease ended between the two statements.
        let other = read_servers(&transaction, &format!("id = x'{}'", server.id))?.pop();
        let gone = || SqliteError::unreadable("a server's row went while it was read");
        return other.map(|other| LeaseAnswer::Taken(Box::new(other))).ok_or_else(gone);
    }
    // Not before those that it served are known to be elsewhere, or gone.
    transaction.execute(
        &format!(
            "DELETE FROM servers WHERE lease_until_ms < {NOW_MS} - ?1
                 AND NOT EXISTS (SELECT 1 FROM sessions WHERE server_id = servers.id AND online)"
        ),
        [millis(FORGET_SERVERS_AFTER)],
    )?;
    let now_ms = now_ms(&transaction)?;
    transaction.commit()?;
    Ok(LeaseAnswer::Held { now_ms, begins_period })
}

/// Whoever finds no server alive begins a new time of service: nobody could be there before it.
fn begin_period(connection: &Connection) -> Result<bool, SqliteError> {
    let begun = connection.execute(
        &format!(
            "UPDATE presence SET served_since_ms = {NOW_MS}
             WHERE NOT EXISTS (SELECT 1 FROM servers WHERE lease_until_ms > {NOW_MS})"
        ),
        [],
    )?;
    Ok(begun > 0)
}

/// `false`: another incarnation of the id holds it.
fn write_lease(connection: &Connection, server: &ServerRow, ttl: Duration) -> Result<bool, SqliteError> {
    let urls = serde_json::to_string(&server.urls).map_err(SqliteError::unreadable)?;
    let report = serde_json::to_string(&server.report).map_err(SqliteError::unreadable)?;
    let written = connection.execute(
        &format!(
            "INSERT INTO servers (id, incarnation, name, host, urls, version, clock_ahead_ms, lease_until_ms, report)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, {NOW_MS} + ?8, ?9)
             ON CONFLICT (id) DO UPDATE SET incarnation = excluded.incarnation, name = excluded.name,
                 host = excluded.host, urls = excluded.urls, version = excluded.version,
                 clock_ahead_ms = excluded.clock_ahead_ms, lease_until_ms = excluded.lease_until_ms,
                 report = excluded.report
             WHERE servers.incarnation = excluded.incarnation OR servers.lease_until_ms <= {NOW_MS}"
        ),
        params![
            server.id.0,
            server.incarnation.0,
            server.name,
            server.host,
            urls,
            server.version,
            server.clock_ahead_ms,
            millis(ttl),
            report
        ],
    )?;
    Ok(written > 0)
}

pub(crate) fn inherit_lease(
    connection: &Connection,
    server: ServerId,
    from: Incarnation,
    to: Incarnation,
) -> Result<(), SqliteError> {
    let inherited = "UPDATE servers SET incarnation = ?3 WHERE id = ?1 AND incarnation = ?2";
    connection.execute(inherited, params![server.0, from.0, to.0])?;
    Ok(())
}

pub(crate) fn release_lease(
    connection: &Connection,
    server: ServerId,
    incarnation: Incarnation,
) -> Result<(), SqliteError> {
    let released = "DELETE FROM servers WHERE id = ?1 AND incarnation = ?2";
    connection.execute(released, params![server.0, incarnation.0])?;
    Ok(())
}

pub(crate) fn live_servers(connection: &Connection) -> Result<Vec<LiveServer>, SqliteError> {
    read_servers(connection, "remaining > 0")
}

fn read_servers(connection: &Connection, condition: &str) -> Result<Vec<LiveServer>, SqliteError> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT id, incarnation, name, host, urls, version, clock_ahead_ms, lease_until_ms - {NOW_MS} AS remaining, report
         FROM servers WHERE {condition} ORDER BY name, id"
    ))?;
    let mut rows = statement.query([])?;
    let mut servers = Vec::new();
    while let Some(row) = rows.next()? {
        let stored = serde_json::from_str(&row.get::<_, String>(4)?).unwrap_or_default();
        let server = ServerRow {
            id: ServerId(row.get(0)?),
            incarnation: Incarnation::stored(row.get_ref(1)?.as_blob().unwrap_or_default()),
            name: row.get(2)?,
            host: row.get(3)?,
            urls: readable_urls(stored),
            version: row.get(5)?,
            clock_ahead_ms: row.get(6)?,
            report: readable_report(serde_json::from_str(&row.get::<_, String>(8)?).unwrap_or_default()),
        };
        servers.push(LiveServer { server, lease_remaining: Duration::from_millis(number(row.get(7)?)) });
    }
    Ok(servers)
}

pub(crate) fn put_sessions(connection: &mut Connection, rows: &[SessionRow]) -> Result<(), SqliteError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let next = "SELECT sequence + 1 FROM presence";
    let sequence: i64 = transaction.query_row(next, [], |row| row.get(0))?;
    let mut changed = 0;
    {
        let mut statement = transaction.prepare_cached(&format!(
            "INSERT INTO sessions AS s (node_id, server_id, boot, counter, online, sequence, changed_ms)
             SELECT ?1, ?2, ?3, ?4, ?5, ?6, {NOW_MS} WHERE EXISTS (SELECT 1 FROM nodes WHERE nodes.id = ?1)
             ON CONFLICT (node_id) DO UPDATE SET server_id = excluded.server_id, boot = excluded.boot,
                 counter = excluded.counter, online = excluded.online, sequence = excluded.sequence,
                 changed_ms = CASE WHEN s.online OR excluded.online THEN excluded.changed_ms ELSE s.changed_ms END
             WHERE (excluded.boot, excluded.counter) > (s.boot, s.counter)
                 OR (excluded.server_id = s.server_id
                     AND (excluded.boot, excluded.counter, excluded.online) <> (s.boot, s.counter, s.online))
                 OR (excluded.server_id <> s.server_id AND excluded.online AND (NOT s.online OR NOT EXISTS (
                     SELECT 1 FROM servers WHERE servers.id = s.server_id AND lease_until_ms > {NOW_MS})))",
        ))?;
        for row in rows {
            let SessionNumber { boot, counter } = row.number;
            changed += statement.execute(params![
                column(row.node.0),
                row.server.0,
                column(boot),
                column(counter),
                row.online,
                sequence
            ])?;
        }
    }
    if changed > 0 {
        transaction.execute("UPDATE presence SET sequence = ?1", [sequence])?;
    }
    Ok(transaction.commit()?)
}

pub(crate) fn sessions(
    connection: &mut Connection,
    after: u64,
) -> Result<(Vec<SeenSession>, u64), SqliteError> {
    let transaction = connection.transaction()?;
    let latest = transaction.query_row("SELECT sequence FROM presence", [], |row| row.get(0).map(number))?;
    let mut statement = transaction.prepare_cached(&format!(
        "SELECT node_id, server_id, boot, counter, online, sequence, EXISTS (
             SELECT 1 FROM servers WHERE servers.id = sessions.server_id AND lease_until_ms > {NOW_MS})
         FROM sessions WHERE sequence > ?1 ORDER BY sequence, node_id"
    ))?;
    let rows = statement.query_map([column(after)], read_session)?;
    Ok((rows.collect::<Result<_, _>>()?, latest))
}

fn read_session(row: &Row<'_>) -> rusqlite::Result<SeenSession> {
    let session = SessionRow {
        node: NodeId(number(row.get(0)?)),
        server: ServerId(row.get(1)?),
        number: SessionNumber { boot: number(row.get(2)?), counter: number(row.get(3)?) },
        online: row.get(4)?,
    };
    Ok(SeenSession { row: session, sequence: number(row.get(5)?), leased: row.get(6)? })
}

pub(crate) fn send_signals(
    connection: &mut Connection,
    signals: &[(ServerId, Vec<u8>)],
) -> Result<(), SqliteError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let ended = format!("DELETE FROM signals WHERE sent_ms < {NOW_MS} - ?1");
    transaction.execute(&ended, [millis(SIGNAL_LIFETIME)])?;
    {
        let mut statement = transaction.prepare_cached(&format!(
            "INSERT INTO signals (to_server, payload, sent_ms) SELECT ?1, ?2, {NOW_MS}
             WHERE (SELECT count(*) FROM signals WHERE to_server = ?1) < ?3"
        ))?;
        for (to, payload) in signals {
            statement.execute(params![to.0, payload, SIGNALS_KEPT])?;
        }
    }
    Ok(transaction.commit()?)
}

pub(crate) fn take_signals(connection: &mut Connection, me: ServerId) -> Result<Vec<Vec<u8>>, SqliteError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut taken: Vec<(i64, bool, Vec<u8>)> = {
        let mut statement = transaction.prepare_cached(&format!(
            "DELETE FROM signals WHERE to_server = ?1 RETURNING id, sent_ms >= {NOW_MS} - ?2, payload"
        ))?;
        let rows = statement.query_map(params![me.0, millis(SIGNAL_LIFETIME)], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?;
        rows.collect::<Result<_, _>>()?
    };
    transaction.commit()?;
    taken.sort_unstable_by_key(|(id, ..)| *id);
    Ok(taken.into_iter().filter(|(_, is_fresh, _)| *is_fresh).map(|(.., payload)| payload).collect())
}

/// Whether anything waits for `me`: so that asking often does not write often.
pub(crate) fn has_signals(connection: &Connection, me: ServerId) -> Result<bool, SqliteError> {
    let waits = "SELECT EXISTS (SELECT 1 FROM signals WHERE to_server = ?1)";
    Ok(connection.query_row(waits, [me.0], |row| row.get(0))?)
}

pub(super) fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}
