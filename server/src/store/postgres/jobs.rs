//! Jobs and attendance, in SQL for Postgres.

use crate::store::{
    Attendance, Job, JobLock, JobRow, LastSeen, ServerRow, column, number,
    postgres::{
        error::PgError,
        log::fixed,
        sql::{execute, query},
    },
};
use proto::{session::ServerId, statement::NodeId, time::UnixTime};
use std::time::Duration;
use tokio_postgres::{GenericClient, Row};

pub(crate) async fn begin(
    client: &(impl GenericClient + Sync),
    job: Job,
    server: &ServerRow,
    (ttl, every): (Duration, Duration),
) -> Result<Option<JobLock>, PgError> {
    let taken = query(
        client,
        "INSERT INTO jobs (name, server_id, holder, token, held_until)
         VALUES ($1, $2, $3, 1, clock_timestamp() + $4 * interval '1 second')
         ON CONFLICT (name) DO UPDATE SET server_id = excluded.server_id, holder = excluded.holder,
             token = jobs.token + 1, held_until = excluded.held_until
         WHERE (jobs.held_until <= clock_timestamp() OR jobs.holder = excluded.holder)
             AND (jobs.last_run IS NULL OR jobs.last_run <= clock_timestamp() - $5 * interval '1 second')
         RETURNING token",
        &[
            &job.name(),
            &server.id.0.as_slice(),
            &server.incarnation.0.as_slice(),
            &ttl.as_secs_f64(),
            &every.as_secs_f64(),
        ],
    )
    .await?;
    let token = taken.first().map(|row| row.try_get(0)).transpose()?;
    Ok(token.map(|token| JobLock { job, holder: server.incarnation, token: number(token) }))
}

/// The row stays locked until the transaction ends.
pub(crate) async fn keep(
    client: &(impl GenericClient + Sync),
    lock: JobLock,
    ttl: Duration,
) -> Result<bool, PgError> {
    let kept = execute(
        client,
        "UPDATE jobs SET held_until = clock_timestamp() + $4 * interval '1 second'
         WHERE name = $1 AND holder = $2 AND token = $3 AND held_until > clock_timestamp()",
        &[&lock.job.name(), &lock.holder.0.as_slice(), &column(lock.token), &ttl.as_secs_f64()],
    )
    .await?;
    Ok(kept > 0)
}

pub(crate) async fn end(client: &(impl GenericClient + Sync), lock: JobLock) -> Result<(), PgError> {
    let ended = "UPDATE jobs SET held_until = clock_timestamp(), last_run = clock_timestamp()
        WHERE name = $1 AND holder = $2 AND token = $3 AND held_until > clock_timestamp()";
    execute(client, ended, &[&lock.job.name(), &lock.holder.0.as_slice(), &column(lock.token)]).await?;
    Ok(())
}

pub(crate) async fn list(client: &(impl GenericClient + Sync)) -> Result<Vec<JobRow>, PgError> {
    let rows = query(
        client,
        "SELECT name, server_id, extract(epoch FROM held_until - clock_timestamp())::float8,
             floor(extract(epoch FROM last_run))::bigint
         FROM jobs ORDER BY name",
        &[],
    );
    rows.await?.iter().map(read_job).collect()
}

fn read_job(row: &Row) -> Result<JobRow, PgError> {
    let held_for = Duration::try_from_secs_f64(row.try_get(2)?).ok();
    Ok(JobRow {
        name: row.try_get(0)?,
        server: ServerId(fixed(row, 1)?),
        held_for: held_for.filter(|held_for| !held_for.is_zero()),
        last_run: row.try_get::<_, Option<i64>>(3)?.map(|at| UnixTime(number(at))),
    })
}

/// As [`attendance`], with the lock that every writer of presence takes first.
pub(crate) async fn attendance_held(
    client: &(impl GenericClient + Sync),
    nodes: &[NodeId],
) -> Result<Attendance, PgError> {
    query(client, "SELECT 1 FROM presence FOR UPDATE", &[]).await?;
    // A statement of its own, which sees what was committed while this one waited.
    attendance(client, nodes).await
}

pub(crate) async fn attendance(
    client: &(impl GenericClient + Sync),
    nodes: &[NodeId],
) -> Result<Attendance, PgError> {
    let ids: Vec<i64> = nodes.iter().map(|node| column(node.0)).collect();
    let rows = query(
        client,
        "SELECT floor(extract(epoch FROM p.served_since))::bigint, floor(extract(epoch FROM clock_timestamp()))::bigint,
             s.node_id, s.online AND coalesce(v.lease_until > clock_timestamp(), false),
             floor(extract(epoch FROM CASE WHEN s.online THEN greatest(v.lease_until, s.changed_at)
                 ELSE s.changed_at END))::bigint,
             s.online AND v.id IS NOT NULL
         FROM presence p
         LEFT JOIN sessions s ON s.node_id = ANY($1)
         LEFT JOIN servers v ON v.id = s.server_id",
        &[&ids],
    )
    .await?;
    let Some(first) = rows.first() else { return Err(PgError::unreadable("its presence has no row")) };
    let seconds = |row: &Row, index| row.try_get(index).map(number).map(UnixTime);
    let (served_since, now) = (seconds(first, 0)?, seconds(first, 1)?);
    let mut attendance =
        Attendance { served_since, now, nodes: nodes.iter().map(|node| (*node, LastSeen::Never)).collect() };
    for row in &rows {
        if let Some(node) = row.try_get::<_, Option<i64>>(2)? {
            let seen = match (row.try_get(3)?, row.try_get(5)?) {
                (true, _) => LastSeen::Online,
                (false, true) => LastSeen::Unheard(seconds(row, 4)?),
                (false, false) => LastSeen::Until(seconds(row, 4)?),
            };
            attendance.nodes.insert(NodeId(number(node)), seen);
        }
    }
    Ok(attendance)
}
