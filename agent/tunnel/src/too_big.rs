//! What a sender is told whose packet is larger than a datagram can carry, as a router on the way would: ICMP's
//! "fragmentation needed" (RFC 1191) and ICMPv6's "packet too big" (RFC 4443), from the address it was meant for.

use crate::packet::{MAX_INNER, checksum};

const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const ICMP_HEADER: usize = 8;
/// Of the packet that it is about; the answer stays below what every link carries.
const V4_QUOTE: usize = 548;
const V6_QUOTE: usize = 1232;
const HOP_LIMIT: u8 = 64;

/// Writes the answer to a packet; its length. `None` if none may be given: to errors, and to later fragments.
pub(crate) fn answer(packet: &[u8], out: &mut [u8]) -> Option<usize> {
    match packet.first()? >> 4 {
        4 if packet.len() > V4_HEADER => answer_v4(packet, out),
        6 if packet.len() > V6_HEADER => answer_v6(packet, out),
        _ => None,
    }
}

fn answer_v4(packet: &[u8], out: &mut [u8]) -> Option<usize> {
    let transport = usize::from(packet[0] & 0xf) * 4;
    let is_later_fragment = u16::from_be_bytes([packet[6] & 0x1f, packet[7]]) != 0;
    // An echo, or its answer.
    let is_error = packet[9] == ICMP && !matches!(packet.get(transport)?, 0 | 8);
    if is_later_fragment || is_error {
        return None;
    }
    let quote = &packet[..packet.len().min(V4_QUOTE)];
    let len = V4_HEADER + ICMP_HEADER + quote.len();
    let out = out.get_mut(..len)?;
    out[..V4_HEADER].fill(0);
    (out[0], out[8], out[9]) = (0x45, HOP_LIMIT, ICMP);
    out[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    out[12..16].copy_from_slice(&packet[16..20]);
    out[16..20].copy_from_slice(&packet[12..16]);
    let sum = checksum(&[&out[..V4_HEADER]]);
    out[10..12].copy_from_slice(&sum.to_be_bytes());
    let message = &mut out[V4_HEADER..];
    message[..4].copy_from_slice(&[3, 4, 0, 0]);
    message[4..ICMP_HEADER].copy_from_slice(&(MAX_INNER as u32).to_be_bytes());
    message[ICMP_HEADER..].copy_from_slice(quote);
    let sum = checksum(&[message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(len)
}

fn answer_v6(packet: &[u8], out: &mut [u8]) -> Option<usize> {
    if packet[6] == ICMP_V6 && packet[V6_HEADER] < 128 {
        return None;
    }
    let quote = &packet[..packet.len().min(V6_QUOTE)];
    let message_len = ICMP_HEADER + quote.len();
    let out = out.get_mut(..V6_HEADER + message_len)?;
    out[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, ICMP_V6, HOP_LIMIT]);
    out[4..6].copy_from_slice(&(message_len as u16).to_be_bytes());
    out[8..24].copy_from_slice(&packet[24..40]);
    out[24..40].copy_from_slice(&packet[8..24]);
    let (header, message) = out.split_at_mut(V6_HEADER);
    message[..4].copy_from_slice(&[2, 0, 0, 0]);
    message[4..ICMP_HEADER].copy_from_slice(&(MAX_INNER as u32).to_be_bytes());
    message[ICMP_HEADER..].copy_from_slice(quote);
    let sum = checksum(&[&header[8..40], &[0, ICMP_V6], &(message_len as u16).to_be_bytes(), message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(V6_HEADER + message_len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::{destination, source, udp_packet};

    #[test]
    fn the_sender_is_told_from_where_it_sent_to_with_right_checksums() {
        for (from, to) in [("10.0.0.1:7", "10.0.0.2:9"), ("[fd00::1]:7", "[fd00::2]:9")] {
            let packet = udp_packet(from.parse().unwrap(), to.parse().unwrap(), &[1; 65_000]).unwrap();
            let mut out = [0xff; 1500];
            let answer = answer(&packet, &mut out).map(|len| &out[..len]).unwrap();
            assert_eq!((source(answer), destination(answer)), (destination(&packet), source(&packet)));
            let header = if packet[0] >> 4 == 4 { V4_HEADER } else { V6_HEADER };
            let (icmp, quote) = answer[header..].split_at(ICMP_HEADER);
            assert_eq!(icmp[4..], 65_475u32.to_be_bytes());
            assert_eq!(quote, &packet[..quote.len()]);
            let sum = if header == V4_HEADER {
                assert_eq!(checksum(&[&answer[..V4_HEADER]]), 0);
                checksum(&[&answer[V4_HEADER..]])
            } else {
                let len = (answer.len() as u16 - V6_HEADER as u16).to_be_bytes();
                checksum(&[&answer[8..40], &[0, ICMP_V6], &len, &answer[V6_HEADER..]])
            };
            assert_eq!(sum, 0);
        }
    }

    #[test]
    fn errors_and_later_fragments_are_not_answered() {
        let (from, to) = ("10.0.0.1:7".parse().unwrap(), "10.0.0.2:9".parse().unwrap());
        let packet = udp_packet(from, to, &[0; 65_000]).unwrap();
        let mut out = [0; 1500];
        let mut fragment = packet.clone();
        fragment[7] = 1;
        assert_eq!(answer(&fragment, &mut out), None);
        let mut error = packet;
        (error[9], error[V4_HEADER]) = (ICMP, 3);
        assert_eq!(answer(&error, &mut out), None);
        error[V4_HEADER] = 8;
        assert!(answer(&error, &mut out).is_some());
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_answered(bytes in proptest::collection::vec(any::<u8>(), 0..100), room in 0..200usize) {
            if let Some(len) = answer(&bytes, &mut vec![0; room]) {
                prop_assert!(len <= room);
            }
        }
    }
}
