//! What goes out: sealed packets in batches, and handshake messages one by one, in order.

use crate::{
    batch::Batch,
    noise::{Noise, OVERHEAD},
    packet,
    socket::{Datagrams, Path, Sockets},
};

pub(crate) struct Outbox {
    pub(crate) sockets: Sockets,
    batch: Batch,
    /// Datagrams that the sockets refused, or that are too long for one.
    pub(crate) refused: u64,
}

impl Outbox {
    pub(crate) fn new(sockets: Sockets) -> Self {
        Self { sockets, batch: Batch::new(), refused: 0 }
    }

    /// Seals a packet into the batch. It is on its way after [`Outbox::flush`]. The datagram's size.
    pub(crate) fn seal(&mut self, noise: &mut Noise, packet: &[u8], path: Path) -> u64 {
        let size = packet.len() + OVERHEAD;
        let ecn = packet::ecn(packet);
        if !self.batch.takes(path, ecn, size) {
            self.flush();
        }
        let sealed =
            self.batch.takes(path, ecn, size).then(|| noise.seal(packet, self.batch.room())).flatten();
        match sealed {
            Some(size) => self.batch.keep(path, ecn, size),
            None => self.refused += 1,
        }
        size as u64
    }

    /// Sends a finished message, after what was sealed before it.
    pub(crate) fn send(&mut self, message: &[u8], path: Path) {
        self.flush();
        self.refused += self.sockets.send(path, Datagrams::one(message)) as u64;
    }

    pub(crate) fn flush(&mut self) {
        if let Some((path, datagrams)) = self.batch.contents() {
            self.refused += self.sockets.send(path, datagrams) as u64;
            self.batch.clear();
        }
    }
}
