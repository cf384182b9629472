//! Between workers: what came to one and is another's. With one worker nothing here happens.

use std::time::Duration;

use ipnet::IpNet;

use super::{Worker, outbound::MAX_SEGMENTS};
use crate::{
    device::{Parcel, Read, Reader},
    initiation::{self, Sender},
    peer::PeerId,
    peers::Peers,
    socket::{Ecn, Path},
    team::{Handed, Team},
};

/// Per turn. Segments are bounded as those from the interface.
const MAX_TAKEN: usize = 64;
/// A queue of the interface holds no more packets.
const MAX_WAITING: usize = 1024;

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
        let (mut taken, mut segments) = (0, 0);
        while taken < MAX_TAKEN && segments < MAX_SEGMENTS {
            let Some(handed) = self.team.as_deref().and_then(Team::next) else { break };
            match handed {
                Handed::Datagram { path, ecn, bytes } => self.handle_datagram(path, ecn, &bytes),
                Handed::Initiation { path, sender, bytes } => self.hear_passed(path, sender, bytes),
                Handed::Packets(parcel) => {
                    segments += parcel.count();
                    self.send_parcel(&parcel);
                }
            }
            taken += 1;
        }
        self.write();
        taken > 0
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

    pub(super) fn is_held_up(&self) -> bool {
        self.team.as_deref().is_some_and(Team::is_held_up)
    }

    pub(super) fn wake_team(&mut self) {
        if let Some(team) = &mut self.team {
            team.wake();
        }
    }

    /// Tells the kernel whose the destinations are that were changed. What already waits at this queue is handed over before that,
    /// and what comes meanwhile is lost: handed over later, newer packets would overtake it.
    pub(super) fn steer(&mut self, reader: &mut Reader) {
        let changed = self.routes.take_changed();
        if self.device.steering().is_none() || changed.is_empty() {
            return;
        }
        let own = self.peers.shard().number();
        let owners: Vec<_> = changed
            .into_iter()
            .map(|prefix| (prefix, self.routes.owner(prefix).and_then(|id| self.peers.owner(id))))
            .collect();
        let are_others = owners.iter().any(|(_, owner)| owner.is_some_and(|owner| owner != own));
        if are_others {
            self.empty_queue(reader, false);
        }
        let has_told_all = self.tell(&owners);
        if let Some(team) = &mut self.team {
            team.lacks_prefixes |= !has_told_all;
            if are_others && !team.lacks_prefixes {
                self.empty_queue(reader, true);
            }
        }
    }

    /// Whether the kernel took all.
    fn tell(&self, owners: &[(IpNet, Option<usize>)]) -> bool {
        let Some(steering) = self.device.steering() else { return false };
        let mut has_all = true;
        for &(prefix, owner) in owners {
            let told = match owner {
                Some(owner) => steering.set(prefix, owner),
                None => steering.unset(prefix),
            };
            if let Err(error) = told {
                // Its packets come to another worker, which hands them over.
                has_all = false;
                tracing::debug!(%error, %prefix, "the kernel does not take a route");
            }
        }
        has_all
    }

    /// Sends what waits, and loses what is others' when it is late, or more than they can take.
    fn empty_queue(&mut self, reader: &mut Reader, is_late: bool) {
        for _ in 0..MAX_WAITING {
            let loses = is_late || self.is_held_up();
            self.team.iter_mut().for_each(|team| team.loses = loses);
            match reader.read(self.device.system()) {
                Read::Segments(count) => self.send_segments(reader, count),
                Read::Malformed => self.drops.malformed += 1,
                Read::Empty => {
                    self.ready.device = false;
                    break;
                }
                // Errors come again.
                Read::Gone | Read::Failed(_) => break,
            }
            // The rest of a large packet may wait, which the system does not tell of.
            self.ready.device = true;
        }
        self.team.iter_mut().for_each(|team| team.loses = false);
    }

    /// Whatever was handed over is older than what the own queue gives from now on.
    pub(super) fn send_handed(&mut self) {
        while self.team.as_deref().is_some_and(Team::has_packets) && self.take_handed() {}
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
        team.passed_on.insert(initiation, owner, sender, self.now);
        self.hand_initiation(owner, path, sender.clone(), initiation);
        true
    }

    /// One that needs no more work here. `false` if it is yet to be admitted here.
    pub(super) fn forward_initiation(&mut self, path: Path, initiation: &[u8; initiation::LEN]) -> bool {
        let Some(team) = self.team.as_deref_mut() else { return false };
        if team.is_first() {
            let Some((owner, sender)) = team.passed_on.take(initiation, self.now) else { return false };
            self.hand_initiation(owner, path, sender, initiation);
            return true;
        }
        // The kernel looks at the first of several datagrams only.
        let handed = Handed::Datagram { path, ecn: None, bytes: Box::new(*initiation) };
        if !team.hand_over(0, handed) {
            self.drops.overrun += 1;
        }
        true
    }

    fn hand_initiation(
        &mut self,
        owner: usize,
        path: Path,
        sender: Sender,
        initiation: &[u8; initiation::LEN],
    ) {
        let handed = Handed::Initiation { path, sender, bytes: Box::new(*initiation) };
        if !self.team.as_deref_mut().is_some_and(|team| team.hand_over(owner, handed)) {
            self.drops.under_load += 1;
        }
    }

    /// Segments for another worker's peer. `false` if it is this one's.
    pub(super) fn pass_segments(&mut self, id: PeerId, reader: &Reader, count: usize) -> bool {
        self.pass_packets(id, count, || reader.pack(count))
    }

    /// As [`Worker::pass_segments`], of a packet that waited here for another peer.
    pub(super) fn pass_packet(&mut self, id: PeerId, packet: &[u8]) -> bool {
        self.pass_packets(id, 1, || Parcel::new(std::iter::once(packet)))
    }

    fn pass_packets(&mut self, id: PeerId, count: usize, pack: impl FnOnce() -> Parcel) -> bool {
        let Some((team, owner)) = self.team.as_deref_mut().zip(self.peers.owner(id)) else { return false };
        if owner == team.shard().number() {
            return false;
        }
        if team.loses || !team.hand_over(owner, Handed::Packets(pack())) {
            self.drops.overrun += count as u64;
        }
        true
    }

    /// Handshakes took so long. All are counted by the first, which admits them.
    pub(super) fn count_time(&mut self, took: Duration) {
        let now = self.now;
        let Some(local) = &mut self.local else { return };
        local.identity.spend(took, now);
        match self.team.as_deref() {
            None => {}
            Some(team) if team.is_first() => {
                local.identity.spend_elsewhere(team.take_spent(now), team.others(), now);
            }
            Some(team) => team.spend(took, now),
        }
    }
}
