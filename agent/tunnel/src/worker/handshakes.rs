//! Handshakes' share of a turn. One costs as much as a hundred packets, so when thousands of peers wake at once, packets must not wait
//! behind them: all are put by as they are read, in order and bounded, so that what is behind them is read in the same turn; then a few are
//! worked on.
//!
//! - `heard`: messages of others, and what other workers admitted for this one; they wait here
//! - `begun`: initiations of ours; those put by are [`Worker::revivals`], or stay with whoever ordered them

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

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
/// With so many put by, whoever comes must prove its address first: what one message costs is small beside the time that it waits, so the time that handshakes take
/// does not tell of a flood.
const CROWD: usize = MAX_WAITING / 2;
/// Whoever waits longer for an answer has begun anew: WireGuard's REKEY_TIMEOUT.
const STALE_AFTER: Duration = Duration::from_secs(5);
/// Datagrams of a family in a turn that has handshakes to work on: data is among them and behind them in the same queue. Put by, one costs 2 us.
pub(super) const MAX_READ: usize = 512;

pub(super) struct Handshakes {
    /// What this turn may still do.
    hear: usize,
    begin: usize,
    /// .. and look at: copies of what was answered take a moment only.
    look: usize,
    /// With the time at which each was put by.
    waiting: VecDeque<(Instant, Waiting)>,
}

enum Waiting {
    Message(Path, Box<[u8]>),
    /// Another worker admitted it, and read whose it is.
    Passed(Path, Box<Sender>, Box<[u8; initiation::LEN]>),
}

impl Default for Handshakes {
    /// No limit before the first turn.
    fn default() -> Self {
        Self { hear: usize::MAX, begin: usize::MAX, look: usize::MAX, waiting: VecDeque::new() }
    }
}

impl Handshakes {
    pub(super) fn begin_turn(&mut self) {
        (self.hear, self.begin, self.look) = (MAX_PER_TURN, MAX_PER_TURN, MAX_READ);
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

    /// Whether so many wait that they are a flood, or a crowd that has to come again.
    pub(super) fn is_crowded(&self) -> bool {
        self.waiting.len() >= CROWD
    }

    fn has_room(&self) -> bool {
        self.waiting.len() < MAX_WAITING
    }

    /// How many nobody waits for any more; they are gone.
    fn drop_stale(&mut self, now: Instant) -> u64 {
        let mut dropped = 0;
        while self.waiting.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= STALE_AFTER) {
            self.waiting.pop_front();
            dropped += 1;
        }
        dropped
    }

    fn next(&mut self) -> Option<Waiting> {
        if self.hear == 0 || self.look == 0 {
            return None;
        }
        self.look -= 1;
        let next = self.waiting.pop_front();
        if next.is_none() {
            // What one burst took is not kept.
            self.waiting.shrink_to(MAX_PER_TURN);
        }
        next.map(|(_, waiting)| waiting)
    }

    fn note_heard(&mut self) {
        self.hear = self.hear.saturating_sub(1);
    }
}

impl Worker {
    /// A handshake message has arrived, and is put by. What anybody can send, without so much as the node's key, takes neither a turn
    /// nor a place from others.
    pub(super) fn hear_handshake(&mut self, path: Path, kind: Kind, datagram: &[u8]) {
        if self.is_worth_work(path, kind, datagram) {
            self.put_by(|| Waiting::Message(path, datagram.into()));
        }
    }

    /// An initiation that another worker admitted.
    pub(super) fn hear_passed(&mut self, path: Path, sender: Sender, initiation: Box<[u8; initiation::LEN]>) {
        self.put_by(|| Waiting::Passed(path, Box::new(sender), initiation));
    }

    fn put_by(&mut self, waiting: impl FnOnce() -> Waiting) {
        match self.handshakes.has_room() {
            true => self.handshakes.waiting.push_back((self.now, waiting())),
            false => self.drops.under_load += 1,
        }
    }

    /// Works on some of what was put by.
    pub(super) fn hear_waiting(&mut self) {
        if !self.is_up {
            self.handshakes.waiting.clear();
        }
        self.drops.under_load += self.handshakes.drop_stale(self.now);
        while let Some(waiting) = self.handshakes.next() {
            if self.is_settled(&waiting) {
                continue;
            }
            self.handshakes.note_heard();
            self.timed(|worker| match waiting {
                Waiting::Message(path, message) => worker.handle_handshake(path, &message),
                Waiting::Passed(path, sender, initiation) => {
                    worker.handle_admitted(path, &sender, &initiation)
                }
            });
        }
    }

    /// Whether it is a copy of what was answered, or passed on, since it was put by.
    fn is_settled(&mut self, waiting: &Waiting) -> bool {
        match waiting {
            Waiting::Message(path, message) => self.is_copy(*path, message),
            Waiting::Passed(path, _, initiation) => self.answer_again(*path, &initiation[..]),
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
        let (mut handshakes, now) = (Handshakes::default(), Instant::now());
        let passed = || {
            let sender = initiation::Opener::new([7; 32].into());
            let datagram = initiation::tests::initiation_to([7; 32]);
            let sender = sender.sender(&datagram).unwrap();
            Waiting::Passed(Path::to(([192, 0, 2, 2], 9).into()), Box::new(sender), Box::new(datagram))
        };
        for _ in 0..MAX_PER_TURN {
            handshakes.waiting.extend([(now, waiting()), (now, passed())]);
        }
        for _ in 0..2 {
            handshakes.begin_turn();
            let heard: Vec<_> =
                std::iter::from_fn(|| handshakes.next().inspect(|_| handshakes.note_heard())).collect();
            assert_eq!(heard.len(), MAX_PER_TURN);
            let passed = heard.iter().map(|waiting| matches!(waiting, Waiting::Passed(..)));
            assert!(passed.eq([false, true].into_iter().cycle().take(MAX_PER_TURN)));
        }
        handshakes.begin_turn();
        assert!(handshakes.next().is_none() && !handshakes.is_waiting());
    }

    #[test]
    fn copies_take_no_share_of_a_turn_but_it_looks_at_so_many_only() {
        let (mut handshakes, now) = (Handshakes::default(), Instant::now());
        handshakes.waiting.extend((0..2 * MAX_READ).map(|_| (now, waiting())));
        handshakes.begin_turn();
        assert_eq!(std::iter::from_fn(|| handshakes.next()).count(), MAX_READ);
    }

    #[test]
    fn so_many_wait_for_so_long_and_long_before_that_addresses_are_to_be_proven() {
        let (mut handshakes, now) = (Handshakes::default(), Instant::now());
        handshakes.waiting.extend((1..CROWD).map(|_| (now, waiting())));
        assert!(!handshakes.is_crowded());
        handshakes.waiting.push_back((now + STALE_AFTER, waiting()));
        assert!(handshakes.is_crowded() && handshakes.has_room());
        handshakes.waiting.extend((CROWD..MAX_WAITING).map(|_| (now + STALE_AFTER, waiting())));
        assert!(!handshakes.has_room());
        assert_eq!(handshakes.drop_stale(now + STALE_AFTER), CROWD as u64 - 1);
        assert!(handshakes.has_room());
    }
}
