//! Waiting for the interface, the sockets or a command, and waking from it.

use std::{io, time::Duration};

#[cfg(unix)]
pub(crate) use unix::{Waker, Wakeups, pair, until_writable, wait};
#[cfg(not(unix))]
pub(crate) use unsupported::{Waker, Wakeups, pair, until_writable, wait};

#[cfg(unix)]
mod unix {
    use std::{
        io::{ErrorKind, Read, Write},
        os::{
            fd::{AsFd, AsRawFd},
            unix::net::UnixStream,
        },
        sync::Arc,
    };

    use super::{Duration, io};
    use crate::{
        device,
        socket::{Family, Sockets},
    };

    /// How long a full send buffer may hold up everything else.
    const MAX_SEND_WAIT: Duration = Duration::from_millis(10);

    /// Whole milliseconds, rounded up: to wake early would be to spin until the deadline.
    fn poll_millis(timeout: Option<Duration>) -> i32 {
        let Some(timeout) = timeout else { return -1 };
        i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
    }

    /// The end that wakes.
    #[derive(Debug, Clone)]
    pub(crate) struct Waker(Arc<UnixStream>);

    /// The end that is woken.
    #[derive(Debug)]
    pub(crate) struct Wakeups(UnixStream);

    pub(crate) fn pair() -> io::Result<(Waker, Wakeups)> {
        let (waker, wakeups) = UnixStream::pair()?;
        waker.set_nonblocking(true)?;
        wakeups.set_nonblocking(true)?;
        Ok((Waker(Arc::new(waker)), Wakeups(wakeups)))
    }

    impl Waker {
        pub(crate) fn wake(&self) {
            // A full pipe wakes just as well, and a closed one belongs to a thread that has ended.
            let _ = (&*self.0).write(&[1]);
        }
    }

    impl Wakeups {
        fn drain(&self) {
            let mut bytes = [0; 64];
            while matches!((&self.0).read(&mut bytes), Ok(64)) {}
        }
    }

    /// Waits for room in a socket's send buffer or an interface's queue, but not for long.
    pub(crate) fn until_writable(to: &impl AsFd) -> io::Result<()> {
        let mut fds = [libc::pollfd { fd: to.as_fd().as_raw_fd(), events: libc::POLLOUT, revents: 0 }];
        poll(&mut fds, Some(MAX_SEND_WAIT))
    }

    fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
        // SAFETY: `fds` is an initialised array of the given length, and its descriptors are open during the call.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, poll_millis(timeout)) };
        match io::Error::last_os_error() {
            error if ready < 0 && error.kind() != ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    /// Blocks until something can be read or the timeout (`None` is for ever) is over. Without a device, for the others only.
    pub(crate) fn wait(
        device: Option<&device::System>,
        sockets: &Sockets,
        wakeups: &Wakeups,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        let readable = |fd: i32| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // poll(2) passes over negative descriptors: a family that the system has not.
        let mut fds = [
            readable(wakeups.0.as_raw_fd()),
            readable(device.map_or(-1, |device| device.as_fd().as_raw_fd())),
            readable(sockets.socket(Family::V4).map_or(-1, |socket| socket.udp().as_raw_fd())),
            readable(sockets.socket(Family::V6).map_or(-1, |socket| socket.udp().as_raw_fd())),
        ];
        poll(&mut fds, timeout)?;
        if fds[0].revents != 0 {
            wakeups.drain();
        }
        Ok(())
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn timeouts_are_rounded_up() {
            assert_eq!(poll_millis(None), -1);
            assert_eq!(poll_millis(Some(Duration::ZERO)), 0);
            assert_eq!(poll_millis(Some(Duration::from_micros(1))), 1);
            assert_eq!(poll_millis(Some(Duration::from_micros(2001))), 3);
        }
    }
}

#[cfg(not(unix))]
mod unsupported {
    use std::{convert::Infallible, net::UdpSocket};

    use super::{Duration, io};
    use crate::{device, socket::Sockets};

    #[derive(Debug, Clone)]
    pub(crate) struct Waker(Infallible);

    #[derive(Debug)]
    pub(crate) struct Wakeups(Infallible);

    pub(crate) fn pair() -> io::Result<(Waker, Wakeups)> {
        Err(io::ErrorKind::Unsupported.into())
    }

    impl Waker {
        pub(crate) fn wake(&self) {
            match self.0 {}
        }
    }

    pub(crate) fn until_writable(_socket: &UdpSocket) -> io::Result<()> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    pub(crate) fn wait(
        _device: Option<&device::System>,
        _sockets: &Sockets,
        wakeups: &Wakeups,
        _timeout: Option<Duration>,
    ) -> io::Result<()> {
        match wakeups.0 {}
    }
}
