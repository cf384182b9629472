//! The socket at which WireGuard's tools look for a userspace implementation: /var/run/wireguard/IFACE.sock.

use super::create_private_dir;
use crate::platform::UapiError;
use nix::{
    fcntl::{Flock, FlockArg},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use std::{
    fs::{self, File, Permissions},
    io::{
        self,
        ErrorKind::{ConnectionRefused, NotFound},
        Read,
    },
    os::{
        fd::{FromRawFd, OwnedFd, RawFd},
        unix::{
            fs::{MetadataExt, PermissionsExt},
            net,
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::unix::AsyncFd,
    net::{UnixListener, UnixStream},
};

const DIRECTORY: &str = "/var/run/wireguard";
/// Without descriptors or memory, nobody is let in for a moment.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
    pub(crate) fn bind(interface: &str) -> Result<Self, UapiError> {
        let path = path_of(interface);
        let failed = |source: io::Error| UapiError::Io { path: path.clone(), source };
        create_private_dir(Path::new(DIRECTORY)).map_err(failed)?;
        // Two that start at once must not take each other's new socket for a dead one.
        let directory = File::open(DIRECTORY).map_err(failed)?;
        let _lock =
            Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, error)| failed(error.into()))?;
        match net::UnixStream::connect(&path) {
            Ok(_) => return Err(UapiError::InUse(path)),
            // Nobody, or nobody any more.
            Err(error) if matches!(error.kind(), NotFound | ConnectionRefused) => {}
            Err(error) => return Err(failed(error)),
        }
        let listener = listen(&path).map_err(failed)?;
        Self::from_listener(listener, path.clone()).map_err(failed)
    }

    /// Takes over a listening socket that somebody else made for this interface.
    pub(crate) fn adopt(interface: &str, listener: OwnedFd) -> Result<Self, UapiError> {
        let path = path_of(interface);
        let adopted = Self::from_listener(listener.into(), path.clone());
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
            directory.add_watch(DIRECTORY, gone)?;
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

fn path_of(interface: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{interface}.sock"))
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
