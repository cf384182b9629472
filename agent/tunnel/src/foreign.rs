//! Other workers' peers: what the table of routes needs of them, and no more. Their places are numbered apart, so nothing
//! that asks for a peer's state finds one.

use ipnet::IpNet;

use crate::{PublicKey, peer::PeerId};

/// The numbers of these places begin here; there cannot be as many peers of one's own.
const FIRST: u32 = 1 << 31;

struct Foreign {
    key: PublicKey,
    allowed_ips: Box<[IpNet]>,
}

#[derive(Default)]
pub(crate) struct ForeignPeers {
    slots: Vec<Option<Foreign>>,
    free: Vec<PeerId>,
}

impl ForeignPeers {
    pub(crate) fn holds(id: PeerId) -> bool {
        id.0 >= FIRST
    }

    pub(crate) fn insert(&mut self, key: PublicKey, allowed_ips: Box<[IpNet]>) -> PeerId {
        let id = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            PeerId(FIRST + (self.slots.len() - 1) as u32)
        });
        self.slots[place(id)] = Some(Foreign { key, allowed_ips });
        id
    }

    /// Whose place it was.
    pub(crate) fn remove(&mut self, id: PeerId) -> Option<PublicKey> {
        let foreign = self.slots.get_mut(place(id))?.take()?;
        self.free.push(id);
        Some(foreign.key)
    }

    pub(crate) fn key(&self, id: PeerId) -> Option<&PublicKey> {
        Some(&self.slots.get(place(id))?.as_ref()?.key)
    }

    pub(crate) fn allowed_ips(&mut self, id: PeerId) -> Option<&mut Box<[IpNet]>> {
        Some(&mut self.slots.get_mut(place(id))?.as_mut()?.allowed_ips)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = PeerId> {
        let taken = (FIRST..).zip(&self.slots).filter(|(_, foreign)| foreign.is_some());
        taken.map(|(number, _)| PeerId(number))
    }
}

fn place(id: PeerId) -> usize {
    id.0.wrapping_sub(FIRST) as usize
}
