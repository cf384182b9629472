//! Interface to network.

use super::{Stop, Worker};
use crate::{
    Event, Policy, Via,
    capture::{Direction, Fate},
    device::{Read, Reader},
    packet,
    peer::{PeerId, PeerState},
    too_big,
};

/// Per turn: four large packets of 45 segments, or that many small ones.
pub(super) const MAX_SEGMENTS: usize = 180;
const MAX_READS: usize = 64;

impl Worker {
    /// Sends what the system wants sent.
    pub(super) fn send(&mut self, reader: &mut Reader) -> Result<(), Stop> {
        if !self.ready.device || self.is_held_up() {
            return Ok(());
        }
        let mut segments = 0;
        for _ in 0..MAX_READS {
            match reader.read(self.device.system()) {
                Read::Segments(count) => {
                    self.send_handed();
                    self.send_segments(reader, count);
                    segments += count;
                }
                Read::Malformed => self.drops.malformed += 1,
                Read::Empty => {
                    self.ready.device = false;
                    return Ok(());
                }
                Read::Gone => return Err(Stop::Gone(format!("{} was deleted", self.device.name()))),
                Read::Failed(error) => {
                    return Err(Stop::Fault(format!("interface {}: {error}", self.device.name())));
                }
            }
            if segments >= MAX_SEGMENTS {
                break;
            }
        }
        self.handshakes.press();
        Ok(())
    }

    /// All segments of a packet have its destination: one look-up serves them.
    pub(super) fn send_segments(&mut self, reader: &mut Reader, count: usize) {
        let Some(destination) = packet::destination(reader.segment(0)) else {
            self.drops.malformed += count as u64;
            return;
        };
        if self.message_port.is_some_and(|port| packet::is_to_udp_port(reader.segment(0), port)) {
            self.drops.message_port += count as u64;
            return;
        }
        let Some(id) = self.routes.lookup(destination) else {
            self.drops.no_route += count as u64;
            return;
        };
        if reader.segment(0).len() > packet::MAX_INNER {
            self.refuse_large(reader.segment(0), count);
        } else if self.seal_segments(id, reader, count).is_none() {
            self.keep_segments(id, reader, count);
        }
    }

    /// Whoever sent it learns the way's MTU. The interface's own may be larger.
    fn refuse_large(&mut self, packet: &[u8], count: usize) {
        self.drops.too_large += count as u64;
        if self.writer.is_full() {
            self.write();
        }
        if let Some(len) = too_big::answer(packet, self.writer.room()) {
            self.writer.keep(len);
            self.write();
        }
    }

    /// `None` if there is no session to send with.
    fn seal_segments(&mut self, id: PeerId, reader: &mut Reader, count: usize) -> Option<()> {
        let state = self.peers.get(id)?;
        let path = state.path?;
        let live = state.live.as_deref_mut().filter(|live| live.is_established)?;
        if !self.taps.is_empty() {
            (0..count).for_each(|index| {
                self.taps.note(state.key, Direction::Outbound, Fate::Passed, reader.segment(index));
            });
        }
        if let Some(filter) = &mut self.filter {
            // They are of one flow, and only the last may say that it ends.
            filter.note_outbound(reader.segment(count.saturating_sub(1)), Via(id.0), self.now);
        }
        let noise = live.sealer();
        let record = state.record.get_or_insert_default();
        record.traffic.tx_packets += count as u64;
        for index in 0..count {
            record.traffic.tx_bytes += reader.segment(index).len() as u64;
            record.tx_datagram_bytes += self.outbox.seal(id, noise, reader.padded(index), path);
        }
        if live.on_data_sent(self.now) {
            self.watches.on_unanswered(id, self.now);
        }
        if !state.is_active {
            state.is_active = true;
            self.activity.add(id);
        }
        Some(())
    }

    fn keep_segments(&mut self, id: PeerId, reader: &Reader, count: usize) {
        if !self.pass_segments(id, reader, count) {
            self.keep(id, (0..count).map(|index| reader.segment(index)));
        }
    }

    /// Puts packets by until there is a session.
    fn keep<'a>(&mut self, id: PeerId, packets: impl ExactSizeIterator<Item = &'a [u8]>) {
        let Some(state) = self.peers.get(id) else { return };
        if self.policy == Policy::WireGuard && state.path.is_none() {
            self.drops.no_endpoint += packets.len() as u64;
            return;
        }
        let is_first = state.waiting.is_empty();
        for packet in packets {
            if !state.waiting.push(packet, &mut self.budget) {
                self.drops.queue_full += 1;
                state.drops().queue_full += 1;
            }
        }
        match self.policy {
            Policy::WireGuard if is_first || self.handshakes.may_begin() => self.want_session_soon(id),
            // The first one is in line.
            Policy::WireGuard => {}
            Policy::Owner if !state.is_announced => {
                state.is_announced = true;
                let peer = state.key;
                self.emit(Event::PacketWaiting { peer });
            }
            Policy::Owner => {}
        }
    }

    /// Sends what waited for the session that is now there.
    pub(super) fn send_waiting(&mut self, id: PeerId) {
        let Some(state) = self.peers.get(id) else { return };
        state.is_announced = false;
        if state.path.is_some() {
            let packets = state.waiting.take(&mut self.budget);
            self.send_kept(id, packets);
        }
    }

    /// What waits for a peer goes, in order, to whom its prefixes belong by now.
    pub(super) fn send_elsewhere(&mut self, former: PeerId) {
        let Some(state) = self.peers.get(former) else { return };
        for packet in state.waiting.take(&mut self.budget) {
            let owner = packet::destination(&packet).and_then(|address| self.routes.lookup(address));
            let Some(id) = owner else {
                self.drops.no_route += 1;
                continue;
            };
            if self.pass_packet(id, &packet) {
                continue;
            }
            let is_ready = |state: &mut PeerState| state.path.is_some() && state.established().is_some();
            match self.peers.get(id).is_some_and(is_ready) {
                true => self.send_kept(id, std::iter::once(packet)),
                false => self.keep(id, std::iter::once(&*packet)),
            }
        }
    }

    /// Seals what waited. There is a session.
    fn send_kept(&mut self, id: PeerId, packets: impl Iterator<Item = Box<[u8]>>) {
        let Some(state) = self.peers.get(id) else { return };
        let Some(path) = state.path else { return };
        let peer = state.key;
        let (mut sent_packets, mut sent_bytes) = (0, 0);
        for packet in packets {
            sent_packets += 1;
            sent_bytes += packet.len() as u64;
            if !self.taps.is_empty() {
                self.taps.note(peer, Direction::Outbound, Fate::Passed, &packet);
            }
            if let Some(filter) = &mut self.filter {
                filter.note_outbound(&packet, Via(id.0), self.now);
            }
            self.seal_copy(id, packet.into(), path);
        }
        if sent_bytes == 0 {
            return;
        }
        self.mark_active(id);
        let now = self.now;
        if let Some(state) = self.peers.get(id) {
            let traffic = &mut state.record().traffic;
            traffic.tx_bytes += sent_bytes;
            traffic.tx_packets += sent_packets;
            if state.established().is_some_and(|live| live.on_data_sent(now)) {
                self.watches.on_unanswered(id, now);
            }
        }
    }
}
