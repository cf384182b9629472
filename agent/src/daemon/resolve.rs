//! Names of servers, looked up off the event loop: the system's resolver blocks.

use super::Event;
use proto::server_url::ServerUrl;
use std::{net::SocketAddr, time::Duration};
use tokio::sync::mpsc;

/// The system's resolver may take minutes when its servers are away; the core asks again.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn resolve(url: ServerUrl, events: mpsc::Sender<Event>) {
    tokio::spawn(async move {
        let result = look_up(url.host(), url.port()).await;
        // Without an event loop nobody is interested any more.
        let _ = events.send(Event::Resolved(url, result)).await;
    });
}

async fn look_up(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    match tokio::time::timeout(TIMEOUT, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(addrs)) => Ok(addrs.collect()),
        Ok(Err(error)) => Err(format!("the name {host} does not resolve: {error}")),
        Err(_elapsed) => Err(format!("the name {host} was not resolved within {TIMEOUT:?}")),
    }
}
