//! What goes out: sealed packets in batches, and handshake messages one by one, in order.

use crate::{
    batch::Batch,
    noise::{Noise, OVERHEAD},
    packet,
    peer::PeerId,
    socket::{Datagrams, Path, Sockets},
};

/// So many peers' refusals are told apart between two looks at them.
const MAX_BLAMED: usize = 64;

pub(crate) struct Outbox {
    pub(crate) sockets: Sockets,
    batch: Batch,
    /// Whose packets the batch has: those of one path are of one peer.
    owner: Option<PeerId>,
    /// Datagrams that the sockets refused, or that are too long for one.
    pub(crate) refused: u64,
    /// The same by peer, since it was last taken.
    blamed: Vec<(PeerId, u64)>,
}

impl Outbox {
    pub(crate) fn new(sockets: Sockets) -> Self {
        Self { sockets, batch: Batch::new(), owner: None, refused: 0, blamed: Vec::new() }
    }

    /// Seals a peer's packet into the batch. It is on its way after [`Outbox::flush`]. The datagram's size.
    pub(crate) fn seal(&mut self, id: PeerId, noise: &mut Noise, packet: &[u8], path: Path) -> u64 {
        let size = packet.len() + OVERHEAD;
        let ecn = packet::ecn(packet);
        if !self.batch.takes(path, ecn, size) {
            self.flush();
        }
        let sealed =
            self.batch.takes(path, ecn, size).then(|| noise.seal(packet, self.batch.room())).flatten();
        match sealed {
            Some(size) => {
                self.batch.keep(path, ecn, size);
                self.owner = Some(id);
            }
            None => self.count(Some(id), 1),
        }
        size as u64
    }

    /// Sends a finished message, after what was sealed before it; `id` of whom it is for, if that is known.
    pub(crate) fn send(&mut self, id: Option<PeerId>, message: &[u8], path: Path) {
        self.flush();
        let refused = self.sockets.send(path, Datagrams::one(message));
        self.count(id, refused);
    }

    pub(crate) fn flush(&mut self) {
        if let Some((path, datagrams)) = self.batch.contents() {
            let refused = self.sockets.send(path, datagrams);
            self.batch.clear();
            self.count(self.owner, refused);
        }
    }

    /// What was refused since the last call, by peer.
    pub(crate) fn take_blamed(&mut self) -> Vec<(PeerId, u64)> {
        std::mem::take(&mut self.blamed)
    }

    fn count(&mut self, id: Option<PeerId>, refused: usize) {
        if refused == 0 {
            return;
        }
        self.refused += refused as u64;
        let Some(id) = id else { return };
        if let Some((_, count)) = self.blamed.iter_mut().find(|(blamed, _)| *blamed == id) {
            *count += refused as u64;
        } else if self.blamed.len() < MAX_BLAMED {
            self.blamed.push((id, refused as u64));
        }
    }
}
