//! The `agent` program: the command line, the daemon that drives `agent-core`, and what differs between systems.
//!
//! `cli` has a file per command. `daemon` is one event loop: it does what the core's outputs say and decides nothing itself. `local` is the socket between
//! the two, `config` the settings, `state_dir` what is kept on disk, `platform` the only place that knows the operating system. `wg` is
//! plain WireGuard.

mod capture;
mod cli;
mod config;
mod daemon;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod local;
mod metrics;
mod platform;
mod state_dir;
mod wg;

#[cfg(holdfast_copy_instead_of_aead)]
compile_error!(
    "this flag takes the encryption out of the data plane, for measuring; the agent is never built with it"
);

/// Runs the command that this process was started with.
pub fn main() -> std::process::ExitCode {
    cli::main()
}
