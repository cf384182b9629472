//! Network to interface, and the handshakes in between.

use std::{
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use super::{Worker, handshakes::MAX_READ};
use crate::{
    Drops, Event, Filter, PeerDrops, Policy, Refusal, Via,
    capture::{Direction, Fate},
    initiation::{self, Sender},
    noise::{Admission, Kind, Opened},
    packet,
    peer::{Live, PeerId, is_own},
    socket::{Arena, Ecn, Family, Path, Received, leads_somewhere},
};

/// For how long an endpoint that was just chosen or followed is kept, whatever comes from elsewhere. Longer than
/// what is in flight: or two sides on two paths would follow each other to and fro, packet by packet.
pub(super) const ROAMING_HOLD: Duration = Duration::from_secs(1);

/// What an opened packet is.
#[derive(Clone, Copy)]
enum Verdict {
    Deliver,
    Message,
    /// To the agents' port, but not from the peer's own address.
    ForgedMessage,
    BadSource,
    /// The peer may send it, but the filter lets it not in.
    Refused(Refusal),
}

impl Worker {
    /// Handles what has arrived.
    pub(super) fn receive(&mut self, arena: &mut Arena) {
        for family in [Family::V4, Family::V6] {
            let mut read = 0;
            // Before handshakes are worked on, what came meanwhile is read, too.
            while self.ready.has(family) || read > 0 {
                let socket = self.outbox.sockets.socket(family);
                let received = socket.map_or(Received::Nothing, |socket| arena.receive(socket));
                self.ready.set(family, received == Received::Full);
                if received == Received::Nothing {
                    break;
                }
                // Empty datagrams are none, and take their time.
                read += 1;
                for (path, ecn, datagram) in arena.datagrams() {
                    self.handle_datagram(path, ecn, datagram);
                    read += 1;
                }
                if read >= MAX_READ {
                    self.handshakes.press();
                }
                if read >= MAX_READ || !self.handshakes.is_waiting() {
                    break;
                }
            }
        }
        self.write();
    }

    pub(super) fn write(&mut self) {
        if self.writer.is_empty() {
            return;
        }
        self.drops.write_failed += self.writer.flush(self.device.system());
        // The system answers some packets while they are written.
        self.ready.device = true;
    }

    pub(super) fn handle_datagram(&mut self, path: Path, ecn: Option<Ecn>, datagram: &[u8]) {
        if !self.is_up {
            return;
        }
        // Neither followed nor answered: the kernel refuses what goes there, and takes its time.
        if !leads_somewhere(path.to) {
            self.drops.bad_endpoint += 1;
            return;
        }
        self.outbox.sockets.on_arrival(path.from);
        match Kind::of(datagram) {
            Some(Kind::Data(session)) => self.handle_data(path, session, ecn, datagram),
            Some(kind @ (Kind::Initiation | Kind::Response(_))) => self.hear_handshake(path, kind, datagram),
            Some(kind @ Kind::Cookie(session)) => self.handle_cookie(path, kind, session, datagram),
            None => self.drops.not_wireguard += 1,
        }
    }

    fn handle_data(&mut self, path: Path, session: u32, ecn: Option<Ecn>, datagram: &[u8]) {
        let Some(id) = self.peers.find_session(session) else {
            if self.pass_datagram(session, path, ecn, datagram) {
                return;
            }
            self.drops.unknown_index += 1;
            if self.strangers.admit(path.to, self.now) {
                self.emit(Event::UnknownIndex { from: path.to });
            }
            return;
        };
        if self.writer.is_full() {
            self.write();
        }
        let Some(state) = self.peers.get(id) else { return };
        let Some(live) = state.live.as_deref_mut() else { return };
        match live.opener(session).open(Kind::Data(session), datagram, self.writer.room()) {
            Opened::Packet(len) => {
                state.record().rx_datagram_bytes += datagram.len() as u64;
                if ecn == Some(Ecn::Ce) {
                    packet::mark_congestion(&mut self.writer.room()[..len]);
                }
                self.handle_packet(id, path, session, len);
            }
            Opened::Keepalive => {
                state.record().rx_datagram_bytes += datagram.len() as u64;
                self.on_heard(id, path, session, true);
            }
            Opened::Replayed => {
                self.drops.replayed += 1;
                state.drops().replayed += 1;
            }
            Opened::Answer { .. } | Opened::Established(_) | Opened::Cookie | Opened::Refused => {
                self.drops.not_authentic += 1;
                state.drops().not_authentic += 1;
            }
        }
    }

    /// An authentic packet lies in the writer's room.
    fn handle_packet(&mut self, id: PeerId, path: Path, session: u32, len: usize) {
        let verdict = self.judge(id, len);
        let moves = match verdict {
            Verdict::Deliver | Verdict::BadSource | Verdict::Refused(_) => true,
            Verdict::Message | Verdict::ForgedMessage => false,
        };
        self.on_heard(id, path, session, moves);
        if !self.taps.is_empty() {
            self.capture(id, verdict, len);
        }
        match verdict {
            Verdict::Deliver => {
                self.writer.keep(len);
                if let Some(late) = self.filter.as_mut().and_then(Filter::take_late) {
                    self.reset_late(id, &late);
                }
                self.on_data(id, len);
            }
            Verdict::Message => self.deliver_message(id, path, len),
            Verdict::ForgedMessage => self.drop_of(id, |drops, of_peer| {
                drops.message_port += 1;
                of_peer.message_port += 1;
            }),
            Verdict::BadSource => self.drop_of(id, |drops, of_peer| {
                drops.bad_source += 1;
                of_peer.bad_source += 1;
            }),
            Verdict::Refused(refusal) => self.refuse(id, refusal),
        }
    }

    /// Its sender still hears that the way here works, by a keepalive: or it would take the path for dead.
    fn refuse(&mut self, id: PeerId, refusal: Refusal) {
        self.drop_of(id, |drops, of_peer| match refusal {
            Refusal::Denied => {
                drops.denied += 1;
                of_peer.denied += 1;
            }
            Refusal::Malformed => {
                drops.malformed_inside += 1;
                of_peer.malformed_inside += 1;
            }
        });
        let now = self.now;
        if let Some(live) = self.peers.get(id).and_then(|state| state.live.as_deref_mut()) {
            live.owing_since.get_or_insert(now);
        }
    }

    fn capture(&mut self, id: PeerId, verdict: Verdict, len: usize) {
        let fate = match verdict {
            Verdict::Deliver | Verdict::Message => Fate::Passed,
            Verdict::ForgedMessage => Fate::ForgedMessage,
            Verdict::BadSource => Fate::BadSource,
            Verdict::Refused(Refusal::Denied) => Fate::Denied,
            Verdict::Refused(Refusal::Malformed) => Fate::Malformed,
        };
        if let Some(state) = self.peers.get(id) {
            self.taps.note(state.key, Direction::Inbound, fate, &self.writer.room()[..len]);
        }
    }

    /// Counts what is dropped and laid to a peer.
    fn drop_of(&mut self, id: PeerId, count: impl FnOnce(&mut Drops, &mut PeerDrops)) {
        if let Some(state) = self.peers.get(id) {
            count(&mut self.drops, state.drops());
        }
    }

    fn on_data(&mut self, id: PeerId, len: usize) {
        let now = self.now;
        if let Some(state) = self.peers.get(id) {
            let traffic = &mut state.record().traffic;
            traffic.rx_bytes += len as u64;
            traffic.rx_packets += 1;
            if let Some(live) = state.live.as_deref_mut() {
                live.owing_since.get_or_insert(now);
            }
        }
        self.mark_active(id);
    }

    fn judge(&mut self, id: PeerId, len: usize) -> Verdict {
        let packet = &self.writer.room()[..len];
        let source = packet::source(packet);
        let is_message = self.message_port.is_some_and(|port| packet::is_to_udp_port(packet, port));
        let Some(source) = source else { return Verdict::BadSource };
        let is_allowed = match self.policy {
            Policy::Owner => self.may_send_from(id, source),
            Policy::WireGuard => self.routes.lookup(source) == Some(id),
        };
        if is_message {
            return if self.peers.get(id).and_then(|state| state.own_address()) == Some(source) {
                Verdict::Message
            } else {
                Verdict::ForgedMessage
            };
        }
        if !is_allowed {
            return Verdict::BadSource;
        }
        let packet = &self.writer.room()[..len];
        let judged =
            self.filter.as_mut().map_or(Ok(()), |filter| filter.judge_inbound(packet, Via(id.0), self.now));
        judged.map_or_else(Verdict::Refused, |()| Verdict::Deliver)
    }

    /// A source that several may send from is one that nobody has for his own.
    fn may_send_from(&mut self, id: PeerId, source: IpAddr) -> bool {
        let Some(state) = self.peers.get(id) else { return false };
        if !state.may_send_from(source) {
            return false;
        }
        if is_own(&state.allowed_ips, source) {
            return true;
        }
        let owner = self.routes.lookup(source).filter(|owner| *owner != id);
        let owned = owner.and_then(|owner| self.peers.allowed_ips(owner));
        !owned.is_some_and(|list| is_own(list, source))
    }

    fn deliver_message(&mut self, id: PeerId, path: Path, len: usize) {
        let payload = packet::udp_payload(&self.writer.room()[..len]).map(<[u8]>::to_vec);
        match (payload, self.peers.get(id)) {
            (Some(payload), Some(state)) => {
                let peer = state.key;
                state.live.iter_mut().for_each(|live| live.remember(path));
                self.emit(Event::Message { peer, payload, from: path.to });
            }
            (None, _) | (_, None) => self.drop_of(id, |drops, of_peer| {
                drops.message_port += 1;
                of_peer.message_port += 1;
            }),
        }
    }

    /// Something authentic came. A first packet proves a session that we answered; data and keepalives (not
    /// messages, which may try a path) move the endpoint.
    fn on_heard(&mut self, id: PeerId, path: Path, session: u32, moves: bool) {
        let now = self.now;
        let Some(state) = self.peers.get(id) else { return };
        let Some(live) = state.live.as_deref_mut() else { return };
        live.on_heard(now);
        let proves = live.answered.is_some_and(|(answered, _)| answered == session);
        if proves || !live.is_established {
            return self.establish(id, path, false);
        }
        let (is_back, has_moved) = (live.is_back(), moves && state.path != Some(path));
        if is_back {
            self.tell_heard(id);
        }
        if has_moved {
            self.follow(id, path);
        }
    }

    /// One that was silent is there, before anything else is sent to it.
    fn tell_heard(&mut self, id: PeerId) {
        self.watches.on_heard(id);
        if let Some(peer) = self.peers.get(id).map(|state| state.key) {
            self.emit(Event::Heard { peer });
        }
    }

    /// The peer is elsewhere, or sends to another of our addresses.
    fn follow(&mut self, id: PeerId, path: Path) {
        let now = self.now;
        let Some(state) = self.peers.get(id) else { return };
        if state.path.is_some_and(|current| current.to == path.to) {
            state.path = Some(path);
            return;
        }
        let Some(live) = state.live.as_deref_mut().filter(|live| live.roams_from <= now) else { return };
        live.roams_from = match self.policy {
            Policy::Owner => now + ROAMING_HOLD,
            Policy::WireGuard => now,
        };
        state.path = Some(path);
        let peer = state.key;
        self.emit(Event::EndpointChanged { peer, endpoint: path.to });
    }

    fn establish(&mut self, id: PeerId, path: Path, initiator: bool) {
        let now = self.now;
        let Some(state) = self.peers.get(id) else { return };
        let Some(live) = state.live.as_deref_mut() else { return };
        live.is_established = true;
        live.is_initiator = initiator;
        live.is_initiating = false;
        live.retry_at = None;
        live.trying.clear();
        live.on_heard(now);
        live.former.iter_mut().for_each(|former| former.seals = false);
        if !initiator {
            live.answered = None;
            self.answers.remove(id);
        }
        state.path = Some(path);
        let record = state.record();
        record.last_handshake_at = Some(now);
        record.last_handshake_time = Some(SystemTime::now());
        record.traffic.handshakes += 1;
        let peer = state.key;
        if state.live.as_deref_mut().is_some_and(Live::is_back) {
            self.tell_heard(id);
        }
        self.send_waiting(id);
        self.emit(Event::HandshakeDone { peer, endpoint: path.to, initiator });
    }

    /// The MAC and the load; what fails is answered or counted here.
    fn admit(&mut self, path: Path, datagram: &[u8]) -> bool {
        let Some(local) = &mut self.local else { return false };
        let is_crowded = self.handshakes.is_crowded();
        match local.identity.admit(path.to.ip(), datagram, is_crowded, self.now, &mut self.scratch) {
            Admission::Granted => return true,
            Admission::Cookie(len) => {
                self.drops.under_load += 1;
                self.outbox.send(None, &self.scratch[..len], path);
            }
            Admission::TooMany => self.drops.under_load += 1,
            Admission::BadMac => self.drops.bad_mac += 1,
        }
        false
    }

    /// Whether a handshake message is admitted, and for this worker.
    pub(super) fn is_worth_work(&mut self, path: Path, kind: Kind, datagram: &[u8]) -> bool {
        match kind {
            Kind::Initiation => {
                let is_whole = datagram.len() == initiation::LEN;
                is_whole && !self.is_copy(path, datagram) && self.admit(path, datagram)
            }
            Kind::Response(session) => match self.peers.find_session(session) {
                Some(id) => self.is_answer_due(id) || self.admit(path, datagram),
                None => {
                    if !self.pass_datagram(session, path, None, datagram) {
                        self.drops.unknown_index += 1;
                    }
                    false
                }
            },
            Kind::Cookie(_) | Kind::Data(_) => false,
        }
    }

    /// Whether it is a copy of an initiation that was answered, or that is another worker's: it is done then.
    pub(super) fn is_copy(&mut self, path: Path, datagram: &[u8]) -> bool {
        let initiation = <&[u8; initiation::LEN]>::try_from(datagram).ok();
        self.answer_again(path, datagram)
            || initiation.is_some_and(|initiation| self.forward_initiation(path, initiation))
    }

    /// Whether it is a copy of an initiation that was answered.
    pub(super) fn answer_again(&mut self, path: Path, datagram: &[u8]) -> bool {
        let initiation = <&[u8; initiation::LEN]>::try_from(datagram).ok();
        let answer = initiation.and_then(|initiation| self.answers.find(initiation, self.now));
        if let Some(answer) = answer {
            self.outbox.send(None, answer, path);
        }
        answer.is_some()
    }

    /// Handshakes are limited by the time they take.
    pub(super) fn timed(&mut self, handle: impl FnOnce(&mut Self)) {
        let begin = Instant::now();
        handle(self);
        self.count_time(begin.elapsed());
    }

    /// It was admitted, perhaps some turns ago, and is no copy.
    pub(super) fn handle_initiation(&mut self, path: Path, datagram: &[u8]) {
        let Ok(initiation) = <&[u8; initiation::LEN]>::try_from(datagram) else { return };
        let Some(local) = &self.local else { return };
        let Some(sender) = local.opener.sender(initiation) else {
            self.drops.not_authentic += 1;
            return;
        };
        let Some(id) = self.peers.find(&sender.key) else {
            self.drops.unknown_key += 1;
            return;
        };
        if !self.pass_initiation(id, path, &sender, initiation) {
            self.handle_admitted(path, &sender, initiation);
        }
    }

    /// Of a known sender, who is yet to prove that he is it.
    pub(super) fn handle_admitted(
        &mut self,
        path: Path,
        sender: &Sender,
        initiation: &[u8; initiation::LEN],
    ) {
        let Some((local, id)) = self.local.as_ref().zip(self.peers.find(&sender.key)) else { return };
        let Some(timestamp) = local.opener.timestamp(sender, initiation) else {
            self.drops.not_authentic += 1;
            return;
        };
        let Some(newest) = self.peers.get(id).map(|state| state.newest_initiation) else { return };
        if timestamp <= newest {
            self.drop_of(id, |drops, of_peer| {
                drops.replayed_handshake += 1;
                of_peer.replayed_handshake += 1;
            });
            // The newest itself comes by several paths.
            if timestamp < newest && self.strangers.admit(path.to, self.now) {
                self.emit(Event::StaleInitiation { peer: sender.key, from: path.to });
            }
            return;
        }
        self.answer(id, path, initiation);
        if let Some(state) = self.peers.get(id) {
            state.newest_initiation = timestamp;
            state.record().rx_datagram_bytes += initiation.len() as u64;
        }
    }

    /// The answer goes back where the initiation came from; the endpoint moves when the session is proven.
    fn answer(&mut self, id: PeerId, path: Path, initiation: &[u8; initiation::LEN]) {
        let mut answer = self.scratch;
        let now = self.now;
        let Some(live) = self.wake(id) else { return };
        match live.noise.open(Kind::Initiation, initiation, &mut answer) {
            Opened::Answer { len, index } => {
                live.answered = Some((index, now));
                live.is_initiating = false;
                live.retry_at = None;
                self.answers.insert(initiation, id, &answer[..len], now);
                self.outbox.send(Some(id), &answer[..len], path);
                if let Some(state) = self.peers.get(id) {
                    state.record().tx_datagram_bytes += len as u64;
                }
            }
            Opened::Packet(_)
            | Opened::Keepalive
            | Opened::Established(_)
            | Opened::Cookie
            | Opened::Replayed
            | Opened::Refused => self.refuse_forged(id),
        }
    }

    fn refuse_forged(&mut self, id: PeerId) {
        self.drop_of(id, |drops, of_peer| {
            drops.not_authentic += 1;
            of_peer.not_authentic += 1;
        });
    }

    /// One response for each initiation of ours is no load that others put on us; who forges it must have seen its index.
    fn is_answer_due(&mut self, id: PeerId) -> bool {
        let live = self.peers.get(id).and_then(|state| state.live.as_deref_mut());
        live.is_some_and(|live| live.is_initiating && std::mem::take(&mut live.is_answer_due))
    }

    /// It was admitted, perhaps some turns ago.
    pub(super) fn handle_response(&mut self, path: Path, kind: Kind, session: u32, datagram: &[u8]) {
        let Some(id) = self.peers.find_session(session) else {
            self.drops.unknown_index += 1;
            return;
        };
        let Some(state) = self.peers.get(id) else { return };
        let Some(live) = state.live.as_deref_mut() else { return };
        match live.opener(session).open(kind, datagram, &mut self.scratch) {
            // Made with a preshared key that was changed since.
            Opened::Established(_) if live.index != session >> 8 => self.drops.unknown_index += 1,
            Opened::Established(len) => {
                live.on_sent(self.now);
                state.record().rx_datagram_bytes += datagram.len() as u64;
                state.record().tx_datagram_bytes += len as u64;
                self.outbox.send(Some(id), &self.scratch[..len], path);
                self.establish(id, path, true);
            }
            Opened::Packet(_)
            | Opened::Keepalive
            | Opened::Answer { .. }
            | Opened::Cookie
            | Opened::Replayed
            | Opened::Refused => self.refuse_forged(id),
        }
    }

    /// A cookie makes the next initiation pass where there are too many. It proves nothing about the peer.
    fn handle_cookie(&mut self, path: Path, kind: Kind, session: u32, datagram: &[u8]) {
        let Some(id) = self.peers.find_session(session) else {
            if !self.pass_datagram(session, path, None, datagram) {
                self.drops.unknown_index += 1;
            }
            return;
        };
        let Some(live) = self.peers.get(id).and_then(|state| state.live.as_deref_mut()) else { return };
        if live.noise.open(kind, datagram, &mut self.scratch) != Opened::Cookie {
            self.drops.not_authentic += 1;
        }
    }
}
