//! What an interface's program has taken of the packets that its system had for it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::namespace::Namespace;
use crate::wait::wait_until;

const TIMEOUT: Duration = Duration::from_secs(60);
/// A line for each interface; a room has few.
const MAX_BYTES: usize = 4096;
/// Where they are in a line.
const TAKEN: usize = 9;
const REFUSED: usize = 11;

pub(crate) struct Intake {
    file: File,
    interface: String,
}

impl Intake {
    pub(crate) fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        // Once open, it tells of that namespace wherever it is read.
        let file = namespace.run(|| File::open("/proc/thread-self/net/dev"))?;
        Ok(Self { file: file.context("the interfaces' counters")?, interface: interface.to_owned() })
    }

    /// Packets that were read from the queue.
    pub(crate) fn taken(&self) -> Result<u64> {
        self.count(TAKEN)
    }

    /// Packets for which the queue had no room.
    pub(crate) fn refused(&self) -> Result<u64> {
        self.count(REFUSED)
    }

    /// Until so many were taken in all.
    pub(crate) fn wait(&self, taken: u64) -> Result<()> {
        wait_until("the packets are taken", TIMEOUT, || Ok((self.taken()? >= taken).then_some(())))
    }

    fn count(&self, column: usize) -> Result<u64> {
        let mut bytes = [0; MAX_BYTES];
        let len = self.file.read_at(&mut bytes, 0)?;
        let text = String::from_utf8_lossy(&bytes[..len]);
        column_of(&text, &self.interface, column)
            .with_context(|| format!("no counters of {} in {text:?}", self.interface))
    }
}

fn column_of(text: &str, interface: &str, column: usize) -> Option<u64> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, counters) = lines.into_iter().find(|(name, _)| name.trim() == interface)?;
    counters.split_whitespace().nth(column)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_interface_and_column() {
        let text = "Inter-|   Receive                    |  Transmit\n face |bytes    packets errs drop\n    lo: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n\
                    wg0: 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25\n";
        let count = |interface, column| column_of(text, interface, column);
        assert_eq!(
            (count("wg0", TAKEN), count("wg0", REFUSED), count("wg", TAKEN)),
            (Some(19), Some(21), None)
        );
    }
}
