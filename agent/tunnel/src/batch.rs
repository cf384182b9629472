//! Datagrams of one size to one place, alike in what they let routers say of congestion, sealed one after the other into one buffer and sent with one call (GSO).
//!
//! The kernel splits at multiples of the first datagram's size, so only the last may be shorter: it closes the
//! batch. A pure buffer; whoever fills it sends it.

use crate::socket::{Datagrams, Ecn, Path};

/// The largest UDP payload over IPv4: 65,535 less 20 for IP and 8 for UDP. 45 datagrams of 1452 bytes fit.
const MAX_BYTES: usize = 65_507;
/// UDP_MAX_SEGMENTS of Linux before 6.9.
const MAX_DATAGRAMS: usize = 64;

#[derive(Debug)]
pub(crate) struct Batch {
    buffer: Box<[u8]>,
    len: usize,
    /// The first datagram's size.
    segment: usize,
    count: usize,
    closed: bool,
    path: Option<Path>,
    ecn: Option<Ecn>,
}

impl Batch {
    pub(crate) fn new() -> Self {
        let buffer = vec![0; MAX_BYTES].into_boxed_slice();
        Self { buffer, len: 0, segment: 0, count: 0, closed: false, path: None, ecn: None }
    }

    /// Whether a datagram may join. If not, the batch must be sent and cleared; an empty one takes any up to the
    /// largest UDP payload.
    pub(crate) fn takes(&self, path: Path, ecn: Option<Ecn>, size: usize) -> bool {
        let fits = size <= MAX_BYTES - self.len;
        let is_alike = self.path == Some(path) && self.ecn == ecn;
        let follows = is_alike && !self.closed && size <= self.segment && self.count < MAX_DATAGRAMS;
        fits && (self.count == 0 || follows)
    }

    /// Where the next datagram goes.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[self.len..]
    }

    /// Adds what was written to the room. The batch takes it ([`Batch::takes`]).
    pub(crate) fn keep(&mut self, path: Path, ecn: Option<Ecn>, size: usize) {
        if self.count == 0 {
            (self.path, self.ecn) = (Some(path), ecn);
            self.segment = size;
        }
        self.closed = size < self.segment;
        self.len += size;
        self.count += 1;
    }

    /// `None` if empty.
    pub(crate) fn contents(&self) -> Option<(Path, Datagrams<'_>)> {
        let datagrams = Datagrams { bytes: &self.buffer[..self.len], segment: self.segment, ecn: self.ecn };
        self.path.map(|path| (path, datagrams))
    }

    pub(crate) fn clear(&mut self) {
        (self.len, self.segment, self.count, self.closed, self.path) = (0, 0, 0, false, None);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(port: u16) -> Path {
        Path::to(([192, 0, 2, 1], port).into())
    }

    #[test]
    fn forty_five_full_datagrams_fit_and_64_small_ones() {
        for (size, expected) in [(1452, 45), (100, 64)] {
            let mut batch = Batch::new();
            while batch.takes(address(1), None, size) {
                batch.keep(address(1), None, size);
            }
            assert_eq!(batch.count, expected);
        }
    }

    #[test]
    fn a_shorter_datagram_closes_and_a_longer_one_or_another_place_does_not_join() {
        let mut batch = Batch::new();
        batch.keep(address(1), None, 100);
        assert!(!batch.takes(address(1), None, 101) && !batch.takes(address(2), None, 100));
        batch.keep(address(1), None, 99);
        assert!(!batch.takes(address(1), None, 99));
        batch.clear();
        assert!(batch.contents().is_none() && batch.takes(address(2), None, 101));
    }

    #[test]
    fn more_than_one_udp_payload_is_never_taken() {
        assert!(
            Batch::new().takes(address(1), None, MAX_BYTES)
                && !Batch::new().takes(address(1), None, MAX_BYTES + 1)
        );
    }

    proptest! {
        /// Whatever is put in, in whatever order, comes out as the same datagrams after the kernel's split.
        #[test]
        fn splitting_a_batch_gives_back_its_datagrams(
            datagrams in proptest::collection::vec((1u16..3, 1usize..4, any::<u8>()), 1..300),
        ) {
            let (mut batch, mut sent) = (Batch::new(), Vec::new());
            let mut send = |batch: &mut Batch| {
                if let Some((to, datagrams)) = batch.contents() {
                    let split = datagrams.bytes.chunks(datagrams.segment);
                    sent.extend(split.map(|datagram| (to, datagrams.ecn, datagram.to_vec())));
                }
                batch.clear();
            };
            let expected: Vec<_> =
                datagrams.iter().map(|&(port, size, byte)| (address(port), Ecn::from_bits(byte), vec![byte; size * 500])).collect();
            for (to, ecn, datagram) in &expected {
                if !batch.takes(*to, *ecn, datagram.len()) {
                    send(&mut batch);
                }
                batch.room()[..datagram.len()].copy_from_slice(datagram);
                batch.keep(*to, *ecn, datagram.len());
            }
            send(&mut batch);
            prop_assert_eq!(sent, expected);
        }
    }
}
