//! Hears what other servers notify. One connection of its own, made again with back-off; a notification to itself every few seconds proves that it
//! hears. Whatever was missed meanwhile is covered by a hint to look at everything.

use crate::store::{
    Hint, StoreError,
    postgres::{
        connect::{self, Hosts},
        error::PgError,
    },
};
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{sync::broadcast, time::Instant};
use tokio_postgres::{AsyncMessage, Client};

pub(crate) const CHANNEL: &str = "holdfast";
const PROOF: &str = "proof";
const PROOF_INTERVAL: Duration = Duration::from_secs(2);
/// For a proof to come back; a slow database has its time.
const PROOF_TIMEOUT: Duration = Duration::from_secs(3);
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

fn hint(payload: &str) -> Option<Hint> {
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
pub(crate) async fn run(hosts: Arc<Hosts>, hints: broadcast::Sender<Hint>) {
    let mut backoff = BACKOFF_FIRST;
    loop {
        let begun_at = Instant::now();
        if let Err(error) = listen(&hosts, &hints).await {
            tracing::debug!(%error, "not listening to the database; polling goes on");
        }
        if begun_at.elapsed() > PROOF_INTERVAL {
            backoff = BACKOFF_FIRST;
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

async fn listen(hosts: &Hosts, hints: &broadcast::Sender<Hint>) -> Result<(), StoreError> {
    let location = &hosts.location;
    let (client, mut driver) = hosts.connect().await?;
    let mut proving = pin!(prove(&client, location, hints));
    let mut moved = pin!(hosts.moved_from(client.host()));
    let mut heard_at = Instant::now();
    loop {
        tokio::select! {
            message = connect::next_message(&mut driver) => match message {
                Some(Ok(AsyncMessage::Notification(notification))) if notification.channel() == CHANNEL => {
                    heard_at = Instant::now();
                    if let Some(hint) = hint(notification.payload()) {
                        // Nobody may be waiting just now.
                        hints.send(hint).ok();
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
        tokio::time::sleep(PROOF_INTERVAL).await;
        if let Err(error) = client.batch_execute(&format!("NOTIFY {CHANNEL}, '{PROOF}'")).await {
            return PgError::from(error).at(location);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::session::ServerId;

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
