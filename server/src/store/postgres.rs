//! Postgres.
mod target;
pub use target::Target;
