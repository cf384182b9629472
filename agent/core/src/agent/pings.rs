//! Pings of peers' agents under way, each waiting for its tunnel or its answer.

use crate::time::BootTime;
use proto::key::PublicKey;
use std::time::Duration;

/// A ping without an answer is forgotten after this: a tunnel may have to be woken first.
const TIMEOUT: Duration = Duration::from_secs(10);
/// At most so many at once; the oldest is forgotten.
const LIMIT: usize = 64;

#[derive(Debug)]
struct Ping {
    id: u64,
    peer: PublicKey,
    /// The probe that asks, once it was sent.
    probe: Option<(u64, BootTime)>,
    ends_at: BootTime,
}

#[derive(Debug, Default)]
pub(super) struct Pings(Vec<Ping>);

impl Pings {
    pub(super) fn start(&mut self, id: u64, peer: PublicKey, now: BootTime) {
        if self.0.len() >= LIMIT {
            self.0.remove(0);
        }
        self.0.push(Ping { id, peer, probe: None, ends_at: now + TIMEOUT });
    }

    /// Numbers the probes of pings that waited for this peer's tunnel.
    pub(super) fn send(&mut self, peer: &PublicKey, next_probe: &mut u64, now: BootTime) -> Vec<u64> {
        let waiting = self.0.iter_mut().filter(|ping| ping.peer == *peer && ping.probe.is_none());
        waiting
            .map(|ping| {
                *next_probe = next_probe.wrapping_add(1);
                ping.probe = Some((*next_probe, now));
                *next_probe
            })
            .collect()
    }

    /// The ping that this probe's answer is for, and its round-trip time.
    pub(super) fn answer(&mut self, peer: &PublicKey, probe: u64, now: BootTime) -> Option<(u64, Duration)> {
        let asked = |ping: &Ping| ping.peer == *peer && ping.probe.is_some_and(|(id, _)| id == probe);
        let ping = self.0.swap_remove(self.0.iter().position(asked)?);
        ping.probe.map(|(_, sent_at)| (ping.id, now.since(sent_at)))
    }

    pub(super) fn expire(&mut self, now: BootTime) {
        self.0.retain(|ping| now < ping.ends_at);
    }

    pub(super) fn deadline(&self) -> Option<BootTime> {
        self.0.iter().map(|ping| ping.ends_at).min()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
