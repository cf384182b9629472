//! Setup keys: `hf1_<secret>_<fingerprint>`. The secret lets a node in; the fingerprint pins the cluster's root, so that the node needs no
//! certificate authority to know the right servers.

use crate::{Invalid, hex, root::Fingerprint};
use blake2::{Blake2s256, Digest};
use std::{fmt, str::FromStr};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A setup key, as pasted by a person.
#[derive(Clone, PartialEq, Eq)]
pub struct SetupKey {
    pub secret: SetupSecret,
    pub fingerprint: Fingerprint,
}

/// The secret part: 160 random bits.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct SetupSecret([u8; 20]);

impl SetupSecret {
    /// # Errors
    /// The system has no random source.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 20];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// What the database keeps: BLAKE2s-256 under a context. The secret has 160 bits, so no slow hash is needed.
    pub fn hash(&self) -> [u8; 32] {
        Blake2s256::new().chain_update(b"holdfast setup key v1").chain_update(self.0).finalize().into()
    }

    /// The text that goes into an enrolment request.
    pub fn expose(&self) -> String {
        hex::encode(&self.0)
    }
}

impl FromStr for SetupSecret {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        hex::decode(text)
            .map(Self)
            .ok_or_else(|| Invalid::new("setup key", "the secret is not 40 hexadecimal digits"))
    }
}

impl fmt::Debug for SetupSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl SetupKey {
    /// The whole key, to be shown once to who made it.
    pub fn expose(&self) -> String {
        format!("hf1_{}_{}", self.secret.expose(), self.fingerprint)
    }
}

impl fmt::Debug for SetupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf1_[redacted]_{}", self.fingerprint)
    }
}

impl FromStr for SetupKey {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let malformed = |reason| Invalid::new("setup key", reason);
        let rest =
            text.trim().strip_prefix("hf1_").ok_or_else(|| malformed("it does not start with hf1_"))?;
        let (secret, fingerprint) =
            rest.split_once('_').ok_or_else(|| malformed("it is not of the form hf1_SECRET_FINGERPRINT"))?;
        let fingerprint =
            fingerprint.parse().map_err(|_| malformed("its fingerprint is not 32 hexadecimal digits"))?;
        Ok(Self { secret: secret.parse()?, fingerprint })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::RootSecret;

    #[test]
    fn a_setup_key_survives_its_text_and_hides_its_secret() {
        let fingerprint = RootSecret::generate().unwrap().public().fingerprint();
        let key = SetupKey { secret: SetupSecret::generate().unwrap(), fingerprint };
        assert_eq!(key.expose().parse(), Ok(key.clone()));
        assert!(!format!("{key:?}").contains(&key.secret.expose()));
    }

    #[test]
    fn malformed_setup_keys_are_refused_with_the_reason() {
        let secret = "a".repeat(40);
        for (text, reason) in [
            ("", "hf1_"),
            ("tskey-abc", "hf1_"),
            ("hf1_abc", "hf1_SECRET_FINGERPRINT"),
            ("hf1_abc_00112233445566778899aabbccddeeff", "40 hexadecimal"),
            (&format!("hf1_{secret}_xyz"), "32 hexadecimal"),
        ] {
            let error = text.parse::<SetupKey>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
