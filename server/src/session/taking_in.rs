//! Nodes that a database lost come back many at once. Those that come while one change is being made go into the next one together: whoever waits first makes it for
//! all that wait. Who goes while it makes a change leaves the others to ask again.

use crate::{
    cluster::{Actor, Readopted, Returning, readopt_all},
    follow::WriteError,
    serve::Server,
    store::StoreError,
};
use std::{
    convert::Infallible,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::oneshot;

/// Nodes in one change at most.
const BATCH: usize = 500;

type Answer = Result<Readopted, StoreError>;

/// Nodes that wait to be taken in again; as many as there are connections at most.
#[derive(Default)]
pub(crate) struct Returns {
    waiting: Mutex<Vec<(Returning, oneshot::Sender<Answer>)>>,
    turn: tokio::sync::Mutex<()>,
}

impl Returns {
    fn waiting(&self) -> MutexGuard<'_, Vec<(Returning, oneshot::Sender<Answer>)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.waiting().len()
    }

    fn take(&self) -> Vec<(Returning, oneshot::Sender<Answer>)> {
        let mut waiting = self.waiting();
        waiting.retain(|(_, answer)| !answer.is_closed());
        let count = waiting.len().min(BATCH);
        waiting.drain(..count).collect()
    }
}

/// Takes the node in again, in one change with others that wait.
pub(super) async fn take_in(server: &Server, returning: &Returning) -> Answer {
    loop {
        let (answer, mut answered) = oneshot::channel();
        server.returns.waiting().push((returning.clone(), answer));
        let told = loop {
            tokio::select! {
                biased;
                told = &mut answered => break told,
                _turn = server.returns.turn.lock() => write_batch(server).await,
            }
        };
        if let Ok(answer) = told {
            return answer;
        }
    }
}

async fn write_batch(server: &Server) {
    let (returning, answers): (Vec<_>, Vec<_>) = server.returns.take().into_iter().unzip();
    if returning.is_empty() {
        return;
    }
    let written = server
        .cluster
        .write::<_, Infallible>(Actor::Recovery, |state, now| Ok(readopt_all(state, now, &returning)));
    let outcomes = match written.await {
        Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
        Err(WriteError::Refused(never)) => match never {},
        Err(WriteError::Database(error) | WriteError::Unknown(error)) => vec![Err(error); answers.len()],
    };
    let count = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Readopted::In))).count();
    if count > 0 {
        tracing::info!(count, "took in again nodes that the database had lost");
    }
    for (answer, outcome) in answers.into_iter().zip(outcomes) {
        // Whoever asked may have gone.
        answer.send(outcome).ok();
    }
}
