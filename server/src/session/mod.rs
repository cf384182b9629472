//! Control sessions: the gRPC service, and what it is made of. One file per concern:
//!
//! `service` the calls; `limits` how large their messages may be; `rates` how many;
//! `session` one session from Hello to its end; `greeting` who is let in; `catch_up` what changed since the session
//! last spoke; `slot` what others reach of a session; `hub` which session serves whom; `fetch` maps in chunks; `enrol` new members;
//! `signals` between agents, across servers; `reports` what nodes say of themselves, on its way to the database; `refusal` the texts.

mod catch_up;
mod enrol;
mod fetch;
mod greeting;
mod hub;
mod limits;
mod rates;
mod refusal;
mod reports;
mod service;
#[expect(clippy::module_inception, reason = "the session itself, beside what surrounds it")]
mod session;
mod signals;
mod slot;
mod taking_in;
#[cfg(test)]
mod tests;

pub(crate) use hub::Hub;
pub(crate) use limits::LimitedService;
pub(crate) use reports::{Reports, write_reports};
use service::ControlService;
pub(crate) use signals::{Signals, decode as decode_signal, receive_signals, send_signals};
pub(crate) use slot::Slot;
pub(crate) use taking_in::Returns;
