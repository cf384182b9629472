//! The cluster's root: an Ed25519 key made by the first server. Agents pin its fingerprint, which every setup key carries.

use crate::{Invalid, fixed, hex};
use blake2::{Blake2s256, Digest};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The public half of the root; as text, in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RootKey(VerifyingKey);

/// The private half. Cleared on drop; never printed.
#[derive(Clone)]
pub struct RootSecret(SigningKey);

/// The first 16 bytes of the BLAKE2s-256 hash of the root's public key, written in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint(pub [u8; 16]);

impl RootKey {
    /// # Errors
    /// The bytes are no point of the curve.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        let key = VerifyingKey::from_bytes(&fixed("root", bytes)?);
        key.map(Self).map_err(|error| Invalid::new("root", error))
    }

    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    pub fn fingerprint(&self) -> Fingerprint {
        let hash = Blake2s256::digest(self.0.as_bytes());
        let mut short = [0; 16];
        short.copy_from_slice(&hash[..16]);
        Fingerprint(short)
    }

    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
    }
}

impl TryFrom<String> for RootKey {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        let bytes: [u8; 32] =
            hex::decode(&text).ok_or_else(|| Invalid::new("root", "expected 64 hexadecimal digits"))?;
        Self::from_bytes(&bytes)
    }
}

impl From<RootKey> for String {
    fn from(root: RootKey) -> Self {
        hex::encode(&root.to_bytes())
    }
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "root {}", self.fingerprint())
    }
}

impl RootSecret {
    /// # Errors
    /// The system has no random source.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut seed = zeroize::Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut())?;
        Ok(Self::from_seed(&seed))
    }

    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The seed, for the database (wrapped where a cluster key is used) only.
    pub fn expose(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    pub fn public(&self) -> RootKey {
        RootKey(self.0.verifying_key())
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for RootSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        hex::decode(text)
            .map(Self)
            .ok_or_else(|| Invalid::new("fingerprint", "expected 32 hexadecimal digits"))
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}
