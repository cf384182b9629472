//! `silence` again, for tunnels of two workers, as it must be alone in its process.

#![allow(clippy::unwrap_used)]

#[path = "silence.rs"]
mod silence;
