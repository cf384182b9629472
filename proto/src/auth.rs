//! How an agent proves its key on a control connection.
//!
//! The server's certificate carries an X25519 key that lives as long as the server's process (see `tls`). The agent agrees on a secret with it
//! and authenticates, under that secret, the TLS connection itself: the exporter of RFC 8446 section 7.5. So the proof is worth nothing on another
//! connection or to another server, no bearer token exists, and no round trip is spent on a challenge: the exporter is one.

use crate::{
    Invalid, fixed,
    key::{NodeSecret, PublicKey, SharedSecret},
    wire,
};
use blake2::{
    Blake2s256, Blake2sMac256, Digest,
    digest::{FixedOutput, KeyInit, Mac, Update},
};

/// The label of the TLS exporter.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-holdfast-session-v1";

/// What the TLS exporter gives for a connection: the same at both ends, different on every connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ChannelBinding(pub [u8; 32]);

impl std::fmt::Debug for ChannelBinding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Why a proof is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    #[error(transparent)]
    Malformed(#[from] Invalid),
    /// The two ends see different TLS connections.
    #[error("something between agent and server terminates TLS; let it pass TCP through instead")]
    TlsTerminated,
    #[error("the proof does not belong to node key {}", .0.short())]
    Wrong(PublicKey),
}

/// Proves possession of `secret` to the server whose session key is `server_key`.
///
/// # Errors
/// The server's key is of low order.
pub fn prove(
    secret: &NodeSecret,
    server_key: &PublicKey,
    binding: &ChannelBinding,
) -> Result<wire::Proof, Invalid> {
    let node_key = secret.public();
    let shared = secret.agree(server_key).ok_or_else(|| Invalid::new("server key", "of low order"))?;
    let mac: [u8; 32] = mac(&shared, &node_key, server_key, binding).finalize_fixed().into();
    Ok(wire::Proof { node_key: node_key.0.to_vec(), mac: mac.to_vec(), channel_tag: tag(binding).to_vec() })
}

/// Checks a proof and returns the node key that it proves.
///
/// # Errors
/// [`ProofError`], in the order malformed, TLS terminated, wrong.
pub fn verify(
    proof: &wire::Proof,
    server_secret: &NodeSecret,
    binding: &ChannelBinding,
) -> Result<PublicKey, ProofError> {
    let node_key = PublicKey(fixed("node key", &proof.node_key)?);
    if fixed::<8>("channel tag", &proof.channel_tag)? != tag(binding) {
        return Err(ProofError::TlsTerminated);
    }
    let shared = server_secret.agree(&node_key).ok_or(ProofError::Wrong(node_key))?;
    mac(&shared, &node_key, &server_secret.public(), binding)
        .verify_slice(&proof.mac)
        .map_err(|_| ProofError::Wrong(node_key))?;
    Ok(node_key)
}

fn mac(
    shared: &SharedSecret,
    node_key: &PublicKey,
    server_key: &PublicKey,
    binding: &ChannelBinding,
) -> Blake2sMac256 {
    let mac = <Blake2sMac256 as KeyInit>::new(&shared.0.into());
    mac.chain(b"holdfast session proof v1").chain(node_key.0).chain(server_key.0).chain(binding.0)
}

fn tag(binding: &ChannelBinding) -> [u8; 8] {
    let hash = Digest::finalize(Blake2s256::new().chain(b"holdfast channel tag v1").chain(binding.0));
    let mut tag = [0; 8];
    tag.copy_from_slice(&hash[..8]);
    tag
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> (NodeSecret, NodeSecret) {
        (NodeSecret::generate().unwrap(), NodeSecret::generate().unwrap())
    }

    #[test]
    fn a_proof_holds_on_its_own_connection_only() {
        let (node, server) = keys();
        let here = ChannelBinding([1; 32]);
        let proof = prove(&node, &server.public(), &here).unwrap();
        assert_eq!(verify(&proof, &server, &here), Ok(node.public()));
        assert_eq!(verify(&proof, &server, &ChannelBinding([2; 32])), Err(ProofError::TlsTerminated));
    }

    #[test]
    fn a_proof_is_worth_nothing_to_another_server_or_for_another_node() {
        let (node, server) = keys();
        let (other_node, other_server) = keys();
        let here = ChannelBinding([1; 32]);
        let mut proof = prove(&node, &server.public(), &here).unwrap();
        assert_eq!(verify(&proof, &other_server, &here), Err(ProofError::Wrong(node.public())));
        proof.node_key = other_node.public().0.to_vec();
        assert_eq!(verify(&proof, &server, &here), Err(ProofError::Wrong(other_node.public())));
    }

    #[test]
    fn a_malformed_proof_is_refused() {
        let (node, server) = keys();
        let here = ChannelBinding([1; 32]);
        let good = prove(&node, &server.public(), &here).unwrap();
        let short_key = wire::Proof { node_key: vec![1; 31], ..good.clone() };
        assert!(matches!(verify(&short_key, &server, &here), Err(ProofError::Malformed(_))));
        let short_mac = wire::Proof { mac: good.mac[..31].to_vec(), ..good };
        assert_eq!(verify(&short_mac, &server, &here), Err(ProofError::Wrong(node.public())));
    }
}
