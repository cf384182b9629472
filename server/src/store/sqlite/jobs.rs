//! Jobs and attendance, in SQL for SQLite.

use crate::store::{
    Attendance, Incarnation, Job, JobLock, JobRow, LastSeen, column, number,
    sqlite::{
        SqliteError,
        live::{NOW_MS, millis},
    },
};
use proto::{session::ServerId, statement::NodeId, time::UnixTime};
use rusqlite::{Connection, OptionalExtension, params};
use std::time::Duration;

pub(crate) fn begin(
    connection: &Connection,
    job: Job,
    (server, holder): (ServerId, Incarnation),
    (ttl, every): (Duration, Duration),
) -> Result<Option<JobLock>, SqliteError> {
    let token = connection.query_row(
        &format!(
            "INSERT INTO jobs (name, server_id, holder, token, held_until_ms) VALUES (?1, ?2, ?3, 1, {NOW_MS} + ?4)
             ON CONFLICT (name) DO UPDATE SET server_id = excluded.server_id, holder = excluded.holder,
                 token = jobs.token + 1, held_until_ms = excluded.held_until_ms
             WHERE (jobs.held_until_ms <= {NOW_MS} OR jobs.holder = excluded.holder)
                 AND (jobs.last_run_ms IS NULL OR jobs.last_run_ms <= {NOW_MS} - ?5)
             RETURNING token"
        ),
        params![job.name(), server.0, holder.0, millis(ttl), millis(every)],
        |row| row.get(0).map(number),
    );
    Ok(token.optional()?.map(|token| JobLock { job, holder, token }))
}

/// Inside a transaction that holds the file: nobody takes the job before it ends.
pub(crate) fn keep(connection: &Connection, lock: JobLock, ttl: Duration) -> Result<bool, SqliteError> {
    let kept = connection.execute(
        &format!(
            "UPDATE jobs SET held_until_ms = {NOW_MS} + ?4
             WHERE name = ?1 AND holder = ?2 AND token = ?3 AND held_until_ms > {NOW_MS}"
        ),
        params![lock.job.name(), lock.holder.0, column(lock.token), millis(ttl)],
    )?;
    Ok(kept > 0)
}

pub(crate) fn end(connection: &Connection, lock: JobLock) -> Result<(), SqliteError> {
    connection.execute(
        &format!(
            "UPDATE jobs SET held_until_ms = {NOW_MS}, last_run_ms = {NOW_MS}
             WHERE name = ?1 AND holder = ?2 AND token = ?3 AND held_until_ms > {NOW_MS}"
        ),
        params![lock.job.name(), lock.holder.0, column(lock.token)],
    )?;
    Ok(())
}

pub(crate) fn list(connection: &Connection) -> Result<Vec<JobRow>, SqliteError> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT name, server_id, held_until_ms - {NOW_MS}, last_run_ms FROM jobs ORDER BY name"
    ))?;
    let rows = statement.query_map([], |row| {
        let held_for = Duration::from_millis(number(row.get(2)?));
        let last_run: Option<i64> = row.get(3)?;
        Ok(JobRow {
            name: row.get(0)?,
            server: ServerId(row.get(1)?),
            held_for: Some(held_for).filter(|held_for| !held_for.is_zero()),
            last_run: last_run.map(seconds),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Inside a transaction, so of one moment.
pub(crate) fn attendance(connection: &Connection, nodes: &[NodeId]) -> Result<Attendance, SqliteError> {
    let times = format!("SELECT served_since_ms, {NOW_MS} FROM presence");
    let (served_since, now) =
        connection.query_row(&times, [], |row| Ok((row.get(0).map(seconds)?, row.get(1).map(seconds)?)))?;
    let mut statement = connection.prepare_cached(&format!(
        "SELECT s.online AND coalesce(v.lease_until_ms > {NOW_MS}, 0),
             CASE WHEN s.online THEN max(coalesce(v.lease_until_ms, 0), s.changed_ms) ELSE s.changed_ms END,
             s.online AND v.id IS NOT NULL
         FROM sessions s LEFT JOIN servers v ON v.id = s.server_id WHERE s.node_id = ?1"
    ))?;
    let mut attendance = Attendance { served_since, now, nodes: Default::default() };
    for node in nodes {
        let seen = statement.query_row([column(node.0)], |row| {
            let at = row.get(1).map(seconds)?;
            Ok(match (row.get(0)?, row.get(2)?) {
                (true, _) => LastSeen::Online,
                (false, true) => LastSeen::Unheard(at),
                (false, false) => LastSeen::Until(at),
            })
        });
        attendance.nodes.insert(*node, seen.optional()?.unwrap_or(LastSeen::Never));
    }
    Ok(attendance)
}

fn seconds(ms: i64) -> UnixTime {
    UnixTime(number(ms) / 1000)
}
