//! How far both sides of a TCP connection have come, as far as it was seen. A reset is believed only if it bears exactly the number that its receiver expects next
//! (RFC 9293, 3.5.3); any other is dropped, or answered with a challenge.

use super::header::{ACK, FIN, RST, SYN};

/// Without options.
const HEADER: usize = 20;

/// What a segment says of its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) flags: u8,
    /// What its receiver has when it has this: its last number and one.
    end: u32,
    /// What its sender expects next, if it has the flag for it.
    pub(super) acknowledged: u32,
}

impl Segment {
    /// Of header and payload; `None`: the header is cut short.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER] = bytes.first_chunk()?;
        let number =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let flags = header[13];
        let payload = bytes.len().saturating_sub(usize::from(header[12] >> 4) * 4);
        // An IP packet has at most 65,535 bytes.
        let len = payload as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        Some(Self { flags, end: number(4).wrapping_add(len), acknowledged: number(8) })
    }
}

/// What one side has sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Progress {
    end: Option<u32>,
    acknowledged: Option<u32>,
}

impl Progress {
    pub(super) fn advance(&mut self, segment: &Segment) {
        if segment.flags & RST != 0 {
            return;
        }
        keep_later(&mut self.end, segment.end);
        if segment.flags & ACK != 0 {
            keep_later(&mut self.acknowledged, segment.acknowledged);
        }
    }

    /// Whether this side has answered anything: an unanswered SYN has not.
    pub(super) fn has_answered(&self) -> bool {
        self.acknowledged.is_some()
    }

    /// What this side may expect next, given what the other has sent: what it has acknowledged, and, since it may have more by now, the end of
    /// what it was sent.
    pub(super) fn expected(&self, other: &Self) -> [Option<u32>; 2] {
        [self.acknowledged, other.end.filter(|end| Some(*end) != self.acknowledged)]
    }
}

/// Numbers wrap.
fn keep_later(known: &mut Option<u32>, number: u32) {
    if known.is_none_or(|known| number.wrapping_sub(known) as i32 > 0) {
        *known = Some(number);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segment(flags: u8, sequence: u32, acknowledged: u32, payload: usize) -> Segment {
        let mut bytes = vec![0; HEADER + payload];
        bytes[4..8].copy_from_slice(&sequence.to_be_bytes());
        bytes[8..12].copy_from_slice(&acknowledged.to_be_bytes());
        (bytes[12], bytes[13]) = (5 << 4, flags);
        Segment::read(&bytes).unwrap()
    }

    #[test]
    fn a_handshake_and_its_end_count_one_each() {
        let (mut here, mut there) = (Progress::default(), Progress::default());
        here.advance(&segment(SYN, 99, 7, 0));
        assert!(!here.has_answered(), "the number of a segment without ACK is none");
        there.advance(&segment(SYN | ACK, 499, 100, 0));
        assert_eq!(here.expected(&there), [None, Some(500)]);
        here.advance(&segment(ACK, 100, 500, 0));
        assert_eq!((here.expected(&there), there.expected(&here)), ([Some(500), None], [Some(100), None]));
        there.advance(&segment(ACK | FIN, 500, 100, 20));
        assert_eq!(here.expected(&there), [Some(500), Some(521)]);
    }

    #[test]
    fn what_is_repeated_or_probed_with_takes_nothing_back_and_resets_say_nothing() {
        let mut side = Progress::default();
        side.advance(&segment(ACK, 1000, 50, 100));
        let before = side;
        for repeated in
            [segment(ACK, 999, 50, 0), segment(ACK, 1000, 40, 50), segment(RST | ACK, 5000, 5000, 0)]
        {
            side.advance(&repeated);
            assert_eq!(side, before);
        }
    }

    #[test]
    fn options_are_no_payload_and_nonsense_is_no_panic() {
        let mut bytes = [0; 44];
        (bytes[12], bytes[13]) = (8 << 4, ACK);
        assert_eq!(Segment::read(&bytes).unwrap().end, 12);
        bytes[12] = 15 << 4;
        assert_eq!(Segment::read(&bytes).unwrap().end, 0);
        assert_eq!(Segment::read(&bytes[..19]), None);
    }

    proptest! {
        /// Wherever the numbers begin, and wrap.
        #[test]
        fn the_end_is_what_was_sent_in_whatever_order(first in any::<u32>(), mut sizes in proptest::collection::vec(1u32..2000, 1..20)) {
            let mut at = first;
            let mut segments: Vec<Segment> = sizes.drain(..).map(|size| {
                let sent = segment(ACK, at, at.wrapping_add(77), size as usize);
                at = at.wrapping_add(size);
                sent
            }).collect();
            let last = segments[segments.len() - 1];
            let half = segments.len() / 2;
            segments.rotate_left(half);
            let mut side = Progress::default();
            segments.iter().for_each(|segment| side.advance(segment));
            prop_assert_eq!(side, Progress { end: Some(at), acknowledged: Some(last.acknowledged) });
        }
    }
}
