//! Packets like those that passed within this second: the short way for what is sent most. Plain ones only, of TCP or UDP right behind the IP header: within a second
//! another of the same ends changes nothing that is known of its flow, unless one that is not plain came in between.

use super::{
    flows::Handle,
    header::{ACK, FIN, RST, SYN, TCP, UDP},
    progress::Segment,
};

const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;
/// A power of two.
const PLACES: usize = 64;
const NEVER: u32 = u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    In,
    Out,
}

/// Protocol, addresses and ports, as in the packets that go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Key([u64; 5]);

/// A packet's flow, and whether the packet neither begins nor ends anything.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sight {
    key: Key,
    pub(super) way: Way,
    is_plain: bool,
    /// TCP's.
    pub(super) segment: Option<Segment>,
}

/// What passed: with the seconds in which it was let in and out, and where TCP's is in the table.
#[derive(Debug, Clone, Copy)]
struct Place {
    key: Key,
    passed_s: [u32; 2],
    handle: Handle,
}

/// Each flow has one place, which it may lose to another.
#[derive(Debug)]
pub(super) struct Recent([Place; PLACES]);

impl Default for Recent {
    fn default() -> Self {
        Self([Place { key: Key::default(), passed_s: [NEVER; 2], handle: Handle::default() }; PLACES])
    }
}

impl Recent {
    pub(super) fn holds(&self, sight: &Sight, now_s: u32) -> Option<Handle> {
        let Place { key, passed_s, handle } = &self.0[sight.key.place()];
        let holds = sight.is_plain && *key == sight.key && passed_s[sight.way as usize] == now_s;
        holds.then_some(*handle)
    }

    /// A packet has taken the long way and passed. The handle is of its flow, if it is TCP's.
    pub(super) fn note(&mut self, sight: &Sight, handle: Handle, now_s: u32) {
        let place = &mut self.0[sight.key.place()];
        if place.key != sight.key || !sight.is_plain {
            (place.key, place.passed_s) = (sight.key, [NEVER; 2]);
        }
        if sight.is_plain {
            (place.passed_s[sight.way as usize], place.handle) = (now_s, handle);
        }
    }
}

impl Sight {
    /// `None`: another protocol, a fragment, or not whole.
    pub(super) fn of(packet: &[u8], way: Way) -> Option<Self> {
        match packet.first()? {
            0x45 => Self::of_v4(packet, way),
            first if first >> 4 == 6 => Self::of_v6(packet, way),
            _ => None,
        }
    }

    fn of_v4(packet: &[u8], way: Way) -> Option<Self> {
        let (header, rest) = packet.split_first_chunk::<V4_HEADER>()?;
        let stated = usize::from(u16::from_be_bytes([header[2], header[3]]));
        // Neither a fragment's offset nor more of them.
        let is_whole = header[6] & 0x3f == 0 && header[7] == 0;
        let payload = rest.get(..stated.checked_sub(V4_HEADER)?).filter(|_| is_whole)?;
        let addresses = word(&header[12..20]);
        let addresses = match way {
            Way::In => addresses.rotate_left(32),
            Way::Out => addresses,
        };
        let (ends, is_plain, segment) = ends(header[9], payload, way)?;
        Some(Self { key: Key([addresses, ends, 4, 0, 0]), way, is_plain, segment })
    }

    fn of_v6(packet: &[u8], way: Way) -> Option<Self> {
        let (header, rest) = packet.split_first_chunk::<V6_HEADER>()?;
        let payload = rest.get(..usize::from(u16::from_be_bytes([header[4], header[5]])))?;
        let [a, b, c, d] = [8, 16, 24, 32].map(|at| word(&header[at..at + 8]));
        let (ends, is_plain, segment) = ends(header[6], payload, way)?;
        let key = match way {
            Way::In => Key([c, ends, d, a, b]),
            Way::Out => Key([a, ends, b, c, d]),
        };
        Some(Self { key, way, is_plain, segment })
    }
}

impl Key {
    fn place(&self) -> usize {
        let mixed = self.0.iter().fold(0u64, |sum, word| (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        (mixed >> 32) as usize % PLACES
    }
}

/// Protocol and ports, and whether the packet is plain.
fn ends(protocol: u8, payload: &[u8], way: Way) -> Option<(u64, bool, Option<Segment>)> {
    let (is_plain, segment) = match protocol {
        TCP => {
            let segment = Segment::read(payload)?;
            (segment.flags & (SYN | FIN | RST | ACK) == ACK, Some(segment))
        }
        UDP => (payload.len() >= UDP_HEADER, None),
        _ => return None,
    };
    let ports = u32::from_be_bytes(*payload.first_chunk()?);
    let ports = match way {
        Way::In => ports.rotate_left(16),
        Way::Out => ports,
    };
    Some((u64::from(protocol) << 32 | u64::from(ports), is_plain, segment))
}

/// Of 8 bytes.
fn word(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}
