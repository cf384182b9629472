//! WireGuard's cross-platform configuration protocol, as `wg` and its kin speak it: lines of `key=value`, requests
//! `get=1` and `set=1`, each ended by an empty line and answered by `errno=N`. Ours alone is `capture=1`, whose answer is followed
//! by what `agent debug capture` writes.
//!
//! Pure: [`Decoder`] turns bytes into [`Request`]s, [`answer`] and [`Description::to_text`] make the answers. What a
//! request does is the worker's business ([`crate::Tunnel::configure`], [`crate::Tunnel::describe`]).
//! A `set` is taken whole or not at all: nothing of it is done before its last line was understood.
//! Source: <https://www.wireguard.com/xplatform/>.

mod changes;
mod decode;
mod describe;

pub use changes::{AllowedIpChange, Changes, PeerChanges};
pub use decode::{Decoder, Request};
pub use describe::{Description, PeerDescription};

/// Why a request was refused, as its answer and a log tell it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Refusal {
    /// The system's error number, positive.
    pub errno: i32,
    /// Never contains a key's value.
    pub what: String,
}

/// Error numbers of this system.
pub mod errno {
    #[cfg(unix)]
    pub use libc::{EBUSY, EINVAL, EIO, EMSGSIZE, EOPNOTSUPP};
    #[cfg(not(unix))]
    pub const EBUSY: i32 = 16;
    #[cfg(not(unix))]
    pub const EINVAL: i32 = 22;
    #[cfg(not(unix))]
    pub const EIO: i32 = 5;
    #[cfg(not(unix))]
    pub const EMSGSIZE: i32 = 90;
    #[cfg(not(unix))]
    pub const EOPNOTSUPP: i32 = 95;
}

impl Refusal {
    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self { errno: errno::EINVAL, what: what.into() }
    }
}

/// The end of every answer: `wg` takes error numbers in their negative form.
pub fn answer(result: &Result<(), Refusal>) -> String {
    let number = result.as_ref().err().map_or(0, |refusal| -refusal.errno);
    format!("errno={number}\n\n")
}
