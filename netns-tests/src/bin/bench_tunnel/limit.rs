//! How fast the tunnel could be: what everything but encryption costs, measured with packets that are copied instead, and the
//! encryption's own time beside it.

use std::fmt::{Display, Formatter};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use crate::load::{Work, few};
use crate::table::{Table, median, spread};
use crate::{COPY, ENDPOINT};

/// One figure comes of so many packets, and of so many figures the median is taken.
const PACKETS: u32 = 2000;
const FIGURES: usize = 15;

/// Nanoseconds in which one thread seals and opens a packet of `bytes`, with the library that the tunnel uses.
pub(crate) fn seal_and_open(bytes: usize) -> Result<f64> {
    let key = UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).map_err(|_| anyhow!("no key of 32 bytes"))?;
    let key = LessSafeKey::new(key);
    let mut packet = vec![0; bytes];
    let mut figures = Vec::new();
    for _ in 0..FIGURES {
        let begun = Instant::now();
        for _ in 0..PACKETS {
            seal_and_open_once(&key, &mut packet).context("a sealed packet does not open")?;
        }
        figures.push(per_packet(begun.elapsed()));
    }
    Ok(median(&figures))
}

/// The tag stays between the two, as on the wire.
fn seal_and_open_once(key: &LessSafeKey, packet: &mut Vec<u8>) -> Option<()> {
    let nonce = || Nonce::assume_unique_for_key([0; 12]);
    let tag = key.seal_in_place_separate_tag(nonce(), Aad::empty(), packet).ok()?;
    packet.extend_from_slice(tag.as_ref());
    let len = key.open_in_place(nonce(), Aad::empty(), packet).ok()?.len();
    packet.truncate(len);
    Some(())
}

fn per_packet(span: Duration) -> f64 {
    span.as_nanos() as f64 / f64::from(PACKETS)
}

/// The limit for every load, and how much of it is reached.
pub(crate) struct Limits<'a> {
    pub table: &'a Table,
    /// Threads that encrypt at the same time.
    pub threads: usize,
}

impl Limits<'_> {
    fn limit(&self, (_, copy, aead): &(f64, f64, f64)) -> f64 {
        copy + aead / self.threads as f64
    }

    /// In per cent, round by round.
    pub(crate) fn reached(&self, load: &'static str, work: Work) -> Vec<f64> {
        let rounds = self.rounds(load, work);
        rounds.iter().map(|round| 100.0 * self.limit(round) / round.0).collect()
    }

    /// Nanoseconds per packet, round by round: with encryption, with copies, and for encryption alone.
    fn rounds(&self, load: &'static str, work: Work) -> Vec<(f64, f64, f64)> {
        let of = |program, unit| self.table.of((load, unit), program);
        let (ours, copy) = (of(ENDPOINT, work.unit()), of(COPY, work.unit()));
        let aead = self.table.of((work.aead_name(), "ns"), ENDPOINT);
        let rounds = ours.iter().zip(copy).zip(aead);
        rounds
            .map(|((ours, copy), aead)| (work.ns_per_packet(*ours), work.ns_per_packet(*copy), *aead))
            .collect()
    }
}

impl Display for Limits<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "The limit, in ns per packet: with copies instead of encryption, and what sealing and opening take one thread, \
             divided by {}, the threads that do it at once.\n",
            self.threads
        )?;
        writeln!(
            f,
            "| load | copy | seal and open | limit | {ENDPOINT} | of the limit, % |\n|{}",
            "---|".repeat(6)
        )?;
        for (name, work) in few() {
            let rounds = self.rounds(name, work);
            let column =
                |of: &dyn Fn(&(f64, f64, f64)) -> f64| spread(&rounds.iter().map(of).collect::<Vec<_>>());
            let limit = |round: &(f64, f64, f64)| self.limit(round);
            let columns = [
                column(&|round| round.1),
                column(&|round| round.2),
                column(&limit),
                column(&|round| round.0),
                spread(&self.reached(name, work)),
            ];
            writeln!(f, "| {name} | {} |", columns.join(" | "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Figure;

    #[test]
    fn ours_is_compared_with_copying_and_encryption_on_as_many_threads() {
        let mut table = Table::default();
        let (load, work) = few().find(|(_, work)| *work == Work::SmallUdp).unwrap();
        // 1000 ns a packet against 700 ns of copying and 300 ns of encryption, on two threads.
        table.add(ENDPOINT, load, vec![Figure::more("thousand/s", 1000.0)]);
        table.add(COPY, load, vec![Figure::more("thousand/s", 1e6 / 700.0)]);
        table.add(ENDPOINT, work.aead_name(), vec![Figure::less("ns", 300.0)]);
        let text = Limits { table: &table, threads: 2 }.to_string();
        assert!(text.contains("| 850 (850 to 850) | 1000 (1000 to 1000) | 85.0 (85.0 to 85.0) |"), "{text}");
    }

    #[test]
    fn encryption_of_more_bytes_takes_longer() {
        let (small, large) = (seal_and_open(128).unwrap(), seal_and_open(8 * 1420).unwrap());
        assert!(small > 0.0 && large > small);
    }
}
