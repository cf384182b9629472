//! What one server at a time does for all: removing ephemeral nodes that stay away, and forgetting what ended long ago. Whoever takes a job's lock in the database runs
//! it, in batches. Every batch is a change of the log, in whose transaction the lock is looked at again: who was frozen past its lease
//! and goes on acts on nothing. Who is absent is judged there, too, while nobody can come or go.

use crate::{
    cluster::{self, Actor, Node, Op, State, absence},
    follow::{JobWork, WriteError},
    metrics::database_error,
    reissue,
    serve::Server,
    store::{Attendance, Job, JobLock, StoreError},
};
use proto::{statement::NodeId, time::UnixTime};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::{MissedTickBehavior, interval};

/// So much in one change at most: the log is locked meanwhile.
const BATCH: usize = 500;
const EXPIRY_INTERVAL: Duration = Duration::from_secs(600);
/// Whoever changes the root erases the former at once: this is for those who could not.
const ERASURE_INTERVAL: Duration = Duration::from_secs(60);
/// How exactly the timeout of an ephemeral node is kept.
const EPHEMERAL_INTERVAL_MIN: Duration = Duration::from_secs(1);
const EPHEMERAL_INTERVAL_MAX: Duration = Duration::from_secs(30);

/// What the jobs of this server have to know.
#[derive(Default)]
pub(crate) struct Jobs {
    is_settled: AtomicBool,
}

impl Jobs {
    /// Whether every server had the time to say who is there: else the database may know less than they do.
    pub(crate) fn handle_settled(&self, is_settled: bool) {
        self.is_settled.store(is_settled, Relaxed);
    }
}

/// A batch was not done.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JobError {
    #[error("another server has taken the job over")]
    Fenced,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<WriteError<Self>> for JobError {
    fn from(error: WriteError<Self>) -> Self {
        match error {
            WriteError::Refused(error) => error,
            WriteError::Database(error) | WriteError::Unknown(error) => Self::Store(error),
        }
    }
}

/// Runs the jobs, where they are this server's to run, for ever.
pub(crate) async fn run(server: Arc<Server>) {
    let pace = server.settings.ephemeral_timeout / 20;
    let mut ticks = interval(pace.clamp(EPHEMERAL_INTERVAL_MIN, EPHEMERAL_INTERVAL_MAX));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if !server.jobs.is_settled.load(Relaxed) {
            continue;
        }
        for (job, every) in [
            (Job::Ephemeral, ticks.period()),
            (Job::Expiry, EXPIRY_INTERVAL),
            (Job::Erasure, ERASURE_INTERVAL),
        ] {
            match run_job(&server, job, every).await {
                Ok(()) => {}
                Err(JobError::Fenced) => {
                    tracing::warn!(
                        job = job.name(),
                        "held up past its lease, this server left the job to another"
                    );
                }
                Err(JobError::Store(error)) => {
                    database_error("job");
                    tracing::debug!(%error, job = job.name(), "the job has to wait");
                }
            }
        }
    }
}

/// One round of a job, where it is due and nobody else runs it.
pub(crate) async fn run_job(server: &Server, job: Job, every: Duration) -> Result<(), JobError> {
    let store = server.cluster.store();
    // Two servers that look in turns must not skip every second time.
    let every = every.mul_f64(0.9);
    let Some(lock) = store.begin_job(job, &server.servers.me, server.settings.lease, every).await? else {
        return Ok(());
    };
    match job {
        Job::Ephemeral => remove_absent(server, lock).await?,
        Job::Expiry => forget_ended(server, lock).await?,
        Job::Root => reissue::sign_some(server, lock).await?,
        Job::Erasure => server.cluster.erase_former_root().await?,
    }
    Ok(store.end_job(lock).await?)
}

pub(crate) async fn remove_absent(server: &Server, lock: JobLock) -> Result<(), JobError> {
    let (state, online) = (server.cluster.state(), server.presence.online());
    let away = state.nodes().filter(|node| node.ephemeral && !online.contains(&node.id));
    let away: Vec<NodeId> = away.map(|node| node.id).collect();
    for nodes in away.chunks(BATCH) {
        // Without the lock first: mostly nobody has to go.
        let attendance = server.cluster.store().attendance(nodes).await?;
        let due = due(&state, &attendance, server.settings.ephemeral_timeout);
        let due: Vec<NodeId> = due.iter().map(|(node, _)| node.id).collect();
        if !due.is_empty() {
            remove_batch(server, lock, &due).await?;
        }
    }
    Ok(())
}

async fn remove_batch(server: &Server, lock: JobLock, nodes: &[NodeId]) -> Result<(), JobError> {
    let timeout = server.settings.ephemeral_timeout;
    let removed = write(server, lock, nodes, |state, now, attendance| {
        let due = due(state, attendance, timeout);
        let told: Vec<_> = due.iter().map(|(node, away)| (node.id, node.name.clone(), *away)).collect();
        (cluster::remove_all(state, due.iter().map(|(node, _)| *node), now), told)
    });
    for (node, name, away) in removed.await? {
        metrics::counter!("holdfast_ephemeral_removed_total").increment(1);
        tracing::info!(%node, name, absent_s = away.as_secs(), "an ephemeral node was removed");
    }
    Ok(())
}

/// The ephemeral nodes among those looked at that have been absent for too long, and for how long.
fn due<'a>(state: &'a State, attendance: &Attendance, timeout: Duration) -> Vec<(&'a Node, Duration)> {
    // A database that went back in time knows nothing of who came since.
    let recovered = state.recovery().map(|recovery| recovery.at);
    let served_since = recovered.map_or(attendance.served_since, |at| at.max(attendance.served_since));
    let attendance = &Attendance { served_since, ..attendance.clone() };
    let judged = attendance.nodes.iter().filter_map(|(id, seen)| {
        let node = state.node(*id).filter(|node| node.ephemeral)?;
        Some((&**node, absence(node, *seen, attendance)?))
    });
    judged.filter(|(_, away)| *away >= timeout).collect()
}

async fn forget_ended(server: &Server, lock: JobLock) -> Result<(), JobError> {
    loop {
        let forgotten = write(server, lock, &[], |state, now, _| {
            let ops = cluster::forget_ended(state, now, BATCH);
            let count = ops.len();
            (ops, count)
        });
        match forgotten.await? {
            0 => return Ok(()),
            count => tracing::info!(count, "setup keys and removals that ended long ago were forgotten"),
        }
    }
}

pub(crate) async fn write<T: Send>(
    server: &Server,
    lock: JobLock,
    nodes: &[NodeId],
    mut decide: impl FnMut(&State, UnixTime, &Attendance) -> (Vec<Op>, T) + Send,
) -> Result<T, JobError> {
    let work = JobWork { lock, ttl: server.settings.lease, nodes };
    let written = server.cluster.write_job(Actor::Server(server.id), work, |state, now, attendance| {
        attendance.map(|attendance| decide(state, now, attendance)).ok_or(JobError::Fenced)
    });
    Ok(written.await?)
}
