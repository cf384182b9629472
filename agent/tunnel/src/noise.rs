//! The only module that knows boringtun. Everything else speaks of sealing, opening and initiating.
//!
//! It stamps handshakes with the wall clock at the session's birth, carried on monotonically. A node whose clock was set back is refused by peers that
//! remember a later stamp; they say so (`StaleInitiation`) and begin the handshake themselves.
//!
//! Cures for its other ways: handshakes are limited here, once, by source and by the time they take (each session's own
//! check of them counts apart and never limits); a session never queues packets, as nothing is sealed without one; its time stands still between ticks,
//! so every live session is ticked four times a second; persistent keepalives are ours, since its interval cannot be
//! changed; whether a session still exists is asked after each tick.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use boringtun::noise::{Tunn, TunnResult, errors::WireGuardError, rate_limiter::RateLimiter};
use x25519_dalek::StaticSecret;

use crate::{
    PresharedKey, PrivateKey, PublicKey, initiation,
    load::{Buckets, Load},
};

/// What sealing adds: type, index, counter (16 bytes) and the tag (16).
pub(crate) const OVERHEAD: usize = 32;
/// Room that any handshake message or keepalive fits.
pub(crate) const HANDSHAKE_ROOM: usize = 256;

/// The kinds of WireGuard message, with the receiver's session index where there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Initiation,
    Response(u32),
    Cookie(u32),
    Data(u32),
}

impl Kind {
    pub(crate) fn of(datagram: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(datagram.get(at..at + 4)?.try_into().ok()?));
        match (word(0)?, datagram.len()) {
            (1, initiation::LEN) => Some(Self::Initiation),
            (2, 92) => Some(Self::Response(word(8)?)),
            (3, 64) => Some(Self::Cookie(word(4)?)),
            (4, OVERHEAD..) => Some(Self::Data(word(4)?)),
            _ => None,
        }
    }
}

/// Whether a handshake message may be worked on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Granted,
    /// Too many: answer with this many bytes of the buffer.
    Cookie(usize),
    /// Too many, and from an address that is really the sender's.
    TooMany,
    BadMac,
}

/// What cookies are made with, and known again.
#[derive(Clone)]
pub(crate) struct Cookies(Arc<RateLimiter>);

/// The node's side of every handshake.
pub(crate) struct Identity {
    secret: StaticSecret,
    /// Asks everybody for a cookie.
    wary: Cookies,
    load: Load,
    /// Whoever is within these is let in without a cookie.
    sources: Buckets,
    /// And these hold for who has proven where it is.
    proven: Buckets,
    /// Given to sessions, which check a second time: it never limits.
    unlimited: Arc<RateLimiter>,
}

impl Identity {
    pub(crate) fn new(key: &PrivateKey) -> Self {
        let public = x25519_dalek::PublicKey::from(&key.0);
        Self {
            secret: key.0.clone(),
            wary: Cookies(Arc::new(RateLimiter::new(&public, 0))),
            load: Load::default(),
            sources: Buckets::default(),
            proven: Buckets::default(),
            unlimited: Arc::new(RateLimiter::new(&public, u64::MAX)),
        }
    }

    /// Checks a handshake message's MAC, before anything costly, then how much its source asks for, and the load: the time
    /// that handshakes take, and whether a crowd of them waits. A cookie is asked for rather than the message dropped, since its source may be somebody else's.
    pub(crate) fn admit(
        &mut self,
        from: IpAddr,
        datagram: &[u8],
        is_crowded: bool,
        now: Instant,
        reply: &mut [u8],
    ) -> Admission {
        if self.unlimited.verify_packet(Some(from), datagram, reply).is_err() {
            return Admission::BadMac;
        }
        if self.sources.take(from, now) && !is_crowded && !self.load.is_high(now) {
            return Admission::Granted;
        }
        match self.wary.0.verify_packet(Some(from), datagram, reply) {
            Ok(_) if self.proven.take(from, now) => Admission::Granted,
            Ok(_) => Admission::TooMany,
            Err(TunnResult::WriteToNetwork(cookie)) => Admission::Cookie(cookie.len()),
            Err(_) => Admission::BadMac,
        }
    }

    pub(crate) fn cookies(&self) -> &Cookies {
        &self.wary
    }

    /// From now on whoever has a cookie of another identity of this node passes here, too.
    pub(crate) fn share_cookies(&mut self, cookies: Cookies) {
        self.wary = cookies;
    }

    /// Handshakes took so long, up to now.
    pub(crate) fn spend(&mut self, time: Duration, now: Instant) {
        self.load.spend(time, now);
    }

    /// Those of so many other threads, since this was last told.
    pub(crate) fn spend_elsewhere(&mut self, time: Duration, others: u32, now: Instant) {
        self.load.spend_elsewhere(time, others, now);
    }
}

/// What a datagram turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// An IP packet of this length.
    Packet(usize),
    Keepalive,
    /// An initiation: send this answer. The session is up once the other side has used it; this is its index.
    Answer {
        len: usize,
        index: u32,
    },
    /// A response: the session is up. Send this keepalive, which tells the other side so.
    Established(usize),
    Cookie,
    /// Its number came before, or is too old to tell.
    Replayed,
    Refused,
}

/// What a tick asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Tick {
    Nothing,
    Initiation(usize),
    Keepalive(usize),
    /// A handshake was given up after 90 s.
    GaveUp,
}

/// The sessions and handshakes with one peer: the current session, those it replaced, and the one being made.
pub(crate) struct Noise(Tunn, #[cfg(holdfast_copy_instead_of_aead)] copy::Copying);

impl Noise {
    /// `index` has 24 bits; the library numbers this peer's sessions with 8 more.
    pub(crate) fn new(
        identity: &Identity,
        peer: PublicKey,
        preshared: Option<&PresharedKey>,
        index: u32,
    ) -> Self {
        let limiter = Some(identity.unlimited.clone());
        let secret = identity.secret.clone();
        let preshared = preshared.map(|key| key.0);
        Self(
            Tunn::new(secret, peer.0.into(), preshared, None, index, limiter),
            #[cfg(holdfast_copy_instead_of_aead)]
            copy::Copying::default(),
        )
    }

    /// Writes a fresh initiation, whether or not one is under way.
    pub(crate) fn initiate(&mut self, out: &mut [u8]) -> Option<usize> {
        match self.0.format_handshake_initiation(out, true) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        }
    }

    /// Seals a packet (an empty one is a keepalive) into `out`, which is at least [`OVERHEAD`] longer. The caller
    /// knows that there is a session.
    pub(crate) fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> Option<usize> {
        #[cfg(holdfast_copy_instead_of_aead)]
        if let Some(len) = self.1.seal(packet, out) {
            return Some(len);
        }
        match self.0.encapsulate(packet, out) {
            // Without a session it would be an initiation instead.
            TunnResult::WriteToNetwork(message) => {
                Some(message.len()).filter(|&len| len == packet.len() + OVERHEAD)
            }
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        }
    }

    /// Opens a datagram of the given kind into `out`, which is at least as long and has room for a handshake.
    pub(crate) fn open(&mut self, kind: Kind, datagram: &[u8], out: &mut [u8]) -> Opened {
        #[cfg(holdfast_copy_instead_of_aead)]
        if let Some(opened) = self.1.open(kind, datagram, out) {
            return opened;
        }
        match (self.0.decapsulate(None, datagram, out), kind) {
            (TunnResult::WriteToTunnelV4(packet, _), _) => Opened::Packet(packet.len()),
            (TunnResult::WriteToTunnelV6(packet, _), _) => Opened::Packet(packet.len()),
            (TunnResult::WriteToNetwork(answer), Kind::Initiation) => match Sent::of(answer) {
                Some(Sent::Response(index)) => Opened::Answer { len: answer.len(), index },
                Some(Sent::Initiation | Sent::Data) | None => Opened::Refused,
            },
            (TunnResult::WriteToNetwork(keepalive), Kind::Response(_)) => {
                Opened::Established(keepalive.len())
            }
            (TunnResult::WriteToNetwork(_), Kind::Cookie(_) | Kind::Data(_)) => Opened::Refused,
            (TunnResult::Done, Kind::Data(_)) => Opened::Keepalive,
            (TunnResult::Done, Kind::Cookie(_)) => Opened::Cookie,
            (TunnResult::Done, Kind::Initiation | Kind::Response(_)) => Opened::Refused,
            (TunnResult::Err(WireGuardError::DuplicateCounter | WireGuardError::InvalidCounter), _) => {
                Opened::Replayed
            }
            (TunnResult::Err(_), _) => Opened::Refused,
        }
    }

    /// Lets time pass.
    pub(crate) fn tick(&mut self, out: &mut [u8]) -> Tick {
        match self.0.update_timers(out) {
            TunnResult::WriteToNetwork(message) => match Sent::of(message) {
                Some(Sent::Initiation) => Tick::Initiation(message.len()),
                Some(Sent::Response(_) | Sent::Data) | None => Tick::Keepalive(message.len()),
            },
            TunnResult::Err(WireGuardError::ConnectionExpired) => Tick::GaveUp,
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => Tick::Nothing,
        }
    }

    /// Whether there is a session to seal with. Reads the clock: not for every packet.
    pub(crate) fn has_session(&self) -> bool {
        self.0.time_since_last_handshake().is_some()
    }
}

/// What the tunnel could do if encryption took no time: data packets are copied in the clear, and whatever comes is believed. Only for measuring the limit, in a
/// build of its own: a compiler's flag asks for it, never a feature, which cargo would turn on for everybody in the same build.
#[cfg(holdfast_copy_instead_of_aead)]
mod copy {
    use super::{Kind, OVERHEAD, Opened};

    const HEADER: usize = 16;

    /// Of the newest handshake.
    #[derive(Default)]
    pub(super) struct Copying {
        /// The other side's session index.
        to: Option<[u8; 4]>,
        counter: u64,
    }

    impl Copying {
        /// Keepalives stay real, so that sessions are proven and live on.
        pub(super) fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> Option<usize> {
            let to = self.to.filter(|_| !packet.is_empty())?;
            out[..4].copy_from_slice(&4u32.to_le_bytes());
            out[4..8].copy_from_slice(&to);
            out[8..HEADER].copy_from_slice(&self.counter.to_le_bytes());
            self.counter += 1;
            let len = HEADER + packet.len();
            out[HEADER..len].copy_from_slice(packet);
            out[len..packet.len() + OVERHEAD].fill(0);
            Some(packet.len() + OVERHEAD)
        }

        pub(super) fn open(&mut self, kind: Kind, datagram: &[u8], out: &mut [u8]) -> Option<Opened> {
            match kind {
                // Both carry their sender's index.
                Kind::Initiation | Kind::Response(_) => {
                    self.to = datagram[4..8].try_into().ok();
                    None
                }
                Kind::Cookie(_) => None,
                Kind::Data(_) => {
                    let packet = &datagram[HEADER..datagram.len() - (OVERHEAD - HEADER)];
                    // As the library: what the header says, without padding.
                    let len = match packet.first()? >> 4 {
                        4 => u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?).into(),
                        _ => 40 + usize::from(u16::from_be_bytes(packet.get(4..6)?.try_into().ok()?)),
                    };
                    out[..packet.len()].copy_from_slice(packet);
                    Some(if len <= packet.len() { Opened::Packet(len) } else { Opened::Refused })
                }
            }
        }
    }
}

/// A message we are about to send, with our own index.
enum Sent {
    Initiation,
    Response(u32),
    Data,
}

impl Sent {
    fn of(message: &[u8]) -> Option<Self> {
        match message.first()? {
            1 => Some(Self::Initiation),
            2 => Some(Self::Response(u32::from_le_bytes(message.get(4..8)?.try_into().ok()?))),
            4 => Some(Self::Data),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet() -> Vec<u8> {
        crate::packet::udp_packet("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap(), b"x").unwrap()
    }

    /// Two sides of a finished handshake, and the index that the responder gave its session.
    fn session() -> (Noise, Noise, u32) {
        let (a, b) = (PrivateKey::from([1; 32]), PrivateKey::from([2; 32]));
        let mut alice = Noise::new(&Identity::new(&a), b.public_key(), None, 1);
        let mut bob = Noise::new(&Identity::new(&b), a.public_key(), None, 2);
        let (mut one, mut two) = ([0; HANDSHAKE_ROOM], [0; HANDSHAKE_ROOM]);
        let len = alice.initiate(&mut one).unwrap();
        let Opened::Answer { len, index } = bob.open(Kind::Initiation, &one[..len], &mut two) else {
            panic!()
        };
        let kind = Kind::of(&two[..len]).unwrap();
        let Opened::Established(len) = alice.open(kind, &two[..len], &mut one) else { panic!() };
        assert!(alice.has_session() && !bob.has_session());
        let kind = Kind::of(&one[..len]).unwrap();
        assert_eq!(kind, Kind::Data(index));
        assert_eq!(bob.open(kind, &one[..len], &mut two), Opened::Keepalive);
        assert!(bob.has_session());
        (alice, bob, index)
    }

    #[test]
    fn what_one_side_seals_the_other_opens_once() {
        let (mut alice, mut bob, index) = session();
        let (mut sealed, mut opened) = ([0; HANDSHAKE_ROOM], [0; HANDSHAKE_ROOM]);
        let len = alice.seal(&packet(), &mut sealed).unwrap();
        assert_eq!(len, packet().len() + OVERHEAD);
        let datagram = &sealed[..len];
        assert_eq!(bob.open(Kind::Data(index), datagram, &mut opened), Opened::Packet(packet().len()));
        assert_eq!(opened[..packet().len()], packet());
        assert_eq!(bob.open(Kind::Data(index), datagram, &mut opened), Opened::Replayed);
    }

    #[test]
    fn padding_is_cut_off_again() {
        let (mut alice, mut bob, index) = session();
        let (mut sealed, mut opened) = ([0; HANDSHAKE_ROOM], [0; HANDSHAKE_ROOM]);
        let mut padded = packet();
        padded.resize(crate::packet::padded_len(padded.len(), 1420), 0);
        let len = alice.seal(&padded, &mut sealed).unwrap();
        assert_eq!(bob.open(Kind::Data(index), &sealed[..len], &mut opened), Opened::Packet(packet().len()));
    }

    #[test]
    fn handshakes_for_another_key_fail_the_mac_and_too_many_are_asked_for_a_cookie() {
        let (a, b) = (PrivateKey::from([1; 32]), PrivateKey::from([2; 32]));
        let mut alice = Noise::new(&Identity::new(&a), b.public_key(), None, 1);
        let (mut buffer, mut reply) = ([0; HANDSHAKE_ROOM], [0; HANDSHAKE_ROOM]);
        let len = alice.initiate(&mut buffer).unwrap();
        let from = "192.0.2.1".parse().unwrap();
        let mut other = Identity::new(&PrivateKey::from([3; 32]));
        let now = Instant::now();
        assert_eq!(other.admit(from, &buffer[..len], false, now, &mut reply), Admission::BadMac);
        let mut bob = Identity::new(&b);
        assert_eq!(bob.admit(from, &buffer[..len], false, now, &mut reply), Admission::Granted);
        let refused = (0..10_000).map(|_| bob.admit(from, &buffer[..len], false, now, &mut reply));
        let cookie = refused.into_iter().find(|admission| *admission != Admission::Granted);
        assert_eq!(cookie, Some(Admission::Cookie(64)));
        // Who floods takes nothing from others.
        let elsewhere = "198.51.100.1".parse().unwrap();
        assert_eq!(bob.admit(elsewhere, &buffer[..len], false, now, &mut reply), Admission::Granted);
        // Nor does a crowd that waits already, but who is new must prove its address.
        assert_eq!(bob.admit(elsewhere, &buffer[..len], true, now, &mut reply), Admission::Cookie(64));
        let mut opened = [0; HANDSHAKE_ROOM];
        assert_eq!(alice.open(Kind::of(&reply[..64]).unwrap(), &reply[..64], &mut opened), Opened::Cookie);
    }

    #[test]
    fn under_load_a_cookie_is_asked_of_everybody_and_even_with_one_there_is_a_limit() {
        let (a, b) = (PrivateKey::from([1; 32]), PrivateKey::from([2; 32]));
        let mut alice = Noise::new(&Identity::new(&a), b.public_key(), None, 1);
        let (mut buffer, mut reply) = ([0; HANDSHAKE_ROOM], [0; HANDSHAKE_ROOM]);
        let (from, now, mut bob) = ("192.0.2.1".parse().unwrap(), Instant::now(), Identity::new(&b));
        bob.spend(Duration::from_secs(1), now);
        let len = alice.initiate(&mut buffer).unwrap();
        assert_eq!(bob.admit(from, &buffer[..len], false, now, &mut reply), Admission::Cookie(64));
        assert_eq!(alice.open(Kind::of(&reply[..64]).unwrap(), &reply[..64], &mut buffer), Opened::Cookie);
        let len = alice.initiate(&mut buffer).unwrap();
        let elsewhere = "198.51.100.1".parse().unwrap();
        assert_eq!(bob.admit(elsewhere, &buffer[..len], false, now, &mut reply), Admission::Cookie(64));
        let mut admitted = (0..10_000).map(|_| bob.admit(from, &buffer[..len], false, now, &mut reply));
        assert_eq!(admitted.next(), Some(Admission::Granted));
        assert!(admitted.any(|admission| admission == Admission::TooMany));
    }
}
