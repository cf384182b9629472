//! A system whose interfaces are not supported yet: none can be made, so nothing below is ever called.

use std::{convert::Infallible, io};

use ipnet::IpNet;

use super::{DeviceError, Link, Parcel, Read};
use crate::shard::Workers;

#[derive(Debug)]
pub(crate) struct Device(Infallible);

impl Device {
    pub(crate) fn create(_name: &str, _mtu: u16, _workers: Workers) -> Result<Self, DeviceError> {
        Err(DeviceError::Unsupported)
    }

    pub(crate) fn open_queues(
        &self,
        _name: &str,
        _workers: Workers,
    ) -> Result<(Vec<Self>, Option<Steering>), DeviceError> {
        match self.0 {}
    }

    pub(crate) fn bring_up(&self, _name: &str) -> Result<(), DeviceError> {
        match self.0 {}
    }

    #[cfg(unix)]
    pub(crate) fn adopt(_descriptor: std::os::fd::OwnedFd) -> Result<(Self, String, u16), DeviceError> {
        Err(DeviceError::Unsupported)
    }

    pub(crate) fn add_address(&self, _address: IpNet) -> io::Result<()> {
        match self.0 {}
    }
}

pub(crate) struct LinkWatch(Infallible);

impl LinkWatch {
    pub(crate) fn start(
        device: &Device,
        _mtu: u16,
        _on_change: impl FnMut(Link) + Send + 'static,
    ) -> io::Result<Self> {
        match device.0 {}
    }
}

#[derive(Debug)]
pub(crate) struct Steering(Infallible);

impl Steering {
    pub(crate) fn set(&self, _prefix: IpNet, _queue: usize) -> io::Result<()> {
        match self.0 {}
    }

    pub(crate) fn unset(&self, _prefix: IpNet) -> io::Result<()> {
        match self.0 {}
    }
}

pub(crate) struct Reader(Infallible);

impl Reader {
    pub(crate) fn new(device: &Device, _mtu: u16) -> Self {
        match device.0 {}
    }

    pub(crate) fn fit(&mut self, _mtu: u16) {
        match self.0 {}
    }

    pub(crate) fn read(&mut self, _device: &Device) -> Read {
        match self.0 {}
    }

    pub(crate) fn pack(&self, _count: usize) -> Parcel {
        match self.0 {}
    }

    pub(crate) fn load(&mut self, _packet: &[u8]) {
        match self.0 {}
    }

    pub(crate) fn segment(&self, _index: usize) -> &[u8] {
        match self.0 {}
    }

    pub(crate) fn padded(&mut self, _index: usize) -> &[u8] {
        match self.0 {}
    }
}

pub(crate) struct Writer(Infallible);

impl Writer {
    pub(crate) fn new(device: &Device, _messages: usize) -> Self {
        match device.0 {}
    }

    pub(crate) fn is_empty(&self) -> bool {
        match self.0 {}
    }

    pub(crate) fn is_full(&self) -> bool {
        match self.0 {}
    }

    pub(crate) fn room(&mut self) -> &mut [u8] {
        match self.0 {}
    }

    pub(crate) fn keep(&mut self, _len: usize) {
        match self.0 {}
    }

    pub(crate) fn flush(&mut self, _device: &Device) -> u64 {
        match self.0 {}
    }
}

#[cfg(unix)]
impl std::os::fd::AsFd for Device {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self.0 {}
    }
}
