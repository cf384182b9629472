//! TLS 1.3 identities. A server makes itself a certificate at start: [leaf, root], both Ed25519. The leaf's names carry what an agent must know before it
//! speaks: the server's id, and the X25519 key (as long-lived as the process) that session proofs are made for. Agents pin the root's fingerprint and ignore dates and host
//! names: nobody needs a certificate authority, nor a right clock.

use crate::{
    Invalid,
    auth::{ChannelBinding, EXPORTER_LABEL},
    hex,
    key::{NodeSecret, PublicKey},
    root::{Fingerprint, RootKey, RootSecret},
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
        "the server belongs to another cluster (root {0}); check the address, or the fingerprint in the setup key"
    )]
    OtherCluster(Fingerprint),
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

impl ServerIdentity {
    /// A fresh identity for a server process.
    ///
    /// # Errors
    /// [`IdentityError`]
    pub fn generate(root: &RootSecret, id: ServerId) -> Result<Self, IdentityError> {
        let session_secret = NodeSecret::generate()?;
        let root_der = ed25519_dalek::SigningKey::from_bytes(root.expose()).to_pkcs8_der()?;
        let root_der = PrivatePkcs8KeyDer::from(root_der.as_bytes());
        let root_pair = KeyPair::from_pkcs8_der_and_sign_algo(&root_der, &PKCS_ED25519)?;
        let mut root_params = CertificateParams::new(Vec::<String>::new())?;
        root_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root_params.distinguished_name.push(DnType::CommonName, "Holdfast root");
        let root_certificate = root_params.self_signed(&root_pair)?;

        let key = session_secret.public().0;
        let leaf_names = vec![
            format!("{id}{ID_SUFFIX}"),
            format!("{}.{}{KEY_SUFFIX}", hex::encode(&key[..16]), hex::encode(&key[16..])),
        ];
        let leaf_pair = KeyPair::generate_for(&PKCS_ED25519)?;
        let issuer = Issuer::new(root_params, root_pair);
        let leaf = CertificateParams::new(leaf_names)?.signed_by(&leaf_pair, &issuer)?;
        let leaf_key = PrivateKeyDer::Pkcs8(leaf_pair.serialize_der().into());
        let mut tls = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone(), root_certificate.der().clone()], leaf_key)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        // Resumption gains a few percent and keeps state per client.
        tls.send_tls13_tickets = 0;
        Ok(Self { tls: Arc::new(tls), session_secret })
    }
}

/// A client configuration that accepts the servers of one cluster.
///
/// # Errors
/// The cryptography provider does not support TLS 1.3.
pub fn client_config(pinned: Vec<Fingerprint>) -> Result<Arc<ClientConfig>, rustls::Error> {
    let verifier = PinnedRoot { pinned, provider: provider() };
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
    let [leaf, root] = chain else { return Err(NotOurs::NotHoldfast) };
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
    provider: Arc<CryptoProvider>,
}

impl PinnedRoot {
    fn verify(&self, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<(), NotOurs> {
        let [root] = intermediates else { return Err(NotOurs::NotHoldfast) };
        let facts = server_facts(&[leaf.clone(), root.clone()])?;
        let anchor = webpki::anchor_from_trusted_cert(root).map_err(|_| NotOurs::NotHoldfast)?;
        let end_entity = webpki::EndEntityCert::try_from(leaf).map_err(|_| NotOurs::NotHoldfast)?;
        end_entity
            .verify_for_usage(
                &[webpki::ring::ED25519],
                &[anchor],
                &[],
                ANY_TIME,
                webpki::KeyUsage::server_auth(),
                None,
                None,
            )
            .map_err(|_| NotOurs::NotHoldfast)?;
        let fingerprint = facts.root.fingerprint();
        self.pinned.contains(&fingerprint).then_some(()).ok_or(NotOurs::OtherCluster(fingerprint))
    }
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
    let verifier = PinnedRoot { pinned: Vec::new(), provider: provider() };
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
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
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

    #[test]
    fn a_leaf_that_the_root_did_not_sign_is_refused() {
        let (ours, theirs) = (RootSecret::generate().unwrap(), RootSecret::generate().unwrap());
        let chain = |root: &RootSecret| {
            let identity = ServerIdentity::generate(root, ID).unwrap();
            let config = client_config(vec![root.public().fingerprint()]).unwrap();
            handshake(config, identity.tls).unwrap().0.peer_certificates().unwrap().to_vec()
        };
        let (ours_chain, theirs_chain) = (chain(&ours), chain(&theirs));
        let verifier = PinnedRoot { pinned: vec![ours.public().fingerprint()], provider: provider() };
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
