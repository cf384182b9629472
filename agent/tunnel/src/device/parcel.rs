//! Packets of one destination on their way to another worker.

/// One after the other, as they were read.
pub(crate) struct Parcel {
    bytes: Box<[u8]>,
    sizes: Box<[u16]>,
}

impl Parcel {
    pub(crate) fn new<'a>(packets: impl Iterator<Item = &'a [u8]> + Clone) -> Self {
        let mut bytes = Vec::with_capacity(packets.clone().map(<[u8]>::len).sum());
        packets.clone().for_each(|packet| bytes.extend_from_slice(packet));
        // No IP packet is longer than 65,535 bytes.
        let sizes = packets.map(|packet| packet.len() as u16).collect();
        Self { bytes: bytes.into(), sizes }
    }

    /// Bytes of all packets.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn count(&self) -> usize {
        self.sizes.len()
    }

    pub(crate) fn packets(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &*self.bytes;
        self.sizes.iter().map(move |&size| {
            let (packet, after) = rest.split_at(size.into());
            rest = after;
            packet
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_out_as_they_went_in() {
        let packets: Vec<Vec<u8>> = [1400, 1400, 0, 7].iter().map(|&size| vec![size as u8; size]).collect();
        let parcel = Parcel::new(packets.iter().map(Vec::as_slice));
        assert_eq!(parcel.packets().collect::<Vec<_>>(), packets);
    }
}
