//! TLS towards the database, with libpq's meaning of the modes: `verify-full` verifies certificate and name, `verify-ca` the certificate alone.

use crate::store::{StoreError, postgres::target::Tls};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use std::{path::Path, sync::Arc};
use tokio_postgres_rustls::MakeRustlsConnect;

pub(crate) fn connector(tls: &Tls, location: &str) -> Result<MakeRustlsConnect, StoreError> {
    let provider = Arc::new(ring::default_provider());
    let failed = |reason: String| StoreError::failed(location, reason);
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(format!("cannot set up TLS: {error}")))?;
    let lenient = match tls {
        Tls::Verified(path) => {
            let roots = read_roots(path).map_err(failed)?;
            let config = builder.with_root_certificates(roots).with_no_client_auth();
            return Ok(MakeRustlsConnect::new(config));
        }
        Tls::Issued(path) => {
            let roots = Arc::new(read_roots(path).map_err(failed)?);
            let issued = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build();
            let issued = issued.map_err(|error| failed(format!("cannot set up TLS: {error}")))?;
            Lenient { issued: Some(issued), provider }
        }
        Tls::Unverified => Lenient { issued: None, provider },
    };
    let config =
        builder.dangerous().with_custom_certificate_verifier(Arc::new(lenient)).with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

fn read_roots(path: &Path) -> Result<RootCertStore, String> {
    read_certificates(path).map_err(|reason| format!("sslrootcert {}: {reason}", path.display()))
}

fn read_certificates(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())? {
        roots.add(certificate.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
    }
    match roots.is_empty() {
        true => Err("holds no certificate".to_owned()),
        false => Ok(roots),
    }
}

/// Verifies less than the library does: the certificate but not its name, or nothing.
#[derive(Debug)]
struct Lenient {
    /// Under whose roots a certificate has to be; `None`: whoever answers is believed.
    issued: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(issued) = &self.issued else { return Ok(ServerCertVerified::assertion()) };
        match issued.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // The name is looked at last: everything else is right.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
