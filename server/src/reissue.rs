//! After the root was changed: what former roots signed is signed under the current one, the same words again, whether its node is served or not. One server at a
//! time does it, in batches, each of which goes to every agent: so the larger the cluster, the longer the pause between two.

use crate::{
    cluster::sign_anew,
    jobs::{JobError, run_job, write},
    metrics::database_error,
    serve::Server,
    store::{Job, JobLock},
};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;

/// Together small enough for one step of a map.
const BATCH: usize = 50;
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);
/// A thousand nodes are told a thousand times of each of them: so 10,000 are done within an hour, and 50 at once.
const PAUSE_PER_NODE: Duration = Duration::from_millis(1);

/// Runs for ever.
pub(crate) async fn run(server: Arc<Server>) {
    let mut changed = server.cluster.changed();
    let mut stuck = None;
    loop {
        let state = server.cluster.state();
        let left = (state.root_number(), state.under_former_roots());
        if left.1 > 0 && stuck != Some(left) && sign_anew(&state, 1).is_empty() {
            stuck = Some(left);
            tracing::error!("{}", state.not_signable_anew());
        }
        if left.1 == 0 || stuck == Some(left) {
            if changed.changed().await.is_err() {
                return;
            }
            continue;
        }
        let pause =
            SHORTEST_PAUSE.max(PAUSE_PER_NODE * u32::try_from(state.node_count()).unwrap_or(u32::MAX));
        match run_job(&server, Job::Root, pause).await {
            Ok(()) => {}
            Err(JobError::Fenced) => tracing::debug!("another server signs under the new root"),
            Err(JobError::Store(error)) => {
                database_error("job");
                tracing::debug!(%error, "what a former root signed waits for the database");
            }
        }
        sleep(pause).await;
    }
}

/// One batch.
pub(crate) async fn sign_some(server: &Server, lock: JobLock) -> Result<(), JobError> {
    let signed = write(server, lock, &[], |state, _, _| {
        let ops = sign_anew(state, BATCH);
        let count = ops.len();
        (ops, (count, state.under_former_roots() - count))
    });
    let (count, left) = signed.await?;
    tracing::info!(count, left, "signed under the new root what a former one had signed");
    Ok(())
}
