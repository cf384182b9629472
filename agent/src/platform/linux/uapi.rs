//! The socket at which WireGuard's tools look for a userspace implementation: /var/run/wireguard/IFACE.sock.

use crate::platform::UapiError;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{
        self,
        ErrorKind::{AlreadyExists, ConnectionRefused, InvalidInput, NotFound, TimedOut, WouldBlock},
        Read,
    },
    os::{
        fd::{FromRawFd, OwnedFd, RawFd},
        unix::{
            fs::{DirBuilderExt, MetadataExt, PermissionsExt},
            net,
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::unix::AsyncFd,
    net::{UnixListener, UnixStream},
    time::Instant,
};

const DIRECTORY: &str = "/var/run/wireguard";
/// Without descriptors or memory, nobody is let in for a moment.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// The socket of an interface that some program serves.
pub(crate) async fn connect_uapi(interface: &str) -> io::Result<UnixStream> {
    UnixStream::connect(Path::new(DIRECTORY).join(file_of(interface))).await
}

/// Listens; the socket's file goes with it.
#[derive(Debug)]
pub(crate) struct UapiListener {
    listener: UnixListener,
    path: PathBuf,
    /// Of our socket's file; another may have taken its place.
    inode: Option<u64>,
    changes: AsyncFd<File>,
}

impl UapiListener {
    /// What a dead process left is replaced; a living one's socket is respected.
    pub(crate) async fn bind(interface: &str) -> Result<Self, UapiError> {
        Self::bind_in(Path::new(DIRECTORY), interface).await
    }

    async fn bind_in(directory: &Path, interface: &str) -> Result<Self, UapiError> {
        let path = directory.join(file_of(interface));
        let failed = |source: io::Error| UapiError::Io { path: path.clone(), source };
        create_dir(directory).map_err(failed)?;
        // Two that start at once must not take each other's new socket for a dead one.
        let _lock = lock(File::open(directory).map_err(failed)?).await.map_err(failed)?;
        match UnixStream::connect(&path).await {
            Ok(_) => return Err(UapiError::InUse(path)),
            // Full of callers.
            Err(error) if error.kind() == WouldBlock => return Err(UapiError::InUse(path)),
            // Nobody, or nobody any more.
            Err(error) if matches!(error.kind(), NotFound | ConnectionRefused) => {}
            Err(error) => return Err(failed(error)),
        }
        let listener = listen(&path).map_err(failed)?;
        Self::from_listener(listener, path.clone()).map_err(failed)
    }

    /// Takes over a listening socket that somebody else made for this interface.
    pub(crate) fn adopt(interface: &str, listener: OwnedFd) -> Result<Self, UapiError> {
        let path = Path::new(DIRECTORY).join(file_of(interface));
        let adopted =
            check_listener(&listener).and_then(|()| Self::from_listener(listener.into(), path.clone()));
        adopted.map_err(|source| UapiError::Io { path, source })
    }

    fn from_listener(listener: net::UnixListener, path: PathBuf) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let directory = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let inode = inode_of(&path);
        // An adopted socket may have no file at all.
        if inode.is_some() {
            let gone = AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_MOVED_FROM
                | AddWatchFlags::IN_MOVED_TO
                | AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_DELETE_SELF;
            directory.add_watch(path.parent().unwrap_or(Path::new(DIRECTORY)), gone)?;
        }
        // SAFETY: a file's descriptor stays the same and open for as long as the file is there.
        let changes = unsafe { AsyncFd::register(File::from(OwnedFd::from(directory))) }?;
        Ok(Self { listener: UnixListener::from_std(listener)?, path, inode, changes })
    }

    /// The next caller who may speak to us.
    pub(crate) async fn accept(&self) -> UnixStream {
        loop {
            let accepted =
                self.listener.accept().await.and_then(|(stream, _)| Ok((stream.peer_cred()?, stream)));
            match accepted {
                Ok((caller, stream))
                    if caller.uid() == 0 || caller.uid() == nix::unistd::geteuid().as_raw() =>
                {
                    return stream;
                }
                Ok((caller, _)) => tracing::warn!(uid = caller.uid(), "a user who is not root was refused"),
                Err(error) => {
                    tracing::warn!(%error, "a caller at the configuration socket cannot be let in");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Returns when the socket's file is gone: that is how an interface is told to end. Cancel-safe.
    pub(crate) async fn removed(&self) {
        while self.inode.is_none() || self.inode == inode_of(&self.path) {
            match self.changes.readable().await {
                Ok(mut guard) => {
                    // What happened in the directory does not matter: the file is looked at.
                    let mut changes = guard.get_inner();
                    while changes.read(&mut [0; 4096]).is_ok_and(|len| len > 0) {}
                    guard.clear_ready();
                }
                Err(_) => return std::future::pending().await,
            }
        }
    }
}

impl Drop for UapiListener {
    fn drop(&mut self) {
        if self.inode.is_some() && self.inode == inode_of(&self.path) {
            // Somebody else may have been faster.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The file appears under its name when it can be connected to: `wg` deletes those that cannot.
fn listen(path: &Path) -> io::Result<net::UnixListener> {
    let new = path.with_extension("sock.new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = net::UnixListener::bind(&new)?;
    fs::set_permissions(&new, Permissions::from_mode(0o600))?;
    fs::rename(&new, path)?;
    Ok(listener)
}

fn file_of(interface: &str) -> String {
    format!("{interface}.sock")
}

/// Makes it private. One that is there is as whoever made it wants it.
fn create_dir(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != AlreadyExists => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Others hold it for moments.
async fn lock(mut directory: File) -> io::Result<Flock<File>> {
    let give_up_at = Instant::now() + LOCK_TIMEOUT;
    loop {
        directory = match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((directory, Errno::EAGAIN)) if Instant::now() < give_up_at => directory,
            Err((_, Errno::EAGAIN)) => {
                return Err(io::Error::new(TimedOut, "another process keeps the directory locked"));
            }
            Err((_, error)) => return Err(error.into()),
        };
        tokio::time::sleep(LOCK_INTERVAL).await;
    }
}

fn check_listener(descriptor: &OwnedFd) -> io::Result<()> {
    let socket = socket2::SockRef::from(descriptor);
    match (socket.domain(), socket.is_listener()) {
        (Ok(socket2::Domain::UNIX), Ok(true)) => Ok(()),
        (Ok(_), Ok(_)) | (Err(_), _) | (_, Err(_)) => {
            Err(io::Error::new(InvalidInput, "the descriptor given for it is no listening Unix socket"))
        }
    }
}

fn inode_of(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|found| found.ino())
}

/// A descriptor that whoever started us left open for us, by number. `None` if it is not open.
pub(crate) fn inherited(number: RawFd) -> Option<OwnedFd> {
    // Not standard input, output or error.
    if number < 3 {
        return None;
    }
    // SAFETY: takes and returns integers.
    let is_open = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
    // SAFETY: it is open, and was left to us; nothing of ours is opened before.
    is_open.then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

/// The number of an interface, as link-local addresses carry it.
pub(crate) fn interface_index(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[tokio::test]
    async fn a_directory_that_somebody_keeps_locked_is_given_up_and_never_waited_for_without_end() {
        let directory = directory();
        let _lock = Flock::lock(File::open(directory.path()).unwrap(), FlockArg::LockExclusive).unwrap();
        let error = UapiListener::bind_in(directory.path(), "wg0").await.unwrap_err();
        assert!(error.to_string().contains("locked"), "{error}");
    }

    #[tokio::test]
    async fn a_socket_full_of_callers_is_in_use_and_a_dead_one_is_replaced() {
        let directory = directory();
        let path = directory.path().join("wg0.sock");
        let listener = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        listener.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
        listener.listen(0).unwrap();
        let _first = UnixStream::connect(&path).await.unwrap();
        assert_eq!(UnixStream::connect(&path).await.unwrap_err().kind(), WouldBlock);
        let error = UapiListener::bind_in(directory.path(), "wg0").await.unwrap_err();
        assert!(matches!(error, UapiError::InUse(_)), "{error}");
        drop(listener);
        let listener = UapiListener::bind_in(directory.path(), "wg0").await.unwrap();
        UnixStream::connect(&path).await.unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_directory_of_others_stays_as_it_is_and_our_own_is_private() {
        let directory = directory();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        let new = directory.path().join("new");
        for directory in [directory.path(), &new] {
            drop(UapiListener::bind_in(directory, "wg0").await.unwrap());
        }
        assert_eq!((mode(directory.path()), mode(&new)), (0o755, 0o700));
    }

    #[tokio::test]
    async fn only_a_listening_unix_socket_is_adopted() {
        let directory = directory();
        let path = directory.path().join("given");
        let listener = net::UnixListener::bind(&path).unwrap();
        let listener = UapiListener::adopt("no-such-interface", listener.into()).unwrap();
        let (_, _) = tokio::join!(UnixStream::connect(&path), listener.accept());
        let stream = net::UnixStream::connect(&path).unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let null = File::open("/dev/null").unwrap();
        for descriptor in [OwnedFd::from(stream), tcp.into(), null.into()] {
            let error = UapiListener::adopt("no-such-interface", descriptor).unwrap_err();
            assert!(error.to_string().contains("no listening Unix socket"), "{error}");
        }
    }
}
