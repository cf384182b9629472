//! The Holdfast control server. All servers are equal and share one database; each holds the whole state in memory.
//!
//! `cluster` decides, without I/O; `store` makes decisions durable in one order; `follow` keeps every server level with that order. `cmd` and
//! `config` are the command line.

pub mod cluster;
pub mod follow;
pub mod store;
