//! Many agents and servers in virtual time: the second driver of `agent-core`.
//!
//! A [`World`] holds agents (the real machines, each with a model of the data plane), servers (a small reference model of the server program) that share a
//! database, and a network that delays, loses and cuts. Everything that happens is an event in one queue; the clock jumps from event to event. What is random
//! comes from one seed, so a run can be repeated exactly.
//!
//! After every step the invariants of `check` hold, or the run ends with the seed, the command that replays it and the last events. A [`Script`] is a seeded
//! list of faults; scenarios apply single [`Fault`]s and measure.

mod atlas;
mod callers;
mod check;
mod claims;
mod database;
mod driver;
mod event;
mod exclusive;
mod faults;
mod gossip;
mod holders;
mod members;
mod network;
mod news;
mod node;
mod prefixes;
mod roots;
mod routes;
mod rules;
mod script;
mod server;
mod service;
mod session;
mod stream;
mod trace;
mod traffic;
mod tunnel;
mod watch;
mod withdrawn;
mod world;

pub use claims::Claimed;
pub use faults::Fault;
pub use network::Host;
pub use rules::Policy;
pub use script::Script;
pub use world::{Setup, World};
