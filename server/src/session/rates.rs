//! How often an agent may say what. What comes too fast is read later, so that the agent's own TCP slows it down; who keeps that up for long
//! is not an agent in a hurry but a broken or hostile one, and its session ends with the reason.

use crate::{
    limit::{Bucket, Rate},
    session::refusal,
};
use proto::{session::Refused, wire::agent_message::Kind};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// Messages that were delayed; more, and the session ends.
const PATIENCE: Rate = Rate { burst: 300, per_second: 1.0 };

/// What is counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Heartbeat,
    /// Activate and Deactivate: each is a turn of presence.
    Role,
    Signal,
    Update,
    /// Each is verified.
    Removal,
    /// What is said seldom, and kinds from the future.
    Other,
}

impl Class {
    fn of(kind: Option<&Kind>) -> Self {
        match kind {
            Some(Kind::Heartbeat(_)) => Self::Heartbeat,
            Some(Kind::Activate(_) | Kind::Deactivate(_)) => Self::Role,
            Some(Kind::Signal(_)) => Self::Signal,
            Some(Kind::Update(_)) => Self::Update,
            Some(Kind::Removal(_)) => Self::Removal,
            Some(Kind::Hello(_) | Kind::Leave(_) | Kind::Root(_)) | None => Self::Other,
        }
    }

    fn rate(self) -> Rate {
        match self {
            // One a second is usual, and a failover hastens them.
            Self::Heartbeat => Rate { burst: 50, per_second: 10.0 },
            Self::Role => Rate { burst: 20, per_second: 2.0 },
            // One for each peer that is woken, of thousands at worst.
            Self::Signal => Rate { burst: 500, per_second: 50.0 },
            Self::Update => Rate { burst: 20, per_second: 2.0 },
            // An agent tells a server that lost them its 64 newest.
            Self::Removal => Rate { burst: 150, per_second: 5.0 },
            Self::Other => Rate { burst: 100, per_second: 20.0 },
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Heartbeat => "heartbeats",
            Self::Role => "activations",
            Self::Signal => "signals",
            Self::Update => "updates",
            Self::Removal => "removals",
            Self::Other => "messages",
        }
    }
}

/// What one session has left.
#[derive(Debug, Default)]
pub(super) struct Rates {
    /// Only of what was said: an idle session keeps heartbeats alone.
    buckets: BTreeMap<Class, Bucket>,
    patience: Option<Bucket>,
}

impl Rates {
    /// Whether a message of this kind may be handled now (`None`), or in how long.
    ///
    /// # Errors
    /// It was too fast for too long: the session is to end.
    pub(super) fn delay(&mut self, kind: Option<&Kind>, now: Instant) -> Result<Option<Duration>, Refused> {
        let class = Class::of(kind);
        let rate = class.rate();
        let bucket = self.buckets.entry(class).or_insert_with(|| Bucket::full(rate, now));
        let Err(wait) = bucket.take(rate, now) else { return Ok(None) };
        metrics::counter!("holdfast_messages_delayed_total", "kind" => class.name()).increment(1);
        let patience = self.patience.get_or_insert_with(|| Bucket::full(PATIENCE, now));
        match patience.take(PATIENCE, now) {
            Ok(()) => Ok(Some(wait)),
            Err(_) => Err(refusal::too_fast(class.name(), rate.per_second)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{session::Reason, wire};

    fn heartbeat() -> Option<Kind> {
        Some(Kind::Heartbeat(wire::Heartbeat::default()))
    }

    /// Whether `count` heartbeats at this interval end the session; and how many were delayed.
    fn run(count: u32, interval: Duration) -> (usize, Option<Refused>) {
        let (mut rates, mut now, mut delayed) = (Rates::default(), Instant::now(), 0);
        for _ in 0..count {
            match rates.delay(heartbeat().as_ref(), now) {
                Ok(None) => {}
                Ok(Some(wait)) => {
                    now += wait;
                    delayed += 1;
                    assert_eq!(
                        rates.delay(heartbeat().as_ref(), now),
                        Ok(None),
                        "it waited as long as it was told"
                    );
                }
                Err(refused) => return (delayed, Some(refused)),
            }
            now += interval;
        }
        (delayed, None)
    }

    #[test]
    fn a_usual_agent_is_never_delayed() {
        assert_eq!(run(10_000, Duration::from_secs(1)), (0, None));
        assert_eq!(run(50, Duration::ZERO), (0, None));
    }

    #[test]
    fn an_agent_that_tells_all_the_removals_it_may_is_not_delayed_and_a_flood_is_ended() {
        let (mut rates, now) = (Rates::default(), Instant::now());
        let removal = Some(Kind::Removal(wire::KnownRemoval::default()));
        assert!((0..2 * 64).all(|_| rates.delay(removal.as_ref(), now) == Ok(None)));
        let refused = (0..1000).find_map(|_| rates.delay(removal.as_ref(), now).err());
        assert!(refused.is_some_and(|refused| refused.detail.contains("removals")));
    }

    #[test]
    fn a_flood_is_slowed_down_and_then_ended_with_what_it_was() {
        let (delayed, refused) = run(100_000, Duration::ZERO);
        let refused = refused.unwrap();
        assert!(delayed >= PATIENCE.burst as usize, "{delayed}");
        assert_eq!(refused.reason, Reason::Full);
        assert!(refused.detail.contains("heartbeats"), "{refused}");
    }

    #[test]
    fn a_flood_of_one_kind_delays_no_other() {
        let (mut rates, now) = (Rates::default(), Instant::now());
        let signal = Some(Kind::Signal(wire::Signal::default()));
        while rates.delay(signal.as_ref(), now) == Ok(None) {}
        assert_eq!(rates.delay(heartbeat().as_ref(), now), Ok(None));
    }
}
