//! Thousands of members that exist in the database only: enrolled over the real protocol, by a client that has no tunnel.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::StreamExt;
use proto::setup_key::SetupKey;

use crate::client::{Enrolment, Line, Member, within};
use crate::namespace::Namespace;

/// For so long one connection takes new ones: a server ends one that carries no session after 15 s.
const PER_CONNECTION: Duration = Duration::from_secs(5);
/// Enrolments under way at once: a server allows few streams on one connection.
const AT_ONCE: usize = 4;

/// Enrols `count` nodes with fresh keys and the names `crowd-0`, `crowd-1`, .. at `server`, from inside `namespace`.
pub fn enrol(namespace: &Namespace, server: SocketAddr, setup_key: &str, count: usize) -> Result<()> {
    let key: SetupKey = setup_key.parse()?;
    let mut enrolled = 0;
    while enrolled < count {
        let some = within(namespace, || enrol_some(server, &key, enrolled..count))?;
        ensure!(some > 0, "one connection enrols nobody");
        enrolled += some;
    }
    Ok(())
}

/// On one connection; how many of the first were enrolled.
async fn enrol_some(server: SocketAddr, key: &SetupKey, numbers: Range<usize>) -> Result<usize> {
    let line = Line::dial(server, key.fingerprint).await?;
    let begun = Instant::now();
    let numbers = numbers.take_while(|_| begun.elapsed() < PER_CONNECTION);
    let enrolments = numbers.map(|number| {
        let line = line.clone();
        async move { line.enrol(&Member::new(format!("crowd-{number}"))?, key).await }
    });
    let mut done = futures_util::stream::iter(enrolments).buffer_unordered(AT_ONCE);
    let mut enrolled = 0;
    while let Some(result) = done.next().await {
        let outcome = result?;
        ensure!(matches!(outcome, Enrolment::Member(_)), "one of the crowd was not enrolled: {outcome:?}");
        enrolled += 1;
    }
    Ok(enrolled)
}
