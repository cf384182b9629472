//! Handshakes' share of a turn. One costs as much as a hundred packets, so when thousands of peers wake at once, packets must not wait
//! behind them: all are put by as they are read, in order and bounded, so that what is behind them is read in the same turn; then a few are
//! worked on.
//!
//! - `heard`: messages of others, and what other workers admitted for this one; they wait here
//! - `begun`: initiations of ours; those put by are [`Worker::revivals`], or stay with whoever ordered them

use std::collections::VecDeque;

use super::Worker;
use crate::{
    initiation::{self, Sender},
    noise::Kind,
    peer::PeerId,
    socket::Path,
};

/// Of each kind: 1 to 2 ms together.
const MAX_PER_TURN: usize = 8;
/// While there is more for us to read than a turn takes: the interface's queue is short, and live data waits in the socket's.
const MAX_PRESSED: usize = 1;
/// Messages put by, some 3 MB: one of each of ten thousand peers. A flood is let go beyond that.
const MAX_WAITING: usize = 10_240;
/// Datagrams of a family in a turn that has handshakes to work on: data is among them and behind them in the same queue. Put by, one costs 2 us.
pub(super) const MAX_READ: usize = 512;

pub(super) struct Handshakes {
    /// What this turn may still do.
    hear: usize,
    begin: usize,
    waiting: VecDeque<Waiting>,
}

enum Waiting {
    Message(Path, Box<[u8]>),
    /// Another worker admitted it, and read whose it is.
    Passed(Path, Box<Sender>, Box<[u8; initiation::LEN]>),
}

impl Default for Handshakes {
    /// No limit before the first turn.
    fn default() -> Self {
        Self { hear: usize::MAX, begin: usize::MAX, waiting: VecDeque::new() }
    }
}

impl Handshakes {
    pub(super) fn begin_turn(&mut self) {
        (self.hear, self.begin) = (MAX_PER_TURN, MAX_PER_TURN);
    }

    /// The system has more packets than this turn took.
    pub(super) fn press(&mut self) {
        (self.hear, self.begin) = (self.hear.min(MAX_PRESSED), self.begin.min(MAX_PRESSED));
    }

    /// Whether this turn may begin another.
    pub(super) fn may_begin(&self) -> bool {
        self.begin > 0
    }

    pub(super) fn note_begun(&mut self) {
        self.begin = self.begin.saturating_sub(1);
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// `false` if there is no room.
    fn put_by(&mut self, waiting: Waiting) -> bool {
        let has_room = self.waiting.len() < MAX_WAITING;
        if has_room {
            self.waiting.push_back(waiting);
        }
        has_room
    }

    fn next(&mut self) -> Option<Waiting> {
        if self.hear == 0 {
            return None;
        }
        let next = self.waiting.pop_front();
        match next {
            Some(_) => self.hear -= 1,
            // What one burst took is not kept.
            None => self.waiting.shrink_to(MAX_PER_TURN),
        }
        next
    }
}

impl Worker {
    /// A handshake message has arrived, and is put by. What anybody can send, without so much as the node's key, takes neither a turn
    /// nor a place from others.
    pub(super) fn hear_handshake(&mut self, path: Path, kind: Kind, datagram: &[u8]) {
        if self.is_worth_work(path, kind, datagram) {
            self.put_by(Waiting::Message(path, datagram.into()));
        }
    }

    /// An initiation that another worker admitted.
    pub(super) fn hear_passed(&mut self, path: Path, sender: Sender, initiation: Box<[u8; initiation::LEN]>) {
        self.put_by(Waiting::Passed(path, Box::new(sender), initiation));
    }

    fn put_by(&mut self, waiting: Waiting) {
        if !self.handshakes.put_by(waiting) {
            self.drops.under_load += 1;
        }
    }

    /// Works on some of what was put by.
    pub(super) fn hear_waiting(&mut self) {
        if !self.is_up {
            self.handshakes.waiting.clear();
        }
        while let Some(waiting) = self.handshakes.next() {
            self.timed(|worker| match waiting {
                Waiting::Message(path, message) => worker.handle_handshake(path, &message),
                Waiting::Passed(path, sender, initiation) => worker.handle_passed(path, &sender, &initiation),
            });
        }
    }

    fn handle_handshake(&mut self, path: Path, datagram: &[u8]) {
        match Kind::of(datagram) {
            Some(Kind::Initiation) => self.handle_initiation(path, datagram),
            Some(kind @ Kind::Response(session)) => self.handle_response(path, kind, session, datagram),
            Some(Kind::Cookie(_) | Kind::Data(_)) | None => {}
        }
    }

    /// The first packet to a peer without a session waits.
    pub(super) fn want_session_soon(&mut self, id: PeerId) {
        if self.handshakes.may_begin() {
            self.want_session(id);
        } else {
            self.revivals.insert((self.now, id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_does_so_much_and_less_under_pressure() {
        let mut handshakes = Handshakes::default();
        let begin = |handshakes: &mut Handshakes| {
            let mut begun = 0;
            while begun < 100 && handshakes.may_begin() {
                handshakes.note_begun();
                begun += 1;
            }
            begun
        };
        assert_eq!(begin(&mut handshakes), 100, "outside of turns nothing is put by");
        for _ in 0..2 {
            handshakes.begin_turn();
            assert_eq!(begin(&mut handshakes), MAX_PER_TURN);
        }
        handshakes.begin_turn();
        handshakes.press();
        assert_eq!(begin(&mut handshakes), MAX_PRESSED);
        handshakes.press();
        assert_eq!(begin(&mut handshakes), 0);
    }

    fn waiting() -> Waiting {
        Waiting::Message(Path::to(([192, 0, 2, 1], 9).into()), Box::new([1]))
    }

    #[test]
    fn what_waits_is_heard_in_order_some_of_it_in_each_turn_whoever_admitted_it() {
        let mut handshakes = Handshakes::default();
        let passed = || {
            let sender = initiation::Opener::new([7; 32].into());
            let datagram = initiation::tests::initiation_to([7; 32]);
            let sender = sender.sender(&datagram).unwrap();
            Waiting::Passed(Path::to(([192, 0, 2, 2], 9).into()), Box::new(sender), Box::new(datagram))
        };
        for _ in 0..MAX_PER_TURN {
            assert!(handshakes.put_by(waiting()) && handshakes.put_by(passed()));
        }
        for _ in 0..2 {
            handshakes.begin_turn();
            let heard: Vec<_> = std::iter::from_fn(|| handshakes.next()).collect();
            assert_eq!(heard.len(), MAX_PER_TURN);
            let passed = heard.iter().map(|waiting| matches!(waiting, Waiting::Passed(..)));
            assert!(passed.eq([false, true].into_iter().cycle().take(MAX_PER_TURN)));
        }
        handshakes.begin_turn();
        assert!(handshakes.next().is_none() && !handshakes.is_waiting());
    }

    #[test]
    fn so_many_wait_and_no_more() {
        let mut handshakes = Handshakes::default();
        let kept = (0..2 * MAX_WAITING).filter(|_| handshakes.put_by(waiting())).count();
        assert_eq!(kept, MAX_WAITING);
    }
}
