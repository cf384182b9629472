//! Between workers: what came to one and is another's. With one worker nothing here happens.

use std::time::Duration;

use super::Worker;
use crate::{
    device::{Parcel, Reader},
    initiation::{self, Sender},
    peer::PeerId,
    peers::Peers,
    socket::{Ecn, Path},
    team::{Handed, Team},
};

/// Per turn, as from the interface.
const MAX_TAKEN: usize = 64;

impl Worker {
    /// This worker is one of several from now on.
    pub(crate) fn join(&mut self, mut team: Team) {
        team.reader = Some(Reader::new(self.device.system(), self.device.mtu()));
        self.peers = Peers::of(team.shard());
        if self.device.steering().is_some() {
            self.routes.keep_changes();
        }
        self.team = Some(Box::new(team));
        self.share_cookies();
    }

    /// To be called whenever the key is another.
    pub(super) fn share_cookies(&mut self) {
        if let Some((team, local)) = self.team.as_deref().zip(self.local.as_mut()) {
            team.share_cookies(local.key.public_key(), &mut local.identity);
        }
    }

    /// One has ended: all do.
    pub(crate) fn dismiss_team(&self) {
        if let Some(team) = &self.team {
            team.dismiss();
        }
    }

    /// Whether it is for this worker to say why the tunnel ended.
    pub(super) fn is_to_report(&self) -> bool {
        self.team.as_deref().is_none_or(Team::is_to_report)
    }

    /// Works on what the others have handed over; whether there was anything.
    pub(super) fn take_handed(&mut self) -> bool {
        for taken in 0..MAX_TAKEN {
            let Some(handed) = self.team.as_deref().and_then(Team::next) else { return taken > 0 };
            match handed {
                Handed::Datagram { path, ecn, bytes } => {
                    self.handle_datagram(path, ecn, &bytes);
                    self.write();
                }
                Handed::Initiation { path, sender, bytes } => {
                    self.timed(|worker| worker.handle_passed(path, &sender, &bytes));
                }
                Handed::Packets(parcel) => self.send_parcel(&parcel),
            }
        }
        true
    }

    fn send_parcel(&mut self, parcel: &Parcel) {
        // Not the one that reads: that may hold what is left of a large packet.
        let Some(mut reader) = self.team.as_deref_mut().and_then(|team| team.reader.take()) else { return };
        reader.fit(self.device.mtu());
        for packet in parcel.packets() {
            reader.load(packet);
            self.send_segments(&mut reader, 1);
        }
        if let Some(team) = self.team.as_deref_mut() {
            team.reader = Some(reader);
        }
    }

    fn handle_passed(&mut self, path: Path, sender: &Sender, initiation: &[u8; initiation::LEN]) {
        if !self.is_up {
            return;
        }
        match self.answers.find(initiation, self.now) {
            Some(answer) => self.outbox.send(None, answer, path),
            None => self.handle_admitted(path, sender, initiation),
        }
    }

    pub(super) fn is_held_up(&self) -> bool {
        self.team.as_deref().is_some_and(Team::is_held_up)
    }

    pub(super) fn wake_team(&mut self) {
        if let Some(team) = &mut self.team {
            team.wake();
        }
    }

    /// Tells the kernel whose the destinations are that were changed.
    pub(super) fn steer(&mut self) {
        let changed = self.routes.take_changed();
        let Some(steering) = self.device.steering() else { return };
        for prefix in changed {
            let owner = self.routes.owner(prefix).and_then(|id| self.peers.owner(id));
            let told = match owner {
                Some(owner) => steering.set(prefix, owner),
                None => steering.unset(prefix),
            };
            if let Err(error) = told {
                // Its packets come to another worker, which hands them over.
                tracing::debug!(%error, %prefix, "the kernel does not take a route");
            }
        }
    }

    /// A datagram of a session that is not here: to the worker whose it would be. `false` if that is this one.
    pub(super) fn pass_datagram(
        &mut self,
        session: u32,
        path: Path,
        ecn: Option<Ecn>,
        datagram: &[u8],
    ) -> bool {
        let owner = self.peers.shard().session_owner(session);
        let Some(team) = self.team.as_deref_mut().filter(|team| team.shard().number() != owner) else {
            return false;
        };
        if !team.hand_over(owner, Handed::Datagram { path, ecn, bytes: datagram.into() }) {
            self.drops.overrun += 1;
        }
        true
    }

    /// An initiation of another worker's peer. `false` if it is this one's.
    pub(super) fn pass_initiation(
        &mut self,
        id: PeerId,
        path: Path,
        sender: &Sender,
        initiation: &[u8; initiation::LEN],
    ) -> bool {
        let Some((team, owner)) = self.team.as_deref_mut().zip(self.peers.owner(id)) else { return false };
        if owner == team.shard().number() {
            return false;
        }
        let handed = Handed::Initiation { path, sender: sender.clone(), bytes: Box::new(*initiation) };
        if !team.hand_over(owner, handed) {
            self.drops.under_load += 1;
        }
        true
    }

    /// Segments for another worker's peer. `false` if it is this one's.
    pub(super) fn pass_segments(&mut self, id: PeerId, reader: &Reader, count: usize) -> bool {
        let Some((team, owner)) = self.team.as_deref_mut().zip(self.peers.owner(id)) else { return false };
        if owner == team.shard().number() {
            return false;
        }
        if !team.hand_over(owner, Handed::Packets(reader.pack(count))) {
            self.drops.overrun += count as u64;
        }
        true
    }

    /// Handshakes took so long. All are counted by the first, which admits them.
    pub(super) fn count_time(&mut self, took: Duration) -> Duration {
        match self.team.as_deref() {
            None => took,
            Some(team) if team.shard().number() == 0 => took + Duration::from_nanos(team.take_spent_ns()),
            Some(team) => {
                team.spend(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
                took
            }
        }
    }
}
