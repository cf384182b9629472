//! The local socket: a Unix socket for root and for whoever runs the agent.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};
use tokio::net::{UnixListener, UnixStream};

pub(crate) type LocalStream = UnixStream;

/// Listens; the socket's file goes with it.
#[derive(Debug)]
pub(crate) struct LocalListener {
    listener: UnixListener,
    path: PathBuf,
}

impl LocalListener {
    /// What a killed predecessor left at `path` is replaced: the caller holds the directory's lock.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// The next caller who may speak to the agent.
    pub(crate) async fn accept(&self) -> io::Result<LocalStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            let caller = stream.peer_cred()?.uid();
            if caller == 0 || caller == nix::unistd::geteuid().as_raw() {
                return Ok(stream);
            }
            tracing::warn!(
                uid = caller,
                "a user who is neither root nor the agent's owner was refused on the local socket"
            );
        }
    }
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        // It may be gone already, with its directory.
        let _ = fs::remove_file(&self.path);
    }
}

pub(crate) async fn connect_local(path: &Path) -> io::Result<LocalStream> {
    UnixStream::connect(path).await
}
