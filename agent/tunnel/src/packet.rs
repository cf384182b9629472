//! The little that is read of inner packets, and the messages' own IP and UDP headers.
//!
//! Only what is needed to route, to check sources and to know the agents' port is looked at; everything else about
//! an inner packet is the business of the systems at both ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::socket::Ecn;

const UDP: u8 = 17;
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;
/// Bits of the fragment field that hold an offset; the first fragment has 0.
const FRAGMENT_OFFSET: u16 = 0x1fff;
const MORE_FRAGMENTS: u16 = 0x2000;

/// The largest packet that one datagram carries over either family: 65,535 less 20 for IP, 8 for UDP and 32 for WireGuard.
pub(crate) const MAX_INNER: usize = 65_475;

/// WireGuard pads with zeros to a multiple of 16, so that sizes tell less, though not beyond the MTU.
pub(crate) fn padded_len(len: usize, mtu: usize) -> usize {
    len.next_multiple_of(16).min(mtu.max(len))
}

/// The destination, or `None` if it is not an IP packet.
pub(crate) fn destination(packet: &[u8]) -> Option<IpAddr> {
    address(packet, 16, 24)
}

/// The source, or `None` if it is not an IP packet.
pub(crate) fn source(packet: &[u8]) -> Option<IpAddr> {
    address(packet, 12, 8)
}

/// What the packet lets routers say of congestion. Nothing else of its header shows outside of the tunnel.
pub(crate) fn ecn(packet: &[u8]) -> Option<Ecn> {
    Ecn::from_bits(traffic_class(packet)?)
}

fn traffic_class(packet: &[u8]) -> Option<u8> {
    match packet {
        [first, second, ..] if first >> 4 == 6 => Some(first << 4 | second >> 4),
        [_, second, ..] => Some(*second),
        _ => None,
    }
}

/// A router met congestion on the tunnel's way: says so to who can understand it (RFC 6040, as WireGuard does).
pub(crate) fn mark_congestion(packet: &mut [u8]) {
    match (ecn(packet), packet.first().map(|first| first >> 4)) {
        (Some(Ecn::Ect0 | Ecn::Ect1), Some(4)) if packet.len() >= V4_HEADER => {
            let before = word(packet, 0);
            packet[1] |= Ecn::Ce as u8;
            let sum = update_checksum(word(packet, 10), before, word(packet, 0));
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (Some(Ecn::Ect0 | Ecn::Ect1), Some(6)) => packet[1] |= (Ecn::Ce as u8) << 4,
        (Some(Ecn::Ect0 | Ecn::Ect1 | Ecn::Ce) | None, _) => {}
    }
}

/// The checksum after one word of what it covers was changed (RFC 1624, equation 3).
fn update_checksum(sum: u16, before: u16, after: u16) -> u16 {
    let mut total = u32::from(!sum) + u32::from(!before) + u32::from(after);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

fn address(packet: &[u8], v4_offset: usize, v6_offset: usize) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 if packet.len() >= V4_HEADER => Some(Ipv4Addr::from(array::<4>(packet, v4_offset)).into()),
        6 if packet.len() >= V6_HEADER => Some(Ipv6Addr::from(array::<16>(packet, v6_offset)).into()),
        _ => None,
    }
}

/// `N` bytes at `offset`, which the caller knows to be there.
fn array<const N: usize>(packet: &[u8], offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&packet[offset..offset + N]);
    bytes
}

fn word(packet: &[u8], offset: usize) -> u16 {
    u16::from_be_bytes(array(packet, offset))
}

/// Where the UDP header of an unfragmented datagram, or of a first fragment, begins.
fn udp_offset(packet: &[u8]) -> Option<usize> {
    let offset = match packet.first()? >> 4 {
        4 if packet.len() >= V4_HEADER => {
            let first = word(packet, 6) & FRAGMENT_OFFSET == 0;
            (packet[9] == UDP && first).then(|| usize::from(packet[0] & 0xf) * 4)?
        }
        6 if packet.len() >= V6_HEADER => (packet[6] == UDP).then_some(V6_HEADER)?,
        _ => return None,
    };
    (packet.len() >= offset + UDP_HEADER).then_some(offset)
}

/// Whether it is a UDP datagram (or the first fragment of one) to `port`.
pub(crate) fn is_to_udp_port(packet: &[u8], port: u16) -> bool {
    udp_offset(packet).is_some_and(|offset| word(packet, offset + 2) == port)
}

/// The payload of a whole UDP datagram.
pub(crate) fn udp_payload(packet: &[u8]) -> Option<&[u8]> {
    let offset = udp_offset(packet)?;
    if packet[0] >> 4 == 4 && word(packet, 6) & MORE_FRAGMENTS != 0 {
        return None;
    }
    let len = usize::from(word(packet, offset + 4));
    packet.get(offset + UDP_HEADER..offset + len)
}

/// An IP packet with one UDP datagram; `None` if the families differ or it would not fit one packet.
pub(crate) fn udp_packet(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
    let udp_len = u16::try_from(UDP_HEADER + payload.len()).ok()?;
    let mut udp = Vec::with_capacity(usize::from(udp_len));
    udp.extend(from.port().to_be_bytes());
    udp.extend(to.port().to_be_bytes());
    udp.extend(udp_len.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    let mut packet = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            set_udp_checksum(&mut udp, &from.octets(), &to.octets());
            v4_header(from, to, udp_len)?.to_vec()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            set_udp_checksum(&mut udp, &from.octets(), &to.octets());
            v6_header(from, to, udp_len).to_vec()
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    };
    packet.extend(udp);
    Some(packet)
}

fn v4_header(from: Ipv4Addr, to: Ipv4Addr, udp_len: u16) -> Option<[u8; V4_HEADER]> {
    let mut header = [0; V4_HEADER];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&udp_len.checked_add(V4_HEADER as u16)?.to_be_bytes());
    header[8] = 64;
    header[9] = UDP;
    header[12..16].copy_from_slice(&from.octets());
    header[16..20].copy_from_slice(&to.octets());
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    Some(header)
}

fn v6_header(from: Ipv6Addr, to: Ipv6Addr, udp_len: u16) -> [u8; V6_HEADER] {
    let mut header = [0; V6_HEADER];
    header[0] = 0x60;
    header[4..6].copy_from_slice(&udp_len.to_be_bytes());
    header[6] = UDP;
    header[7] = 64;
    header[8..24].copy_from_slice(&from.octets());
    header[24..40].copy_from_slice(&to.octets());
    header
}

fn set_udp_checksum(udp: &mut [u8], from: &[u8], to: &[u8]) {
    let len = (udp.len() as u16).to_be_bytes();
    let sum = checksum(&[from, to, &[0, UDP], &len, udp]);
    // 0 means "no checksum" in UDP; its other form in ones' complement stands for the sum 0.
    udp[6..8].copy_from_slice(&(if sum == 0 { 0xffff } else { sum }).to_be_bytes());
}

/// The Internet checksum (RFC 1071). All parts but the last must be of even length.
pub(crate) fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u32 = words.map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn padding_stops_at_the_mtu() {
        assert_eq!(padded_len(1, 1420), 16);
        assert_eq!(padded_len(16, 1420), 16);
        assert_eq!(padded_len(1409, 1420), 1420);
        assert_eq!(padded_len(1420, 1420), 1420);
        assert_eq!(padded_len(1500, 1420), 1500);
    }

    #[test]
    fn congestion_is_marked_where_it_is_understood_and_checksums_hold() {
        for (from, to) in [("10.0.0.1:7", "10.0.0.2:9"), ("[fd00::1]:7", "[fd00::2]:9")] {
            let plain = udp_packet(from.parse().unwrap(), to.parse().unwrap(), b"x").unwrap();
            assert_eq!(ecn(&plain), None);
            for (class, expected) in
                [(0, None), (0b0110, Some(Ecn::Ce)), (0b01, Some(Ecn::Ce)), (0b11, Some(Ecn::Ce))]
            {
                let mut packet = plain.clone();
                if packet[0] >> 4 == 4 {
                    (packet[1], packet[10], packet[11]) = (class, 0, 0);
                    let sum = checksum(&[&packet[..V4_HEADER]]);
                    packet[10..12].copy_from_slice(&sum.to_be_bytes());
                } else {
                    packet[1] = class << 4;
                }
                mark_congestion(&mut packet);
                assert_eq!(ecn(&packet), expected, "{class:b}");
                assert_eq!(traffic_class(&packet).unwrap() >> 2, class >> 2);
                assert!(packet[0] >> 4 == 6 || checksum(&[&packet[..V4_HEADER]]) == 0);
            }
        }
        mark_congestion(&mut []);
        mark_congestion(&mut [0x45, 2]);
    }

    #[test]
    fn messages_are_read_back_and_their_checksums_hold() {
        for (from, to) in [("10.0.0.1:7", "10.0.0.2:9"), ("[fd00::1]:7", "[fd00::2]:9")] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let packet = udp_packet(from, to, b"hello").unwrap();
            assert_eq!(source(&packet), Some(from.ip()));
            assert_eq!(destination(&packet), Some(to.ip()));
            assert!(is_to_udp_port(&packet, 9) && !is_to_udp_port(&packet, 7));
            assert_eq!(udp_payload(&packet), Some(&b"hello"[..]));
            let udp = &packet[packet.len() - 13..];
            let (a, b) = match (from.ip(), to.ip()) {
                (IpAddr::V4(a), IpAddr::V4(b)) => (a.octets().to_vec(), b.octets().to_vec()),
                (IpAddr::V6(a), IpAddr::V6(b)) => (a.octets().to_vec(), b.octets().to_vec()),
                _ => unreachable!(),
            };
            assert_eq!(checksum(&[&a, &b, &[0, UDP], &13u16.to_be_bytes(), udp]), 0);
        }
    }

    #[test]
    fn a_message_between_families_or_beyond_64_kilobytes_is_refused() {
        let (v4, v6) = ("10.0.0.1:1".parse().unwrap(), "[fd00::1]:1".parse().unwrap());
        assert_eq!(udp_packet(v4, v6, b""), None);
        assert_eq!(udp_packet(v4, v4, &[0; 65_508]), None);
    }

    #[test]
    fn later_fragments_have_no_port() {
        let (from, to) = ("10.0.0.1:7".parse().unwrap(), "10.0.0.2:9".parse().unwrap());
        let mut packet = udp_packet(from, to, b"hello").unwrap();
        packet[6] = 0x20;
        assert!(is_to_udp_port(&packet, 9) && udp_payload(&packet).is_none());
        packet[7] = 1;
        assert!(!is_to_udp_port(&packet, 9));
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_looked_at(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            source(&bytes);
            destination(&bytes);
            is_to_udp_port(&bytes, 1);
            udp_payload(&bytes);
        }
    }
}
