//! A certificate authority of the lab, for databases that speak TLS.

use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// What signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Vec<u8>,
}

/// Where a certificate and its key were written.
#[derive(Clone, Debug)]
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key)?.der().to_vec();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// Writes what those need who are to believe it.
    pub fn write(&self, path: &Path) -> Result<()> {
        write(path, "CERTIFICATE", &self.certificate)
    }

    /// A certificate for who is reached at `address`, in files called `name` in `directory`.
    pub fn issue(&self, address: Ipv4Addr, directory: &Path, name: &str) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![address.to_string()])?.signed_by(&key, &self.issuer)?;
        let identity = Identity {
            certificate: directory.join(format!("{name}.crt")),
            key: directory.join(format!("{name}.key")),
        };
        write(&identity.certificate, "CERTIFICATE", certificate.der())?;
        write(&identity.key, "PRIVATE KEY", &key.serialize_der())?;
        Ok(identity)
    }
}

/// As PEM, for the owner alone: Postgres takes no key that others may read.
fn write(path: &Path, kind: &str, der: &[u8]) -> Result<()> {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    let pem = format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", lines.join("\n"));
    let file = std::fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(path);
    std::io::Write::write_all(&mut file?, pem.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))
}
