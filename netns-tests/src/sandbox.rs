//! The room a run happens in: namespaces of its own for processes, network, mounts and IPC.
//!
//! The program executes itself again under `unshare`, as its process 1: when it ends, however it ends, the kernel ends
//! every process it started and every interface it made. Without root the room has a user namespace too.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Set inside the room.
const INSIDE: &str = "LAB_INSIDE";

/// Whether this process is in the room already.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Returns inside the room; outside it replaces the process and does not return.
pub fn enter() -> Result<()> {
    if is_inside() {
        return settle_in();
    }
    let arguments = room();
    let tried = Command::new("unshare").args(&arguments).arg("true").stderr(Stdio::piped()).output();
    let tried = tried.context("cannot run unshare: is util-linux installed?")?;
    if !tried.status.success() {
        bail!(
            "cannot make namespaces ({}). Run this as root, or allow unprivileged user namespaces \
             (sysctl kernel.unprivileged_userns_clone=1 or user.max_user_namespaces)",
            String::from_utf8_lossy(&tried.stderr).trim()
        );
    }
    let program = std::env::current_exe().context("cannot find this program's file")?;
    let mut command = Command::new("unshare");
    command.args(&arguments).arg(program).args(std::env::args_os().skip(1)).env(INSIDE, "1");
    Err(command.exec()).context("cannot run unshare")
}

fn room() -> Vec<&'static str> {
    let mut arguments = vec!["--net", "--mount", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"];
    if !nix::unistd::geteuid().is_root() {
        arguments.extend(["--user", "--map-root-user"]);
    }
    arguments
}

/// Puts an empty directory over /run, so that sockets of well-known names meet nobody else's.
pub fn own_run_directory() -> Result<()> {
    let (none, tmpfs) = (None::<&str>, Some("tmpfs"));
    mount(tmpfs, "/run", tmpfs, MsFlags::MS_NOSUID | MsFlags::MS_NODEV, none)
        .context("cannot mount a directory of our own over /run")
}

fn settle_in() -> Result<()> {
    // Process 1 ignores what it has no handler for: Ctrl-C would not end the run.
    let action = SigAction::new(SigHandler::Handler(end_at_once), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler makes one system call that is allowed in handlers.
        unsafe { sigaction(signal, &action) }.context("cannot set a signal handler")?;
    }
    std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .context("no TUN device here (/dev/net/tun), and nothing can be shown without: modprobe tun, or give it to the container")?;
    Ok(())
}

extern "C" fn end_at_once(_signal: i32) {
    // SAFETY: _exit is async-signal-safe.
    unsafe { libc::_exit(130) }
}
