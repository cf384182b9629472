//! Hears what other servers notify. One connection of its own, made again with back-off; a notification to itself every few seconds proves that it
//! hears. Whatever was missed meanwhile is covered by a hint to look at everything.

use crate::store::{
    Hint, StoreError,
    postgres::{
        connect::{self, Hosts},
        error::PgError,
    },
};
use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::broadcast, time::Instant};
use tokio_postgres::{AsyncMessage, Client};

pub(crate) const CHANNEL: &str = "holdfast";
const PROOF: &str = "proof";
const PROOF_INTERVAL: Duration = Duration::from_secs(2);
/// For a proof to come back; a slow database has its time.
const PROOF_TIMEOUT: Duration = Duration::from_secs(3);
/// Hints are passed on so often at most.
const SEND_INTERVAL: Duration = Duration::from_millis(10);
/// More kinds than that at once (each server has one) count as anything.
const KINDS_KEPT: usize = 64;
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(3);

/// How a hint is written in a notification.
pub(crate) fn payload(hint: Hint) -> String {
    match hint {
        Hint::Log => "log".to_owned(),
        Hint::Presence => "presence".to_owned(),
        Hint::Signals(server) => format!("signals:{server}"),
        Hint::Leases => "leases".to_owned(),
        Hint::Anything => "anything".to_owned(),
    }
}

pub(crate) fn hint(payload: &str) -> Option<Hint> {
    match payload.split_once(':') {
        Some(("signals", server)) => Some(server.parse().map_or(Hint::Anything, Hint::Signals)),
        None if payload == "log" => Some(Hint::Log),
        None if payload == "presence" => Some(Hint::Presence),
        None if payload == "leases" => Some(Hint::Leases),
        None if payload == PROOF => None,
        // A newer server's.
        None | Some(_) => Some(Hint::Anything),
    }
}

/// Runs until it is aborted.
pub(crate) async fn run(hosts: Arc<Hosts>, hints: broadcast::Sender<Hint>, hearing: Arc<AtomicBool>) {
    let mut backoff = BACKOFF_FIRST;
    loop {
        let begun_at = Instant::now();
        let ended = listen(&hosts, &hints, &hearing).await;
        hearing.store(false, Relaxed);
        if let Err(error) = ended {
            tracing::debug!(%error, "not listening to the database; polling goes on");
        }
        if begun_at.elapsed() > PROOF_INTERVAL {
            backoff = BACKOFF_FIRST;
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

async fn listen(
    hosts: &Hosts,
    hints: &broadcast::Sender<Hint>,
    hearing: &AtomicBool,
) -> Result<(), StoreError> {
    let location = &hosts.location;
    let (client, mut driver) = hosts.connect().await?;
    let mut proving = pin!(prove(&client, location, hints));
    let mut moved = pin!(hosts.moved_from(client.host()));
    let mut heard_at = Instant::now();
    let mut waiting = Waiting::default();
    loop {
        tokio::select! {
            () = waiting.is_due() => waiting.send(hints),
            message = connect::next_message(&mut driver) => match message {
                Some(Ok(AsyncMessage::Notification(notification))) if notification.channel() == CHANNEL => {
                    heard_at = Instant::now();
                    hearing.store(true, Relaxed);
                    if let Some(hint) = hint(notification.payload()) {
                        waiting.add(hint);
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(PgError::from(error).at(location)),
                None => return Err(PgError::Closed.at(location)),
            },
            error = &mut proving => return Err(error),
            () = &mut moved => return Err(PgError::TakenOver.at(location)),
            () = tokio::time::sleep_until(heard_at + PROOF_INTERVAL + PROOF_TIMEOUT) => {
                return Err(StoreError::unavailable(location, "its notifications do not arrive"));
            }
        }
    }
}

/// Listens, and from then on notifies itself; ends only with an error.
async fn prove(client: &Client, location: &str, hints: &broadcast::Sender<Hint>) -> StoreError {
    if let Err(error) = client.batch_execute(&format!("LISTEN {CHANNEL}")).await {
        return PgError::from(error).at(location);
    }
    hints.send(Hint::Anything).ok();
    loop {
        if let Err(error) = client.batch_execute(&format!("NOTIFY {CHANNEL}, '{PROOF}'")).await {
            return PgError::from(error).at(location);
        }
        tokio::time::sleep(PROOF_INTERVAL).await;
    }
}

/// Hints on their way to those who look: however many come, each kind of look happens once in an interval.
struct Waiting {
    hints: Vec<Hint>,
    earliest_at: Instant,
}

impl Default for Waiting {
    fn default() -> Self {
        Self { hints: Vec::new(), earliest_at: Instant::now() }
    }
}

impl Waiting {
    fn add(&mut self, hint: Hint) {
        metrics::counter!("holdfast_notifications_total", "fate" => "heard").increment(1);
        if self.hints.contains(&hint) || self.hints.contains(&Hint::Anything) {
            return;
        }
        if self.hints.len() >= KINDS_KEPT {
            self.hints = vec![Hint::Anything];
        } else {
            self.hints.push(hint);
        }
    }

    async fn is_due(&self) {
        match self.hints.is_empty() {
            true => std::future::pending().await,
            false => tokio::time::sleep_until(self.earliest_at).await,
        }
    }

    fn send(&mut self, hints: &broadcast::Sender<Hint>) {
        self.earliest_at = Instant::now() + SEND_INTERVAL;
        for hint in self.hints.drain(..) {
            // Nobody may be waiting just now.
            hints.send(hint).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::session::ServerId;

    #[tokio::test]
    async fn a_flood_of_hints_is_one_of_each_kind_and_its_first_is_not_held_up() {
        let (sender, mut hints) = broadcast::channel(1000);
        let mut waiting = Waiting::default();
        let begun_at = Instant::now();
        waiting.add(Hint::Log);
        waiting.is_due().await;
        waiting.send(&sender);
        for _ in 0..10_000 {
            waiting.add(Hint::Log);
            waiting.add(Hint::Presence);
        }
        waiting.is_due().await;
        assert!(begun_at.elapsed() >= SEND_INTERVAL);
        waiting.send(&sender);
        for forged in 0..=200 {
            waiting.add(Hint::Signals(ServerId([forged; 16])));
        }
        waiting.send(&sender);
        let sent: Vec<_> = std::iter::from_fn(|| hints.try_recv().ok()).collect();
        assert_eq!(sent, [Hint::Log, Hint::Log, Hint::Presence, Hint::Anything]);
    }

    #[test]
    fn a_hint_survives_its_notification_and_an_unknown_one_means_anything() {
        for sent in
            [Hint::Log, Hint::Presence, Hint::Leases, Hint::Signals(ServerId([3; 16])), Hint::Anything]
        {
            assert_eq!(hint(&payload(sent)), Some(sent));
        }
        assert_eq!(hint("from-the-future:1"), Some(Hint::Anything));
        assert_eq!(hint(PROOF), None);
    }
}
