//! Whether a batch of datagrams is handed to the kernel as one (GSO), after calls that were refused.
//!
//! A refused batch is never lost: its datagrams are sent one by one. What is decided here is when the next one is tried
//! as a whole again. A refusal counts for its destination alone: a narrow way is refused with EINVAL by many kernels, as is what
//! the kernel cannot do, and whoever is at the other end may make its way look narrow. Only many of them without a success
//! between speak for the socket, and not for long. Time is counted in batches, so that no clock is read.

use std::{io, net::SocketAddr};

/// For how many batches a destination's refusal is believed; the way there may change at any time.
const PAUSE: u32 = 256;
/// For how many batches, of all, the socket's is. One call too many in that many is not felt.
const SOCKET_PAUSE: u32 = 64;
/// So many destinations, one after the other, speak for the socket.
const IN_A_ROW: u32 = 8;
/// Destinations remembered; more are told apart by asking again.
const MAX_REFUSED: usize = 16;

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

/// A destination's batches of datagrams of `width` bytes or more.
#[derive(Debug)]
struct Refused {
    to: SocketAddr,
    width: usize,
    /// Batches until it is tried again.
    pause: u32,
}

/// What was refused lately on one socket.
#[derive(Debug, Default)]
pub(crate) struct Gso {
    refused: Vec<Refused>,
    /// Destinations refused since a batch was taken as a whole.
    in_a_row: u32,
    /// Batches until anything is tried again.
    pause: u32,
}

impl Gso {
    /// Whether the next batch is tried as a whole.
    pub(crate) fn is_due(&mut self, to: SocketAddr, segment: usize) -> bool {
        if self.pause > 0 {
            self.pause -= 1;
            return false;
        }
        let is_it = |refused: &Refused| refused.to == to && segment >= refused.width;
        let Some(place) = self.refused.iter().position(is_it) else { return true };
        self.refused[place].pause -= 1;
        if self.refused[place].pause == 0 {
            self.refused.swap_remove(place);
        }
        false
    }

    /// A batch was taken as a whole.
    pub(crate) fn on_taken(&mut self) {
        self.in_a_row = 0;
    }

    /// Sent one by one, datagrams were taken.
    pub(crate) fn on_refusal(&mut self, why: Refusal, to: SocketAddr, segment: usize) {
        let width = match why {
            Refusal::Unsupported => 0,
            Refusal::TooWide => segment,
            Refusal::TooMuch | Refusal::Final => return,
        };
        self.refused.retain(|refused| refused.to != to);
        if self.refused.len() >= MAX_REFUSED {
            self.refused.remove(0);
        }
        self.refused.push(Refused { to, width, pause: PAUSE });
        if why == Refusal::Unsupported {
            self.in_a_row += 1;
            if self.in_a_row >= IN_A_ROW {
                (self.in_a_row, self.pause) = (0, SOCKET_PAUSE);
            }
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
        for _ in 0..PAUSE {
            assert!(!gso.is_due(to(1), 1452));
        }
        assert!(gso.is_due(to(1), 1452));
    }

    #[test]
    fn one_destinations_refusals_never_change_how_others_are_sent_to() {
        let mut gso = Gso::default();
        for _ in 0..100 {
            gso.on_refusal(Refusal::Unsupported, to(1), 1452);
            assert!(!gso.is_due(to(1), 100) && gso.is_due(to(2), 1452));
            gso.on_taken();
        }
    }

    #[test]
    fn what_nobody_is_sent_is_not_tried_for_a_while_and_want_of_memory_changes_nothing() {
        let mut gso = Gso::default();
        gso.on_refusal(Refusal::TooMuch, to(1), 1452);
        assert!(gso.is_due(to(1), 1452));
        for port in 0..IN_A_ROW as u16 {
            assert!(gso.is_due(to(port), 1452));
            gso.on_refusal(Refusal::Unsupported, to(port), 1452);
        }
        for _ in 0..SOCKET_PAUSE {
            assert!(!gso.is_due(to(99), 100));
        }
        assert!(gso.is_due(to(99), 100));
    }

    #[test]
    fn whoever_has_many_addresses_is_remembered_by_few() {
        let mut gso = Gso::default();
        for port in 0..10_000 {
            gso.on_refusal(Refusal::TooWide, to(port), 1452);
        }
        assert_eq!(gso.refused.len(), MAX_REFUSED);
        assert!(!gso.is_due(to(9_999), 1452));
    }
}
