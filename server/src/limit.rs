//! How much one peer, address or kind of message may cost. Token buckets, which take the time as an argument, and a table of them that
//! cannot grow without bound.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};
use tokio::time::Instant;

/// So much at once, and so much in the long run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rate {
    pub(crate) burst: u32,
    pub(crate) per_second: f64,
}

/// Tokens that are taken and come back with time. A fresh one is full.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    pub(crate) fn full(rate: Rate, now: Instant) -> Self {
        Self { tokens: f64::from(rate.burst), at: now }
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * rate.per_second;
        self.tokens = (self.tokens + gained).min(f64::from(rate.burst));
        self.at = now;
    }

    /// Takes a token.
    ///
    /// # Errors
    /// There is none; in how long there is one.
    pub(crate) fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        self.refill(rate, now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(self.wait(rate))
    }

    /// Takes so many tokens, whether there are or not; in how long the debt is paid.
    pub(crate) fn spend(&mut self, rate: Rate, tokens: usize, now: Instant) -> Option<Duration> {
        self.refill(rate, now);
        self.tokens -= tokens as f64;
        (self.tokens < 0.0).then(|| Duration::from_secs_f64(-self.tokens / rate.per_second))
    }

    /// Whether a token could be taken; if not, in how long.
    pub(crate) fn peek(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        self.refill(rate, now);
        if self.tokens >= 1.0 { Ok(()) } else { Err(self.wait(rate)) }
    }

    /// Rounded up, so that who waits for it finds a token.
    fn wait(&self, rate: Rate) -> Duration {
        Duration::from_secs_f64((1.0 - self.tokens) / rate.per_second) + Duration::from_millis(1)
    }

    fn is_full(&mut self, rate: Rate, now: Instant) -> bool {
        self.refill(rate, now);
        self.tokens >= f64::from(rate.burst)
    }
}

/// A bucket per key. Full ones are forgotten; where too many are not full, all keys beyond share one.
#[derive(Debug)]
pub(crate) struct Buckets<K> {
    rate: Rate,
    capacity: usize,
    buckets: BTreeMap<K, Bucket>,
    beyond: Bucket,
}

impl<K: Ord + Clone> Buckets<K> {
    pub(crate) fn new(rate: Rate, capacity: usize, now: Instant) -> Self {
        Self { rate, capacity, buckets: BTreeMap::new(), beyond: Bucket::full(rate, now) }
    }

    /// As [`Bucket::take`].
    pub(crate) fn take(&mut self, key: &K, now: Instant) -> Result<(), Duration> {
        let rate = self.rate;
        self.make_room(now);
        let is_full = self.buckets.len() >= self.capacity;
        match self.buckets.get_mut(key) {
            Some(bucket) => bucket.take(rate, now),
            None if is_full => self.beyond.take(rate, now),
            None => {
                let mut bucket = Bucket::full(rate, now);
                let taken = bucket.take(rate, now);
                self.buckets.insert(key.clone(), bucket);
                taken
            }
        }
    }

    /// As [`Bucket::peek`].
    pub(crate) fn peek(&mut self, key: &K, now: Instant) -> Result<(), Duration> {
        let is_full = self.buckets.len() >= self.capacity;
        match self.buckets.get_mut(key) {
            Some(bucket) => bucket.peek(self.rate, now),
            None if is_full => self.beyond.peek(self.rate, now),
            None => Ok(()),
        }
    }

    fn make_room(&mut self, now: Instant) {
        if self.buckets.len() >= self.capacity {
            self.buckets.retain(|_, bucket| !bucket.is_full(self.rate, now));
        }
    }
}

/// What counts as one source: an IPv4 address, or the /64 that an IPv6 host gets to choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Source(IpAddr);

impl From<IpAddr> for Source {
    fn from(ip: IpAddr) -> Self {
        Self(match ip.to_canonical() {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (!0 << 64)).into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { burst: 3, per_second: 2.0 };

    fn after(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::full(RATE, start);
        assert!((0..3).all(|_| bucket.take(RATE, start).is_ok()));
        let wait = bucket.take(RATE, start).unwrap_err();
        assert_eq!(wait.as_millis(), 501);
        assert_eq!(bucket.peek(RATE, start + wait), Ok(()));
        assert_eq!(bucket.take(RATE, start + wait), Ok(()));
        assert!(bucket.take(RATE, start + wait).is_err());
        let passed = (0..100).filter(|i| bucket.take(RATE, after(start, 1000 + i * 100)).is_ok()).count();
        assert!((19..=22).contains(&passed), "{passed} in 10 s at 2 a second");
    }

    #[test]
    fn what_is_spent_beyond_the_burst_is_paid_by_waiting() {
        let start = Instant::now();
        let mut bucket = Bucket::full(RATE, start);
        assert_eq!(bucket.spend(RATE, 3, start), None);
        assert_eq!(bucket.spend(RATE, 4, start), Some(Duration::from_secs(2)));
        assert_eq!(bucket.spend(RATE, 0, after(start, 1500)), Some(Duration::from_millis(500)));
        assert_eq!(bucket.spend(RATE, 1, after(start, 3000)), None);
    }

    #[test]
    fn a_table_of_buckets_stays_small_and_strangers_beyond_share_one() {
        let start = Instant::now();
        let mut buckets = Buckets::new(RATE, 10, start);
        let passed = (0..1000).filter(|key| buckets.take(key, start).is_ok()).count();
        assert_eq!((passed, buckets.buckets.len()), (13, 10));
        assert_eq!(buckets.peek(&5, start), Ok(()));
        assert!(buckets.peek(&5000, start).is_err());
        assert_eq!(buckets.take(&5000, after(start, 5000)), Ok(()));
        assert_eq!(buckets.buckets.len(), 1, "those that are full again were forgotten");
    }

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_64() {
        let source = |text: &str| Source::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
        assert_ne!(source("192.0.2.2"), source("192.0.2.1"));
    }
}
