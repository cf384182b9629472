//! Waiting for the interface, the sockets or a command, and waking from it.

use std::{io, time::Duration};

#[cfg(unix)]
pub(crate) use unix::{Waker, Wakeups, pair, until_writable, wait};
#[cfg(not(unix))]
pub(crate) use unsupported::{Waker, Wakeups, pair, until_writable, wait};

use crate::socket::Family;

/// What may have something to read: told by a wait, until it was read empty.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ready {
    pub(crate) device: bool,
    v4: bool,
    v6: bool,
}

impl Ready {
    pub(crate) fn has(self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    pub(crate) fn set(&mut self, family: Family, is_ready: bool) {
        match family {
            Family::V4 => self.v4 = is_ready,
            Family::V6 => self.v6 = is_ready,
        }
    }

    /// Whether there is something to read now; the device is not read while others are behind.
    pub(crate) fn is_any(self, is_held_up: bool) -> bool {
        self.v4 || self.v6 || self.device && !is_held_up
    }
}

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

    use super::{Duration, Ready, io};
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
        ready: &mut Ready,
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
        let [woken, device, v4, v6] = fds.map(|fd| fd.revents != 0);
        if woken {
            wakeups.drain();
        }
        ready.device |= device;
        ready.v4 |= v4;
        ready.v6 |= v6;
        Ok(())
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_socket_is_ready_once_something_has_come_and_stays_so_until_it_was_read_empty() {
            let sockets = Sockets::open(0, None).unwrap();
            let (waker, wakeups) = pair().unwrap();
            let mut ready = Ready::default();
            wait(None, &sockets, &wakeups, Some(Duration::ZERO), &mut ready).unwrap();
            assert!(!ready.is_any(false));
            let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            sender.send_to(&[1], ("127.0.0.1", sockets.port())).unwrap();
            wait(None, &sockets, &wakeups, None, &mut ready).unwrap();
            assert!(ready.has(Family::V4) && !ready.has(Family::V6) && !ready.device);
            // What was told before is not forgotten for what is told now.
            ready.device = true;
            waker.wake();
            wait(None, &sockets, &wakeups, None, &mut ready).unwrap();
            assert!(ready.has(Family::V4) && ready.device);
            ready.set(Family::V4, false);
            assert!(ready.is_any(false) && !ready.is_any(true), "held up, the device is not read");
        }

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

    use super::{Duration, Ready, io};
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
        _ready: &mut Ready,
    ) -> io::Result<()> {
        match wakeups.0 {}
    }
}
