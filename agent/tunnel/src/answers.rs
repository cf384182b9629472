//! Answers to initiations that may come again. One initiation is sent along several paths, and whichever copy comes
//! first may have come by a path that leads in one direction only: every copy gets the same answer, without being
//! worked on again, until the session is proven.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::{initiation, peer::PeerId};

/// Between the first and the last copy: paths differ by a relay's detour, not by more.
pub(crate) const REMEMBERED_FOR: Duration = Duration::from_secs(2);
const MAX_ANSWERS: usize = 64;
/// Where an initiation's first MAC lies. It differs with every initiation.
pub(crate) const MAC: std::ops::Range<usize> = initiation::LEN - 32..initiation::LEN - 16;

struct Answer {
    mac: [u8; MAC.end - MAC.start],
    peer: PeerId,
    message: Box<[u8]>,
    at: Instant,
}

#[derive(Default)]
pub(crate) struct Answers(VecDeque<Answer>);

impl Answers {
    pub(crate) fn find(&self, initiation: &[u8; initiation::LEN], now: Instant) -> Option<&[u8]> {
        let recent = |answer: &&Answer| now.saturating_duration_since(answer.at) < REMEMBERED_FOR;
        let found = self.0.iter().find(|answer| answer.mac == initiation[MAC]);
        found.filter(recent).map(|answer| &*answer.message)
    }

    pub(crate) fn insert(
        &mut self,
        initiation: &[u8; initiation::LEN],
        peer: PeerId,
        message: &[u8],
        now: Instant,
    ) {
        self.remove(peer);
        if self.0.len() >= MAX_ANSWERS {
            self.0.pop_front();
        }
        let mut mac = [0; MAC.end - MAC.start];
        mac.copy_from_slice(&initiation[MAC]);
        self.0.push_back(Answer { mac, peer, message: message.into(), at: now });
    }

    /// The session is proven, or the peer is to rest.
    pub(crate) fn remove(&mut self, peer: PeerId) {
        self.0.retain(|answer| answer.peer != peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_known_for_a_while_and_only_until_its_peer_is_proven() {
        let (now, mut answers) = (Instant::now(), Answers::default());
        let initiation = |number| [number; initiation::LEN];
        answers.insert(&initiation(1), PeerId(1), b"one", now);
        answers.insert(&initiation(2), PeerId(2), b"two", now);
        assert_eq!(answers.find(&initiation(1), now), Some(&b"one"[..]));
        assert_eq!(answers.find(&initiation(3), now), None);
        answers.remove(PeerId(1));
        assert_eq!(answers.find(&initiation(1), now), None);
        assert_eq!(answers.find(&initiation(2), now + REMEMBERED_FOR), None);
    }

    #[test]
    fn only_so_many_are_remembered_and_one_for_each_peer() {
        let (now, mut answers) = (Instant::now(), Answers::default());
        for number in 0..200 {
            answers.insert(&[number; initiation::LEN], PeerId(u32::from(number / 2)), b"", now);
        }
        assert_eq!(answers.0.len(), MAX_ANSWERS);
        assert!(answers.find(&[199; initiation::LEN], now).is_some());
        assert!(answers.find(&[198; initiation::LEN], now).is_none());
    }
}
