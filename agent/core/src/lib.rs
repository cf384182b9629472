//! Every decision that a Holdfast agent makes, without I/O.
//!
//! [`Agent`] composes plain state machines: `control` (which server, failover), `peer` (a tunnel's life), `path` (where a peer may be reached),
//! `netmap` (the verified map). None owns a socket, task, clock, lock or channel; time is an argument. A driver (the daemon, or the simulation in `agent-sim`)
//! follows this contract:
//!
//! 1. Call a `handle_*` method for whatever happened, with the time.
//! 2. Call [`Agent::poll_output`] until it gives `None`, doing what each [`Output`] says.
//! 3. Sleep until [`Agent::poll_timeout`] or the next event. At the deadline call [`Agent::handle_timeout`], then go to 2.
//!
//! Time never runs backwards: an earlier time than the last counts as the last. The same seed and inputs give the same outputs.

mod agent;
pub mod cache;
pub mod checks;
pub mod claims;
pub mod config;
pub mod control;
pub mod holdings;
pub mod hooks;
pub mod io;
pub mod netmap;
pub mod path;
pub mod peer;
pub mod removals;
mod routing;
pub mod rules;
pub mod status;
pub mod time;
pub mod trust;
pub mod trusted_time;

pub use agent::{Agent, Identity, Saved};
pub use config::Config;
pub use io::{ConnId, Notice, Output};
pub use time::{BootTime, Deadline};
