//! The Holdfast control server. All servers are equal and share one database; each holds the whole state in memory.
//!
//! `cluster` decides, without I/O; `store` makes decisions durable in one order; `follow` keeps every server level with that order. `cmd` and
//! `config` are the command line.

mod accept;
mod admin;
mod advertise;
#[cfg(feature = "jemalloc")]
mod alloc;
mod backup;
mod clock;
pub mod cluster;
pub mod cluster_key;
pub mod cmd;
pub mod config;
mod connection;
mod exclusive;
pub mod follow;
#[doc(hidden)]
pub mod fuzzing;
pub mod gate;
mod health;
mod identity;
mod jobs;
mod lease;
mod limit;
mod map;
mod metrics;
mod presence;
mod private_file;
mod reissue;
mod serve;
mod session;
pub mod settings;
pub mod store;
