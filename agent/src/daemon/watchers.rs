//! Those who follow the status: each change is told at once, and once. With very many peers a status is costly to gather, so it then takes a fifth of the event loop's
//! time at most; changes merge meanwhile.

use crate::local::Snapshot;
use agent_core::{BootTime, status::Status};
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

/// After gathering, so many times its duration go to other work.
const REST: u32 = 4;
/// Of rest for each peer: the whole is rendered for each watcher, in other threads. Ten thousand peers are told once a second.
const RENDERING: Duration = Duration::from_micros(100);

#[derive(Default)]
pub(super) struct Watchers {
    sender: Option<watch::Sender<Arc<Snapshot>>>,
    last: u64,
    /// Something happened that the last snapshot may not show.
    dirty: bool,
    rest_until: BootTime,
}

impl Watchers {
    pub(super) fn on_event(&mut self) {
        self.dirty = true;
    }

    /// When to look for changes: now, if this is not in the future.
    pub(super) fn due(&self) -> Option<BootTime> {
        let watched = self.sender.as_ref().is_some_and(|sender| sender.receiver_count() > 0);
        (watched && self.dirty).then_some(self.rest_until)
    }

    /// Tells a status that took `cost` to gather, if it is another than the last.
    pub(super) fn tell(&mut self, snapshot: Snapshot, now: BootTime, cost: Duration) {
        self.dirty = false;
        let rendering = RENDERING * u32::try_from(snapshot.status.peers.len()).unwrap_or(u32::MAX);
        self.rest_until = now + (cost * REST).max(rendering);
        let new = digest(&snapshot.status);
        if let Some(sender) = &self.sender
            && self.last != new
        {
            self.last = new;
            sender.send_replace(Arc::new(snapshot));
        }
    }

    /// A watcher, who first sees this status.
    pub(super) fn add(&mut self, first: Snapshot) -> watch::Receiver<Arc<Snapshot>> {
        let new = digest(&first.status);
        match &self.sender {
            Some(sender) => {
                // Older watchers are told only if it is news to them.
                if sender.receiver_count() == 0 || self.last != new {
                    sender.send_replace(Arc::new(first));
                }
                self.last = new;
                sender.subscribe()
            }
            None => {
                let (sender, receiver) = watch::channel(Arc::new(first));
                self.sender = Some(sender);
                self.last = new;
                receiver
            }
        }
    }

    /// The agent ends: the watchers' connections, too.
    pub(super) fn end(&mut self) {
        self.sender = None;
    }
}

/// Of everything that is not merely older or measured anew.
fn digest(status: &Status) -> u64 {
    let mut hash = DefaultHasher::new();
    let control = &status.control;
    (
        status.state as u8,
        control.state as u8,
        &status.own.addresses,
        status.own.listen_port,
        status.own.draining,
    )
        .hash(&mut hash);
    (status.own.certificate.state as u8, status.own.certificate.not_after, status.warnings.len())
        .hash(&mut hash);
    (control.epoch, control.revision, control.failovers, control.map_source as u8, &control.refused)
        .hash(&mut hash);
    for server in [&control.server, &control.standby] {
        server.as_ref().map(|server| (server.id, &server.url)).hash(&mut hash);
    }
    for server in &control.servers {
        (&server.url, server.id, server.state as u8, &server.last_error).hash(&mut hash);
    }
    for peer in &status.peers {
        (&peer.name, peer.public_key, &peer.addresses, peer.online, peer.expired).hash(&mut hash);
        (peer.mode as u8, peer.tunnel as u8, peer.path.kind as u8, peer.path.endpoint).hash(&mut hash);
    }
    for claim in &status.claims {
        (claim.prefix, &claim.active, &claim.candidates, claim.switches).hash(&mut hash);
    }
    hash.finish()
}
