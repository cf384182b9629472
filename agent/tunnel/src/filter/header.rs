//! What the filter reads of a packet: addresses, ports, TCP's flags, and the packet that an ICMP error is about.
//!
//! IPv6 extension headers are walked (RFC 8200), a bounded number of them. A fragment other than the first has no ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    fragments::{Fragment, Whole},
    progress::Segment,
};

pub(super) const ICMP_V4: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMP_V6: u8 = 58;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// More extension headers than this are nobody's.
const MAX_EXTENSIONS: usize = 8;

const PORTS: usize = 4;
const ICMP_HEADER: usize = 8;
/// The fragment's offset, in units of 8 bytes, and whether more follow.
const V4_OFFSET: u16 = 0x1fff;
const V4_MORE: u16 = 0x2000;

pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const ACK: u8 = 16;

/// One end to another; of protocols without ports these are zero, of an ICMP echo the source's is its identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) protocol: u8,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) source_port: u16,
    pub(super) destination_port: u16,
}

/// A packet as the filter sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    Tcp(Ends, Segment),
    EchoRequest(Ends),
    /// Its identifier is the destination's port.
    EchoReply(Ends),
    IcmpError {
        from: IpAddr,
        to: IpAddr,
        /// The ends of the packet it is about. `None`: too little of it is there.
        about: Option<Ends>,
    },
    OtherIcmp(Ends),
    Other(Ends),
    LaterFragment,
}

/// A packet, and where it belongs if it is a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) view: View,
    pub(super) fragment: Option<Fragment>,
}

/// What lies behind the IP headers.
struct Payload<'a> {
    protocol: u8,
    source: IpAddr,
    destination: IpAddr,
    bytes: &'a [u8],
    fragment: Option<Fragment>,
}

impl Payload<'_> {
    fn is_first(&self) -> bool {
        self.fragment.is_none_or(|fragment| fragment.begin == 0)
    }
}

/// `None`: not an IP packet, or cut short, or built to mislead.
pub(super) fn read(packet: &[u8]) -> Option<Packet> {
    let payload = payload(packet)?;
    let view = if payload.is_first() { view(&payload)? } else { View::LaterFragment };
    Some(Packet { view, fragment: payload.fragment })
}

fn view(payload: &Payload<'_>) -> Option<View> {
    match payload.protocol {
        TCP => Some(View::Tcp(with_ports(payload)?, Segment::read(payload.bytes)?)),
        ICMP_V4 | ICMP_V6 => icmp(payload),
        UDP | UDP_LITE | SCTP => Some(View::Other(with_ports(payload)?)),
        _ => Some(View::Other(ends(payload, 0, 0))),
    }
}

fn ends(payload: &Payload<'_>, source_port: u16, destination_port: u16) -> Ends {
    let Payload { protocol, source, destination, .. } = *payload;
    Ends { protocol, source, destination, source_port, destination_port }
}

fn with_ports(payload: &Payload<'_>) -> Option<Ends> {
    let ports: &[u8; PORTS] = payload.bytes.first_chunk()?;
    Some(ends(payload, word(ports, 0), word(ports, 2)))
}

fn icmp(payload: &Payload<'_>) -> Option<View> {
    let header: &[u8; ICMP_HEADER] = payload.bytes.first_chunk()?;
    let identifier = word(header, 4);
    let inner = &payload.bytes[ICMP_HEADER..];
    Some(match (payload.protocol, header[0]) {
        (ICMP_V4, 8) | (ICMP_V6, 128) => View::EchoRequest(ends(payload, identifier, 0)),
        (ICMP_V4, 0) | (ICMP_V6, 129) => View::EchoReply(ends(payload, 0, identifier)),
        // Unreachable, (v6: too big), time exceeded, parameter problem.
        (ICMP_V4, 3 | 11 | 12) | (ICMP_V6, 1..=4) => {
            let Payload { source: from, destination: to, .. } = *payload;
            View::IcmpError { from, to, about: inner_ends(inner) }
        }
        (_, _) => View::OtherIcmp(ends(payload, 0, 0)),
    })
}

/// Of a packet of which an error brought the first bytes.
fn inner_ends(packet: &[u8]) -> Option<Ends> {
    let payload = payload_of_start(packet).filter(Payload::is_first)?;
    match payload.protocol {
        TCP | UDP | UDP_LITE | SCTP => with_ports(&payload),
        ICMP_V4 | ICMP_V6 => {
            let header: &[u8; ICMP_HEADER] = payload.bytes.first_chunk()?;
            let is_request = matches!((payload.protocol, header[0]), (ICMP_V4, 8) | (ICMP_V6, 128));
            is_request.then(|| ends(&payload, word(header, 4), 0))
        }
        _ => Some(ends(&payload, 0, 0)),
    }
}

/// The payload of a whole packet.
fn payload(packet: &[u8]) -> Option<Payload<'_>> {
    let stated = match packet.first()? >> 4 {
        4 if packet.len() >= 20 => usize::from(word(packet, 2)),
        6 if packet.len() >= 40 => 40 + usize::from(word(packet, 4)),
        _ => return None,
    };
    // WireGuard pads; what is behind the stated length is not the packet's. A jumbogram states nothing.
    payload_of_start(packet.get(..stated)?)
}

fn payload_of_start(packet: &[u8]) -> Option<Payload<'_>> {
    match packet.first()? >> 4 {
        4 => payload_v4(packet),
        6 => payload_v6(packet),
        _ => None,
    }
}

fn payload_v4(packet: &[u8]) -> Option<Payload<'_>> {
    let header: &[u8; 20] = packet.first_chunk()?;
    let bytes = packet.get((usize::from(header[0] & 0xf) * 4).max(20)..)?;
    let (protocol, place) = (header[9], word(header, 6));
    let source = Ipv4Addr::from(array::<4>(header, 12)).into();
    let destination = Ipv4Addr::from(array::<4>(header, 16)).into();
    let is_whole = place & (V4_OFFSET | V4_MORE) == 0;
    let of = Whole { source, destination, id: word(header, 4).into(), protocol: Some(protocol) };
    let fragment = (!is_whole).then(|| fragment(of, place & V4_OFFSET, bytes));
    Some(Payload { protocol, source, destination, bytes, fragment })
}

fn payload_v6(packet: &[u8]) -> Option<Payload<'_>> {
    let header: &[u8; 40] = packet.first_chunk()?;
    let source = Ipv6Addr::from(array::<16>(header, 8)).into();
    let destination = Ipv6Addr::from(array::<16>(header, 24)).into();
    let (protocol, bytes) = (header[6], &packet[40..]);
    let mut payload = Payload { protocol, source, destination, bytes, fragment: None };
    for _ in 0..MAX_EXTENSIONS {
        let extension = payload.bytes;
        let len = match payload.protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => 8 * (usize::from(*extension.get(1)?) + 1),
            AUTHENTICATION => 4 * (usize::from(*extension.get(1)?) + 2),
            FRAGMENT => 8,
            _ => return Some(payload),
        };
        let is_fragment = payload.protocol == FRAGMENT;
        payload.protocol = *extension.first()?;
        payload.bytes = extension.get(len..)?;
        if is_fragment {
            let header: &[u8; 8] = extension.first_chunk()?;
            let (place, id) = (word(header, 2), u32::from_be_bytes(array(header, 4)));
            let of = Whole { source, destination, id, protocol: None };
            // RFC 6946: one that is the whole packet is as good as none; a second one is nobody's.
            let is_whole = place & !0b110 == 0;
            match (is_whole, payload.fragment) {
                (true, _) => {}
                (false, None) => payload.fragment = Some(fragment(of, place >> 3, payload.bytes)),
                (false, Some(_)) => return None,
            }
            if !payload.is_first() {
                return Some(payload);
            }
        }
    }
    None
}

/// `offset` in units of 8 bytes.
fn fragment(of: Whole, offset: u16, bytes: &[u8]) -> Fragment {
    let begin = u32::from(offset) * 8;
    Fragment { of, begin, end: begin + bytes.len() as u32 }
}

/// `N` bytes at `offset`, which the caller knows to be there.
fn array<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[offset..offset + N]);
    array
}

fn word(bytes: &[u8], offset: usize) -> u16 {
    u16::from_be_bytes(array(bytes, offset))
}

impl Ends {
    pub(super) fn has_ports(&self) -> bool {
        matches!(self.protocol, TCP | UDP | UDP_LITE | SCTP)
    }

    /// The way back.
    pub(super) fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            ..self
        }
    }
}
