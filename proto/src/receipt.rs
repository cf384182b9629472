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

/// That a version was the cluster's once: a keyed BLAKE2s over network and version, cut to 16 bytes. All zero: there is none.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Receipt(pub [u8; 16]);

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

    pub fn issue(&self, version: MapVersion) -> Receipt {
        let whole: [u8; 32] = self.mac(version).finalize_fixed().into();
        let mut cut = [0; 16];
        cut.copy_from_slice(&whole[..16]);
        Receipt(cut)
    }

    /// Whether `receipt` is for `version`; in constant time.
    pub fn verifies(&self, version: MapVersion, receipt: &Receipt) -> bool {
        self.mac(version).verify_truncated_left(&receipt.0).is_ok()
    }

    fn mac(&self, version: MapVersion) -> Blake2sMac256 {
        let mut mac = <Blake2sMac256 as KeyInit>::new((&*self.key).into());
        Update::update(&mut mac, LABEL);
        Update::update(&mut mac, &self.network.0);
        Update::update(&mut mac, &version.epoch.to_be_bytes());
        Update::update(&mut mac, &version.revision.to_be_bytes());
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

    fn key(network: u8, seed: u8) -> ReceiptKey {
        ReceiptKey::new(NetworkId([network; 16]), &RootSecret::from_seed(&[seed; 32]))
    }

    #[test]
    fn every_server_of_the_cluster_knows_its_receipts_again() {
        let receipt = Receipt::from_bytes(&key(1, 1).issue(VERSION).to_bytes());
        assert!(key(1, 1).verifies(VERSION, &receipt));
    }

    #[test]
    fn another_version_network_or_root_and_no_receipt_at_all_are_not_believed() {
        let receipt = key(1, 1).issue(VERSION);
        assert!(!key(1, 1).verifies(MapVersion { revision: 78, ..VERSION }, &receipt));
        assert!(!key(1, 1).verifies(MapVersion { epoch: 4, ..VERSION }, &receipt));
        assert!(!key(2, 1).verifies(VERSION, &receipt));
        assert!(!key(1, 2).verifies(VERSION, &receipt));
        for nothing in [&[][..], &[0; 16], &[1; 15]] {
            assert!(!key(1, 1).verifies(VERSION, &Receipt::from_bytes(nothing)), "{nothing:?}");
        }
    }

    #[test]
    fn the_key_is_not_printed() {
        assert_eq!(format!("{:?}", key(1, 1)), "[redacted]");
    }
}
