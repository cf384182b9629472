//! Interface to tunnel: one read brings a packet, or up to 64 KB of segments that are split here.

use std::io;

use super::{
    Parcel, Read,
    linux::Device,
    split::{self, MAX_PACKET, PADDING, Splitter},
    vnet,
};
use crate::packet::{MAX_INNER, padded_len};

/// The buffers packets are read into. They fit packets of any size: the interface's MTU may change while packets of the
/// former one are on their way.
pub(crate) struct Reader {
    packet: Box<[u8]>,
    /// Where the packet in the buffer begins, and its length; it is the only segment unless it is split.
    start: usize,
    len: usize,
    splitter: Splitter,
    is_split: bool,
    mtu: usize,
}

impl Reader {
    pub(crate) fn new(_device: &Device, mtu: u16) -> Self {
        Self {
            packet: vec![0; vnet::LEN + MAX_PACKET + PADDING].into_boxed_slice(),
            start: 0,
            len: 0,
            splitter: Splitter::new(),
            is_split: false,
            mtu: mtu.into(),
        }
    }

    /// Padding ends at another MTU.
    pub(crate) fn fit(&mut self, mtu: u16) {
        self.mtu = mtu.into();
    }

    pub(crate) fn read(&mut self, device: &Device) -> Read {
        if let Some(count) = self.splitter.resume(&self.packet[self.start..self.start + self.len]) {
            return Read::Segments(count);
        }
        let room = self.packet.len() - PADDING;
        match device.read(&mut self.packet[..room]) {
            Ok(len) => self.take(len, device.has_offloads()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Read::Empty
            }
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => Read::Gone,
            Err(error) => Read::Failed(error),
        }
    }

    /// What was read, of this length.
    fn take(&mut self, len: usize, has_header: bool) -> Read {
        self.is_split = false;
        self.start = if has_header { vnet::LEN } else { 0 };
        let Some(len) = len.checked_sub(self.start).filter(|len| *len > 0) else { return Read::Malformed };
        self.len = len;
        if !has_header {
            return Read::Segments(1);
        }
        let Some(header) = self.packet.first_chunk().map(vnet::Header::read) else { return Read::Malformed };
        let packet = &mut self.packet[self.start..self.start + len];
        if header.kind == vnet::NONE {
            return if split::complete(packet, header) { Read::Segments(1) } else { Read::Malformed };
        }
        self.is_split = true;
        self.splitter.split(packet, header).map_or(Read::Malformed, Read::Segments)
    }

    /// The first `count` segments, for another worker.
    pub(crate) fn pack(&self, count: usize) -> Parcel {
        Parcel::new((0..count).map(|index| self.segment(index)))
    }

    /// Takes a packet that another worker has read, as if it had been read here. What is left of one that was is lost.
    pub(crate) fn load(&mut self, packet: &[u8]) {
        (self.start, self.len, self.is_split) = (0, packet.len(), false);
        self.packet[..packet.len()].copy_from_slice(packet);
    }

    pub(crate) fn segment(&self, index: usize) -> &[u8] {
        if self.is_split {
            self.splitter.segment(index)
        } else {
            &self.packet[self.start..self.start + self.len]
        }
    }

    /// The segment with WireGuard's padding: zeros up to a multiple of 16, but not beyond the MTU, nor what a datagram
    /// takes.
    pub(crate) fn padded(&mut self, index: usize) -> &[u8] {
        let (room, len) = if self.is_split {
            self.splitter.room(index)
        } else {
            (&mut self.packet[self.start..self.start + self.len + PADDING], self.len)
        };
        let padded = padded_len(len, self.mtu.min(MAX_INNER));
        room[len..padded].fill(0);
        &room[..padded]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(packet: &[u8], mtu: usize) -> Reader {
        let mut bytes = vec![0xff; packet.len() + PADDING];
        bytes[..packet.len()].copy_from_slice(packet);
        let packet = bytes.into_boxed_slice();
        let len = packet.len() - PADDING;
        Reader { packet, start: 0, len, splitter: Splitter::new(), is_split: false, mtu }
    }

    #[test]
    fn padding_is_zeros_even_where_a_longer_packet_was_before() {
        assert_eq!(reader(&[1; 20], 1420).padded(0)[20..], [0; 12]);
        assert_eq!(reader(&[1; 1419], 1420).padded(0).len(), 1420);
        // Of the MTU before.
        assert_eq!(reader(&[1; 1419], 1280).padded(0).len(), 1419);
        assert_eq!(reader(&[1; MAX_INNER - 1], 65_535).padded(0).len(), MAX_INNER);
    }
}
