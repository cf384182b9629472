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
    (status.own.certificate.state as u8, status.own.certificate.not_after).hash(&mut hash);
    hash_warnings(&status.warnings, &mut hash);
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
        (claim.prefix, &claim.active, &claim.standby, &claim.candidates).hash(&mut hash);
        (claim.switches, &claim.unused, claim.exclusive, &claim.holder).hash(&mut hash);
    }
    (&status.own.claims, status.own.users).hash(&mut hash);
    hash.finish()
}

/// All that they say but seconds, which pass.
fn hash_warnings(warnings: &[String], hash: &mut impl Hasher) {
    warnings.len().hash(hash);
    for warning in warnings {
        let mut words = warning.split_whitespace().peekable();
        while let Some(word) = words.next() {
            let unit = words.peek().map(|unit| unit.trim_end_matches([',', ';', '.', ':']));
            if unit != Some("s") {
                word.hash(hash);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(warnings: &[&str]) -> u64 {
        let warnings: Vec<String> = warnings.iter().map(|warning| (*warning).to_owned()).collect();
        let mut hash = DefaultHasher::new();
        hash_warnings(&warnings, &mut hash);
        hash.finish()
    }

    #[test]
    fn a_warning_that_says_something_else_is_a_change_and_seconds_that_pass_are_none() {
        let off = |by: &str| of(&[&format!("this machine's clock is {by} the servers': set it right")]);
        assert_ne!(off("61 s behind"), off("6 h behind"));
        assert_ne!(off("24 h behind"), off("6 h behind"));
        assert_ne!(off("6 h ahead of"), off("6 h behind"));
        assert_eq!(off("61 s behind"), off("62 s behind"));
        assert_eq!(of(&["it ends in 90 s, and then"]), of(&["it ends in 5 s, and then"]));
        assert_ne!(of(&["one", "two"]), of(&["one two"]));
        assert_ne!(of(&["one"]), of(&[]));
    }
}
