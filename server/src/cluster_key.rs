//! The cluster key: a file, kept outside the database, under which the root is wrapped, so that a dump of the database is not the network.
//!
//! XChaCha20-Poly1305 under a key derived from the file's content (BLAKE2s-256 with a context), with a random nonce; the network's id and the root's public half
//! are bound as associated data, so that a wrapped root cannot be moved to another cluster.

use crate::{
    cluster::{Founding, Root, StoredRoot, WrappedRoot},
    private_file,
};
use blake2::{Blake2s256, Digest};
use chacha20poly1305::{
    AeadInPlace, KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use proto::{
    root::{RootKey, RootSecret},
    statement::NetworkId,
};
use std::{
    fs, io,
    io::{Read, Write},
    path::{Path, PathBuf},
};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

const DERIVATION: &[u8] = b"holdfast cluster key v1";
const CONTEXT: &[u8] = b"holdfast wrapped root v1\0";
const NONCE_BYTES: usize = 24;
/// Below this, what a person types, not what a random source gives: it would be guessed.
const SHORTEST_BYTES: usize = 32;
const LONGEST_BYTES: u64 = 4096;

/// The key that the root is wrapped under. Cleared on drop, never printed.
#[derive(Clone)]
pub struct ClusterKey {
    key: Key,
    /// For messages.
    path: PathBuf,
}

#[derive(Clone, Zeroize, ZeroizeOnDrop)]
struct Key([u8; 32]);

/// What a process may do with the root.
#[derive(Debug, Clone)]
pub enum RootAccess {
    /// It signs: it needs the secret, and the key where that is wrapped.
    Sign(Option<ClusterKey>),
    /// It takes the root as it is: wrapped, it signs nothing.
    AsFound,
}

/// The file cannot be used as a cluster key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("cannot read the cluster key {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error(
        "the cluster key {} can be read by others (mode {mode:03o}); make it its owner's alone: chmod 600 {}",
        path.display(), path.display()
    )]
    Open { path: PathBuf, mode: u32 },
    #[error(
        "the cluster key {} has {found} bytes, too few to be safe from guessing; make one with `server cluster-key create FILE`",
        path.display()
    )]
    Short { path: PathBuf, found: usize },
    #[error("the cluster key {} is larger than {LONGEST_BYTES} bytes: this is another file", path.display())]
    Long { path: PathBuf },
    #[error("cannot write the cluster key {}: {source}", path.display())]
    Unwritable { path: PathBuf, source: io::Error },
    #[error("{} exists; a cluster key is never overwritten: name another file", path.display())]
    Exists { path: PathBuf },
    #[error("the system has no random source: {0}")]
    Random(#[from] getrandom::Error),
}

/// The root cannot be used for signing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnlockError {
    #[error(
        "it is wrapped under a cluster key; name that key's file with --cluster-key FILE (or HOLDFAST_CLUSTER_KEY)"
    )]
    NeedsKey,
    #[error(
        "the cluster key {} does not open it; name the file that it was wrapped under", path.display()
    )]
    WrongKey { path: PathBuf },
    #[error(
        "it is not wrapped, but a cluster key was given ({}); wrap it with `server cluster-key wrap`, or leave --cluster-key out",
        path.display()
    )]
    NotWrapped { path: PathBuf },
}

impl ClusterKey {
    /// Reads the key.
    ///
    /// # Errors
    /// The file cannot be read, can be read by others, or is no cluster key.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        let path = path.to_owned();
        let unreadable = |source| KeyFileError::Unreadable { path: path.clone(), source };
        let file = fs::File::open(&path).map_err(unreadable)?;
        #[cfg(unix)]
        {
            let mode = std::os::unix::fs::MetadataExt::mode(&file.metadata().map_err(unreadable)?) & 0o777;
            if mode & 0o077 != 0 {
                return Err(KeyFileError::Open { path, mode });
            }
        }
        // As large as it may get: a growing buffer would leave copies behind.
        let mut content = Zeroizing::new(Vec::with_capacity(LONGEST_BYTES as usize + 1));
        file.take(LONGEST_BYTES + 1).read_to_end(&mut content).map_err(unreadable)?;
        if content.len() as u64 > LONGEST_BYTES {
            return Err(KeyFileError::Long { path });
        }
        // Editors end a file with a line feed.
        let trimmed = content.trim_ascii();
        if trimmed.len() < SHORTEST_BYTES {
            return Err(KeyFileError::Short { path, found: trimmed.len() });
        }
        let key = Blake2s256::new().chain_update(DERIVATION).chain_update(trimmed).finalize();
        Ok(Self { key: Key(key.into()), path })
    }

    /// Writes a new random key to a file that there is not yet, readable by its owner alone.
    ///
    /// # Errors
    /// The file exists or cannot be written, or the system has no random source.
    pub fn create(path: &Path) -> Result<(), KeyFileError> {
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(bytes.as_mut())?;
        let mut text = Zeroizing::new(String::with_capacity(80));
        text.push_str("holdfast-cluster-key-");
        base64::Engine::encode_string(
            &base64::engine::general_purpose::URL_SAFE_NO_PAD,
            bytes.as_slice(),
            &mut text,
        );
        text.push('\n');
        let path = path.to_owned();
        write_new(&path, text.as_bytes()).map_err(|source| {
            match source.kind() == io::ErrorKind::AlreadyExists {
                true => KeyFileError::Exists { path },
                false => KeyFileError::Unwritable { path, source },
            }
        })
    }

    /// # Errors
    /// The system has no random source.
    pub fn wrap(&self, network: NetworkId, root: &RootSecret) -> Result<WrappedRoot, getrandom::Error> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce)?;
        let public = root.public();
        // With room for the tag: what is encrypted in place leaves no copy of the seed.
        let mut sealed = Vec::with_capacity(64);
        sealed.extend_from_slice(root.expose());
        self.cipher()
            .encrypt_in_place(XNonce::from_slice(&nonce), &associated(network, &public), &mut sealed)
            .expect("a seed is not too long to be encrypted");
        Ok(WrappedRoot { public, sealed: [&nonce[..], &sealed].concat() })
    }

    /// # Errors
    /// [`UnlockError::WrongKey`]
    pub fn unwrap(&self, network: NetworkId, wrapped: &WrappedRoot) -> Result<RootSecret, UnlockError> {
        let wrong = || UnlockError::WrongKey { path: self.path.clone() };
        let (nonce, msg) = wrapped.sealed.split_at_checked(NONCE_BYTES).ok_or_else(wrong)?;
        let payload = Payload { msg, aad: &associated(network, &wrapped.public) };
        let seed = self.cipher().decrypt(XNonce::from_slice(nonce), payload).map_err(|_| wrong())?;
        let seed = Zeroizing::new(seed);
        let seed = seed.as_slice().try_into().map_err(|_| wrong())?;
        Some(RootSecret::from_seed(seed)).filter(|root| root.public() == wrapped.public).ok_or_else(wrong)
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&self.key.0).into())
    }
}

fn associated(network: NetworkId, public: &RootKey) -> Vec<u8> {
    [CONTEXT, &network.0, &public.to_bytes()].concat()
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = private_file::create_new(path)?;
    file.write_all(content)?;
    file.sync_all()?;
    private_file::sync_directory(path)
}

impl std::fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} [redacted]", self.path.display())
    }
}

impl RootAccess {
    /// The root of `founding`, for this process. `known`: what it has already. Whoever has the secret keeps it, whatever becomes of
    /// the stored one: wrapping it does not stop servers that run.
    pub(crate) fn unlock(&self, founding: &Founding, known: Option<&Root>) -> Result<Root, UnlockError> {
        if let Some(secret) = known.and_then(Root::secret)
            && secret.public() == founding.root.public()
        {
            return Ok(Root::Secret(secret.clone()));
        }
        match (self, &founding.root) {
            (Self::Sign(None), StoredRoot::Wrapped(_)) => Err(UnlockError::NeedsKey),
            (Self::Sign(Some(key)), StoredRoot::Plain(_)) => {
                Err(UnlockError::NotWrapped { path: key.path.clone() })
            }
            (Self::Sign(Some(key)), StoredRoot::Wrapped(wrapped)) => {
                key.unwrap(founding.network_id, wrapped).map(Root::Secret)
            }
            (Self::Sign(None) | Self::AsFound, stored) => Ok(stored.clone().into()),
        }
    }

    /// A new cluster's root as it goes into the database.
    ///
    /// # Errors
    /// The system has no random source.
    pub(crate) fn stored(
        &self,
        network: NetworkId,
        root: RootSecret,
    ) -> Result<StoredRoot, getrandom::Error> {
        match self {
            Self::Sign(Some(key)) => key.wrap(network, &root).map(StoredRoot::Wrapped),
            Self::Sign(None) | Self::AsFound => Ok(StoredRoot::Plain(root)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETWORK: NetworkId = NetworkId([7; 16]);

    fn key() -> (tempfile::TempDir, ClusterKey) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cluster.key");
        ClusterKey::create(&path).unwrap();
        let key = ClusterKey::read(&path).unwrap();
        (directory, key)
    }

    #[test]
    fn a_wrapped_root_is_opened_by_its_key_in_its_network_alone() {
        let ((directory, key), (_other, other)) = (key(), key());
        let root = RootSecret::generate().unwrap();
        let wrapped = key.wrap(NETWORK, &root).unwrap();
        assert!(!wrapped.sealed.windows(32).any(|window| window == root.expose()));
        assert_ne!(key.wrap(NETWORK, &root).unwrap().sealed, wrapped.sealed, "the nonce is new each time");
        let again = ClusterKey::read(&directory.path().join("cluster.key")).unwrap();
        assert_eq!(again.unwrap(NETWORK, &wrapped).unwrap().expose(), root.expose());
        assert!(matches!(other.unwrap(NETWORK, &wrapped), Err(UnlockError::WrongKey { .. })));
        assert!(key.unwrap(NetworkId([8; 16]), &wrapped).is_err());
        for position in 0..wrapped.sealed.len() {
            let mut forged = wrapped.clone();
            forged.sealed[position] ^= 1;
            assert!(key.unwrap(NETWORK, &forged).is_err(), "byte {position}");
        }
        for length in 0..wrapped.sealed.len() {
            let cut = WrappedRoot { sealed: wrapped.sealed[..length].to_vec(), ..wrapped.clone() };
            assert!(key.unwrap(NETWORK, &cut).is_err(), "{length} bytes");
        }
        let renamed = WrappedRoot { public: RootSecret::generate().unwrap().public(), ..wrapped };
        assert!(key.unwrap(NETWORK, &renamed).is_err());
    }

    #[test]
    fn a_line_feed_at_the_end_is_no_part_of_the_key() {
        let (directory, key) = key();
        let path = directory.path().join("cluster.key");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{}\r\n\n", text.trim())).unwrap();
        let wrapped = key.wrap(NETWORK, &RootSecret::generate().unwrap()).unwrap();
        assert!(ClusterKey::read(&path).unwrap().unwrap(NETWORK, &wrapped).is_ok());
    }

    #[test]
    fn what_is_no_safe_key_file_is_refused_with_what_to_do() {
        let (directory, _) = key();
        let path = |name: &str| directory.path().join(name);
        let write = |name: &str, content: &[u8]| write_new(&path(name), content).unwrap();
        write("short", b"correct horse\n");
        write("long", &[b'x'; 5000]);
        for (name, word) in
            [("none", "cannot read"), ("short", "cluster-key create"), ("long", "another file")]
        {
            let error = ClusterKey::read(&path(name)).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(name), "{error}");
        }
        let error = ClusterKey::create(&path("cluster.key")).unwrap_err();
        assert!(matches!(error, KeyFileError::Exists { .. }), "{error}");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let file = path("cluster.key");
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
            fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
            let error = ClusterKey::read(&file).unwrap_err().to_string();
            assert!(error.contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn who_has_the_secret_keeps_it_whatever_becomes_of_the_stored_one() {
        let (_directory, key) = key();
        let mut founding = Founding::generate().unwrap();
        let sign = RootAccess::Sign(None);
        let known = sign.unlock(&founding, None).unwrap();
        let with_key = RootAccess::Sign(Some(key.clone()));
        assert!(matches!(with_key.unlock(&founding, None), Err(UnlockError::NotWrapped { .. })));
        let secret = known.secret().unwrap();
        founding.root = StoredRoot::Wrapped(key.wrap(founding.network_id, secret).unwrap());
        assert_eq!(sign.unlock(&founding, None).unwrap_err(), UnlockError::NeedsKey);
        assert!(sign.unlock(&founding, Some(&known)).unwrap().secret().is_some());
        assert!(with_key.unlock(&founding, None).unwrap().secret().is_some());
        assert!(RootAccess::AsFound.unlock(&founding, None).unwrap().secret().is_none());
    }

    #[test]
    fn nothing_secret_is_printed() {
        let (directory, key) = key();
        let text = fs::read_to_string(directory.path().join("cluster.key")).unwrap();
        let root = RootSecret::generate().unwrap();
        let shown =
            format!("{key:?} {:?} {:?}", RootAccess::Sign(Some(key.clone())), StoredRoot::Plain(root));
        assert!(!shown.contains(text.trim()) && shown.contains("[redacted]"), "{shown}");
    }
}
