//! The TUN interface. One module per system; what is not supported yet says so when created.

use std::io;

use ipnet::IpNet;

#[cfg(all(any(test, fuzzing), target_os = "linux"))]
pub(crate) mod fuzzing;
#[cfg(target_os = "linux")]
mod join;
#[cfg(target_os = "linux")]
mod link;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
mod netlink;
mod parcel;
#[cfg(target_os = "linux")]
mod reader;
#[cfg(target_os = "linux")]
mod split;
#[cfg(target_os = "linux")]
mod steering;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;
#[cfg(target_os = "linux")]
mod vnet;
#[cfg(target_os = "linux")]
mod writer;
#[cfg(target_os = "linux")]
use linux as system;
#[cfg(not(target_os = "linux"))]
mod unsupported;
#[cfg(not(target_os = "linux"))]
use unsupported as system;

#[cfg(target_os = "linux")]
pub(crate) use link::LinkWatch;
pub(crate) use parcel::Parcel;
#[cfg(target_os = "linux")]
pub(crate) use steering::Steering;
pub(crate) use system::{Device as System, Reader, Writer};
#[cfg(not(target_os = "linux"))]
pub(crate) use unsupported::{LinkWatch, Steering};

use crate::shard::{WantedWorkers, Workers};

/// How the interface is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) is_up: bool,
    pub(crate) mtu: u16,
}

/// What one read gave.
#[derive(Debug)]
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "nothing can be read there"))]
pub(crate) enum Read {
    /// So many segments of one packet: they share its addresses.
    Segments(usize),
    Empty,
    /// A packet that cannot be split; it is lost.
    Malformed,
    /// The interface was deleted.
    Gone,
    Failed(io::Error),
}

/// Why an interface could not be made or set up.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("there already is an interface named {0}")]
    NameInUse(String),
    #[error("no interface can be named {0:?}: a name has 1 to 15 characters, without spaces or any of / % :")]
    BadName(String),
    #[error("no permission to make the interface {0}: it needs root or CAP_NET_ADMIN")]
    NoPermission(String),
    #[error("there is no /dev/net/tun: load the kernel module `tun`, or let the container have the device")]
    NoTun,
    #[error("address {address} could not be set on {name}: {source}")]
    Address { name: String, address: IpNet, source: io::Error },
    #[error("the descriptor is no TUN interface that can be used: {0}")]
    Descriptor(io::Error),
    #[error("interfaces are not supported on this system")]
    Unsupported,
    #[error("interface {name}: {source}")]
    Other { name: String, source: io::Error },
}

/// A TUN interface, without addresses until [`Device::set_addresses`]. It is removed with its owner.
#[derive(Debug)]
pub struct Device {
    inner: system::Device,
    name: String,
    mtu: u16,
    /// Of the other workers, in order.
    queues: Vec<system::Device>,
    steering: Option<Steering>,
}

impl Device {
    /// Makes an interface in the calling thread's network namespace. Other programs' interfaces are never taken over.
    /// It is up.
    pub fn create(name: &str, mtu: u16) -> Result<Self, DeviceError> {
        Self::create_for(WantedWorkers::Exactly(Workers::ONE), name, mtu)
    }

    /// As [`Device::create`], with a queue for each worker: a tunnel has as many as its interface has queues.
    pub fn create_for(workers: WantedWorkers, name: &str, mtu: u16) -> Result<Self, DeviceError> {
        let device = Self::create_down_for(workers, name, mtu)?;
        device.inner.bring_up(name)?;
        Ok(device)
    }

    /// As [`Device::create`], for whoever leaves it to others to bring it up.
    pub fn create_down(name: &str, mtu: u16) -> Result<Self, DeviceError> {
        Self::create_down_for(WantedWorkers::Exactly(Workers::ONE), name, mtu)
    }

    /// As [`Device::create_for`], for whoever leaves it to others to bring it up.
    pub fn create_down_for(workers: WantedWorkers, name: &str, mtu: u16) -> Result<Self, DeviceError> {
        let made = Self::create_with_queues(workers.count(), name, mtu)?;
        match workers {
            WantedWorkers::AtMost(count) if count != Workers::ONE && made.steering.is_none() => {
                drop(made);
                tracing::info!(
                    interface = name,
                    "so there is one worker; --workers makes several all the same"
                );
                Self::create_with_queues(Workers::ONE, name, mtu)
            }
            WantedWorkers::AtMost(_) | WantedWorkers::Exactly(_) => Ok(made),
        }
    }

    fn create_with_queues(workers: Workers, name: &str, mtu: u16) -> Result<Self, DeviceError> {
        let inner = system::Device::create(name, mtu, workers)?;
        let (queues, steering) = inner.open_queues(name, workers)?;
        Ok(Self { inner, name: name.to_owned(), mtu, queues, steering })
    }

    /// Takes over an interface that somebody else opened: a TUN descriptor with IFF_NO_PI and without IFF_VNET_HDR,
    /// therefore without the kernel's offloads.
    #[cfg(unix)]
    pub fn adopt(descriptor: std::os::fd::OwnedFd) -> Result<Self, DeviceError> {
        let (inner, name, mtu) = system::Device::adopt(descriptor)?;
        Ok(Self { inner, name, mtu, queues: Vec::new(), steering: None })
    }

    /// How many workers it is for.
    pub fn workers(&self) -> Workers {
        // Made for so many.
        u8::try_from(self.queues.len() + 1).ok().and_then(Workers::new).unwrap_or(Workers::ONE)
    }

    /// Takes the other workers' queues, in order.
    pub(crate) fn take_queues(&mut self) -> Vec<Self> {
        let (name, mtu) = (&self.name, self.mtu);
        let queue = |inner| Self { inner, name: name.clone(), mtu, queues: Vec::new(), steering: None };
        std::mem::take(&mut self.queues).into_iter().map(queue).collect()
    }

    /// Where packets are told which queue to go to.
    pub(crate) fn steering(&self) -> Option<&Steering> {
        self.steering.as_ref()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of the largest packet that enters the tunnel.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Adds addresses, each with its on-link prefix, without duplicate address detection.
    pub fn set_addresses(&self, addresses: &[IpNet]) -> Result<(), DeviceError> {
        addresses.iter().try_for_each(|&address| {
            self.inner.add_address(address).map_err(|source| DeviceError::Address {
                name: self.name.clone(),
                address,
                source,
            })
        })
    }

    pub(crate) fn set_mtu(&mut self, mtu: u16) {
        self.mtu = mtu;
    }

    pub(crate) fn system(&self) -> &System {
        &self.inner
    }
}
