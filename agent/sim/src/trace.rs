//! What the run did: a hash of everything, and in full mode the last events as text.

use agent_core::BootTime;
use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
};

const KEPT: usize = 150;

#[derive(Debug)]
pub(crate) struct Trace {
    hasher: DefaultHasher,
    last: Option<VecDeque<String>>,
}

impl Trace {
    /// `full` costs time: texts are made of everything.
    pub(crate) fn new(full: bool) -> Self {
        Self { hasher: DefaultHasher::new(), last: full.then(VecDeque::new) }
    }

    /// Counts always; is told as text in full mode only.
    pub(crate) fn note(&mut self, now: BootTime, text: impl FnOnce() -> String) {
        now.hash(&mut self.hasher);
        let Some(last) = &mut self.last else { return };
        let text = text();
        text.hash(&mut self.hasher);
        last.push_back(format!("{:10.3} {text}", now.since_boot().as_secs_f64()));
        if last.len() > KEPT {
            last.pop_front();
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    pub(crate) fn tail(&self) -> String {
        match &self.last {
            Some(last) => last.iter().fold(String::new(), |text, line| text + "\n  " + line),
            None => "\n  (no trace: replay the seed)".to_owned(),
        }
    }
}
