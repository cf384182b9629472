//! Where a capture goes: a file that was not there before, for this user alone, or standard output.

use super::size::Size;
use crate::{cli::failure::Failure, platform};
use anyhow::{Context as _, anyhow};
use std::{
    io::{self, ErrorKind, IsTerminal},
    path::{Path, PathBuf},
};
use tokio::{
    fs::File,
    io::{AsyncWriteExt, Stdout},
};

/// As asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    File { path: PathBuf, force: bool },
    Stdout,
}

/// As opened.
pub(super) enum Target {
    File {
        path: PathBuf,
        file: File,
        /// Of whole blocks.
        written: u64,
    },
    Stdout(Stdout),
}

impl Place {
    /// `-` or nothing is standard output, which must not be a terminal.
    pub(super) fn choose(write: Option<&Path>, force: bool) -> Result<Self, Failure> {
        match write.filter(|path| *path != Path::new("-")) {
            Some(path) => Ok(Self::File { path: path.to_owned(), force }),
            None if io::stdout().is_terminal() => Err(Failure::Usage(anyhow!(
                "a capture is nothing for a terminal: give --write FILE, or pipe it, as in `agent debug capture | wireshark -k -i -`"
            ))),
            None => Ok(Self::Stdout),
        }
    }

    /// Fails early where [`Place::open`] would.
    pub(super) fn check(&self) -> Result<(), Failure> {
        match self {
            Self::File { path, force: false } if path.symlink_metadata().is_ok() => Err(exists(path)),
            Self::File { .. } | Self::Stdout => Ok(()),
        }
    }

    pub(super) fn open(&self) -> Result<Target, Failure> {
        let Self::File { path, force } = self else { return Ok(Target::Stdout(tokio::io::stdout())) };
        if *force && path.symlink_metadata().is_ok_and(|found| !found.is_dir()) {
            std::fs::remove_file(path).with_context(|| cannot(path)).map_err(Failure::Failed)?;
        }
        match platform::create_new_private_file(path) {
            Ok(file) => Ok(Target::File { path: path.clone(), file: File::from_std(file), written: 0 }),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(exists(path)),
            Err(error) => Err(Failure::Failed(anyhow::Error::new(error).context(cannot(path)))),
        }
    }
}

fn exists(path: &Path) -> Failure {
    Failure::Failed(anyhow!("{} exists: choose another name, or give --force to replace it", path.display()))
}

fn cannot(path: &Path) -> String {
    format!("{} cannot be written", path.display())
}

impl Target {
    /// Writes whole blocks.
    pub(super) async fn write(&mut self, blocks: &[u8]) -> Result<(), Failure> {
        let done = match self {
            Self::File { file, .. } => write_to(file, blocks).await,
            Self::Stdout(stdout) => write_to(stdout, blocks).await,
        };
        match (done, self) {
            (Ok(()), Self::File { written, .. }) => *written += blocks.len() as u64,
            (Ok(()), Self::Stdout(_)) => {}
            (Err(error), Self::File { path, file, written }) => {
                // Half a block would spoil what is there.
                let _ = file.set_len(*written).await;
                let kept = format!("{}; its first {} are good", cannot(path), Size(*written));
                return Err(Failure::Failed(anyhow::Error::new(error).context(kept)));
            }
            // Whoever read may have seen enough.
            (Err(error), Self::Stdout(_)) => return Err(error.into()),
        }
        Ok(())
    }
}

async fn write_to(out: &mut (impl AsyncWriteExt + Unpin), blocks: &[u8]) -> io::Result<()> {
    out.write_all(blocks).await?;
    out.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &Path, force: bool) -> Place {
        Place::File { path: path.to_owned(), force }
    }

    #[tokio::test]
    async fn a_file_is_made_for_its_owner_and_replaced_only_if_asked_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("capture");
        let mut target = file(&path, false).open().unwrap();
        target.write(b"blocks").await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"blocks");
        let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        for refused in [file(&path, false).check().err(), file(&path, false).open().err()] {
            assert!(refused.unwrap().to_string().contains("--force"));
        }
        drop(file(&path, true).open().unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }

    #[tokio::test]
    async fn a_link_is_replaced_and_never_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (precious, path) = (directory.path().join("precious"), directory.path().join("capture"));
        std::fs::write(&precious, "kept").unwrap();
        std::os::unix::fs::symlink(&precious, &path).unwrap();
        assert!(file(&path, false).open().is_err());
        file(&path, true).open().unwrap().write(b"blocks").await.unwrap();
        assert_eq!(std::fs::read(&precious).unwrap(), b"kept");
    }

    #[tokio::test]
    async fn a_full_disk_is_told() {
        let file = File::from_std(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
        let mut target = Target::File { path: "some/file".into(), file, written: 12 };
        let said = target.write(b"blocks").await.unwrap_err().to_string();
        assert!(
            said.contains("some/file") && said.contains("No space left") && said.contains("12 bytes"),
            "{said}"
        );
    }
}
