//! Who sent a handshake initiation, and when: the first half of WireGuard's handshake, read without a session.
//!
//! The noise library tells the sender's key but keeps the timestamp to itself and forgets it with the session. An
//! idle peer must remember it, or an old initiation could be replayed to it. Cheap steps come first: one
//! Diffie-Hellman yields the key, and only a configured key is worth the second.
//! Source: the WireGuard paper, section 5.4.2.

use blake2::{Blake2s256, Digest};
use chacha20poly1305::{
    ChaCha20Poly1305, KeyInit,
    aead::{Aead, Payload},
};
use x25519_dalek::StaticSecret;

use crate::PublicKey;

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
const BLAKE2S_BLOCK: usize = 64;

/// Bytes of an initiation.
pub(crate) const LEN: usize = 148;
const EPHEMERAL: std::ops::Range<usize> = 8..40;
const STATIC: std::ops::Range<usize> = 40..88;
const TIMESTAMP: std::ops::Range<usize> = 88..116;

type Hash = [u8; 32];

/// TAI64N: comparing the bytes compares the times. The default is older than any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Timestamp([u8; 12]);

/// Reads initiations to one node.
pub(crate) struct Opener {
    secret: StaticSecret,
    hash: Hash,
    chaining_key: Hash,
}

/// An initiation whose sender is known but not yet proven.
#[derive(Clone)]
pub(crate) struct Sender {
    pub(crate) key: PublicKey,
    hash: Hash,
    chaining_key: Hash,
}

impl Opener {
    pub(crate) fn new(secret: StaticSecret) -> Self {
        let public = x25519_dalek::PublicKey::from(&secret);
        let chaining_key = hash(&[CONSTRUCTION]);
        let hash = hash(&[&hash(&[&chaining_key, IDENTIFIER]), public.as_bytes()]);
        Self { secret, hash, chaining_key }
    }

    /// The key that an initiation claims to be from.
    pub(crate) fn sender(&self, datagram: &[u8; LEN]) -> Option<Sender> {
        let ephemeral = array(&datagram[EPHEMERAL]);
        let before_static = hash(&[&self.hash, &ephemeral]);
        let chaining_key = expand_one(&self.chaining_key, &ephemeral);
        let shared = self.secret.diffie_hellman(&ephemeral.into());
        let (chaining_key, key) = expand_two(&chaining_key, shared.as_bytes());
        let peer = open(&key, &datagram[STATIC], &before_static)?;
        let hash = hash(&[&before_static, &datagram[STATIC]]);
        Some(Sender { key: PublicKey(array(&peer)), hash, chaining_key })
    }

    /// The timestamp, which only the holder of the sender's secret can have sealed.
    pub(crate) fn timestamp(&self, sender: &Sender, datagram: &[u8; LEN]) -> Option<Timestamp> {
        let shared = self.secret.diffie_hellman(&sender.key.0.into());
        let (_, key) = expand_two(&sender.chaining_key, shared.as_bytes());
        Some(Timestamp(array(&open(&key, &datagram[TIMESTAMP], &sender.hash)?)))
    }
}

fn open(key: &Hash, sealed: &[u8], hash: &Hash) -> Option<Vec<u8>> {
    let nonce = [0; 12];
    ChaCha20Poly1305::new(key.into()).decrypt(&nonce.into(), Payload { msg: sealed, aad: hash }).ok()
}

fn hash(parts: &[&[u8]]) -> Hash {
    let mut state = Blake2s256::new();
    parts.iter().for_each(|part| state.update(part));
    state.finalize().into()
}

/// HMAC (RFC 2104) with BLAKE2s, for keys no longer than a block.
fn hmac(key: &Hash, parts: &[&[u8]]) -> Hash {
    let (mut inner, mut outer) = ([0x36; BLAKE2S_BLOCK], [0x5c; BLAKE2S_BLOCK]);
    for (i, byte) in key.iter().enumerate() {
        inner[i] ^= byte;
        outer[i] ^= byte;
    }
    let mut state = Blake2s256::new_with_prefix(inner);
    parts.iter().for_each(|part| state.update(part));
    hash(&[&outer, &state.finalize()])
}

/// HKDF with one output.
fn expand_one(chaining_key: &Hash, input: &[u8]) -> Hash {
    hmac(&hmac(chaining_key, &[input]), &[&[1]])
}

/// HKDF with two outputs.
fn expand_two(chaining_key: &Hash, input: &[u8]) -> (Hash, Hash) {
    let secret = hmac(chaining_key, &[input]);
    let first = hmac(&secret, &[&[1]]);
    let second = hmac(&secret, &[&first, &[2]]);
    (first, second)
}

/// The first `N` bytes, which the caller knows to be there.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[..N]);
    array
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        PrivateKey,
        noise::{Identity, Noise},
    };

    fn initiation(noise: &mut Noise) -> [u8; LEN] {
        let mut buffer = [0; 256];
        let len = noise.initiate(&mut buffer).unwrap();
        buffer[..len].try_into().unwrap()
    }

    /// Some peer's first, to whoever has this secret.
    pub(crate) fn initiation_to(secret: [u8; 32]) -> [u8; LEN] {
        let (ours, theirs) = (PrivateKey::from(secret), PrivateKey::from([2; 32]));
        initiation(&mut Noise::new(&Identity::new(&theirs), ours.public_key(), None, 5))
    }

    #[test]
    fn the_sender_and_a_growing_timestamp_are_read_from_the_librarys_initiations() {
        let (ours, theirs) = (PrivateKey::from([1; 32]), PrivateKey::from([2; 32]));
        let mut noise = Noise::new(&Identity::new(&theirs), ours.public_key(), None, 5);
        let opener = Opener::new(ours.0.clone());
        let mut newest = Timestamp::default();
        for _ in 0..3 {
            let datagram = initiation(&mut noise);
            let sender = opener.sender(&datagram).unwrap();
            assert_eq!(sender.key, theirs.public_key());
            let timestamp = opener.timestamp(&sender, &datagram).unwrap();
            assert!(timestamp > newest);
            newest = timestamp;
        }
    }

    #[test]
    fn a_changed_or_misdirected_initiation_is_refused() {
        let (ours, theirs) = (PrivateKey::from([1; 32]), PrivateKey::from([2; 32]));
        let mut datagram = initiation(&mut Noise::new(&Identity::new(&theirs), ours.public_key(), None, 5));
        assert!(Opener::new(PrivateKey::from([3; 32]).0).sender(&datagram).is_none());
        let opener = Opener::new(ours.0);
        datagram[TIMESTAMP.start] ^= 1;
        let sender = opener.sender(&datagram).unwrap();
        assert_eq!(opener.timestamp(&sender, &datagram), None);
        datagram[STATIC.start] ^= 1;
        assert!(opener.sender(&datagram).is_none());
    }
}
