//! Rows in the making: labs of their own, some at the same time, told as they are done.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::Bench;
use crate::table::{Row, Table};

/// What runs beside what: so many of each at once leave two processors mostly idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    Ours,
    Theirs,
    /// What mostly waits, for minutes.
    Long,
}

impl Lane {
    fn width(self) -> usize {
        match self {
            Self::Ours | Self::Theirs => 3,
            Self::Long => 2,
        }
    }
}

type Work = Box<dyn FnOnce(&Bench, &str) -> Result<Vec<Row>> + Send>;

/// A lab, and the rows that come out of it.
pub(crate) struct Job {
    what: String,
    who: String,
    lane: Lane,
    work: Work,
}

impl Job {
    /// The work gets the name of a directory of its own.
    pub(crate) fn new(
        what: &str,
        who: &str,
        lane: Lane,
        work: impl FnOnce(&Bench, &str) -> Result<Vec<Row>> + Send + 'static,
    ) -> Self {
        Self { what: what.to_owned(), who: who.to_owned(), lane, work: Box::new(work) }
    }

    pub(crate) fn name(&self) -> String {
        format!("{}, {}", self.who, self.what)
    }
}

/// What is done so far: each job's rows at its place.
pub(crate) struct Run {
    rows: Arc<Mutex<Vec<Vec<Row>>>>,
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_interruption(_signal: i32) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

impl Run {
    pub(crate) fn new(jobs: &[Job]) -> Self {
        Self { rows: Arc::new(Mutex::new(jobs.iter().map(|_| Vec::new()).collect())) }
    }

    /// A signal ends the run with the table of what is done.
    pub(crate) fn end_well_when_interrupted(&self) {
        let action =
            SigAction::new(SigHandler::Handler(note_interruption), SaFlags::SA_RESTART, SigSet::empty());
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            // SAFETY: the handler stores a flag, which is allowed in handlers.
            unsafe { sigaction(signal, &action) }.ok();
        }
        let run = Self { rows: Arc::clone(&self.rows) };
        std::thread::spawn(move || {
            while !INTERRUPTED.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
            }
            println!("\nended early\n\n{}", run.table());
            std::process::exit(130);
        });
    }

    pub(crate) fn work_through(&self, bench: &Bench, jobs: Vec<Job>) {
        let mut queues: Vec<(Lane, Queue)> = Vec::new();
        for (place, job) in jobs.into_iter().enumerate() {
            match queues.iter_mut().find(|(lane, _)| *lane == job.lane) {
                Some((_, queue)) => queue.push_back((place, job)),
                None => queues.push((job.lane, VecDeque::from([(place, job)]))),
            }
        }
        let queues: Vec<(Lane, Mutex<Queue>)> =
            queues.into_iter().map(|(lane, queue)| (lane, Mutex::new(queue))).collect();
        std::thread::scope(|scope| {
            for (lane, queue) in &queues {
                for _ in 0..lane.width() {
                    scope.spawn(|| self.take_from(queue, bench));
                }
            }
        });
    }

    fn take_from(&self, queue: &Mutex<Queue>, bench: &Bench) {
        while let Some((place, job)) = next(queue) {
            let directory = format!("{place}");
            let rows = (job.work)(bench, &directory)
                .unwrap_or_else(|error| vec![Row::failed(&job.what, &job.who, &error)]);
            rows.iter().for_each(|row| println!("{row}"));
            self.rows()[place] = rows;
        }
    }

    fn rows(&self) -> MutexGuard<'_, Vec<Vec<Row>>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn table(&self) -> String {
        Table(self.rows().iter().flatten().collect()).to_string()
    }

    pub(crate) fn missed(&self) -> usize {
        self.rows().iter().flatten().filter(|row| row.is_kept() == Some(false)).count()
    }

    pub(crate) fn unmeasured(&self) -> usize {
        self.rows().iter().flatten().filter(|row| !row.is_measured()).count()
    }
}

type Queue = VecDeque<(usize, Job)>;

fn next(queue: &Mutex<Queue>) -> Option<(usize, Job)> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}
