//! The handshakes of a pair as they pass on the wire: when, and who began.

use std::fmt::{Display, Formatter};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netns_tests::capture::{Capture, Frame};
use netns_tests::topology::Host;

use crate::end::ROAMED_BY;

const ETHERNET_BYTES: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const UDP_BYTES: usize = 8;
/// The first byte and the length of the two messages.
const INITIATION: (u8, usize) = (1, 148);
const RESPONSE: (u8, usize) = (2, 92);

/// One message of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) seen_at: Instant,
    pub(crate) is_initiation: bool,
    pub(crate) is_ours: bool,
}

/// All that were seen since the beginning.
pub(crate) struct Wire {
    capture: Capture,
    begun_at: Instant,
    /// The last bytes of both ends' addresses.
    ends: [u8; 2],
}

impl Wire {
    /// At our end's network card. A switch tells everybody what is for hosts that are gone, so this pair's alone are counted.
    pub(crate) fn watch(ours: &Host, ends: [u8; 2]) -> Result<Self> {
        let capture = Capture::picking(&ours.namespace, "eth0", |frame| parse(frame).is_some())?;
        Ok(Self { capture, begun_at: Instant::now(), ends })
    }

    fn messages(&self) -> Vec<Message> {
        let frames = self.capture.since(self.begun_at, |_| true);
        frames.iter().filter_map(|frame| message(frame, self.ends)).collect()
    }

    /// The last answer to an initiation: as old is the session.
    pub(crate) fn last(&self) -> Result<Message> {
        let last = self.messages().into_iter().rfind(|message| !message.is_initiation);
        last.context("no handshake was seen")
    }
}

impl Display for Wire {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        for (index, Message { seen_at, is_initiation, is_ours }) in self.messages().into_iter().enumerate() {
            let (comma, side) = (if index == 0 { "" } else { ", " }, if is_ours { "ours" } else { "theirs" });
            let what = if is_initiation { "begins" } else { "answers" };
            let at = seen_at.saturating_duration_since(self.begun_at);
            write!(f, "{comma}{side} {what} at {:.2} s", Duration::as_secs_f64(&at))?;
        }
        Ok(())
    }
}

/// `None` if it is others'.
fn message(frame: &Frame, [ours, theirs]: [u8; 2]) -> Option<Message> {
    let (is_initiation, addresses) = parse(frame)?;
    let is_between = |from, to| addresses.map(|address| address % ROAMED_BY) == [from, to];
    let is_ours = is_between(ours, theirs);
    let known = is_ours || is_between(theirs, ours);
    known.then_some(Message { seen_at: frame.seen_at, is_initiation, is_ours })
}

/// Whether it is an initiation, and the last bytes of source and destination; `None` if it is neither message.
fn parse(frame: &Frame) -> Option<(bool, [u8; 2])> {
    let packet = frame.bytes.get(ETHERNET_BYTES..)?;
    let family: [u8; 2] = frame.bytes.get(12..ETHERNET_BYTES)?.try_into().ok()?;
    let (header_bytes, addresses) = match family {
        IPV4 => (20, [*packet.get(15)?, *packet.get(19)?]),
        IPV6 => (40, [*packet.get(23)?, *packet.get(39)?]),
        _ => return None,
    };
    let message = packet.get(header_bytes + UDP_BYTES..)?;
    match (*message.first()?, message.len()) {
        INITIATION => Some((true, addresses)),
        RESPONSE => Some((false, addresses)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(
        family: [u8; 2],
        addresses: [(usize, u8); 2],
        header_bytes: usize,
        message: (u8, usize),
    ) -> Frame {
        let mut bytes = vec![0; 12];
        bytes.extend(family);
        bytes.resize(ETHERNET_BYTES + header_bytes + UDP_BYTES, 0);
        addresses.iter().for_each(|&(place, last)| bytes[ETHERNET_BYTES + place] = last);
        bytes.push(message.0);
        bytes.resize(bytes.len() + message.1 - 1, 0);
        Frame { seen_at: Instant::now(), bytes }
    }

    #[test]
    fn both_messages_are_known_in_both_families_and_nothing_else_is() {
        let v4 = |message| frame(IPV4, [(15, 3), (19, 4)], 20, message);
        assert_eq!(parse(&v4(INITIATION)), Some((true, [3, 4])));
        assert_eq!(parse(&frame(IPV6, [(23, 4), (39, 3)], 40, RESPONSE)), Some((false, [4, 3])));
        assert_eq!(parse(&v4((4, 148))), None);
        assert_eq!(parse(&v4((1, 92))), None);
        assert_eq!(parse(&Frame { seen_at: Instant::now(), bytes: vec![0; 20] }), None);
    }

    #[test]
    fn a_pairs_messages_are_its_own_wherever_it_roams() {
        let from_to = |from, to| frame(IPV4, [(15, from), (19, to)], 20, INITIATION);
        assert!(message(&from_to(3, 4), [3, 4]).unwrap().is_ours);
        assert!(!message(&from_to(104, 3), [3, 4]).unwrap().is_ours);
        assert_eq!(message(&from_to(6, 5), [3, 4]), None);
    }
}
