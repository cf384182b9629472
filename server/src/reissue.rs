//! After the root was changed: what former roots signed is signed under the current one, the same words again, whether its node is served or not. One server at a
//! time does it, in batches, each of which goes to every agent: so the larger the cluster, the longer the pause between two.

use crate::{
    cluster::{State, sign_anew},
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
    let mut rest = Rest::default();
    loop {
        let state = server.cluster.state();
        match rest.of(&state) {
            Work::Some => {}
            Work::None => {
                if changed.changed().await.is_err() {
                    return;
                }
                continue;
            }
            Work::Stuck => {
                tracing::error!("{}", state.not_signable_anew());
                continue;
            }
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

/// What is under former roots, as far as it was looked at.
#[derive(Debug, Default)]
struct Rest {
    /// By the root's number, so much that nobody can sign anew, and of which was told.
    stuck: Option<(u32, usize)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Work {
    Some,
    None,
    /// Nothing of the rest can be signed, which is news.
    Stuck,
}

impl Rest {
    fn of(&mut self, state: &State) -> Work {
        let left = (state.root_number(), state.under_former_roots());
        if left.1 == 0 || self.stuck == Some(left) {
            return Work::None;
        }
        if !sign_anew(state, 1).is_empty() {
            return Work::Some;
        }
        self.stuck = Some(left);
        Work::Stuck
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{
        Node, Op,
        testing::{self, rotated},
    };

    #[test]
    fn what_cannot_be_signed_anew_is_told_once_and_again_when_it_is_something_else() {
        let (state, node) = testing::with_node("forged");
        let mut state = rotated(&state, 1);
        let forged = |node: &Node| Op::put_node(Node { membership: b"nonsense".to_vec(), ..node.clone() });
        testing::apply(&mut state, vec![forged(&node)]);
        let mut rest = Rest::default();
        assert_eq!(
            [rest.of(&state), rest.of(&state), rest.of(&state)],
            [Work::Stuck, Work::None, Work::None]
        );
        let other = testing::enrol(&mut state, "other");
        assert_eq!(rest.of(&state), Work::None, "a change of something else is no news");
        let mut state = rotated(&state, 2);
        assert_eq!(rest.of(&state), Work::Some, "the other one can be signed");
        testing::apply(&mut state, vec![forged(&other)]);
        assert_eq!([rest.of(&state), rest.of(&state)], [Work::Stuck, Work::None]);
    }
}
