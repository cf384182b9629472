//! Handshakes' share of a turn. One costs as much as a hundred packets, so when thousands of peers wake at once, packets must not wait
//! behind them: a few are worked on per turn, and the rest is put by, in order and bounded.
//!
//! - `heard`: messages of others; those put by wait here
//! - `begun`: initiations of ours; those put by are [`Worker::revivals`], or stay with whoever ordered them

use std::collections::VecDeque;

use super::Worker;
use crate::{
    noise::Kind,
    peer::PeerId,
    socket::{MESSAGES, Path},
};

/// Of each kind: 1 to 2 ms together.
const MAX_PER_TURN: usize = 8;
/// While the system has more packets for us than a turn takes: its queue is short, and what it has no room for is lost.
const MAX_PRESSED: usize = 1;
/// Messages put by, some 1 MB. As many as one burst of a large network; a flood is let go beyond that.
const MAX_WAITING: usize = 4096;
/// Receive calls in a turn that has handshakes to work on: data is among them and behind them in the same queue.
pub(super) const MAX_RECEIVES: usize = 64 / MESSAGES;

pub(super) struct Handshakes {
    /// What this turn may still do.
    hear: usize,
    begin: usize,
    waiting: VecDeque<(Path, Box<[u8]>)>,
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

    fn next(&mut self) -> Option<(Path, Box<[u8]>)> {
        if self.hear == 0 {
            return None;
        }
        let next = self.waiting.pop_front();
        if next.is_none() {
            // What one burst took is not kept.
            self.waiting.shrink_to(MAX_PER_TURN);
        }
        next
    }
}

impl Worker {
    /// A handshake message has arrived: it is worked on, or put by. What anybody can send, without so much as the node's key,
    /// takes neither a turn nor a place from others.
    pub(super) fn hear_handshake(&mut self, path: Path, kind: Kind, datagram: &[u8]) {
        if !self.is_worth_work(path, kind, datagram) {
            return;
        }
        let handshakes = &mut self.handshakes;
        if handshakes.hear > 0 && handshakes.waiting.is_empty() {
            self.work_on_handshake(path, datagram);
        } else if handshakes.waiting.len() < MAX_WAITING {
            handshakes.waiting.push_back((path, datagram.into()));
        } else {
            self.drops.under_load += 1;
        }
    }

    /// Works on some of what was put by.
    pub(super) fn hear_waiting(&mut self) {
        if !self.is_up {
            self.handshakes.waiting.clear();
        }
        while let Some((path, message)) = self.handshakes.next() {
            self.work_on_handshake(path, &message);
        }
    }

    fn work_on_handshake(&mut self, path: Path, datagram: &[u8]) {
        self.handshakes.hear = self.handshakes.hear.saturating_sub(1);
        self.timed(|worker| match Kind::of(datagram) {
            Some(Kind::Initiation) => worker.handle_initiation(path, datagram),
            Some(kind @ Kind::Response(session)) => worker.handle_response(path, kind, session, datagram),
            Some(Kind::Cookie(_) | Kind::Data(_)) | None => {}
        });
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
}
