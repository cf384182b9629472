//! Receipts for map versions. A server gives one with every version that an agent keeps as its own, and the agent shows it again: so servers
//! that remember nothing learn that their database went back in time, from agents that saw more. Only servers can make one: a member cannot push versions.

use crate::{map::MapVersion, root::RootSecret, statement::NetworkId};
use blake2::{
    Blake2s256, Blake2sMac256, Digest,
    digest::{FixedOutput, KeyInit, Mac, Update},
};
use std::fmt;
use zeroize::Zeroizing;

const KEY_LABEL: &[u8] = b"holdfast receipt key v1\0";
const LABEL: &[u8] = b"holdfast receipt v1\0";

/// Which of all changes that could be a version's: two that have one revision, in a log that forked, differ.
pub type Mark = [u8; 8];

/// That a version was the cluster's once: the change's mark, and a keyed BLAKE2s over network, version and mark, cut to 16 bytes. All zero: there is
/// none.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Receipt(pub [u8; 24]);

/// What servers make receipts with: derived from the root's secret.
#[derive(Clone)]
pub struct ReceiptKey {
    network: NetworkId,
    key: Zeroizing<[u8; 32]>,
}

impl ReceiptKey {
    pub fn new(network: NetworkId, root: &RootSecret) -> Self {
        let mut hasher = Blake2s256::new();
        Digest::update(&mut hasher, KEY_LABEL);
        Digest::update(&mut hasher, root.expose());
        Self { network, key: Zeroizing::new(hasher.finalize().into()) }
    }

    /// A former root's, as it was kept.
    pub fn from_bytes(network: NetworkId, key: &[u8; 32]) -> Self {
        Self { network, key: Zeroizing::new(*key) }
    }

    /// To be kept, encrypted, beyond the root that it comes from.
    pub fn expose(&self) -> &[u8; 32] {
        &self.key
    }

    pub fn issue(&self, version: MapVersion, mark: Mark) -> Receipt {
        let mac: [u8; 32] = self.mac(version, mark).finalize_fixed().into();
        let mut receipt = [0; 24];
        receipt[..8].copy_from_slice(&mark);
        receipt[8..].copy_from_slice(&mac[..16]);
        Receipt(receipt)
    }

    /// Whether `receipt` is for `version`; in constant time.
    pub fn verifies(&self, version: MapVersion, receipt: &Receipt) -> bool {
        self.mac(version, receipt.mark()).verify_truncated_left(&receipt.0[8..]).is_ok()
    }

    fn mac(&self, version: MapVersion, mark: Mark) -> Blake2sMac256 {
        let mut mac = <Blake2sMac256 as KeyInit>::new((&*self.key).into());
        Update::update(&mut mac, LABEL);
        Update::update(&mut mac, &self.network.0);
        Update::update(&mut mac, &version.epoch.to_be_bytes());
        Update::update(&mut mac, &version.revision.to_be_bytes());
        Update::update(&mut mac, &mark);
        mac
    }
}

impl fmt::Debug for ReceiptKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::hex::encode(&self.0[..4]))
    }
}

impl Receipt {
    pub fn mark(&self) -> Mark {
        let mut mark = Mark::default();
        mark.copy_from_slice(&self.0[..8]);
        mark
    }

    /// As it travels: empty where there is none.
    pub fn to_bytes(&self) -> Vec<u8> {
        match *self == Self::default() {
            true => Vec::new(),
            false => self.0.to_vec(),
        }
    }

    /// What is no receipt counts as none: it proves nothing, and nothing else depends on it.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        bytes.try_into().map_or_else(|_| Self::default(), Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: MapVersion = MapVersion { epoch: 3, revision: 77 };
    const MARK: Mark = [5; 8];

    fn key(network: u8, seed: u8) -> ReceiptKey {
        ReceiptKey::new(NetworkId([network; 16]), &RootSecret::from_seed(&[seed; 32]))
    }

    #[test]
    fn every_server_of_the_cluster_knows_its_receipts_again() {
        let receipt = Receipt::from_bytes(&key(1, 1).issue(VERSION, MARK).to_bytes());
        assert!(key(1, 1).verifies(VERSION, &receipt));
        assert_eq!(receipt.mark(), MARK);
    }

    #[test]
    fn another_version_network_or_root_and_no_receipt_at_all_are_not_believed() {
        let receipt = key(1, 1).issue(VERSION, MARK);
        assert!(!key(1, 1).verifies(MapVersion { revision: 78, ..VERSION }, &receipt));
        assert!(!key(1, 1).verifies(MapVersion { epoch: 4, ..VERSION }, &receipt));
        assert!(!key(2, 1).verifies(VERSION, &receipt));
        assert!(!key(1, 2).verifies(VERSION, &receipt));
        for nothing in [&[][..], &[0; 24], &[1; 15], &[&[6; 8], &receipt.0[8..]].concat()] {
            assert!(!key(1, 1).verifies(VERSION, &Receipt::from_bytes(nothing)), "{nothing:?}");
        }
    }

    #[test]
    fn the_key_is_not_printed() {
        assert_eq!(format!("{:?}", key(1, 1)), "[redacted]");
    }
}
