//! Statements under the cluster's root: membership certificates, removals, the next root. DESIGN of trust: a certificate travels with its
//! node in every map, so peers and relays check membership with every server down.

use crate::{
    Invalid, fixed,
    key::PublicKey,
    root::{RootKey, RootSecret},
    time::UnixTime,
    wire,
};
use ipnet::IpNet;
use prost::Message;
use std::net::IpAddr;

const CONTEXT: &[u8] = b"holdfast statement v1\0";

/// Which network a statement is for. Stays when the root changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(pub [u8; 16]);

/// The cluster's number for a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u64);

impl std::fmt::Display for NodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What makes a key a member: until `not_after`, with these addresses and claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    pub node_id: NodeId,
    pub node_key: PublicKey,
    /// The node's own addresses, at least one; IPv4 first.
    pub addresses: Vec<IpAddr>,
    pub claims: Vec<IpNet>,
    pub issued_at: UnixTime,
    /// `None`: never ends.
    pub not_after: Option<UnixTime>,
}

/// What ends a membership before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removal {
    pub node_key: PublicKey,
    pub removed_at: UnixTime,
    /// By then every certificate that the key was given has ended; `None`: one never ends, or it was not said.
    pub until: Option<UnixTime>,
}

impl Removal {
    /// Whether it ends this membership: one that was issued later is another's beginning.
    pub fn ends(&self, membership: &Membership) -> bool {
        self.node_key == membership.node_key && self.removed_at >= membership.issued_at
    }
}

/// A statement whose signature was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    Membership(Membership),
    Removal(Removal),
    NextRoot(RootKey),
    /// Signed, of a kind that this code does not know.
    Unknown,
}

/// Why a signed statement is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    #[error("malformed statement: {0}")]
    Malformed(#[from] prost::DecodeError),
    #[error("the signature is not the cluster root's")]
    Signature,
    #[error("the statement is for another network")]
    Network,
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

impl Statement {
    /// Signs the statement; returns an encoded `Signed`.
    pub fn sign(&self, network: NetworkId, root: &RootSecret) -> Vec<u8> {
        let statement = wire::Statement { network_id: network.0.to_vec(), kind: self.to_wire() };
        Self::sign_bytes(statement.encode_to_vec(), root)
    }

    pub(crate) fn sign_bytes(statement: Vec<u8>, root: &RootSecret) -> Vec<u8> {
        let signature = root.sign(&[CONTEXT, &statement].concat()).to_vec();
        wire::Signed { statement, signature }.encode_to_vec()
    }

    /// Checks an encoded `Signed`.
    ///
    /// # Errors
    /// [`StatementError`]; the signature is checked before anything inside is looked at.
    pub fn verify(signed: &[u8], network: NetworkId, root: &RootKey) -> Result<Self, StatementError> {
        let signed = wire::Signed::decode(signed)?;
        let signature = fixed("signature", &signed.signature)?;
        if !root.verifies(&[CONTEXT, &signed.statement].concat(), &signature) {
            return Err(StatementError::Signature);
        }
        let (found, statement) = Self::decode(&signed.statement)?;
        if found != network {
            return Err(StatementError::Network);
        }
        Ok(statement)
    }

    /// Reads a `Signed` from a place that only ever holds verified ones, such as the agent's own checksummed cache.
    ///
    /// # Errors
    /// [`StatementError`], never `Signature`.
    pub fn trust(signed: &[u8]) -> Result<(NetworkId, Self), StatementError> {
        Self::decode(&wire::Signed::decode(signed)?.statement)
    }

    pub(crate) fn decode(statement: &[u8]) -> Result<(NetworkId, Self), StatementError> {
        use wire::statement::Kind;
        let statement = wire::Statement::decode(statement)?;
        let network = NetworkId(fixed("network id", &statement.network_id)?);
        let statement = match statement.kind {
            Some(Kind::Membership(membership)) => Statement::Membership(membership.try_into()?),
            Some(Kind::Removal(removal)) => Statement::Removal(Removal {
                node_key: PublicKey(fixed("node key", &removal.node_key)?),
                removed_at: UnixTime(removal.removed_unix_s),
                until: UnixTime::from_wire(removal.until_unix_s),
            }),
            Some(Kind::NextRoot(next)) => Statement::NextRoot(RootKey::from_bytes(&next.root)?),
            None => Statement::Unknown,
        };
        Ok((network, statement))
    }

    fn to_wire(&self) -> Option<wire::statement::Kind> {
        use wire::statement::Kind;
        Some(match self {
            Self::Membership(membership) => Kind::Membership(membership.to_wire()),
            Self::Removal(removal) => Kind::Removal(wire::Removal {
                node_key: removal.node_key.0.to_vec(),
                removed_unix_s: removal.removed_at.0,
                until_unix_s: UnixTime::to_wire(removal.until),
            }),
            Self::NextRoot(root) => Kind::NextRoot(wire::NextRoot { root: root.to_bytes().to_vec() }),
            Self::Unknown => return None,
        })
    }
}

impl Membership {
    fn to_wire(&self) -> wire::MembershipCertificate {
        wire::MembershipCertificate {
            node_id: self.node_id.0,
            node_key: self.node_key.0.to_vec(),
            addresses: self.addresses.iter().map(ToString::to_string).collect(),
            claims: self.claims.iter().map(ToString::to_string).collect(),
            issued_unix_s: self.issued_at.0,
            not_after_unix_s: UnixTime::to_wire(self.not_after),
        }
    }
}

impl TryFrom<wire::MembershipCertificate> for Membership {
    type Error = Invalid;

    fn try_from(wire: wire::MembershipCertificate) -> Result<Self, Invalid> {
        let addresses: Vec<IpAddr> = parse_all("address", &wire.addresses, 16)?;
        if addresses.is_empty() {
            return Err(Invalid::missing("addresses"));
        }
        Ok(Self {
            node_id: NodeId(wire.node_id),
            node_key: PublicKey(fixed("node key", &wire.node_key)?),
            addresses,
            claims: parse_all("claim", &wire.claims, 1024)?,
            issued_at: UnixTime(wire.issued_unix_s),
            not_after: UnixTime::from_wire(wire.not_after_unix_s),
        })
    }
}

fn parse_all<T: std::str::FromStr<Err: std::fmt::Display>>(
    field: &'static str,
    texts: &[String],
    limit: usize,
) -> Result<Vec<T>, Invalid> {
    if texts.len() > limit {
        return Err(Invalid::new(field, format_args!("{} entries, at most {limit}", texts.len())));
    }
    texts.iter().map(|text| text.parse().map_err(|error| Invalid::new(field, error))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::NodeSecret;

    const NETWORK: NetworkId = NetworkId([7; 16]);

    fn membership() -> Statement {
        Statement::Membership(Membership {
            node_id: NodeId(3),
            node_key: NodeSecret::generate().unwrap().public(),
            addresses: vec!["100.64.0.3".parse().unwrap(), "fd00::3".parse().unwrap()],
            claims: vec!["10.0.0.0/8".parse().unwrap()],
            issued_at: UnixTime(1_000),
            not_after: Some(UnixTime(2_000)),
        })
    }

    #[test]
    fn a_statement_survives_signing() {
        let root = RootSecret::generate().unwrap();
        let node_key = NodeSecret::generate().unwrap().public();
        let removal = Removal { node_key, removed_at: UnixTime(7), until: Some(UnixTime(9)) };
        let next = RootSecret::generate().unwrap().public();
        for statement in [membership(), Statement::Removal(removal), Statement::NextRoot(next)] {
            let signed = statement.sign(NETWORK, &root);
            assert_eq!(Statement::verify(&signed, NETWORK, &root.public()), Ok(statement.clone()));
            assert_eq!(Statement::trust(&signed), Ok((NETWORK, statement)));
        }
    }

    #[test]
    fn another_root_another_network_and_every_flipped_bit_are_refused() {
        let (root, other) = (RootSecret::generate().unwrap(), RootSecret::generate().unwrap());
        let signed = membership().sign(NETWORK, &root);
        assert_eq!(Statement::verify(&signed, NETWORK, &other.public()), Err(StatementError::Signature));
        assert_eq!(
            Statement::verify(&signed, NetworkId([8; 16]), &root.public()),
            Err(StatementError::Network)
        );
        for position in 0..signed.len() {
            let mut forged = signed.clone();
            forged[position] ^= 1;
            assert!(Statement::verify(&forged, NETWORK, &root.public()).is_err(), "byte {position}");
        }
    }

    #[test]
    fn a_certificate_without_an_address_is_refused() {
        let root = RootSecret::generate().unwrap();
        let Statement::Membership(mut inner) = membership() else { unreachable!() };
        inner.addresses.clear();
        let signed = Statement::Membership(inner).sign(NETWORK, &root);
        assert!(matches!(
            Statement::verify(&signed, NETWORK, &root.public()),
            Err(StatementError::Invalid(Invalid { field: "addresses", .. }))
        ));
    }
}
