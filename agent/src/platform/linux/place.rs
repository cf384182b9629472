//! Where this process runs: the start of the machine, and the network namespace. What is noted of the one means nothing in the other.

use std::{
    fs,
    io::{self, ErrorKind},
    net::{Ipv4Addr, UdpSocket},
    os::{fd::AsRawFd, unix::fs::MetadataExt},
};

/// A word for it. The numbers of namespaces that are gone are given out again, their cookies are not.
pub(super) fn place() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = match cookie() {
        Ok(cookie) => format!("c{cookie}"),
        // Before Linux 5.14.
        Err(_) => format!("i{}", fs::metadata("/proc/thread-self/ns/net").map_or(0, |found| found.ino())),
    };
    format!("{}-{namespace}", boot.trim())
}

fn cookie() -> io::Result<u64> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0_u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: the kernel writes at most `length` bytes to `cookie`, which has 8.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    match (result, length) {
        (0, 8) => Ok(cookie),
        (0, _) => Err(ErrorKind::InvalidData.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_named_alike_by_everybody_in_it() {
        let other = std::thread::spawn(place).join().unwrap();
        assert_eq!(place(), other);
        assert_eq!(cookie().is_ok(), other.contains("-c"), "{other}");
        assert!(!other.contains('/') && !other.contains(' '), "{other}");
    }
}
