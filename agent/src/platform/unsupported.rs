//! Systems that are not supported yet: everything compiles, and starting says so.

use super::{Network, Trouble, UapiError};
use agent_core::BootTime;
use ipnet::IpNet;
use socket2::Socket;
use std::{
    convert::Infallible,
    fs::File,
    io,
    net::IpAddr,
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};
use tokio::sync::Mutex;

/// Never made: nothing listens here.
pub(crate) type LocalStream = tokio::io::DuplexStream;

fn unsupported<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "the agent does not run on this system yet"))
}

pub(crate) fn boot_time() -> BootTime {
    static START: OnceLock<Instant> = OnceLock::new();
    BootTime::from_duration(START.get_or_init(Instant::now).elapsed())
}

/// What becomes of processes that a command leaves in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leftovers {
    Kill,
    Keep,
}

#[expect(clippy::unused_async, reason = "the same function as on other systems")]
pub(crate) async fn run_shell(
    _line: &str,
    _environment: &[(&str, String)],
    _timeout: Duration,
    _leftovers: Leftovers,
) -> Result<(), String> {
    Err("the agent runs no commands on this system yet".into())
}

#[derive(Debug)]
pub(crate) struct Alarm(Infallible);

impl Alarm {
    pub(crate) fn new() -> io::Result<Self> {
        unsupported()
    }

    pub(crate) fn set(&mut self, _at: Option<BootTime>) -> io::Result<()> {
        match self.0 {}
    }

    #[expect(clippy::unused_async, reason = "the same function as on other systems")]
    pub(crate) async fn expired(&mut self) -> io::Result<()> {
        match self.0 {}
    }
}

#[derive(Debug)]
pub(crate) struct LocalListener(Infallible);

impl LocalListener {
    pub(crate) fn bind(_path: &Path) -> io::Result<Self> {
        unsupported()
    }

    #[expect(clippy::unused_async, reason = "the same function as on other systems")]
    pub(crate) async fn accept(&self) -> io::Result<LocalStream> {
        match self.0 {}
    }
}

#[expect(clippy::unused_async, reason = "the same function as on other systems")]
pub(crate) async fn connect_uapi(_interface: &str) -> io::Result<LocalStream> {
    unsupported()
}

pub(crate) async fn connect_local(_path: &Path) -> io::Result<LocalStream> {
    unsupported()
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        match self.0 {}
    }
}

#[derive(Debug)]
pub(crate) struct UapiListener(Infallible);

impl UapiListener {
    #[expect(clippy::unused_async, reason = "the same function as on other systems")]
    pub(crate) async fn bind(interface: &str) -> Result<Self, UapiError> {
        Self::refuse(interface)
    }

    fn refuse(interface: &str) -> Result<Self, UapiError> {
        unsupported().map_err(|source| UapiError::Io { path: interface.into(), source })
    }

    #[cfg(unix)]
    pub(crate) fn adopt(interface: &str, _listener: std::os::fd::OwnedFd) -> Result<Self, UapiError> {
        Self::refuse(interface)
    }

    #[expect(clippy::unused_async, reason = "the same function as on other systems")]
    pub(crate) async fn accept(&self) -> LocalStream {
        match self.0 {}
    }

    #[expect(clippy::unused_async, reason = "the same function as on other systems")]
    pub(crate) async fn removed(&self) {
        match self.0 {}
    }
}

#[cfg(unix)]
pub(crate) fn inherited(_number: std::os::fd::RawFd) -> Option<std::os::fd::OwnedFd> {
    None
}

pub(crate) fn interface_index(_name: &str) -> Option<u32> {
    None
}

#[derive(Debug)]
pub(crate) struct StopSignals(Infallible);

impl StopSignals {
    pub(crate) fn new() -> io::Result<Self> {
        unsupported()
    }

    #[expect(clippy::unused_async, reason = "the same function as on other systems")]
    pub(crate) async fn received(&mut self) {
        match self.0 {}
    }
}

#[derive(Debug)]
pub(crate) struct NetworkWatch(Infallible);

impl NetworkWatch {
    pub(crate) fn start(_own: &str, _mark: u32) -> io::Result<Self> {
        unsupported()
    }

    #[expect(clippy::unused_async, reason = "the same function as on other systems")]
    pub(crate) async fn changed(&mut self) -> Network {
        match self.0 {}
    }
}

#[derive(Debug)]
pub(crate) struct Routes(Infallible);

pub(crate) type SharedRoutes = Arc<Mutex<Option<Routes>>>;

impl Routes {
    pub(crate) fn new(_interface: &str, _addresses: &[IpAddr], _mark: u32) -> io::Result<Self> {
        unsupported()
    }

    #[expect(clippy::unused_async, reason = "the same function as on other systems")]
    pub(crate) async fn set(&mut self, _prefixes: &[IpNet]) -> io::Result<()> {
        match self.0 {}
    }

    #[expect(clippy::unused_async, reason = "the same function as on other systems")]
    pub(crate) async fn remove(self) {
        match self.0 {}
    }
}

pub(crate) async fn clean_up() -> io::Result<()> {
    unsupported()
}

/// Nothing is served where no tunnel can be made.
#[derive(Debug)]
pub(crate) struct Serving;

impl Serving {
    pub(crate) fn new(_interface: &str, _directory: &Path, _routes: SharedRoutes) -> Self {
        Self
    }

    #[expect(clippy::unused_async, reason = "the same function as on other systems")]
    pub(crate) async fn apply(&mut self, _served: &[IpNet], _masquerade: bool) -> Vec<Trouble> {
        Vec::new()
    }

    #[expect(clippy::unused_async, reason = "the same function as on other systems")]
    pub(crate) async fn look(&mut self, _served: &[IpNet]) -> Vec<Trouble> {
        Vec::new()
    }
}

#[expect(clippy::unused_async, reason = "the same function as on other systems")]
pub(crate) async fn recover(_directory: &Path) {}

pub(crate) fn prepare_control_socket(_socket: &Socket, _mark: u32) -> io::Result<()> {
    unsupported()
}

pub(crate) fn create_private_dir(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)
}

pub(crate) fn is_others_to_write(_file: &File, _path: &Path) -> io::Result<bool> {
    unsupported()
}

pub(crate) fn is_open_to_others(_path: &Path) -> io::Result<bool> {
    Ok(false)
}

pub(crate) fn is_own_file(path: &Path) -> io::Result<bool> {
    path.try_exists()
}

pub(crate) fn create_new_private_file(path: &Path) -> io::Result<File> {
    File::create_new(path)
}

pub(crate) fn create_private_file(path: &Path) -> io::Result<File> {
    File::create(path)
}

pub(crate) fn make_private(_path: &Path) -> io::Result<()> {
    Ok(())
}

pub(crate) fn detach() -> io::Result<()> {
    unsupported()
}

pub(crate) fn open_system_log() {}

pub(crate) fn log_to_system(_error: &str) {}

pub(crate) fn hostname() -> String {
    std::env::var("HOSTNAME").or_else(|_| std::env::var("COMPUTERNAME")).unwrap_or_else(|_| "node".to_owned())
}

pub(crate) fn os_version() -> String {
    String::new()
}
