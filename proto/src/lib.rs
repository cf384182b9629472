//! The contract between Holdfast agents and servers.
//!
//! `wire` is what prost generates from `proto/`. Everything else gives those bytes types that cannot hold an invalid
//! value: keys, certificates, map objects, session messages. Conversions refuse with an error that names the field.
//! With the feature `grpc` the generated service and the TLS identities come along; without it the crate does no I/O at all,
//! so that `agent-core` can use it.

pub mod auth;
pub mod claim;
#[cfg(feature = "grpc")]
pub mod codec;
#[doc(hidden)]
pub mod fuzzing;
mod hex;
pub mod holding;
pub mod key;
pub mod map;
pub mod peer_message;
pub mod prefix;
pub mod receipt;
pub mod root;
pub mod root_list;
pub mod rule;
pub mod server_url;
pub mod session;
pub mod setup_key;
pub mod statement;
pub mod time;
#[cfg(feature = "grpc")]
pub mod tls;

/// The generated messages (and, with `grpc`, the service) of package `holdfast.v1`.
#[allow(clippy::all, clippy::pedantic, unreachable_pub, unused_qualifications, missing_docs)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/holdfast.v1.rs"));
}

/// The protocol version that this code speaks.
pub const PROTOCOL_VERSION: u32 = 1;
/// The port of the control service where a server's address names none.
pub const CONTROL_PORT: u16 = 7443;
/// The UDP port, on overlay addresses, on which agents talk to each other inside tunnels.
pub const AGENT_PORT: u16 = 7411;

/// A received message that cannot be valid, and which field of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {field}: {reason}")]
pub struct Invalid {
    pub field: &'static str,
    pub reason: String,
}

impl Invalid {
    pub(crate) fn new(field: &'static str, reason: impl std::fmt::Display) -> Self {
        Self { field, reason: reason.to_string() }
    }

    pub(crate) fn missing(field: &'static str) -> Self {
        Self::new(field, "missing")
    }
}

/// Bytes of a fixed length from a field of a message.
pub(crate) fn fixed<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<[u8; N], Invalid> {
    bytes.try_into().map_err(|_| Invalid::new(field, format_args!("{} bytes instead of {N}", bytes.len())))
}

/// Socket addresses from a repeated text field; more than `limit` are refused.
pub(crate) fn endpoints(
    field: &'static str,
    texts: &[String],
    limit: usize,
) -> Result<Vec<std::net::SocketAddr>, Invalid> {
    if texts.len() > limit {
        return Err(Invalid::new(field, format_args!("{} entries, at most {limit}", texts.len())));
    }
    texts.iter().map(|text| text.parse().map_err(|error| Invalid::new(field, error))).collect()
}

/// The bytes of a message.
pub fn encode<M: prost::Message>(message: &M) -> Vec<u8> {
    message.encode_to_vec()
}

/// Reads a message.
///
/// # Errors
/// The bytes are no such message.
pub fn decode<M: prost::Message + Default>(bytes: &[u8]) -> Result<M, Invalid> {
    M::decode(bytes).map_err(|error| Invalid::new("message", error))
}

/// BLAKE2s-256, for files.
pub fn checksum(bytes: &[u8]) -> [u8; 32] {
    use blake2::Digest;
    blake2::Blake2s256::digest(bytes).into()
}
