//! Thousands of members that exist in the database only: enrolled over the real protocol, by a client that has no tunnel.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use futures_util::StreamExt;
use proto::setup_key::SetupKey;

use crate::client::{Enrolment, Line, Member, within};
use crate::namespace::Namespace;

/// Enrolments on one connection: a server ends one that carries no session after a while.
const PER_CONNECTION: usize = 500;
/// Enrolments under way at once: a server allows few streams on one connection.
const AT_ONCE: usize = 4;

/// Enrols `count` nodes with fresh keys and the names `crowd-0`, `crowd-1`, .. at `server`, from inside `namespace`.
pub fn enrol(namespace: &Namespace, server: SocketAddr, setup_key: &str, count: usize) -> Result<()> {
    let key: SetupKey = setup_key.parse()?;
    let starts = (0..count).step_by(PER_CONNECTION);
    let mut batches = starts.map(|start| start..count.min(start + PER_CONNECTION));
    batches.try_for_each(|batch| within(namespace, || enrol_some(server, &key, batch)))
}

async fn enrol_some(server: SocketAddr, key: &SetupKey, numbers: std::ops::Range<usize>) -> Result<()> {
    let line = Line::dial(server, key.fingerprint).await?;
    let count = numbers.len();
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
    ensure!(enrolled == count, "{enrolled} of {count} were enrolled");
    Ok(())
}
