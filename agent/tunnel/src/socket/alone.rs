//! A system on which there is one worker: its sockets are the group.

use super::Sockets;
use crate::{StartError, shard::Workers};

impl Sockets {
    pub(crate) fn open_group(
        port: u16,
        fwmark: Option<u32>,
        _workers: Workers,
    ) -> Result<Vec<Self>, StartError> {
        Self::open(port, fwmark).map(|sockets| vec![sockets])
    }

    pub(crate) fn rebind_group(
        port: u16,
        fwmark: Option<u32>,
        workers: Workers,
    ) -> Result<Vec<Self>, StartError> {
        Self::renew_group(port, fwmark, workers)
    }

    pub(crate) fn renew_group(
        port: u16,
        fwmark: Option<u32>,
        workers: Workers,
    ) -> Result<Vec<Self>, StartError> {
        Self::open_group(port, fwmark, workers)
    }

    pub(crate) fn close(&mut self) {
        (self.v4, self.v6) = (None, None);
    }
}
