//! Linux: the interface, made by tun-rs with the kernel's offloads where it has them, and plain reads and writes on it.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd},
};

use ipnet::IpNet;
use tun_rs::{DeviceBuilder, SyncDevice};

use super::{
    DeviceError, link, netlink,
    steering::{self, Steering},
};
pub(crate) use super::{reader::Reader, writer::Writer};
use crate::shard::Workers;

/// In packets. The default of 500 drops under bursts of small ones.
const TX_QUEUE_LEN: u32 = 1000;
/// _IOW('T', 202, int).
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;

pub(crate) struct Device(SyncDevice);

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Device")
    }
}

impl Device {
    pub(crate) fn create(name: &str, mtu: u16, workers: Workers) -> Result<Self, DeviceError> {
        // The kernel would put a number in place of `%d`.
        let bad = |c: char| matches!(c, '/' | '%' | ':' | '\0') || c.is_whitespace();
        if name.is_empty() || name.len() > 15 || name.contains(bad) || name == "." || name == ".." {
            return Err(DeviceError::BadName(name.to_owned()));
        }
        // An existing TUN interface that nobody has open would be taken over silently.
        if netlink::index_of(name).is_some() {
            return Err(DeviceError::NameInUse(name.to_owned()));
        }
        let builder = DeviceBuilder::new().name(name).mtu(mtu).enable(false).offload(true);
        let device = builder
            .multi_queue(workers != Workers::ONE)
            .build_sync()
            .or_else(|error| if is_unknown(&error) { open_plain(name, mtu, workers) } else { Err(error) })
            .map_err(|error| error_of(name, error))?;
        // Needs privileges outside of the own user namespace, too: where it is refused, bursts are dropped earlier.
        let _ = device.set_tx_queue_len(TX_QUEUE_LEN);
        hush(name);
        device.set_nonblocking(true).map_err(|error| error_of(name, error))?;
        Ok(Self(device))
    }

    /// The other workers' queues, and what gives each queue its worker's packets. Without that all packets come to the first, and
    /// the others' are only written to: so none overtakes another.
    pub(crate) fn open_queues(
        &self,
        name: &str,
        workers: Workers,
    ) -> Result<(Vec<Self>, Option<Steering>), DeviceError> {
        let mut queues = Vec::new();
        for _ in 1..workers.count() {
            let queue = self.open_queue(name).map_err(|error| error_of(name, error))?;
            queue.set_nonblocking(true).map_err(|error| error_of(name, error))?;
            queues.push(Self(queue));
        }
        if queues.is_empty() {
            return Ok((queues, None));
        }
        match Steering::attach(self.as_fd().as_raw_fd()) {
            Ok(steering) => Ok((queues, Some(steering))),
            Err(error) => {
                tracing::info!(%error, "the kernel cannot be told whose packets are whose; one worker reads them all");
                let detach = |queue: &Self| steering::detach_queue(queue.as_fd().as_raw_fd());
                queues.iter().try_for_each(detach).map_err(|error| error_of(name, error))?;
                Ok((queues, None))
            }
        }
    }

    fn open_queue(&self, name: &str) -> io::Result<SyncDevice> {
        match self.has_offloads() {
            true => self.0.try_clone(),
            false => attach_plain(name, libc::IFF_MULTI_QUEUE),
        }
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

    /// Whether the kernel's header is before each packet, in both directions, and TCP may be written joined.
    pub(super) fn has_offloads(&self) -> bool {
        self.0.tcp_gso()
    }

    /// Since Linux 6.2.
    pub(super) fn joins_udp(&self) -> bool {
        self.0.udp_gso()
    }

    pub(super) fn read(&self, room: &mut [u8]) -> io::Result<usize> {
        self.0.recv(room)
    }

    /// One packet, in parts; it is written whole or not at all.
    pub(super) fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        self.0.send_vectored(parts).map(drop)
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

/// A kernel, or what plays one, that does not know offloads or the header that tells of them.
fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOTTY | libc::EOPNOTSUPP | libc::ENOSYS))
}

/// An interface without offloads. tun-rs would insist on switching them off.
fn open_plain(name: &str, mtu: u16, workers: Workers) -> io::Result<SyncDevice> {
    let device = attach_plain(name, if workers == Workers::ONE { 0 } else { libc::IFF_MULTI_QUEUE })?;
    device.set_mtu(mtu)?;
    Ok(device)
}

fn attach_plain(name: &str, flags: libc::c_int) -> io::Result<SyncDevice> {
    let file = std::fs::File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | flags) as libc::c_short;
    link::ioctl(file.as_raw_fd(), TUNSETIFF, &mut request)?;
    // SAFETY: the descriptor is open, and handed over.
    unsafe { SyncDevice::from_fd(OwnedFd::from(file).into_raw_fd()) }
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
