//! TLS 1.3 identities. A server makes itself a certificate at start: [leaf, root], both Ed25519. The leaf's names carry what an agent must know before it
//! speaks: the server's id, and the X25519 key (as long-lived as the process) that session proofs are made for. Agents pin the root's fingerprint and ignore dates and host
//! names: nobody needs a certificate authority, nor a right clock.
//!
//! Where the root was changed, links to the former roots follow, newest first: the newer root under the former, and the former itself. So an agent that pins a
//! former root, or a setup key made under it, knows the servers until that root is retired.

use crate::{
    Invalid,
    auth::{ChannelBinding, EXPORTER_LABEL},
    hex,
    key::{NodeSecret, PublicKey},
    root::{Fingerprint, RootKey, RootSecret},
    root_list::MAX_ROOTS,
    session::ServerId,
};
use ed25519_dalek::pkcs8::EncodePrivateKey;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ED25519};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring::cipher_suite, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
};
use std::{sync::Arc, time::Duration};

const ID_SUFFIX: &str = ".id.holdfast.internal";
const KEY_SUFFIX: &str = ".key.holdfast.internal";
/// Certificates are not judged by time; webpki wants one all the same. 2025-01-01.
const ANY_TIME: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1_735_689_600));

/// What a server process answers with.
#[derive(Debug)]
pub struct ServerIdentity {
    pub tls: Arc<ServerConfig>,
    /// The key that session proofs are made for.
    pub session_secret: NodeSecret,
}

/// What an agent reads from the certificate of a server it verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerFacts {
    pub id: ServerId,
    pub session_key: PublicKey,
    pub root: RootKey,
}

/// Why a server is not one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotOurs {
    #[error(
        "the server belongs to another cluster (root {0}), or the root trusted here was retired there; check the address, or take a new setup key"
    )]
    OtherCluster(Fingerprint),
    #[error(
        "the server has root {found}, which this cluster replaced by {known}: it has not heard of the change yet, or its database is older; if that goes on, give it a newer copy of the database"
    )]
    FormerRoot { found: Fingerprint, known: Fingerprint },
    #[error(
        "its certificate is not a Holdfast server's: something else answers, or a proxy terminates TLS (let it pass TCP through)"
    )]
    NotHoldfast,
}

/// A server identity cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("no random source: {0}")]
    Random(#[from] getrandom::Error),
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("cannot use the root's key: {0}")]
    Key(#[from] ed25519_dalek::pkcs8::Error),
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// AES-128 first: ring's SHA-384 costs a tenth of a handshake.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
    ];
    Arc::new(provider)
}

/// What leads from a former root to the next, made while there is the former's secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootLink {
    /// The next root under the former: a certificate, DER.
    pub next: Vec<u8>,
    /// The former itself.
    pub former: Vec<u8>,
}

impl RootLink {
    /// # Errors
    /// [`IdentityError`]
    pub fn generate(former: &RootSecret, next: &RootSecret) -> Result<Self, IdentityError> {
        let (params, pair) = authority(former)?;
        let certificate = params.self_signed(&pair)?;
        let (next_params, next_pair) = authority(next)?;
        let next = next_params.signed_by(&next_pair, &Issuer::new(params, pair))?;
        Ok(Self { next: next.der().to_vec(), former: certificate.der().to_vec() })
    }
}

/// A root as one that certifies. Its name is of its own, so that chains are found without trying.
fn authority(root: &RootSecret) -> Result<(CertificateParams, KeyPair), IdentityError> {
    let der = ed25519_dalek::SigningKey::from_bytes(root.expose()).to_pkcs8_der()?;
    let der = PrivatePkcs8KeyDer::from(der.as_bytes());
    let pair = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519)?;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let name = format!("Holdfast root {}", root.public().fingerprint());
    params.distinguished_name.push(DnType::CommonName, name);
    Ok((params, pair))
}

impl ServerIdentity {
    /// A fresh identity for a server process.
    ///
    /// # Errors
    /// [`IdentityError`]
    pub fn generate(root: &RootSecret, id: ServerId) -> Result<Self, IdentityError> {
        let session_secret = NodeSecret::generate()?;
        let tls = server_config(root, id, &session_secret.public(), &[])?;
        Ok(Self { tls, session_secret })
    }
}

/// What a server process answers with, under a root. `links` lead to the former ones, newest first.
///
/// # Errors
/// [`IdentityError`]
pub fn server_config(
    root: &RootSecret,
    id: ServerId,
    session_key: &PublicKey,
    links: &[RootLink],
) -> Result<Arc<ServerConfig>, IdentityError> {
    let (params, pair) = authority(root)?;
    let root_certificate = params.self_signed(&pair)?;
    let key = session_key.0;
    let leaf_names = vec![
        format!("{id}{ID_SUFFIX}"),
        format!("{}.{}{KEY_SUFFIX}", hex::encode(&key[..16]), hex::encode(&key[16..])),
    ];
    let leaf_pair = KeyPair::generate_for(&PKCS_ED25519)?;
    let leaf = CertificateParams::new(leaf_names)?.signed_by(&leaf_pair, &Issuer::new(params, pair))?;
    let leaf_key = PrivateKeyDer::Pkcs8(leaf_pair.serialize_der().into());
    let mut chain = vec![leaf.der().clone(), root_certificate.der().clone()];
    chain.extend(links.iter().flat_map(|link| [link.next.clone().into(), link.former.clone().into()]));
    let mut tls = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, leaf_key)?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    // Resumption gains a few percent and keeps state per client.
    tls.send_tls13_tickets = 0;
    Ok(Arc::new(tls))
}

/// A client configuration that accepts the servers of one cluster.
///
/// # Errors
/// The cryptography provider does not support TLS 1.3.
pub fn client_config(pinned: Vec<Fingerprint>) -> Result<Arc<ClientConfig>, rustls::Error> {
    client_config_after(pinned, Vec::new())
}

/// As [`client_config`], where the roots in `former` were replaced: a server that has one of them is named as that.
///
/// # Errors
/// As there.
pub fn client_config_after(
    pinned: Vec<Fingerprint>,
    former: Vec<Fingerprint>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let verifier = PinnedRoot { pinned, former, provider: provider() };
    let mut tls = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(tls))
}

/// The name of a host, for balancers that route by it (SNI); that of an address is not sent. Servers take any, and agents check none.
pub fn host_name(host: &str) -> ServerName<'static> {
    match ServerName::try_from(host) {
        Ok(name @ ServerName::DnsName(_)) => name.to_owned(),
        Ok(_) | Err(_) => server_name(),
    }
}

/// The name that a client gives to rustls, which wants one; it is neither sent nor checked.
pub fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
}

/// The channel binding of a client's connection.
///
/// # Errors
/// The handshake is not complete.
pub fn client_binding(connection: &rustls::ClientConnection) -> Result<ChannelBinding, rustls::Error> {
    connection.export_keying_material([0; 32], EXPORTER_LABEL, None).map(ChannelBinding)
}

/// The channel binding of a server's connection.
///
/// # Errors
/// The handshake is not complete.
pub fn server_binding(connection: &rustls::ServerConnection) -> Result<ChannelBinding, rustls::Error> {
    connection.export_keying_material([0; 32], EXPORTER_LABEL, None).map(ChannelBinding)
}

/// Reads the certificates of a server that passed verification.
///
/// # Errors
/// [`NotOurs::NotHoldfast`]
pub fn server_facts(chain: &[CertificateDer<'_>]) -> Result<ServerFacts, NotOurs> {
    let [leaf, root, ..] = chain else { return Err(NotOurs::NotHoldfast) };
    let leaf = webpki::EndEntityCert::try_from(leaf).map_err(|_| NotOurs::NotHoldfast)?;
    let (mut id, mut session_key) = (None, None);
    for name in leaf.valid_dns_names() {
        if let Some(text) = name.strip_suffix(ID_SUFFIX) {
            id = text.parse().ok();
        } else if let Some((front, back)) =
            name.strip_suffix(KEY_SUFFIX).and_then(|text| text.split_once('.'))
        {
            session_key = hex::decode(&format!("{front}{back}")).map(PublicKey);
        }
    }
    match (id, session_key) {
        (Some(id), Some(session_key)) => Ok(ServerFacts { id, session_key, root: root_key(root)? }),
        (_, _) => Err(NotOurs::NotHoldfast),
    }
}

fn root_key(root: &CertificateDer<'_>) -> Result<RootKey, NotOurs> {
    let anchor = webpki::anchor_from_trusted_cert(root).map_err(|_| NotOurs::NotHoldfast)?;
    // SubjectPublicKeyInfo of Ed25519 (RFC 8410): the algorithm, then a bit string whose last 32 bytes are the key.
    let info = anchor.subject_public_key_info.as_ref();
    let key = info.len().checked_sub(32).map(|start| &info[start..]).ok_or(NotOurs::NotHoldfast)?;
    RootKey::from_bytes(key).map_err(|_: Invalid| NotOurs::NotHoldfast)
}

#[derive(Debug)]
struct PinnedRoot {
    pinned: Vec<Fingerprint>,
    /// What was pinned earlier.
    former: Vec<Fingerprint>,
    provider: Arc<CryptoProvider>,
}

impl PinnedRoot {
    fn verify(&self, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<(), NotOurs> {
        let [root, links @ ..] = intermediates else { return Err(NotOurs::NotHoldfast) };
        if links.len() > 2 * (MAX_ROOTS - 1) {
            return Err(NotOurs::NotHoldfast);
        }
        let facts = server_facts(&[leaf.clone(), root.clone()])?;
        verify_under(root, leaf, &[])?;
        let found = facts.root.fingerprint();
        if self.pinned.contains(&found) {
            return Ok(());
        }
        let mut newer = Vec::new();
        for link in links.chunks_exact(2) {
            newer.push(link[0].clone());
            if self.pinned.contains(&root_key(&link[1])?.fingerprint()) {
                return verify_under(&link[1], leaf, &newer);
            }
        }
        match self.pinned.first() {
            Some(known) if self.former.contains(&found) => Err(NotOurs::FormerRoot { found, known: *known }),
            Some(_) | None => Err(NotOurs::OtherCluster(found)),
        }
    }
}

fn verify_under(
    root: &CertificateDer<'_>,
    leaf: &CertificateDer<'_>,
    between: &[CertificateDer<'_>],
) -> Result<(), NotOurs> {
    let anchor = webpki::anchor_from_trusted_cert(root).map_err(|_| NotOurs::NotHoldfast)?;
    let leaf = webpki::EndEntityCert::try_from(leaf).map_err(|_| NotOurs::NotHoldfast)?;
    let (algorithms, usage) = ([webpki::ring::ED25519], webpki::KeyUsage::server_auth());
    let verified =
        leaf.verify_for_usage(&algorithms, &[anchor], between, ANY_TIME, usage, None, None).map(|_| ());
    verified.map_err(|_| NotOurs::NotHoldfast)
}

impl ServerCertVerifier for PinnedRoot {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let other = |error| CertificateError::Other(OtherError(Arc::new(error)));
        self.verify(end_entity, intermediates).map_err(other)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// All that an agent reads of a chain before it believes any of it.
#[doc(hidden)]
pub fn verify_chain(chain: &[CertificateDer<'_>]) {
    let Some((leaf, intermediates)) = chain.split_first() else { return };
    let verifier = PinnedRoot { pinned: Vec::new(), former: Vec::new(), provider: provider() };
    // Nothing is pinned, so nothing can be ours.
    assert!(verifier.verify(leaf, intermediates).is_err());
}

/// The reason of [`NotOurs`] inside a failed handshake's error, if it is that.
pub fn not_ours(error: &rustls::Error) -> Option<NotOurs> {
    let rustls::Error::InvalidCertificate(CertificateError::Other(other)) = error else { return None };
    other.0.downcast_ref::<NotOurs>().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{ClientConnection, ServerConnection};

    const ID: ServerId = ServerId([5; 16]);

    fn handshake(
        client: Arc<ClientConfig>,
        server: Arc<ServerConfig>,
    ) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
        let mut client = ClientConnection::new(client, server_name())?;
        let mut server = ServerConnection::new(server)?;
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            let mut unread = wire.as_slice();
            while !unread.is_empty() {
                server.read_tls(&mut unread).unwrap();
                server.process_new_packets()?;
            }
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            let mut unread = wire.as_slice();
            while !unread.is_empty() {
                client.read_tls(&mut unread).unwrap();
                client.process_new_packets()?;
            }
        }
        Ok((client, server))
    }

    #[test]
    fn both_ends_share_a_binding_and_the_agent_learns_who_answers() {
        let root = RootSecret::generate().unwrap();
        let identity = ServerIdentity::generate(&root, ID).unwrap();
        let config = client_config(vec![root.public().fingerprint()]).unwrap();
        let (client, server) = handshake(config.clone(), identity.tls.clone()).unwrap();
        assert_eq!(client_binding(&client).unwrap(), server_binding(&server).unwrap());
        let facts = server_facts(client.peer_certificates().unwrap()).unwrap();
        let session_key = identity.session_secret.public();
        assert_eq!(facts, ServerFacts { id: ID, session_key, root: root.public() });
        let (again, _) = handshake(config, identity.tls).unwrap();
        assert_ne!(client_binding(&client).unwrap(), client_binding(&again).unwrap());
    }

    #[test]
    fn the_name_of_a_host_is_sent_and_an_address_is_not() {
        let sent = |host: &str| {
            let config = client_config(Vec::new()).unwrap();
            let mut client = ClientConnection::new(config, host_name(host)).unwrap();
            let mut acceptor = rustls::server::Acceptor::default();
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            acceptor.read_tls(&mut wire.as_slice()).unwrap();
            let accepted = acceptor.accept().ok().flatten().unwrap();
            accepted.client_hello().server_name().map(str::to_owned)
        };
        assert_eq!(sent("vpn1.example.com").as_deref(), Some("vpn1.example.com"));
        assert_eq!(sent("192.0.2.1"), None);
        assert_eq!(sent("2001:db8::1"), None);
    }

    #[test]
    fn a_server_of_another_cluster_is_named_as_that() {
        let (ours, theirs) = (RootSecret::generate().unwrap(), RootSecret::generate().unwrap());
        let identity = ServerIdentity::generate(&theirs, ID).unwrap();
        let config = client_config(vec![ours.public().fingerprint()]).unwrap();
        let error = handshake(config, identity.tls).unwrap_err();
        assert_eq!(not_ours(&error), Some(NotOurs::OtherCluster(theirs.public().fingerprint())));
    }

    fn verifier(pinned: &[&RootSecret], former: &[&RootSecret]) -> PinnedRoot {
        let fingerprints =
            |roots: &[&RootSecret]| roots.iter().map(|root| root.public().fingerprint()).collect();
        PinnedRoot { pinned: fingerprints(pinned), former: fingerprints(former), provider: provider() }
    }

    /// The chain of a server under the last of these roots.
    fn chain(roots: &[&RootSecret]) -> Vec<CertificateDer<'static>> {
        let links = roots.windows(2).rev().map(|pair| RootLink::generate(pair[0], pair[1]).unwrap());
        let links: Vec<_> = links.collect();
        let root = roots.last().unwrap();
        let tls = server_config(root, ID, &PublicKey([3; 32]), &links).unwrap();
        let client = client_config(vec![root.public().fingerprint()]).unwrap();
        handshake(client, tls).unwrap().0.peer_certificates().unwrap().to_vec()
    }

    #[test]
    fn who_pins_a_former_root_knows_the_servers_until_it_is_retired() {
        let roots = [1, 2, 3].map(|seed| RootSecret::from_seed(&[seed; 32]));
        let [first, second, third] = &roots;
        let after_two = chain(&[first, second, third]);
        for pinned in &roots {
            assert_eq!(verifier(&[pinned], &[]).verify(&after_two[0], &after_two[1..]), Ok(()));
        }
        assert_eq!(server_facts(&after_two).unwrap().root, third.public());
        let retired = chain(&[second, third]);
        assert_eq!(verifier(&[second], &[]).verify(&retired[0], &retired[1..]), Ok(()));
        let other = NotOurs::OtherCluster(third.public().fingerprint());
        assert_eq!(verifier(&[first], &[]).verify(&retired[0], &retired[1..]), Err(other));
    }

    #[test]
    fn every_one_of_as_many_roots_as_may_be_leads_to_the_newest() {
        let roots: Vec<_> = (0..MAX_ROOTS).map(|n| RootSecret::from_seed(&[n as u8 + 1; 32])).collect();
        let of_all = chain(&roots.iter().collect::<Vec<_>>());
        for pinned in &roots {
            assert_eq!(verifier(&[pinned], &[]).verify(&of_all[0], &of_all[1..]), Ok(()));
        }
    }

    #[test]
    fn who_knows_a_newer_root_is_not_led_back_to_a_former() {
        let (old, new) = (RootSecret::from_seed(&[1; 32]), RootSecret::from_seed(&[2; 32]));
        let before = chain(&[&old]);
        let [found, known] = [&old, &new].map(|root| root.public().fingerprint());
        let refused = verifier(&[&new], &[&old]).verify(&before[0], &before[1..]);
        assert_eq!(refused, Err(NotOurs::FormerRoot { found, known }));
        assert!(refused.unwrap_err().to_string().contains("has not heard of the change yet"));
    }

    #[test]
    fn a_link_that_the_former_root_did_not_make_leads_nowhere() {
        let (ours, thief, next) = (
            RootSecret::from_seed(&[1; 32]),
            RootSecret::from_seed(&[2; 32]),
            RootSecret::from_seed(&[3; 32]),
        );
        let mut forged = chain(&[&thief, &next]);
        forged[3] = chain(&[&ours])[1].clone();
        assert_eq!(verifier(&[&ours], &[]).verify(&forged[0], &forged[1..]), Err(NotOurs::NotHoldfast));
    }

    #[test]
    fn a_leaf_that_the_root_did_not_sign_is_refused() {
        let (ours, theirs) = (RootSecret::generate().unwrap(), RootSecret::generate().unwrap());
        let (ours_chain, theirs_chain) = (chain(&[&ours]), chain(&[&theirs]));
        let verifier = verifier(&[&ours], &[]);
        assert_eq!(verifier.verify(&ours_chain[0], &ours_chain[1..]), Ok(()));
        assert_eq!(verifier.verify(&theirs_chain[0], &ours_chain[1..]), Err(NotOurs::NotHoldfast));
    }

    #[test]
    fn a_certificate_of_something_else_is_told_apart() {
        let certified = rcgen::generate_simple_self_signed(vec!["vpn.example.com".into()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(certified.signing_key.serialize_der().into());
        let mut tls = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let config = client_config(vec![RootSecret::generate().unwrap().public().fingerprint()]).unwrap();
        let verifier = handshake(config, Arc::new(tls)).unwrap_err();
        // An ECDSA server finds no signature scheme in common: refused before its certificate is looked at.
        assert!(not_ours(&verifier).is_none_or(|reason| reason == NotOurs::NotHoldfast));
    }
}
