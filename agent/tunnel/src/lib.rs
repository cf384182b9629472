//! Holdfast's data plane: WireGuard in batches, each peer on one thread.
//!
//! In go [`Command`]s (keys, endpoints, prefixes), out come packets and [`Event`]s. The crate knows packets, not
//! policies: whom to wake, which path is best and when to give up is decided by whoever started it, or else by
//! WireGuard's own rules ([`Policy`]). An OS thread owns a queue of the TUN interface, UDP sockets and its peers' sessions and runs each batch to
//! completion; on machines of a few cores it is the only one ([`Workers`]). There is no lock, channel, clock read, allocation or log line per packet.
//!
//! An idle peer is an entry in a table. Its session (about 11 KB) exists from the first handshake, in either
//! direction, until [`Command::Forget`] or until it expires; an idle peer has no timers and sends nothing.
//!
//! The noise protocol's library logs at ERROR and WARN what is ordinary here (an unanswered handshake):
//! subscribers filter its target, `boringtun=off`.

mod allowed;
mod answers;
mod batch;
mod by_key;
pub mod capture;
mod command;
mod config;
mod device;
mod event;
mod filter;
mod foreign;
mod gso;
mod inbox;
mod initiation;
mod key;
mod limit;
mod load;
mod noise;
mod outbox;
mod packet;
mod passed;
mod peer;
mod peers;
mod queue;
mod reset;
mod routes;
mod shard;
mod socket;
mod stats;
mod team;
mod too_big;
mod tunnel;
pub mod uapi;
mod wait;
mod watch;
mod worker;

pub use command::Command;
pub use config::{Config, DEFAULT_MTU, MAX_ENDPOINTS, Peer, Policy};
pub use device::{Device, DeviceError};
pub use event::Event;
pub use filter::{Filter, Protocol, Refusal, Rule, Service, Via};
pub use key::{PresharedKey, PrivateKey, PublicKey};
pub use shard::{InvalidWorkers, WantedWorkers, Workers};
pub use stats::{Counters, Drops, PeerDrops, PeerStats, Traffic};
pub use tunnel::{ConfigureError, StartError, Tunnel, start};

/// What fuzzers call.
#[cfg(all(any(test, fuzzing), target_os = "linux"))]
#[doc(hidden)]
pub use worker::fuzzing;
