//! The two rtnetlink requests an interface needs here, spoken directly: the crate has no asynchronous runtime.
//! Layouts are those of linux/netlink.h and linux/if_addr.h.

use std::{
    ffi::CString,
    io::{self, Read, Write},
    net::IpAddr,
};

use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};

const NLMSG_HEADER: usize = 16;
/// From the answer's start: header, then the error number.
const ERROR_OFFSET: usize = NLMSG_HEADER;

pub(super) fn index_of(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// Adds an address to an interface. IPv6 addresses skip duplicate address detection: nobody else is on this link,
/// and for the second it takes nothing could be sent from them.
pub(super) fn add_address(index: u32, address: IpNet) -> io::Result<()> {
    let mut socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::RAW.cloexec(),
        Some(Protocol::from(libc::NETLINK_ROUTE)),
    )?;
    socket.write_all(&new_address(index, address))?;
    let mut answer = [0; 1024];
    let len = socket.read(&mut answer)?;
    if len < ERROR_OFFSET + 4 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut number = [0; 4];
    number.copy_from_slice(&answer[ERROR_OFFSET..ERROR_OFFSET + 4]);
    match i32::from_ne_bytes(number) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

fn new_address(index: u32, address: IpNet) -> Vec<u8> {
    let (family, flags, bytes) = match address.addr() {
        IpAddr::V4(v4) => (libc::AF_INET, 0, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, libc::IFA_F_NODAD, v6.octets().to_vec()),
    };
    let mut message = vec![0; NLMSG_HEADER];
    message.extend([family as u8, address.prefix_len(), flags as u8, libc::RT_SCOPE_UNIVERSE]);
    message.extend(index.to_ne_bytes());
    for kind in [libc::IFA_LOCAL, libc::IFA_ADDRESS] {
        message.extend((4 + bytes.len() as u16).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(&bytes);
    }
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    let len = message.len() as u32;
    message[..4].copy_from_slice(&len.to_ne_bytes());
    message[4..6].copy_from_slice(&libc::RTM_NEWADDR.to_ne_bytes());
    message[6..8].copy_from_slice(&(flags as u16).to_ne_bytes());
    message
}
