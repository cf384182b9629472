//! Whether a batch of datagrams is handed to the kernel as one (GSO), after calls that were refused.
//!
//! A refused batch is never lost: its datagrams are sent one by one. What is decided here is when the next one is tried
//! as a whole again. Time is counted in batches, so that no clock is read.

use std::{io, net::SocketAddr};

/// For how many batches a refusal is believed. One call too many in that many is not felt.
const PAUSE: u32 = 4096;
/// As long, for one destination; the way there may change at any time.
const NARROW_PAUSE: u32 = 256;

/// Why a batch was refused as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The kernel or the device beneath does not split.
    Unsupported,
    /// Its datagrams are larger than the way there takes: the kernel does not both split and fragment.
    TooWide,
    /// There is no memory, or no room, for so much at once.
    TooMuch,
    /// None of its datagrams would be taken, either.
    Final,
}

impl Refusal {
    pub(crate) fn of(error: &io::Error) -> Self {
        use io::ErrorKind;
        if quinn_udp::is_msg_size_err(error) {
            return Self::TooWide;
        }
        #[cfg(unix)]
        if matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EOPNOTSUPP)) {
            return Self::Unsupported;
        }
        let hopeless = [
            ErrorKind::NetworkUnreachable,
            ErrorKind::HostUnreachable,
            ErrorKind::NetworkDown,
            ErrorKind::AddrNotAvailable,
            ErrorKind::PermissionDenied,
        ];
        if hopeless.contains(&error.kind()) { Self::Final } else { Self::TooMuch }
    }
}

/// What was refused lately on one socket.
#[derive(Debug, Default)]
pub(crate) struct Gso {
    /// Batches until it is tried again.
    pause: u32,
    /// A destination, the size of a datagram that was too wide for the way there, and batches until it is tried again.
    narrow: Option<(SocketAddr, usize, u32)>,
}

impl Gso {
    /// Whether the next batch is tried as a whole.
    pub(crate) fn is_due(&mut self, to: SocketAddr, segment: usize) -> bool {
        if self.pause > 0 {
            self.pause -= 1;
            return false;
        }
        match &mut self.narrow {
            Some((narrow, width, pause)) if *narrow == to && segment >= *width => {
                *pause -= 1;
                if *pause == 0 {
                    self.narrow = None;
                }
                false
            }
            Some(_) | None => true,
        }
    }

    #[cfg(test)]
    pub(crate) fn is_paused(&self) -> bool {
        self.pause > 0
    }

    /// Sent one by one, datagrams were taken.
    pub(crate) fn on_refusal(&mut self, why: Refusal, to: SocketAddr, segment: usize) {
        match why {
            Refusal::Unsupported => self.pause = PAUSE,
            Refusal::TooWide => self.narrow = Some((to, segment, NARROW_PAUSE)),
            Refusal::TooMuch | Refusal::Final => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(port: u16) -> SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    #[test]
    fn a_narrow_way_is_nobody_elses_and_is_tried_again() {
        let mut gso = Gso::default();
        gso.on_refusal(Refusal::TooWide, to(1), 1452);
        assert!(gso.is_due(to(2), 1452) && gso.is_due(to(1), 1451));
        for _ in 0..NARROW_PAUSE {
            assert!(!gso.is_due(to(1), 1452));
        }
        assert!(gso.is_due(to(1), 1452));
    }

    #[test]
    fn what_is_not_supported_is_tried_again_after_a_while_and_want_of_memory_at_once() {
        let mut gso = Gso::default();
        gso.on_refusal(Refusal::TooMuch, to(1), 1452);
        assert!(gso.is_due(to(1), 1452));
        gso.on_refusal(Refusal::Unsupported, to(1), 1452);
        for number in 0..PAUSE {
            assert!(!gso.is_due(to(number as u16), 100));
        }
        assert!(gso.is_due(to(1), 1452));
    }
}
