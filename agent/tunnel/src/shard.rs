//! How many workers there are, and which of them a peer and its sessions belong to.
//!
//! A peer is one worker's alone, by its key; so its packets keep their order without a lock. The lowest byte of a
//! session's index, which is ours to choose, names the same worker: whoever sees only a datagram knows where it goes.

use std::{fmt, str::FromStr, thread};

use crate::PublicKey;

/// How many threads a data plane works with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workers(u8);

/// For how many workers an interface is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WantedWorkers {
    Exactly(Workers),
    /// One, where the kernel does not tell their packets apart: several would hand everything over, which is slower.
    AtMost(Workers),
}

impl WantedWorkers {
    /// At most as many as this machine has use for: others need its cores, too, and two cores are best used by one worker.
    pub fn of_this_machine() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self::AtMost(Workers(if cfg!(target_os = "linux") { wanted(cores) } else { 1 }))
    }

    pub(crate) fn count(self) -> Workers {
        match self {
            Self::Exactly(workers) | Self::AtMost(workers) => workers,
        }
    }
}

/// Not a number of workers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no number of workers: 1 to {max}", max = Workers::MAX)]
pub struct InvalidWorkers(String);

impl Workers {
    pub const ONE: Self = Self(1);
    pub const MAX: u8 = 8;

    /// `None` unless it is 1 to [`Workers::MAX`].
    pub fn new(count: u8) -> Option<Self> {
        (1..=Self::MAX).contains(&count).then_some(Self(count))
    }

    pub fn count(self) -> usize {
        self.0.into()
    }

    /// Which of them, from 0, a peer belongs to.
    pub fn owner(self, peer: &PublicKey) -> usize {
        owner(peer, self.count())
    }
}

impl FromStr for Workers {
    type Err = InvalidWorkers;

    fn from_str(text: &str) -> Result<Self, InvalidWorkers> {
        text.trim().parse().ok().and_then(Self::new).ok_or_else(|| InvalidWorkers(text.to_owned()))
    }
}

impl fmt::Display for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn wanted(cores: usize) -> u8 {
    match cores {
        0..=3 => 1,
        4 | 5 => 2,
        6 | 7 => 3,
        _ => 4,
    }
}

/// One worker among all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shard {
    number: u8,
    count: u8,
}

impl Default for Shard {
    /// The only one.
    fn default() -> Self {
        Self { number: 0, count: 1 }
    }
}

impl Shard {
    /// All of them, in order.
    pub(crate) fn all(workers: Workers) -> impl Iterator<Item = Self> {
        (0..workers.0).map(move |number| Self { number, count: workers.0 })
    }

    pub(crate) fn number(self) -> usize {
        self.number.into()
    }

    pub(crate) fn owns(self, key: &PublicKey) -> bool {
        self.count == 1 || owner(key, self.count.into()) == self.number()
    }

    /// Whose a peer is.
    pub(crate) fn owner(self, key: &PublicKey) -> usize {
        owner(key, self.count.into())
    }

    /// Whose a session is.
    pub(crate) fn session_owner(self, session: u32) -> usize {
        self.index_owner(session >> 8)
    }

    /// Whether this worker may give its sessions this index, of 24 bits.
    pub(crate) fn owns_index(self, index: u32) -> bool {
        self.index_owner(index) == self.number()
    }

    fn index_owner(self, index: u32) -> usize {
        (index & 0xff) as usize % usize::from(self.count)
    }
}

/// Which of `count` workers a key belongs to. All its bytes count: people choose how their keys begin.
pub(crate) fn owner(key: &PublicKey, count: usize) -> usize {
    /// 2^64 divided by the golden ratio, which spreads what is alike.
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let words = key.0.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
    let mixed = words.fold(0, |sum: u64, word| (sum.rotate_left(23) ^ word).wrapping_mul(SPREAD));
    let mixed = (mixed ^ mixed >> 32).wrapping_mul(SPREAD);
    // The upper half, as a share of its range.
    (((mixed >> 32) * count as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_cores_have_one_worker_and_many_have_four() {
        for (cores, workers) in [(1, 1), (2, 1), (3, 1), (4, 2), (6, 3), (8, 4), (64, 4)] {
            assert_eq!(wanted(cores), workers, "{cores} cores");
        }
    }

    #[test]
    fn a_number_of_workers_is_1_to_8() {
        assert_eq!("8".parse(), Ok(Workers(8)));
        for text in ["0", "9", "-1", "two", "", "256"] {
            let error = text.parse::<Workers>().unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("1 to 8"), "{error}");
        }
    }

    #[test]
    fn keys_that_differ_in_a_few_bytes_are_spread_evenly() {
        for count in 1..=8usize {
            let mut peers = vec![0; count];
            for number in 0..8000u16 {
                let mut key = [7; 32];
                key[..2].copy_from_slice(&number.to_le_bytes());
                peers[owner(&PublicKey(key), count)] += 1;
            }
            let fair = 8000 / count;
            assert!(peers.iter().all(|&peers| peers > fair * 3 / 4 && peers < fair * 5 / 4), "{peers:?}");
        }
    }

    #[test]
    fn every_peer_and_every_index_is_one_workers_alone() {
        for count in 1..=Workers::MAX {
            let workers = Workers::new(count).unwrap();
            for byte in 0..=255 {
                let key = PublicKey([byte; 32]);
                assert_eq!(Shard::all(workers).filter(|shard| shard.owns(&key)).count(), 1);
                let index = u32::from(byte) | 0xabcd00;
                let owners: Vec<_> = Shard::all(workers).filter(|shard| shard.owns_index(index)).collect();
                let [owner] = owners[..] else { panic!("{owners:?}") };
                assert_eq!(owner.session_owner(index << 8 | 0x77), owner.number());
            }
        }
    }
}
