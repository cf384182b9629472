//! Keys. Secrets are wiped when dropped and print as `[redacted]`.

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use x25519_dalek::StaticSecret;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A node's WireGuard public key, which is its identity in the mesh.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Debug for PublicKey {
    /// The first 8 characters of the base64 form: enough to tell peers apart in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_STANDARD.encode(self.0)[..8])
    }
}

impl fmt::Display for PublicKey {
    /// The whole key in base64, as `wg` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_STANDARD.encode(self.0))
    }
}

/// The node's own X25519 secret.
#[derive(Clone)]
pub struct PrivateKey(pub(crate) StaticSecret);

impl PrivateKey {
    pub fn public_key(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&self.0).to_bytes())
    }
}

impl From<[u8; 32]> for PrivateKey {
    fn from(bytes: [u8; 32]) -> Self {
        Self(StaticSecret::from(bytes))
    }
}

impl From<StaticSecret> for PrivateKey {
    fn from(secret: StaticSecret) -> Self {
        Self(secret)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A secret two peers share besides their keys (WireGuard's PSK).
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey(pub [u8; 32]);

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_print_shortened_and_secrets_not_at_all() {
        assert_eq!(format!("{:?}", PublicKey([0; 32])), "AAAAAAAA");
        assert_eq!(format!("{:?}", PrivateKey::from([7; 32])), "[redacted]");
        assert_eq!(format!("{:?}", PresharedKey([7; 32])), "[redacted]");
    }
}
