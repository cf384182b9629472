//! Waiting for a condition, with a name for what was waited for.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::stillness;

/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Polls `condition` until it yields a value; an error of the condition itself ends the wait.
pub fn wait_until<T>(
    what: &str,
    timeout: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let begun = Instant::now();
    stillness::begin();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if is_over(begun, timeout) {
            bail!("waited {timeout:?} in vain: {what}");
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Whether all of a patience is used up; while the machine stands still none of it is.
pub fn is_over(begun: Instant, patience: Duration) -> bool {
    begun.elapsed() >= patience && begun.elapsed() >= patience + stillness::between(begun, Instant::now())
}

/// Tries until it works; else the last failure is told.
pub fn retry<T>(what: &str, timeout: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let mut last = None;
    let done = wait_until(what, timeout, || Ok(attempt().map_err(|error| last = Some(error)).ok()));
    done.map_err(|waited| match last {
        Some(error) => error.context(waited),
        None => waited,
    })
}

/// Lets time pass while `check` holds: for "nothing happens for this long".
pub fn hold_for(span: Duration, mut check: impl FnMut() -> Result<()>) -> Result<()> {
    let end = Instant::now() + span;
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}
