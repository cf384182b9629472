//! Settings: what may be set, where it comes from, and what is valid.
//!
//! A value is taken from the first of: flag, environment (`HOLDFAST_` and the flag's name), TOML file, what an earlier `up` or `set` kept in the state
//! directory, default. All of them are read by the same parsers. [`Options`] is one such layer, [`Settings`] is what results, checked.

mod check;
mod claim;
mod environment;
mod file;
mod listen;
mod options;
mod settings;
mod span;
mod workers;

pub(crate) use check::{Check, CheckRule, CommandLine, Hook};
pub(crate) use claim::ClaimRule;
pub(crate) use environment::from_environment;
pub(crate) use file::File;
pub(crate) use listen::Listen;
pub(crate) use options::{ModeRule, Options};
pub(crate) use settings::{HookLines, Settings, SettingsError};
pub(crate) use span::Span;
pub(crate) use workers::WorkerCount;
