//! Initiations that were handed over to the workers whose peers they are of. The same one comes by several paths: whoever admits
//! initiations hands its copies over as they come, without working on them again. Only so many: nobody else's datagrams
//! with its MAC shall be cheaper than others.

use std::{collections::VecDeque, time::Instant};

use crate::{
    MAX_ENDPOINTS,
    answers::{MAC, REMEMBERED_FOR},
    initiation::{self, Sender},
};

const MAX_PASSED: usize = 256;

struct Passed {
    mac: [u8; MAC.end - MAC.start],
    owner: usize,
    sender: Sender,
    at: Instant,
    copies: usize,
}

#[derive(Default)]
pub(crate) struct PassedOn(VecDeque<Passed>);

impl PassedOn {
    /// Where a copy goes, and what it is known to be of. It counts.
    pub(crate) fn take(
        &mut self,
        initiation: &[u8; initiation::LEN],
        now: Instant,
    ) -> Option<(usize, Sender)> {
        self.forget(now);
        let passed = self.0.iter_mut().find(|passed| passed.mac == initiation[MAC])?;
        passed.copies = passed.copies.checked_sub(1)?;
        Some((passed.owner, passed.sender.clone()))
    }

    pub(crate) fn insert(
        &mut self,
        initiation: &[u8; initiation::LEN],
        owner: usize,
        sender: &Sender,
        now: Instant,
    ) {
        self.forget(now);
        if self.0.len() >= MAX_PASSED || self.0.iter().any(|passed| passed.mac == initiation[MAC]) {
            return;
        }
        let mut mac = [0; MAC.end - MAC.start];
        mac.copy_from_slice(&initiation[MAC]);
        self.0.push_back(Passed { mac, owner, sender: sender.clone(), at: now, copies: MAX_ENDPOINTS });
    }

    fn forget(&mut self, now: Instant) {
        let is_over = |passed: &Passed| now.saturating_duration_since(passed.at) >= REMEMBERED_FOR;
        while self.0.front().is_some_and(is_over) {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        PrivateKey,
        initiation::Opener,
        noise::{Identity, Noise},
    };

    #[test]
    fn so_many_copies_within_two_seconds_are_known_and_no_other_initiation() {
        let (ours, theirs) = (PrivateKey::from([1; 32]), PrivateKey::from([2; 32]));
        let (now, mut passed, mut buffer) = (Instant::now(), PassedOn::default(), [0; 256]);
        let mut noise = Noise::new(&Identity::new(&theirs), ours.public_key(), None, 5);
        let len = noise.initiate(&mut buffer).unwrap();
        let first: [u8; initiation::LEN] = buffer[..len].try_into().unwrap();
        let sender = Opener::new(ours.0).sender(&first).unwrap();
        passed.insert(&first, 3, &sender, now);
        assert!(passed.take(&[9; initiation::LEN], now).is_none());
        for _ in 0..MAX_ENDPOINTS {
            let (owner, sender) = passed.take(&first, now).unwrap();
            assert_eq!((owner, sender.key), (3, theirs.public_key()));
        }
        // Worked on anew, it has no more copies than before.
        passed.insert(&first, 3, &sender, now);
        assert!(passed.take(&first, now).is_none());
        passed.insert(&first, 3, &sender, now + REMEMBERED_FOR);
        assert!(passed.take(&first, now + REMEMBERED_FOR).is_some());
        assert!(passed.take(&first, now + 2 * REMEMBERED_FOR).is_none());
        for number in 0..=u8::MAX {
            passed.insert(&[number; initiation::LEN], 1, &sender, now);
            passed.insert(&[number; initiation::LEN], 1, &sender, now);
        }
        assert_eq!(passed.0.len(), MAX_PASSED);
    }
}
