//! The node's key: made once, never overwritten. A key file that cannot be read is a person's to judge: the key is the node's identity.

use super::files::{sync_directory, write_temporary};
use crate::platform;
use proto::key::NodeSecret;
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("the key file {} is damaged; it is left as it is. Restore it from a backup, or move it away: then this becomes a new node, which must enrol again", .0.display())]
    Damaged(PathBuf),
    #[error("cannot use the key file {}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("no key can be made: {0}")]
    Random(getrandom::Error),
}

pub(super) fn load_or_generate(directory: &Path) -> Result<NodeSecret, KeyError> {
    let path = directory.join("node.key");
    match fs::read(&path).map(Zeroizing::new) {
        Ok(content) => {
            let text = std::str::from_utf8(&content).map_err(|_| KeyError::Damaged(path.clone()))?;
            let secret = NodeSecret::from_text(text).map_err(|_| KeyError::Damaged(path.clone()))?;
            platform::make_private(&path).map_err(|source| KeyError::Io { path, source })?;
            Ok(secret)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => generate(&path),
        Err(source) => Err(KeyError::Io { path, source }),
    }
}

fn generate(path: &Path) -> Result<NodeSecret, KeyError> {
    let secret = NodeSecret::generate().map_err(KeyError::Random)?;
    let text = Zeroizing::new(format!("{}\n", secret.to_text().as_str()));
    write_new(path, text.as_bytes()).map_err(|source| KeyError::Io { path: path.to_owned(), source })?;
    Ok(secret)
}

/// A link, unlike a rename, fails where the file exists.
fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = write_temporary(path, content)?;
    fs::hard_link(&temporary, path)?;
    fs::remove_file(&temporary)?;
    sync_directory(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_then_stays() {
        let directory = tempfile::tempdir().unwrap();
        let first = load_or_generate(directory.path()).unwrap().public();
        assert_eq!(load_or_generate(directory.path()).unwrap().public(), first);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_key_is_refused_and_left_unchanged() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.key");
        for damage in [&b""[..], b"not a key", b"AAAA", b"\xff\xfe\x00", &[b'A'; 43]] {
            fs::write(&path, damage).unwrap();
            let error = load_or_generate(directory.path()).unwrap_err();
            assert!(matches!(error, KeyError::Damaged(_)), "{error}");
            assert_eq!(fs::read(&path).unwrap(), damage);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_key_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        load_or_generate(directory.path()).unwrap();
        let path = directory.path().join("node.key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        load_or_generate(directory.path()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
