//! Packets as the kernel hands them over: with a checksum to be completed, or many segments as one (GSO), which are made
//! here. Nothing is lost for having more segments than there is room for: the rest is made when asked for again.

use tun_rs::checksum;

use super::vnet::{ECN, Header, NEEDS_CHECKSUM, NONE, TCP_V4, TCP_V6, UDP_L4};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;
const TCP_HEADER: usize = 20;
pub(super) const TCP_CHECKSUM: usize = 16;
pub(super) const UDP_CHECKSUM: usize = 6;
const FIN_AND_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// The largest IP packet: IPv6 does not count its first header.
pub(super) const MAX_PACKET: usize = V6_HEADER + 65_535;
/// Per call; TCP's segments are hardly ever smaller than 536 bytes, so mostly one call gives all.
const MAX_SEGMENTS: usize = 256;
/// What a segment needs besides its payload: headers of 256 bytes at most, and padding.
const SEGMENT_EXTRA: usize = 272;
pub(super) const PADDING: usize = 16;

/// A packet and what is left to be made of it.
#[derive(Debug, Clone, Copy)]
struct Super {
    len: usize,
    /// Where the TCP or UDP header begins, and the payload.
    transport: usize,
    payload: usize,
    protocol: u8,
    /// Payload bytes per segment.
    size: usize,
    /// The next segment's number.
    next: usize,
}

impl Super {
    /// `None` if the header is none of a packet that could be split.
    fn new(packet: &[u8], header: Header) -> Option<Self> {
        let (transport, size) = (usize::from(header.checksum_start), usize::from(header.size));
        let ip_header = match packet.first()? >> 4 {
            4 => V4_HEADER,
            6 => V6_HEADER,
            _ => return None,
        };
        let protocol = match (header.kind & !ECN, ip_header) {
            (TCP_V4, V4_HEADER) | (TCP_V6, V6_HEADER) => TCP,
            (UDP_L4, _) if header.kind == UDP_L4 => UDP,
            _ => return None,
        };
        let transport_header = match protocol {
            TCP => usize::from(packet.get(transport + 12)? >> 4) * 4,
            _ => UDP_HEADER,
        };
        let is_whole = protocol == UDP || transport_header >= TCP_HEADER;
        let payload = transport + transport_header;
        let fits = transport >= ip_header && payload < packet.len() && payload + PADDING <= SEGMENT_EXTRA;
        let max_len = 65_535 + if ip_header == V6_HEADER { V6_HEADER } else { 0 };
        let may_be = size > 0 && is_whole && fits && payload + size.min(packet.len() - payload) <= max_len;
        may_be.then_some(Self { len: packet.len(), transport, payload, protocol, size, next: 0 })
    }

    fn count(&self) -> usize {
        (self.len - self.payload).div_ceil(self.size)
    }

    /// The length of a segment.
    fn len_of(&self, number: usize) -> usize {
        self.payload + self.size.min(self.len - self.payload - number * self.size)
    }

    fn stride(&self) -> usize {
        self.len_of(0) + PADDING
    }

    /// Writes a segment, whole and with its checksums.
    fn make(&self, packet: &[u8], number: usize, out: &mut [u8]) {
        let (len, transport) = (self.len_of(number), self.transport);
        let from = self.payload + number * self.size;
        out[..self.payload].copy_from_slice(&packet[..self.payload]);
        out[self.payload..len].copy_from_slice(&packet[from..from + len - self.payload]);
        let out = &mut out[..len];
        if out[0] >> 4 == 4 {
            put(out, 2, len as u16);
            put(out, 4, word(out, 4).wrapping_add(number as u16));
            put(out, 10, 0);
            put(out, 10, !checksum(&out[..transport], 0));
        } else {
            put(out, 4, (len - V6_HEADER) as u16);
        }
        let at = match self.protocol {
            TCP => {
                let sequence = u32::from_be_bytes([
                    out[transport + 4],
                    out[transport + 5],
                    out[transport + 6],
                    out[transport + 7],
                ]);
                let sequence = sequence.wrapping_add((number * self.size) as u32);
                out[transport + 4..transport + 8].copy_from_slice(&sequence.to_be_bytes());
                if number > 0 {
                    out[transport + 13] &= !CWR;
                }
                if number + 1 < self.count() {
                    out[transport + 13] &= !FIN_AND_PSH;
                }
                transport + TCP_CHECKSUM
            }
            _ => {
                put(out, transport + 4, (len - transport) as u16);
                transport + UDP_CHECKSUM
            }
        };
        put(out, at, 0);
        put(out, at, complement(transport_sum(out, transport, self.protocol), self.protocol == UDP));
    }
}

/// The buffers that packets are split in.
pub(super) struct Splitter {
    segments: Box<[u8]>,
    /// The bytes from one segment to the next, and how many there are.
    stride: usize,
    count: usize,
    /// The length of the last.
    last_len: usize,
    rest: Option<Super>,
}

impl Splitter {
    pub(super) fn new() -> Self {
        let room = MAX_PACKET + MAX_SEGMENTS * SEGMENT_EXTRA;
        let segments = vec![0; room].into_boxed_slice();
        Self { segments, stride: 0, count: 0, last_len: 0, rest: None }
    }

    /// Splits a packet, or the rest of the same one; how many segments there are. `None` if it cannot be.
    pub(super) fn split(&mut self, packet: &[u8], header: Header) -> Option<usize> {
        self.rest = Some(Super::new(packet, header)?);
        self.resume(packet)
    }

    /// `None` if nothing is left of the packet.
    pub(super) fn resume(&mut self, packet: &[u8]) -> Option<usize> {
        let mut work = self.rest.take()?;
        self.stride = work.stride();
        let room = MAX_SEGMENTS.min(self.segments.len() / self.stride);
        self.count = room.min(work.count() - work.next);
        for (number, out) in self.segments.chunks_mut(self.stride).take(self.count).enumerate() {
            work.make(packet, work.next + number, out);
        }
        work.next += self.count;
        self.last_len = work.len_of(work.next - 1);
        self.rest = (work.next < work.count()).then_some(work);
        Some(self.count)
    }

    /// With room behind it for padding.
    pub(super) fn segment(&self, index: usize) -> &[u8] {
        let start = index * self.stride;
        &self.segments[start..start + self.len_of(index)]
    }

    /// As long as asked for, but at most [`PADDING`] bytes longer than it is.
    pub(super) fn room(&mut self, index: usize) -> (&mut [u8], usize) {
        let (start, len) = (index * self.stride, self.len_of(index));
        (&mut self.segments[start..start + len + PADDING], len)
    }

    fn len_of(&self, index: usize) -> usize {
        if index + 1 == self.count { self.last_len } else { self.stride - PADDING }
    }
}

/// Completes a checksum that the kernel has begun, where it is. `false` if the header tells nonsense.
pub(super) fn complete(packet: &mut [u8], header: Header) -> bool {
    if header.kind != NONE || header.flags & NEEDS_CHECKSUM == 0 {
        return true;
    }
    let start = usize::from(header.checksum_start);
    let at = start + usize::from(header.checksum_offset);
    if at + 2 > packet.len() {
        return false;
    }
    // What is there already is the sum of what is covered besides.
    let total = checksum(&packet[start..], 0);
    let is_udp = usize::from(header.checksum_offset) == UDP_CHECKSUM;
    put(packet, at, complement(total, is_udp));
    true
}

/// In UDP 0 says that there is no checksum; its other form stands for the sum.
fn complement(total: u16, is_udp: bool) -> u16 {
    if is_udp && total == 0xffff { 0xffff } else { !total }
}

/// What the checksum of TCP and UDP covers: 0xffff where the one in it is right.
pub(super) fn transport_sum(packet: &[u8], transport: usize, protocol: u8) -> u16 {
    let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
    let besides = u64::from(checksum(addresses, 0)) + u64::from(protocol) + (packet.len() - transport) as u64;
    checksum(&packet[transport..], besides)
}

pub(super) fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
