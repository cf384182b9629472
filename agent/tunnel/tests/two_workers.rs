//! The tests of a tunnel again, for tunnels of two workers; without those that measure time on an idle machine.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, clippy::duplicate_mod)]

#[path = "capture.rs"]
mod capture;
#[path = "congestion.rs"]
mod congestion;
#[path = "counters.rs"]
mod counters;
#[path = "filter.rs"]
mod filter;
#[path = "hostile.rs"]
mod hostile;
#[path = "lifecycle.rs"]
mod lifecycle;
#[path = "session.rs"]
mod session;
