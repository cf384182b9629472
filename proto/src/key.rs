//! Node keys: X25519, the same that WireGuard uses. Written as base64, like WireGuard's.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use x25519_dalek::StaticSecret;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A node's public key: its identity, and its WireGuard public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(pub [u8; 32]);

/// A node's private key. It never leaves the node; its memory is cleared.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct NodeSecret([u8; 32]);

/// A text that is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a key: expected 32 bytes in base64 (44 characters)")]
pub struct InvalidKey;

impl PublicKey {
    /// The first 8 characters of the key: how logs name it.
    pub fn short(&self) -> String {
        self.to_string()[..8].to_owned()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl FromStr for PublicKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        decode(text).map(Self)
    }
}

impl TryFrom<String> for PublicKey {
    type Error = InvalidKey;

    fn try_from(text: String) -> Result<Self, InvalidKey> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

impl NodeSecret {
    /// A new key from the system's random source.
    ///
    /// # Errors
    /// The system has no random source.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw key, for the data plane and the key file only.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    pub fn public(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&StaticSecret::from(self.0)).to_bytes())
    }

    /// X25519 (RFC 7748). `None` where the other key is of low order, so that the result would be no secret.
    pub fn agree(&self, other: &PublicKey) -> Option<SharedSecret> {
        let shared = StaticSecret::from(self.0).diffie_hellman(&x25519_dalek::PublicKey::from(other.0));
        shared.was_contributory().then(|| SharedSecret(shared.to_bytes()))
    }

    /// The key as it stands in a key file: base64, like `wg genkey`.
    pub fn to_text(&self) -> zeroize::Zeroizing<String> {
        zeroize::Zeroizing::new(STANDARD.encode(self.0))
    }

    /// Reads what [`NodeSecret::to_text`] wrote.
    ///
    /// # Errors
    /// [`InvalidKey`] unless the text is 32 bytes in base64.
    pub fn from_text(text: &str) -> Result<Self, InvalidKey> {
        decode(text).map(Self)
    }
}

impl fmt::Debug for NodeSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The result of a key agreement.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct SharedSecret(pub(crate) [u8; 32]);

fn decode(text: &str) -> Result<[u8; 32], InvalidKey> {
    let mut bytes = [0; 33];
    match STANDARD.decode_slice(text.trim(), &mut bytes) {
        Ok(32) => {
            let mut key = [0; 32];
            key.copy_from_slice(&bytes[..32]);
            bytes.zeroize();
            Ok(key)
        }
        Ok(_) | Err(_) => Err(InvalidKey),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_text() {
        let secret = NodeSecret::generate().unwrap();
        let public = secret.public();
        assert_eq!(public.to_string().parse(), Ok(public));
        assert_eq!(NodeSecret::from_text(&secret.to_text()).unwrap().public(), public);
    }

    #[test]
    fn texts_that_are_no_keys_are_refused() {
        for text in ["", "AAAA", "not base64 at all!", &"A".repeat(43), &"A".repeat(48)] {
            assert_eq!(text.parse::<PublicKey>(), Err(InvalidKey), "{text}");
        }
    }

    #[test]
    fn a_secret_is_never_printed() {
        let secret = NodeSecret::generate().unwrap();
        assert_eq!(format!("{secret:?}"), "[redacted]");
    }

    #[test]
    fn both_sides_agree_and_low_order_points_are_refused() {
        let (a, b) = (NodeSecret::generate().unwrap(), NodeSecret::generate().unwrap());
        assert_eq!(a.agree(&b.public()).unwrap().0, b.agree(&a.public()).unwrap().0);
        assert!(a.agree(&PublicKey([0; 32])).is_none());
    }
}
