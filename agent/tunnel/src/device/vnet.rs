//! The header that the kernel puts before each packet, and wants before each (`struct virtio_net_hdr`): what is left to be
//! done about its checksum, and into which segments it is to be split. In the machine's byte order.

/// Bytes of the header.
pub(super) const LEN: usize = 10;
/// The checksum is begun and to be completed.
pub(super) const NEEDS_CHECKSUM: u8 = 1;
/// Kinds of segments.
pub(super) const NONE: u8 = 0;
pub(super) const TCP_V4: u8 = 1;
pub(super) const TCP_V6: u8 = 4;
pub(super) const UDP_L4: u8 = 5;
/// Set beside TCP's.
pub(super) const ECN: u8 = 0x80;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) flags: u8,
    pub(super) kind: u8,
    /// Up to where the payload begins. The kernel's own is not reliable.
    pub(super) headers_len: u16,
    /// Payload bytes of a segment.
    pub(super) size: u16,
    pub(super) checksum_start: u16,
    /// From there.
    pub(super) checksum_offset: u16,
}

impl Header {
    pub(super) fn read(bytes: &[u8; LEN]) -> Self {
        let word = |at| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            kind: bytes[1],
            headers_len: word(2),
            size: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        }
    }

    pub(super) fn write(self) -> [u8; LEN] {
        let [a, b] = self.headers_len.to_ne_bytes();
        let [c, d] = self.size.to_ne_bytes();
        let [e, f] = self.checksum_start.to_ne_bytes();
        let [g, h] = self.checksum_offset.to_ne_bytes();
        [self.flags, self.kind, a, b, c, d, e, f, g, h]
    }
}
