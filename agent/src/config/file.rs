//! The TOML file: the options of `up`, and `state-dir`, `interface` and `setup-key`. Unknown keys are errors.

use super::Options;
use crate::platform;
use serde::{Deserialize, de::IntoDeserializer};
use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Read where no other is named.
const DEFAULT_PATH: &str = "/etc/holdfast/agent.toml";

#[derive(Debug, Default, PartialEq)]
pub(crate) struct File {
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) interface: Option<String>,
    pub(crate) setup_key: Option<String>,
    pub(crate) options: Options,
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}: {reason}")]
    Content { path: PathBuf, reason: String },
    #[error(
        "{} names commands to run, and others may change it or its directory: give both to root, and take their leave to write (chmod go-w)", .0.display()
    )]
    OpenToOthers(PathBuf),
}

impl File {
    /// Reads `path`, or the default file if it exists.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, FileError> {
        let named = path.is_some();
        let path = path.unwrap_or(Path::new(DEFAULT_PATH)).to_owned();
        match read(&path) {
            Ok((text, file)) => Self::check(&text, &file, path),
            Err(error) if !named && error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(FileError::Read { path, source }),
        }
    }

    fn check(text: &str, opened: &fs::File, path: PathBuf) -> Result<Self, FileError> {
        let file = match Self::parse(text) {
            Ok(file) => file,
            Err(error) => return Err(FileError::Content { reason: reason(&error, text), path }),
        };
        // What cannot be looked at is not believed.
        match file.options.has_commands() && platform::is_others_to_write(opened, &path).unwrap_or(true) {
            true => Err(FileError::OpenToOthers(path)),
            false => Ok(file),
        }
    }

    pub(crate) fn parse(text: &str) -> Result<Self, toml::de::Error> {
        let mut table: toml::Table = toml::from_str(text)?;
        let mut take =
            |key: &str| table.remove(key).map(|value| String::deserialize(value.into_deserializer()));
        Ok(Self {
            state_dir: take("state-dir").transpose()?.map(PathBuf::from),
            interface: take("interface").transpose()?,
            setup_key: take("setup-key").transpose()?,
            options: Options::deserialize(table)?,
        })
    }
}

/// Rights are judged of the file that was read, whatever its name leads to by then.
fn read(path: &Path) -> io::Result<(String, fs::File)> {
    let mut file = fs::File::open(path)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok((text, file))
}

/// Without the line itself, which may hold a setup key.
fn reason(error: &toml::de::Error, text: &str) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    match before {
        Some(before) => format!("line {}: {}", 1 + before.matches('\n').count(), error.message()),
        None => error.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_line_and_never_quotes_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        for line in ["setup-key = hf1_secret", "setup-key = 'hf1_secret", "setup-key = 'hf1_secret' x"] {
            fs::write(&path, format!("keepalive = 2\n{line}\n")).unwrap();
            let error = File::load(Some(&path)).unwrap_err().to_string();
            assert!(error.contains("line 2: ") && !error.contains("secret"), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_may_change_names_no_commands() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        for (line, mode, refused) in [
            ("on-idle = 'true'", 0o664, true),
            ("claim-check = 'cmd:true'", 0o646, true),
            ("claim-check = 'cmd:true'", 0o644, false),
            ("claim-check = 'tcp:80'", 0o666, false),
        ] {
            fs::write(&path, line).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let loaded = File::load(Some(&path));
            assert_eq!(matches!(loaded, Err(FileError::OpenToOthers(_))), refused, "{line} {mode:o}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_may_put_another_in_place_of_names_no_commands() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        fs::write(&path, "on-idle = 'true'").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        for (mode, refused) in [(0o755, false), (0o775, true), (0o757, true), (0o1777, false)] {
            fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).unwrap();
            let loaded = File::load(Some(&path));
            assert_eq!(matches!(loaded, Err(FileError::OpenToOthers(_))), refused, "{mode:o}");
        }
    }

    #[test]
    fn options_and_paths_stand_in_one_file() {
        let file = File::parse("state-dir = '/x'\ninterface = 'hf7'\nservers = ['a:1', 'b']\nkeepalive = 2")
            .unwrap();
        assert_eq!(file.state_dir, Some("/x".into()));
        assert_eq!(file.interface.as_deref(), Some("hf7"));
        assert_eq!(file.options, toml::from_str("servers = 'a:1,b'\nkeepalive = '2s'").unwrap());
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = File::parse("server = 'a'").unwrap_err().to_string();
        assert!(error.contains("`server`"), "{error}");
    }

    #[test]
    fn a_named_file_must_exist() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("none.toml");
        let error = File::load(Some(&missing)).unwrap_err().to_string();
        assert!(error.contains("none.toml"), "{error}");
    }
}
