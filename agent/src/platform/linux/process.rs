//! The process and the machine it runs on.

use nix::unistd;
use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM, SIGINT, and SIGHUP when the terminal goes.
#[derive(Debug)]
pub(crate) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl StopSignals {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Cancel-safe.
    pub(crate) async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// Leaves the terminal and the process group of whoever started us.
pub(crate) fn detach() -> io::Result<()> {
    // A process that leads its group already has a session of its own or is started by hand: both may stay.
    match unistd::setsid() {
        Ok(_) | Err(nix::errno::Errno::EPERM) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// So that an error can be left there even if descriptors run out.
pub(crate) fn open_system_log() {
    // SAFETY: the name is static, as the C library keeps it.
    unsafe { libc::openlog(c"agent".as_ptr(), libc::LOG_PID | libc::LOG_NDELAY, libc::LOG_DAEMON) };
}

/// Leaves an error in the system's log, for whoever has no terminal and no log of its own.
pub(crate) fn log_to_system(error: &str) {
    let text: Vec<u8> = error.bytes().filter(|byte| *byte != 0).collect();
    let Ok(text) = std::ffi::CString::new(text) else { return };
    // SAFETY: both are strings that live through the call, and the format takes one string.
    unsafe { libc::syslog(libc::LOG_DAEMON | libc::LOG_ERR, c"%s".as_ptr(), text.as_ptr()) };
}

pub(crate) fn hostname() -> String {
    let name = unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "node".to_owned())
}

/// The distribution, as os-release names it.
pub(crate) fn os_version() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    pretty.map(|name| name.trim_matches('"').to_owned()).unwrap_or_default()
}
