//! TCP's reset, as one end of a connection would send it (RFC 9293). It is made here for an end that is there no more, and told to the one that is.

use std::net::{IpAddr, SocketAddr};

use crate::packet::checksum;

const TCP: u8 = 6;
const RST: u8 = 4;
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
const HOP_LIMIT: u8 = 64;

/// Writes the packet; its length. `sequence` is what `to` expects next. `None` if the families differ, or there is no room.
pub(crate) fn write(from: SocketAddr, to: SocketAddr, sequence: u32, out: &mut [u8]) -> Option<usize> {
    match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let out = out.get_mut(..V4_HEADER + TCP_HEADER)?;
            let (header, segment) = out.split_at_mut(V4_HEADER);
            header.fill(0);
            (header[0], header[3], header[8], header[9]) =
                (0x45, (V4_HEADER + TCP_HEADER) as u8, HOP_LIMIT, TCP);
            header[12..16].copy_from_slice(&source.octets());
            header[16..20].copy_from_slice(&destination.octets());
            let sum = checksum(&[header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            write_segment(segment, [from.port(), to.port()], sequence, &header[12..20]);
            Some(out.len())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let out = out.get_mut(..V6_HEADER + TCP_HEADER)?;
            let (header, segment) = out.split_at_mut(V6_HEADER);
            header[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, TCP_HEADER as u8, TCP, HOP_LIMIT]);
            header[8..24].copy_from_slice(&source.octets());
            header[24..40].copy_from_slice(&destination.octets());
            write_segment(segment, [from.port(), to.port()], sequence, &header[8..40]);
            Some(out.len())
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

fn write_segment(segment: &mut [u8], [from, to]: [u16; 2], sequence: u32, addresses: &[u8]) {
    segment.fill(0);
    segment[..2].copy_from_slice(&from.to_be_bytes());
    segment[2..4].copy_from_slice(&to.to_be_bytes());
    segment[4..8].copy_from_slice(&sequence.to_be_bytes());
    (segment[12], segment[13]) = ((TCP_HEADER as u8 / 4) << 4, RST);
    let sum = checksum(&[addresses, &[0, TCP, 0, TCP_HEADER as u8], segment]);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::{destination, source};

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
    }

    proptest! {
        #[test]
        fn it_bears_its_number_and_right_checksums_or_is_not_made(
            from in address(), to in address(), ports in any::<[u16; 2]>(), sequence in any::<u32>(), room in 0usize..80,
        ) {
            let mut out = vec![0xff; room];
            let ends = ((from, ports[0]).into(), (to, ports[1]).into());
            let needed = TCP_HEADER + if from.is_ipv4() { V4_HEADER } else { V6_HEADER };
            let len = write(ends.0, ends.1, sequence, &mut out);
            prop_assert_eq!(len, (from.is_ipv4() == to.is_ipv4() && room >= needed).then_some(needed));
            if let Some(packet) = len.map(|len| &out[..len]) {
                prop_assert_eq!((source(packet), destination(packet)), (Some(from), Some(to)));
                let (header, segment) = packet.split_at(needed - TCP_HEADER);
                let addresses = if from.is_ipv4() { &header[12..20] } else { &header[8..40] };
                prop_assert_eq!(checksum(&[addresses, &[0, TCP, 0, 20], segment]), 0);
                prop_assert!(!from.is_ipv4() || checksum(&[header]) == 0);
                prop_assert_eq!(&segment[4..8], &sequence.to_be_bytes()[..]);
                prop_assert_eq!([&segment[..2], &segment[2..4]], [&ports[0].to_be_bytes()[..], &ports[1].to_be_bytes()[..]]);
            }
        }
    }
}
