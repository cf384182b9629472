//! What of a capture's stream is passed on: whole blocks, up to the limits, and the counts at the end in any case.

use super::size::Size;
use crate::capture::pcapng::{Block, Nonsense, next_block};
use std::fmt;

/// Of the block with the counts, which always has its place.
const TAIL_BYTES: u64 = 64;

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Limits {
    pub(super) bytes: Option<u64>,
    pub(super) packets: Option<u64>,
}

/// Which limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    Bytes(u64),
    Packets(u64),
}

#[derive(Debug)]
pub(super) struct Recording {
    limits: Limits,
    /// Of a block that has not arrived whole.
    rest: Vec<u8>,
    passed: Vec<u8>,
    pub(super) bytes: u64,
    pub(super) packets: u64,
    /// Lost on the way; known from the end only.
    pub(super) dropped: Option<u64>,
    pub(super) full: Option<Full>,
}

impl Recording {
    pub(super) fn new(limits: Limits) -> Self {
        let (rest, passed) = (Vec::new(), Vec::new());
        Self { limits, rest, passed, bytes: 0, packets: 0, dropped: None, full: None }
    }

    /// Takes what arrived; what of it is to be written.
    pub(super) fn take(&mut self, received: &[u8]) -> Result<&[u8], Nonsense> {
        let mut bytes = std::mem::take(&mut self.rest);
        bytes.extend_from_slice(received);
        let mut left = &bytes[..];
        self.passed.clear();
        while let Some((kind, block)) = next_block(&mut left)? {
            self.handle_block(kind, block);
        }
        self.rest = left.to_vec();
        Ok(&self.passed)
    }

    fn handle_block(&mut self, kind: Block, block: &[u8]) {
        let size = block.len() as u64;
        match kind {
            Block::Statistics { dropped } => self.dropped = Some(dropped),
            Block::Packet | Block::Other => {
                let is_over = |limit: &u64| self.bytes + size + TAIL_BYTES > *limit;
                if let Some(limit) = self.limits.bytes.filter(is_over) {
                    self.full.get_or_insert(Full::Bytes(limit));
                }
                if self.full.is_some() {
                    return;
                }
                if kind == Block::Packet {
                    self.packets += 1;
                    let is_reached = |limit: &u64| self.packets >= *limit;
                    self.full = self.limits.packets.filter(is_reached).map(Full::Packets);
                }
            }
        }
        self.bytes += size;
        self.passed.extend_from_slice(block);
    }
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(limit) => write!(f, "the limit of {} is reached", Size(*limit)),
            Self::Packets(limit) => write!(f, "{limit} packets are captured, as asked for"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block of this kind and size.
    fn block(kind: u32, size: usize) -> Vec<u8> {
        let mut block = kind.to_le_bytes().to_vec();
        block.extend((size as u32).to_le_bytes());
        block.resize(size - 4, 0);
        block.extend((size as u32).to_le_bytes());
        block
    }

    fn stream() -> Vec<u8> {
        let head = block(0x0a0d_0d0a, 28);
        let packets = (0..10).flat_map(|_| block(6, 100));
        head.into_iter().chain(packets).chain(block(5, 44)).collect()
    }

    /// Passed on in pieces of this many bytes.
    fn record(limits: Limits, piece: usize) -> (Recording, Vec<u8>) {
        let (mut recording, mut written) = (Recording::new(limits), Vec::new());
        for piece in stream().chunks(piece) {
            written.extend_from_slice(recording.take(piece).unwrap());
        }
        (recording, written)
    }

    #[test]
    fn without_limits_everything_is_passed_on_however_it_arrives() {
        for piece in [1, 7, 100, 5000] {
            let (recording, written) = record(Limits::default(), piece);
            assert_eq!((written, recording.packets, recording.full), (stream(), 10, None));
            assert_eq!(recording.dropped, Some(0));
        }
    }

    #[test]
    fn the_size_is_never_beyond_its_limit_and_the_counts_are_always_there() {
        let limits = Limits { bytes: Some(400), packets: None };
        let (recording, written) = record(limits, 64);
        assert_eq!((recording.packets, recording.full), (3, Some(Full::Bytes(400))));
        assert!(written.len() <= 400 && written.ends_with(&block(5, 44)));
    }

    #[test]
    fn the_last_packet_asked_for_is_the_last_one_written() {
        let (recording, written) = record(Limits { bytes: None, packets: Some(4) }, 333);
        assert_eq!((recording.packets, recording.full), (4, Some(Full::Packets(4))));
        assert_eq!(written.len(), 28 + 4 * 100 + 44);
    }
}
