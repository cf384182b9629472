//! Setup keys as the cluster keeps them: by their hash, with what they allow. Whether one lets a node in is judged here; who enters is
//! `admission`'s.

use crate::cluster::{Op, Refusal, State, base64_text};
use ipnet::IpNet;
use proto::{
    setup_key::{SetupKey as SecretKey, SetupSecret},
    time::UnixTime,
};
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// The cluster's number for a setup key. It is never used again: of the keys that are forgotten long after their end, the newest stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SetupKeyId(pub u64);

/// What a new setup key allows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetupKeyTerms {
    /// Else it lets one node in.
    pub reusable: bool,
    /// A reusable key lets in so many nodes at most; `None`: any number.
    pub max_uses: Option<u64>,
    /// Its nodes go when they have been offline for a while.
    pub ephemeral: bool,
    pub groups: Vec<String>,
    pub claims: Vec<IpNet>,
    /// `None`: never ends.
    pub lifetime: Option<Duration>,
}

/// A setup key without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetupKey {
    pub id: SetupKeyId,
    #[serde(with = "base64_text")]
    pub hash: [u8; 32],
    pub reusable: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_uses: Option<u64>,
    pub ephemeral: bool,
    pub groups: Vec<String>,
    pub claims: Vec<IpNet>,
    pub created_at: UnixTime,
    pub expires_at: Option<UnixTime>,
    pub revoked_at: Option<UnixTime>,
    /// How many nodes it let in.
    pub uses: u64,
    pub last_used_at: Option<UnixTime>,
    /// The number of the root whose fingerprint it carries.
    #[serde(default)]
    pub root: u32,
}

/// What a setup key is good for, in the order in which the reasons are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SetupKeyState {
    Valid,
    Revoked,
    Expired,
    Used,
}

impl SetupKey {
    /// A new key's record, and the key itself: the only time it is seen.
    pub fn new(
        state: &State,
        now: UnixTime,
        secret: &SetupSecret,
        terms: &SetupKeyTerms,
    ) -> (Self, SecretKey) {
        let last = state.setup_keys().last().map_or(0, |key| key.id.0);
        let record = Self {
            id: SetupKeyId(last.saturating_add(1)),
            hash: secret.hash(),
            reusable: terms.reusable,
            max_uses: terms.max_uses,
            ephemeral: terms.ephemeral,
            groups: terms.groups.clone(),
            claims: terms.claims.clone(),
            created_at: now,
            expires_at: terms.lifetime.map(|lifetime| now.saturating_add(lifetime)),
            revoked_at: None,
            uses: 0,
            last_used_at: None,
            root: state.root_number(),
        };
        (record, SecretKey { secret: secret.clone(), fingerprint: state.root.public().fingerprint() })
    }

    pub fn state(&self, now: UnixTime) -> SetupKeyState {
        if self.revoked_at.is_some() {
            SetupKeyState::Revoked
        } else if self.expires_at.is_some_and(|end| end <= now) {
            SetupKeyState::Expired
        } else if self.is_used_up() {
            SetupKeyState::Used
        } else {
            SetupKeyState::Valid
        }
    }

    /// Whether it let in as many nodes as it may.
    pub(crate) fn is_used_up(&self) -> bool {
        let limit = if self.reusable { self.max_uses } else { Some(1) };
        limit.is_some_and(|limit| self.uses >= limit)
    }

    /// # Errors
    /// The key lets nobody in any more, and why.
    pub fn check(&self, now: UnixTime) -> Result<(), Refusal> {
        match self.state(now) {
            SetupKeyState::Valid => Ok(()),
            SetupKeyState::Revoked => Err(Refusal::KeyRevoked),
            SetupKeyState::Expired => Err(Refusal::KeyExpired),
            SetupKeyState::Used => Err(Refusal::KeyUsed),
        }
    }

    pub(crate) fn used(&self, now: UnixTime) -> Self {
        Self { uses: self.uses.saturating_add(1), last_used_at: Some(now), ..self.clone() }
    }

    /// Nothing to do where it was revoked before.
    pub fn revoke(&self, now: UnixTime) -> Vec<Op> {
        match self.revoked_at {
            Some(_) => Vec::new(),
            None => vec![Op::put_setup_key(Self { revoked_at: Some(now), ..self.clone() })],
        }
    }
}

impl fmt::Display for SetupKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for SetupKeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Valid => "valid",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::Used => "used",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing;

    fn key(terms: &SetupKeyTerms) -> SetupKey {
        let state = testing::state();
        SetupKey::new(&state, UnixTime(1_000), &SetupSecret::generate().unwrap(), terms).0
    }

    #[test]
    fn a_one_off_key_is_used_up_by_one_use_and_a_reusable_one_is_not() {
        let one_off = key(&SetupKeyTerms::default());
        assert_eq!(one_off.check(UnixTime(1_000)), Ok(()));
        assert_eq!(one_off.used(UnixTime(1_001)).check(UnixTime(1_002)), Err(Refusal::KeyUsed));
        let reusable = key(&SetupKeyTerms { reusable: true, ..SetupKeyTerms::default() });
        assert_eq!(reusable.used(UnixTime(1_001)).check(UnixTime(1_002)), Ok(()));
        let twice = key(&SetupKeyTerms { reusable: true, max_uses: Some(2), ..SetupKeyTerms::default() });
        let once_used = twice.used(UnixTime(1_001));
        assert_eq!(once_used.check(UnixTime(1_002)), Ok(()));
        assert_eq!(once_used.used(UnixTime(1_002)).check(UnixTime(1_003)), Err(Refusal::KeyUsed));
    }

    #[test]
    fn a_key_ends_with_its_lifetime_and_by_revocation() {
        let terms = SetupKeyTerms { lifetime: Some(Duration::from_secs(60)), ..SetupKeyTerms::default() };
        let mut key = key(&terms);
        assert_eq!(key.check(UnixTime(1_059)), Ok(()));
        assert_eq!(key.check(UnixTime(1_060)), Err(Refusal::KeyExpired));
        key.revoked_at = Some(UnixTime(1_001));
        assert_eq!(key.check(UnixTime(1_002)), Err(Refusal::KeyRevoked));
        assert!(key.revoke(UnixTime(1_003)).is_empty(), "revoking twice changes nothing");
    }

    #[test]
    fn the_record_survives_its_json_and_holds_no_secret() {
        let state = testing::state();
        let secret = SetupSecret::generate().unwrap();
        let (record, key) = SetupKey::new(&state, UnixTime(1), &secret, &SetupKeyTerms::default());
        let json = serde_json::to_string(&record).unwrap();
        assert!(!json.contains(&secret.expose()));
        assert_eq!(serde_json::from_str::<SetupKey>(&json).unwrap(), record);
        assert_eq!(key.fingerprint, state.root.public().fingerprint());
    }
}
