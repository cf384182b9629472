//! Tunnel to interface: the packets of a batch are written in one go, joined where the kernel takes that. Joined packets
//! are not copied together: one call gathers them. What is refused joined is written one by one, so no packet is lost.

use std::io::{self, IoSlice};

use super::{
    join::{Group, Headers, Joiner, MAX_PARTS},
    linux::Device,
    vnet,
};

/// The largest message that is opened into a slot.
const SLOT_BYTES: usize = 66_000;
/// A received UDP message carries up to 64 datagrams (the kernel's UDP_GRO limit).
pub(crate) const SLOTS_PER_MESSAGE: usize = 64;
/// How many packets that could have been joined are written one by one before it is tried again.
const PAUSE: u32 = 16_384;

/// The slots packets are collected in before one batch is written; a slot's pages are touched only when used.
pub(crate) struct Writer {
    /// In one piece, which the system gives zeroed page by page.
    slots: Box<[u8]>,
    /// Of the packets kept, each behind room for the kernel's header.
    lens: Vec<usize>,
    joiner: Joiner,
    /// For how many packets of each kind nothing is joined.
    pauses: [u32; 2],
}

impl Writer {
    pub(crate) fn new(_device: &Device, messages: usize) -> Self {
        Self::with_slots(messages * SLOTS_PER_MESSAGE)
    }

    pub(super) fn with_slots(count: usize) -> Self {
        Self {
            slots: vec![0; count * SLOT_BYTES].into_boxed_slice(),
            lens: Vec::with_capacity(count),
            joiner: Joiner::new(count),
            pauses: [0; 2],
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lens.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.lens.len() == self.slots.len() / SLOT_BYTES
    }

    /// Room for the next packet. It counts only once [`Writer::keep`] is called. There must be a free slot.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        let start = self.lens.len() * SLOT_BYTES;
        &mut self.slots[start + vnet::LEN..start + SLOT_BYTES]
    }

    /// Keeps the first `len` bytes of the room.
    pub(crate) fn keep(&mut self, len: usize) {
        self.lens.push(len);
    }

    /// Shows what was kept, and does not write it.
    #[cfg(test)]
    pub(crate) fn take(&mut self, mut show: impl FnMut(&[u8])) {
        let kept = self.slots.chunks(SLOT_BYTES).zip(&self.lens);
        kept.for_each(|(slot, &len)| show(&slot[vnet::LEN..vnet::LEN + len]));
        self.lens.clear();
    }

    /// Writes what was kept. How many packets the interface refused.
    pub(crate) fn flush(&mut self, device: &Device) -> u64 {
        let joins = [device.has_offloads(), device.joins_udp()];
        let mut is_patient = true;
        self.flush_to(joins, device.has_offloads(), |parts| {
            let result = device.write(parts);
            match result {
                // Once a batch: a queue that stays full must not hold up everything else.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && is_patient => {
                    is_patient = false;
                    crate::wait::until_writable(device)?;
                    device.write(parts)
                }
                Ok(()) | Err(_) => result,
            }
        })
    }

    /// `joins` tells which kinds the kernel takes joined, `has_header` whether it wants its own before each packet.
    pub(super) fn flush_to(
        &mut self,
        joins: [bool; 2],
        has_header: bool,
        mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<()>,
    ) -> u64 {
        let Self { slots, lens, joiner, pauses } = self;
        let packet = |index: usize| &slot(slots, index)[vnet::LEN..vnet::LEN + lens[index]];
        let is_on = pauses.map(|pause| pause == 0);
        joiner.plan(lens.len(), packet, |kind| joins[kind as usize] && is_on[kind as usize]);
        let start = if has_header { 0 } else { vnet::LEN };
        let single = |index: usize, write: &mut dyn FnMut(&[IoSlice<'_>]) -> io::Result<()>| {
            write(&[IoSlice::new(&slot(slots, index)[start..vnet::LEN + lens[index]])])
        };
        let mut refused = 0;
        for &group in joiner.groups() {
            let result = write_joined(joiner, group, packet, &mut write);
            let before = refused;
            if !matches!(result, Some(Ok(()))) {
                for index in joiner.members(group) {
                    refused += u64::from(single(index, &mut write).is_err());
                }
            }
            if let Some(kind) = group.kind() {
                let pause = &mut pauses[kind as usize];
                *pause = pause.saturating_sub(1);
                let has_helped = refused - before < u64::from(group.count);
                if let Some(Err(error)) = result
                    && has_helped
                    && !is_want(&error)
                {
                    *pause = PAUSE;
                }
            }
        }
        lens.clear();
        refused
    }
}

fn slot(slots: &[u8], index: usize) -> &[u8] {
    &slots[index * SLOT_BYTES..(index + 1) * SLOT_BYTES]
}

/// `None` if it is a single packet.
fn write_joined<'a>(
    joiner: &Joiner,
    group: Group,
    packet: impl Fn(usize) -> &'a [u8],
    write: &mut impl FnMut(&[IoSlice<'_>]) -> io::Result<()>,
) -> Option<io::Result<()>> {
    let headers = Headers::of(group, packet(group.first()), packet(group.last()))?;
    let mut parts = [IoSlice::new(&[]); MAX_PARTS + 1];
    parts[0] = IoSlice::new(headers.bytes());
    for (part, index) in parts[1..].iter_mut().zip(joiner.members(group)) {
        *part = IoSlice::new(&packet(index)[headers.payload()..]);
    }
    Some(write(&parts[..=usize::from(group.count)]))
}

/// Of memory or room, which says nothing about what the kernel can do.
fn is_want(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENOBUFS | libc::EAGAIN))
}
