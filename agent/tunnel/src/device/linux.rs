//! Linux: tun-rs with the kernel's offloads. One read brings a packet of up to 64 KB with its segments' size (GSO),
//! which is split here; packets written in one batch are joined again where they follow each other (GRO).

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd},
};

use ipnet::IpNet;
use tun_rs::{DeviceBuilder, ExpandBuffer, GROTable, SyncDevice, VIRTIO_NET_HDR_LEN};

use super::{DeviceError, Read, link, netlink};

/// Enough for a 64 KB packet of segments down to 256 bytes; TCP's are hardly ever below 536.
const MAX_SEGMENTS: usize = 256;
/// In packets. The default of 500 drops under bursts of small ones.
const TX_QUEUE_LEN: u32 = 1000;
/// Padding adds up to 15 bytes to a segment.
const PADDING: usize = 16;
/// Largest IP packet.
const MAX_PACKET: usize = 65_535;
/// What a slot holds: tun-rs joins packets only in buffers with room for the result, else it writes one by one
/// without a word.
const SLOT_BYTES: usize = 66_000;
/// What tun-rs is told a slot holds. It asks for twice the offset, and a larger figure would let it build packets
/// beyond 65,535 bytes, whose length field wraps.
const SLOT_CAPACITY: usize = MAX_PACKET + 2 * VIRTIO_NET_HDR_LEN;
/// A received UDP message carries up to 64 datagrams (the kernel's UDP_GRO limit).
pub(crate) const SLOTS_PER_MESSAGE: usize = 64;

pub(crate) struct Device(SyncDevice);

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Device")
    }
}

impl Device {
    pub(crate) fn create(name: &str, mtu: u16) -> Result<Self, DeviceError> {
        // The kernel would put a number in place of `%d`.
        let bad = |c: char| matches!(c, '/' | '%' | ':' | '\0') || c.is_whitespace();
        if name.is_empty() || name.len() > 15 || name.contains(bad) || name == "." || name == ".." {
            return Err(DeviceError::BadName(name.to_owned()));
        }
        // An existing TUN interface that nobody has open would be taken over silently.
        if netlink::index_of(name).is_some() {
            return Err(DeviceError::NameInUse(name.to_owned()));
        }
        let device = DeviceBuilder::new()
            .name(name)
            .mtu(mtu)
            .enable(false)
            .offload(true)
            .build_sync()
            .map_err(|error| error_of(name, error))?;
        // Needs privileges outside of the own user namespace, too: where it is refused, bursts are dropped earlier.
        let _ = device.set_tx_queue_len(TX_QUEUE_LEN);
        hush(name);
        device.set_nonblocking(true).map_err(|error| error_of(name, error))?;
        Ok(Self(device))
    }

    pub(crate) fn bring_up(&self, name: &str) -> Result<(), DeviceError> {
        self.0.enabled(true).map_err(|error| error_of(name, error))
    }

    pub(crate) fn adopt(descriptor: OwnedFd) -> Result<(Self, String, u16), DeviceError> {
        check_kind(&descriptor).map_err(DeviceError::Descriptor)?;
        // SAFETY: the descriptor is open, and handed over.
        let device = unsafe { SyncDevice::from_fd(descriptor.into_raw_fd()) };
        let adopted = device.and_then(|device| {
            device.set_nonblocking(true)?;
            let (name, mtu) = (device.name()?, device.mtu()?);
            Ok((Self(device), name, mtu))
        });
        adopted.map_err(DeviceError::Descriptor)
    }

    pub(crate) fn add_address(&self, address: IpNet) -> io::Result<()> {
        netlink::add_address(self.0.if_index()?, address)
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether packets can be read from a descriptor as they are. IFF_NO_PI is not told reliably.
fn check_kind(descriptor: &OwnedFd) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    link::ioctl(descriptor.as_raw_fd(), link::TUNGETIFF, &mut request)?;
    // SAFETY: the kernel has filled in this member.
    let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    let refused = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    match (flags & libc::IFF_TUN, flags & libc::IFF_VNET_HDR) {
        (0, _) => refused("it carries frames (IFF_TAP), not packets"),
        (_, 0) => Ok(()),
        _ => refused("it has IFF_VNET_HDR: open it with IFF_TUN and IFF_NO_PI only"),
    }
}

/// No link-local address, as WireGuard's own interfaces have none: with one, the kernel would solicit routers over
/// the tunnel. A system that does not let us say so (or has no IPv6) just talks to itself a little.
fn hush(name: &str) {
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"), "1");
}

fn error_of(name: &str, error: io::Error) -> DeviceError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => DeviceError::NoPermission(name.to_owned()),
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => DeviceError::NoTun,
        Some(libc::EBUSY | libc::EEXIST) => DeviceError::NameInUse(name.to_owned()),
        _ => DeviceError::Other { name: name.to_owned(), source: error },
    }
}

/// The buffers packets are read into.
pub(crate) struct Reader {
    packet: Box<[u8]>,
    segments: Vec<Box<[u8]>>,
    sizes: Vec<usize>,
    mtu: usize,
}

impl Reader {
    pub(crate) fn new(_device: &Device, mtu: u16) -> Self {
        let mut reader = Self {
            packet: vec![0; VIRTIO_NET_HDR_LEN + MAX_PACKET].into_boxed_slice(),
            segments: Vec::new(),
            sizes: vec![0; MAX_SEGMENTS],
            mtu: 0,
        };
        reader.fit(mtu);
        reader
    }

    /// Makes room for segments of another MTU.
    pub(crate) fn fit(&mut self, mtu: u16) {
        let mtu = usize::from(mtu);
        if self.mtu != mtu {
            self.mtu = mtu;
            let segment = || vec![0; mtu + PADDING].into_boxed_slice();
            self.segments = (0..MAX_SEGMENTS).map(|_| segment()).collect();
        }
    }

    pub(crate) fn read(&mut self, device: &Device) -> Read {
        match device.0.recv_multiple(&mut self.packet, &mut self.segments, &mut self.sizes, 0) {
            Ok(count) => Read::Segments(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Read::Empty,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Read::Empty,
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => Read::Gone,
            Err(error) if error.raw_os_error().is_some() => Read::Failed(error),
            Err(_) => Read::Malformed,
        }
    }

    pub(crate) fn segment(&self, index: usize) -> &[u8] {
        &self.segments[index][..self.sizes[index]]
    }

    /// The segment with WireGuard's padding: zeros up to a multiple of 16, but not beyond the MTU.
    pub(crate) fn padded(&mut self, index: usize) -> &[u8] {
        let size = self.sizes[index];
        let padded = crate::packet::padded_len(size, self.mtu);
        let segment = &mut self.segments[index];
        segment[size..padded].fill(0);
        &segment[..padded]
    }
}

/// The slots packets are collected in before one batch is written.
pub(crate) struct Writer {
    slots: Vec<Slot>,
    used: usize,
    table: GROTable,
}

impl Writer {
    pub(crate) fn new(_device: &Device, messages: usize) -> Self {
        let slots = (0..messages * SLOTS_PER_MESSAGE).map(|_| Slot::new()).collect();
        Self { slots, used: 0, table: GROTable::new() }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.used == self.slots.len()
    }

    /// Room for the next packet. It counts only once [`Writer::keep`] is called. There must be a free slot.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.slots[self.used].bytes[VIRTIO_NET_HDR_LEN..]
    }

    /// Keeps the first `len` bytes of the room.
    pub(crate) fn keep(&mut self, len: usize) {
        self.slots[self.used].len = VIRTIO_NET_HDR_LEN + len;
        self.used += 1;
    }

    /// Writes what was kept. `false` if the interface refused at least one packet.
    pub(crate) fn flush(&mut self, device: &Device) -> bool {
        let slots = &mut self.slots[..self.used];
        self.used = 0;
        slots.is_empty() || device.0.send_multiple(&mut self.table, slots, VIRTIO_NET_HDR_LEN).is_ok()
    }
}

/// A buffer of fixed size that tun-rs can extend, allocated once; its pages are touched only when used.
struct Slot {
    bytes: Box<[u8]>,
    len: usize,
}

impl Slot {
    fn new() -> Self {
        Self { bytes: vec![0; SLOT_BYTES].into_boxed_slice(), len: 0 }
    }
}

impl AsRef<[u8]> for Slot {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl AsMut<[u8]> for Slot {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl ExpandBuffer for Slot {
    fn buf_capacity(&self) -> usize {
        SLOT_CAPACITY
    }

    fn buf_resize(&mut self, new_len: usize, value: u8) {
        if new_len > self.len {
            self.bytes[self.len..new_len].fill(value);
        }
        self.len = new_len;
    }

    fn buf_extend_from_slice(&mut self, src: &[u8]) {
        self.bytes[self.len..self.len + src.len()].copy_from_slice(src);
        self.len += src.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::checksum;

    /// What a slot takes beyond the packet in it.
    const SPARE_BYTES: usize = 66_000;
    const PAYLOAD: usize = 1368;

    /// The `number`th segment of a TCP stream, with the checksums that joining asks for.
    fn segment(number: usize) -> Vec<u8> {
        let mut tcp = vec![0; 20 + PAYLOAD];
        tcp[..4].copy_from_slice(&[0, 1, 0, 2]);
        tcp[4..8].copy_from_slice(&((number * PAYLOAD) as u32).to_be_bytes());
        (tcp[12], tcp[13]) = (0x50, 0x10);
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet[2..4].copy_from_slice(&(20 + tcp.len() as u16).to_be_bytes());
        let len = (tcp.len() as u16).to_be_bytes();
        let sum = checksum(&[&packet[12..20], &[0, 6], &len, &tcp]);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        let sum = checksum(&[&packet]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(tcp);
        packet
    }

    fn slots(count: usize) -> Vec<Slot> {
        let fill = |number| {
            let (mut slot, packet) = (Slot::new(), segment(number));
            slot.buf_resize(VIRTIO_NET_HDR_LEN, 0);
            slot.buf_extend_from_slice(&packet);
            slot
        };
        (0..count).map(fill).collect()
    }

    #[test]
    fn a_slot_has_room_for_the_largest_packet_and_each_message_for_64_datagrams() {
        assert!(Slot::new().bytes.len() >= SPARE_BYTES);
        assert!(Slot::new().buf_capacity() >= 2 * VIRTIO_NET_HDR_LEN + MAX_PACKET);
        assert_eq!(SLOTS_PER_MESSAGE, 64);
    }

    #[test]
    fn a_long_run_of_segments_is_joined_into_packets_of_at_most_64_kilobytes() {
        let mut slots = slots(100);
        GROTable::new().apply_gro(&mut slots, VIRTIO_NET_HDR_LEN, true).unwrap();
        let joined = |slot: &Slot| slot.len - VIRTIO_NET_HDR_LEN;
        let single = 40 + PAYLOAD;
        let sizes: Vec<usize> = slots.iter().map(joined).filter(|&size| size > single).collect();
        // 47 payloads and one header are 64,336 bytes; a 48th would not fit.
        assert_eq!(sizes, [40 + 47 * PAYLOAD, 40 + 47 * PAYLOAD, 40 + 6 * PAYLOAD]);
        let head = &slots[0].as_ref()[VIRTIO_NET_HDR_LEN..];
        assert_eq!(usize::from(u16::from_be_bytes([head[2], head[3]])), head.len());
    }

    #[test]
    fn padding_is_zeros_even_where_a_longer_packet_was_before() {
        let mut reader = Reader {
            packet: Box::default(),
            segments: vec![vec![0xff; 1436].into_boxed_slice()],
            sizes: vec![20],
            mtu: 1420,
        };
        assert_eq!(reader.padded(0)[20..], [0; 12]);
        reader.sizes[0] = 1419;
        assert_eq!(reader.padded(0).len(), 1420);
    }
}
