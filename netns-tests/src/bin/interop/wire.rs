//! The handshakes of a pair as they pass on the wire: when, and who began.

use std::fmt::{Display, Formatter};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netns_tests::capture::{Capture, Frame};
use netns_tests::topology::Host;

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
}

impl Wire {
    /// At our end's network card.
    pub(crate) fn watch(ours: &Host) -> Result<Self> {
        let capture = Capture::picking(&ours.namespace, "eth0", |frame| kind(frame).is_some())?;
        Ok(Self { capture, begun_at: Instant::now() })
    }

    /// Ours are those whose source address ends with a byte that is odd: see `main`.
    fn messages(&self) -> Vec<Message> {
        let frames = self.capture.since(self.begun_at, |_| true);
        frames.iter().filter_map(|frame| kind(frame).map(|kind| message(frame, kind))).collect()
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

fn message(frame: &Frame, (is_initiation, last): (bool, u8)) -> Message {
    Message { seen_at: frame.seen_at, is_initiation, is_ours: last % 2 == 1 }
}

/// Whether it is an initiation, and the last byte of the source address; `None` if it is neither message.
fn kind(frame: &Frame) -> Option<(bool, u8)> {
    let packet = frame.bytes.get(ETHERNET_BYTES..)?;
    let family: [u8; 2] = frame.bytes.get(12..ETHERNET_BYTES)?.try_into().ok()?;
    let (header_bytes, last) = match family {
        IPV4 => (20, *packet.get(15)?),
        IPV6 => (40, *packet.get(23)?),
        _ => return None,
    };
    let message = packet.get(header_bytes + UDP_BYTES..)?;
    match (*message.first()?, message.len()) {
        INITIATION => Some((true, last)),
        RESPONSE => Some((false, last)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(family: [u8; 2], header_bytes: usize, message: (u8, usize)) -> Frame {
        let mut bytes = vec![0; 12];
        bytes.extend(family);
        bytes.resize(ETHERNET_BYTES + header_bytes + UDP_BYTES, 3);
        bytes.push(message.0);
        bytes.resize(bytes.len() + message.1 - 1, 0);
        Frame { seen_at: Instant::now(), bytes }
    }

    #[test]
    fn both_messages_are_known_in_both_families_and_nothing_else_is() {
        assert_eq!(kind(&frame(IPV4, 20, INITIATION)), Some((true, 3)));
        assert_eq!(kind(&frame(IPV6, 40, RESPONSE)), Some((false, 3)));
        assert_eq!(kind(&frame(IPV4, 20, (4, 148))), None);
        assert_eq!(kind(&frame(IPV4, 20, (1, 92))), None);
        assert_eq!(kind(&Frame { seen_at: Instant::now(), bytes: vec![0; 20] }), None);
        assert!(message(&frame(IPV4, 20, INITIATION), (true, 3)).is_ours);
    }
}
