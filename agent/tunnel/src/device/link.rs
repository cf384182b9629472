//! Follows an interface that others configure: whether it is up, and its MTU.
//!
//! A thread waits for the kernel's news of links and looks. The interface may be moved to another network namespace:
//! then the thread goes there as well. Our UDP sockets stay where they were made.

use std::{
    fs::File,
    io::{self, Read},
    mem,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{Link, System};

/// A change of namespace brings no news to where the interface was not before.
const LOOK_INTERVAL_MS: i32 = 1000;
/// _IOR('T', 210, unsigned int) and _IO('T', 227).
pub(super) const TUNGETIFF: libc::Ioctl = 0x8004_54d2_u32 as libc::Ioctl;
const TUNGETDEVNETNS: libc::Ioctl = 0x54e3;

/// Ends with its owner. Until then it holds the interface as the device does.
pub(crate) struct LinkWatch {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl LinkWatch {
    /// `on_change` is told at once how the interface is set, and then what becomes of it.
    pub(crate) fn start(
        device: &System,
        mtu: u16,
        on_change: impl FnMut(Link) + Send + 'static,
    ) -> io::Result<Self> {
        let watcher = Watcher::new(device.as_fd().try_clone_to_owned()?);
        let (stop, stopped) = UnixStream::pair()?;
        stopped.set_nonblocking(true)?;
        let thread = thread::Builder::new()
            .name("link".into())
            .spawn(move || watcher.run(&stopped, mtu, on_change))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for LinkWatch {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// Sockets in the interface's namespace.
struct Home {
    inode: u64,
    news: File,
    questions: OwnedFd,
}

struct Watcher {
    tun: OwnedFd,
    home: Option<Home>,
    last: Option<Link>,
    /// That it cannot be looked at was told.
    is_warned: bool,
}

impl Watcher {
    fn new(tun: OwnedFd) -> Self {
        Self { tun, home: None, last: None, is_warned: false }
    }

    fn run(mut self, stopped: &UnixStream, mut mtu: u16, mut on_change: impl FnMut(Link)) {
        let mut is_seen = true;
        loop {
            match self.look() {
                Ok(link) => {
                    is_seen = true;
                    mtu = link.map_or(mtu, |link| link.mtu);
                    link.into_iter().for_each(&mut on_change);
                }
                // The worker sees that by itself.
                Err(error) if error.raw_os_error() == Some(libc::EBADFD) => return,
                Err(error) => {
                    self.warn(&error);
                    // Until it can be looked at again it has to be taken for usable.
                    if mem::take(&mut is_seen) {
                        on_change(Link { is_up: true, mtu });
                        self.last = None;
                    }
                }
            }
            match self.wait(stopped) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    self.warn(&error);
                    thread::sleep(Duration::from_millis(LOOK_INTERVAL_MS as u64));
                    if is_closed(stopped) {
                        return;
                    }
                }
            }
        }
    }

    fn warn(&mut self, error: &io::Error) {
        if !mem::replace(&mut self.is_warned, true) {
            tracing::warn!(%error, "the interface cannot be looked at; it is taken to be up, and tried again");
        }
    }

    /// How the interface is set, if that is new.
    fn look(&mut self) -> io::Result<Option<Link>> {
        // SAFETY: all-zero bytes are a valid ifreq.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        ioctl(self.tun.as_raw_fd(), TUNGETIFF, &mut request)?;
        let home = self.enter_home()?;
        let ask = |what, mut request: libc::ifreq| {
            ioctl(home.questions.as_raw_fd(), what, &mut request).map(|_| request)
        };
        let (flags, mtu) = match ask(libc::SIOCGIFFLAGS, request).and_then(|flags| {
            let mtu = ask(libc::SIOCGIFMTU, request)?;
            // SAFETY: the kernel has filled in these members.
            Ok(unsafe { (flags.ifr_ifru.ifru_flags, mtu.ifr_ifru.ifru_mtu) })
        }) {
            Ok(answers) => answers,
            // Moved or renamed in this moment; there will be news.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        let link = Link { is_up: libc::c_int::from(flags) & libc::IFF_UP != 0, mtu };
        Ok((self.last.replace(link) != Some(link)).then_some(link))
    }

    /// Moves this thread to the interface's namespace, if it is not there.
    fn enter_home(&mut self) -> io::Result<&Home> {
        let namespace = match ioctl(self.tun.as_raw_fd(), TUNGETDEVNETNS, std::ptr::null_mut::<u8>()) {
            // SAFETY: the kernel has just made this descriptor, for us.
            Ok(fd) => Some(unsafe { OwnedFd::from_raw_fd(fd) }),
            // An old kernel, or not permitted: the interface is looked for where we are.
            Err(error) if error.raw_os_error() != Some(libc::EBADFD) => None,
            Err(error) => return Err(error),
        };
        let inode = namespace.as_ref().map_or(Ok(0), inode_of)?;
        if self.home.as_ref().is_none_or(|home| home.inode != inode) {
            let here = File::open("/proc/thread-self/ns/net")?.into();
            if let Some(namespace) = &namespace
                && inode_of(&here)? != inode
            {
                // SAFETY: takes and returns integers; the namespace of this thread alone changes.
                check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })?;
            }
            let home = Home { inode, news: open_news()?.into(), questions: open_questions()? };
            return Ok(self.home.insert(home));
        }
        self.home.as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Until there may be something new; `false` when it is time to end.
    fn wait(&self, stopped: &UnixStream) -> io::Result<bool> {
        let news = self.home.as_ref().map_or(-1, |home| home.news.as_raw_fd());
        let readable = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds = [readable(stopped.as_raw_fd()), readable(news)];
        // SAFETY: `fds` is an initialised array of the given length, and its descriptors are open during the call.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, LOOK_INTERVAL_MS) };
        match io::Error::last_os_error() {
            error if ready < 0 && error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        if fds[1].revents != 0
            && let Some(home) = &self.home
        {
            let mut news = &home.news;
            let mut buffer = [0; 16_384];
            // What it says does not matter, nor what was lost of it: everything is looked at.
            while news.read(&mut buffer).is_ok_and(|len| len > 0) {}
        }
        Ok(fds[0].revents == 0)
    }
}

fn is_closed(mut stopped: &UnixStream) -> bool {
    stopped.read(&mut [0]).is_ok_and(|len| len == 0)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(super) fn ioctl<T>(fd: RawFd, request: libc::Ioctl, argument: *mut T) -> io::Result<libc::c_int> {
    // SAFETY: each request used here takes a pointer to what it is given, an ifreq or nothing.
    check(unsafe { libc::ioctl(fd, request, argument) })
}

fn inode_of(file: &OwnedFd) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(File::from(file.try_clone()?).metadata()?.ino())
}

fn open_questions() -> io::Result<OwnedFd> {
    // SAFETY: takes and returns integers; the descriptor is new.
    unsafe {
        let fd = check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// A netlink socket that hears of links.
fn open_news() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes and returns integers; the descriptor is new.
    let socket =
        unsafe { OwnedFd::from_raw_fd(check(libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE))?) };
    // SAFETY: all-zero bytes are a valid sockaddr_nl.
    let mut address: libc::sockaddr_nl = unsafe { mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address.nl_groups = libc::RTMGRP_LINK as u32;
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address lives through the call, with the length given.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn an_interface_that_cannot_be_looked_at_is_taken_for_up_and_looked_at_again() {
        // SAFETY: takes and returns integers; only this thread moves.
        check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).expect("a network namespace needs root");
        // The kernel says nothing of interfaces about this one.
        let tun = OwnedFd::from(File::open("/dev/null").unwrap());
        let number = tun.as_raw_fd();
        let (stop, stopped) = UnixStream::pair().unwrap();
        let (sender, told) = mpsc::channel();
        let thread = thread::spawn(move || {
            Watcher::new(tun).run(&stopped, 1300, |link| sender.send(link).unwrap());
        });
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Link { is_up: true, mtu: 1300 });
        let device = System::create("looked0", 1400, crate::Workers::ONE).unwrap();
        // SAFETY: both are open, and the watcher's stays so until it has been stopped.
        check(unsafe { libc::dup2(device.as_fd().as_raw_fd(), number) }).unwrap();
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Link { is_up: false, mtu: 1400 });
        drop(stop);
        thread.join().unwrap();
    }
}
