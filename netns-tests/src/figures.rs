//! Measured spans: median, p99 and worst, and the bounds they must keep.

use std::fmt::{Display, Formatter};
use std::time::Duration;

/// Spans of one kind, one per round and agent.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    name: String,
    spans: Vec<Duration>,
}

/// What must hold for a set of samples.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    Median(Duration),
    P99(Duration),
    Worst(Duration),
    /// Printed only.
    None,
}

impl Bound {
    /// The same, with another limit.
    pub fn map(self, widened: impl FnOnce(Duration) -> Duration) -> Self {
        match self {
            Self::Median(limit) => Self::Median(widened(limit)),
            Self::P99(limit) => Self::P99(widened(limit)),
            Self::Worst(limit) => Self::Worst(widened(limit)),
            Self::None => Self::None,
        }
    }
}

impl Samples {
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), spans: Vec::new() }
    }

    pub fn push(&mut self, span: Duration) {
        self.spans.push(span);
    }

    pub fn extend(&mut self, spans: impl IntoIterator<Item = Duration>) {
        self.spans.extend(spans);
    }

    pub fn len(&self) -> usize {
        self.spans.len()
    }

    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The nearest-rank percentile; zero without samples.
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.spans.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100);
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }

    pub fn worst(&self) -> Duration {
        self.spans.iter().max().copied().unwrap_or_default()
    }

    /// Why the samples break `bound`, if they do. No samples break every bound.
    pub fn breach(&self, bound: Bound) -> Option<String> {
        let (which, measured, limit) = match bound {
            Bound::Median(limit) => ("p50", self.percentile(50), limit),
            Bound::P99(limit) => ("p99", self.percentile(99), limit),
            Bound::Worst(limit) => ("worst", self.worst(), limit),
            Bound::None => return None,
        };
        if self.is_empty() {
            return Some(format!("{}: nothing was measured", self.name));
        }
        let broken = measured > limit;
        broken.then(|| format!("{}: {which} is {}, above {}", self.name, ms(measured), ms(limit)))
    }
}

impl Display for Samples {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let (p50, p99) = (ms(self.percentile(50)), ms(self.percentile(99)));
        let worst = ms(self.worst());
        write!(f, "{}: p50 {p50}, p99 {p99}, worst {worst} of {} rounds", self.name, self.len())
    }
}

/// A span as people read it: `0.21 ms`, `48 ms`, `1.52 s`.
pub fn ms(span: Duration) -> String {
    let millis = span.as_secs_f64() * 1000.0;
    match millis {
        ..1.0 => format!("{millis:.2} ms"),
        1.0..1000.0 => format!("{millis:.0} ms"),
        _ => format!("{:.2} s", millis / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hundred() -> Samples {
        let mut samples = Samples::new("x");
        samples.extend((1..=100).rev().map(Duration::from_millis));
        samples
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let samples = hundred();
        assert_eq!(samples.percentile(50), Duration::from_millis(50));
        assert_eq!(samples.percentile(99), Duration::from_millis(99));
        assert_eq!(samples.worst(), Duration::from_millis(100));
    }

    #[test]
    fn few_samples_have_their_worst_as_p99() {
        let mut samples = Samples::new("x");
        samples.extend([5, 7, 6].map(Duration::from_millis));
        assert_eq!(samples.percentile(99), Duration::from_millis(7));
    }

    #[test]
    fn a_bound_that_is_met_exactly_is_kept_and_one_above_is_told() {
        let samples = hundred();
        assert_eq!(samples.breach(Bound::P99(Duration::from_millis(99))), None);
        let told = samples.breach(Bound::P99(Duration::from_millis(98)));
        assert_eq!(told.as_deref(), Some("x: p99 is 99 ms, above 98 ms"));
    }

    #[test]
    fn nothing_measured_breaks_a_bound() {
        assert!(Samples::new("x").breach(Bound::Worst(Duration::MAX)).is_some());
    }
}
