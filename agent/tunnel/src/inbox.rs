//! How the workers of a tunnel are asked something, each by itself or all in the same order.

use std::sync::{
    Arc, Mutex, PoisonError,
    mpsc::{Sender, SyncSender, sync_channel},
};

use crate::{tunnel::Request, wait::Waker};

/// One worker's.
#[derive(Debug, Clone)]
pub(crate) struct Inbox {
    requests: Sender<Request>,
    waker: Waker,
}

impl Inbox {
    pub(crate) fn new(requests: Sender<Request>, waker: Waker) -> Self {
        Self { requests, waker }
    }

    pub(crate) fn send(&self, request: Request) {
        if self.requests.send(request).is_ok() {
            self.waker.wake();
        }
    }

    pub(crate) fn wake(&self) {
        self.waker.wake();
    }
}

/// All workers', in order; there is at least one.
#[derive(Debug, Clone)]
pub(crate) struct Inboxes {
    all: Arc<[Inbox]>,
    /// Held while all are sent something: workers that hear of changes in different orders would disagree.
    order: Arc<Mutex<()>>,
}

impl Inboxes {
    pub(crate) fn new(all: Vec<Inbox>) -> Self {
        Self { all: all.into(), order: Arc::default() }
    }

    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn of(&self, number: usize) -> &Inbox {
        &self.all[number]
    }

    /// Sends everybody one, the first last: it tells the kernel of routes, and then packets come to others.
    pub(crate) fn send_all(&self, mut request: impl FnMut() -> Request) {
        let _order = (self.all.len() > 1).then(|| self.order.lock().unwrap_or_else(PoisonError::into_inner));
        self.all.iter().rev().for_each(|inbox| inbox.send(request()));
    }

    /// Asks everybody, and waits for the answers, in order of the workers. Whoever has ended gives none.
    pub(crate) fn ask_all<T>(&self, mut request: impl FnMut(SyncSender<T>) -> Request) -> Vec<Option<T>> {
        let mut answers = Vec::new();
        self.send_all(|| {
            let (reply, answer) = sync_channel(1);
            answers.push(answer);
            request(reply)
        });
        answers.into_iter().rev().map(|answer| answer.recv().ok()).collect()
    }
}
