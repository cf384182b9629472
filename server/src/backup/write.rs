//! Writing a backup.

use super::{Header, Trailer};
use crate::cluster::{Entity, Snapshot};
use blake2::{Blake2s256, Digest};
use proto::time::UnixTime;
use serde::Serialize;
use std::io::{self, BufWriter, Write};

/// Counts what passes into the checksum.
struct Summed<W: Write> {
    out: BufWriter<W>,
    sum: Blake2s256,
}

impl<W: Write> Summed<W> {
    fn line(&mut self, value: &impl Serialize) -> io::Result<()> {
        let mut line = zeroize::Zeroizing::new(serde_json::to_vec(value)?);
        line.push(b'\n');
        self.sum.update(&*line);
        self.out.write_all(&line)
    }
}

/// # Errors
/// `out` cannot be written.
pub(crate) fn write(snapshot: &Snapshot, created_at: UnixTime, out: impl Write) -> io::Result<()> {
    let mut summed = Summed { out: BufWriter::new(out), sum: Blake2s256::new() };
    summed.line(&Header::of(snapshot, created_at))?;
    let nodes = snapshot.nodes.iter().map(|node| Entity::Node(Box::new(node.clone())));
    let keys = snapshot.setup_keys.iter().map(|key| Entity::SetupKey(Box::new(key.clone())));
    let removals = snapshot.removals.iter().map(|removed| Entity::Removal(Box::new(removed.clone())));
    for entity in nodes.chain(keys).chain(removals) {
        summed.line(&entity)?;
    }
    let checksum = summed.sum.clone().finalize().into();
    summed.line(&Trailer::End { checksum })?;
    summed.out.flush()
}
