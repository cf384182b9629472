//! How much handshakes may cost: by the processor time they take in all, and by source.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Time is counted over spans of this length.
const SPAN: Duration = Duration::from_secs(1);
/// Beyond it, whoever begins a handshake must first prove its address: a fifth of the thread's time.
const MAX_TIME: Duration = Duration::from_millis(200);
/// A whole site behind one address restarts at once. Its rate is some 5 % of the thread's time, so one source alone does not make
/// the load high.
const BURST: f64 = 1000.0;
const PER_SECOND: f64 = 500.0;
/// Sources at once: some 400 KB. With more, everybody is asked for cookies, which need no table.
const MAX_SOURCES: usize = 8192;

/// The time that handshakes take: this thread's, and where it admits for several, that of all, which have as much time each.
#[derive(Debug, Default)]
pub(crate) struct Load {
    own: Meter,
    all: Meter,
    others: u32,
}

impl Load {
    pub(crate) fn spend(&mut self, time: Duration, now: Instant) {
        self.own.spend(time, MAX_TIME, now);
        self.all.spend(time, self.max_of_all(), now);
    }

    /// What so many other threads have spent together since.
    pub(crate) fn spend_elsewhere(&mut self, time: Duration, others: u32, now: Instant) {
        self.others = others;
        self.all.spend(time, self.max_of_all(), now);
    }

    pub(crate) fn is_high(&mut self, now: Instant) -> bool {
        self.own.is_high(MAX_TIME, now) || self.all.is_high(self.max_of_all(), now)
    }

    fn max_of_all(&self) -> Duration {
        MAX_TIME * (self.others + 1)
    }
}

#[derive(Debug, Default)]
struct Meter {
    began_at: Option<Instant>,
    spent: Duration,
    /// So it was in the span before.
    was_high: bool,
}

impl Meter {
    fn spend(&mut self, time: Duration, max: Duration, now: Instant) {
        self.pass(max, now);
        self.spent += time;
    }

    fn is_high(&mut self, max: Duration, now: Instant) -> bool {
        self.pass(max, now);
        self.was_high || self.spent >= max
    }

    fn pass(&mut self, max: Duration, now: Instant) {
        let began_at = *self.began_at.get_or_insert(now);
        let age = now.saturating_duration_since(began_at);
        if age >= SPAN {
            self.was_high = self.spent >= max && age < 2 * SPAN;
            (self.began_at, self.spent) = (Some(now), Duration::ZERO);
        }
    }
}

/// Time that threads tell another they have spent. What nobody asked for within its second is forgotten: it says nothing about
/// the load later. Above the second's number, below nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Spent(AtomicU64);

impl Spent {
    pub(crate) fn add(&self, time: Duration, second: u32) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let add = |word| {
            let sum = nanos_of(word, second).saturating_add(nanos).min(u32::MAX.into());
            Some(u64::from(second) << 32 | sum)
        };
        // It is never refused.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    pub(crate) fn take(&self, second: u32) -> Duration {
        Duration::from_nanos(nanos_of(self.0.swap(0, Ordering::Relaxed), second))
    }
}

fn nanos_of(word: u64, second: u32) -> u64 {
    if word >> 32 == u64::from(second) { word & u64::from(u32::MAX) } else { 0 }
}

/// Token buckets by source: an IPv4 address, or an IPv6 network of 64 bits, within which one machine has them all.
#[derive(Debug, Default)]
pub(crate) struct Buckets(HashMap<IpAddr, Bucket>);

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * PER_SECOND).min(BURST);
        self.at = now;
    }
}

impl Buckets {
    /// Whether this source may have one more.
    pub(crate) fn take(&mut self, source: IpAddr, now: Instant) -> bool {
        let source = network(source);
        if self.0.len() >= MAX_SOURCES && !self.0.contains_key(&source) {
            // Full buckets are as good as none.
            self.0.retain(|_, bucket| {
                bucket.refill(now);
                bucket.tokens < BURST
            });
            if self.0.len() >= MAX_SOURCES {
                return false;
            }
        }
        let bucket = self.0.entry(source).or_insert(Bucket { tokens: BURST, at: now });
        bucket.refill(now);
        let granted = bucket.tokens >= 1.0;
        if granted {
            bucket.tokens -= 1.0;
        }
        granted
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & u128::MAX << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(number).into()
    }

    #[test]
    fn load_is_high_while_handshakes_take_a_fifth_of_the_time_and_a_second_longer() {
        let (start, mut load) = (Instant::now(), Load::default());
        load.spend(MAX_TIME / 2, start);
        assert!(!load.is_high(start));
        load.spend(MAX_TIME / 2, start + SPAN / 2);
        assert!(load.is_high(start + SPAN / 2) && load.is_high(start + SPAN));
        assert!(!load.is_high(start + 2 * SPAN));
        load.spend(MAX_TIME, start + 2 * SPAN);
        assert!(!load.is_high(start + 60 * SPAN));
    }

    #[test]
    fn several_threads_have_each_as_much_time() {
        let (start, mut load) = (Instant::now(), Load::default());
        load.spend_elsewhere(MAX_TIME, 3, start);
        load.spend(MAX_TIME / 2, start);
        assert!(!load.is_high(start));
        load.spend_elsewhere(MAX_TIME * 5 / 2, 3, start);
        assert!(load.is_high(start));
        load.spend(MAX_TIME, start + 60 * SPAN);
        assert!(load.is_high(start + 60 * SPAN));
    }

    #[test]
    fn time_is_told_within_its_second_and_forgotten_later() {
        let (spent, ms) = (Spent::default(), Duration::from_millis);
        spent.add(ms(100), 7);
        spent.add(ms(50), 7);
        assert_eq!((spent.take(7), spent.take(7)), (ms(150), ms(0)));
        spent.add(ms(100), 7);
        assert_eq!(spent.take(8), ms(0));
        spent.add(ms(100), 8);
        spent.add(ms(20), 9);
        assert_eq!(spent.take(9), ms(20));
        (0..100).for_each(|_| spent.add(ms(1000), 9));
        assert_eq!(spent.take(9), Duration::from_nanos(u32::MAX.into()));
    }

    #[test]
    fn a_source_has_a_burst_and_then_its_rate_and_others_have_theirs() {
        let (start, mut buckets) = (Instant::now(), Buckets::default());
        let take = |buckets: &mut Buckets, at| (0..10_000).filter(|_| buckets.take(address(1), at)).count();
        assert_eq!(take(&mut buckets, start), BURST as usize);
        assert_eq!(take(&mut buckets, start + SPAN), PER_SECOND as usize);
        assert!(buckets.take(address(2), start));
    }

    #[test]
    fn one_machine_is_one_source_with_all_its_ipv6_addresses() {
        let (now, mut buckets) = (Instant::now(), Buckets::default());
        let v6 = |number: u128| IpAddr::from((0x2001_0db8u128 << 96 | number).to_be_bytes());
        let granted = (0..10_000).filter(|number| buckets.take(v6(*number), now)).count();
        assert_eq!(granted, BURST as usize);
        assert!(buckets.take(v6(1 << 64), now));
    }

    #[test]
    fn sources_are_so_many_and_make_room_when_they_are_quiet() {
        let (start, mut buckets) = (Instant::now(), Buckets::default());
        let take = |buckets: &mut Buckets, numbers: std::ops::Range<u32>, at| {
            numbers.filter(|number| buckets.take(address(*number), at)).count()
        };
        assert_eq!(take(&mut buckets, 0..10_000, start), MAX_SOURCES);
        assert_eq!(take(&mut buckets, 10_000..11_000, start + SPAN), 1000);
        assert!(buckets.0.len() <= MAX_SOURCES);
    }
}
