//! Where the programs under test are: built in release mode beside this one.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Names a directory that holds `agent` and `server`, ready built.
const DIRECTORY_VARIABLE: &str = "LAB_BIN_DIR";

/// The programs under test.
#[derive(Clone, Debug)]
pub struct Binaries {
    pub agent: PathBuf,
    pub server: PathBuf,
}

impl Binaries {
    /// Brings both up to date with cargo, unless LAB_BIN_DIR says where they are.
    pub fn build() -> Result<()> {
        if std::env::var_os(DIRECTORY_VARIABLE).is_some() {
            return Ok(());
        }
        let target = release_directory()?;
        let target = target.parent().context("the release directory has a parent")?;
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        // What cargo tells a test of its own package would make build scripts run again, and everything behind them.
        std::env::vars_os()
            .map(|(name, _)| name)
            .filter(|name| {
                name.to_string_lossy().starts_with("CARGO_PKG_")
                    || name == "CARGO_MANIFEST_DIR"
                    || name == "CARGO_MANIFEST_PATH"
            })
            .for_each(|name| {
                build.env_remove(name);
            });
        let status = build
            .args(["build", "--release", "--quiet", "-p", "agent", "-p", "server", "--target-dir"])
            .arg(target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .context("cannot run cargo to build agent and server")?;
        if !status.success() {
            bail!("agent and server do not build, so there is nothing to try");
        }
        Ok(())
    }

    /// For runs that need neither.
    pub fn none() -> Self {
        Self { agent: PathBuf::new(), server: PathBuf::new() }
    }

    pub fn locate() -> Result<Self> {
        let directory = match std::env::var_os(DIRECTORY_VARIABLE) {
            Some(directory) => PathBuf::from(directory),
            None => release_directory()?,
        };
        let find = |name: &str| -> Result<PathBuf> {
            let path = directory.join(name);
            if !path.is_file() {
                bail!("{} is missing: cargo build --release -p {name}", path.display());
            }
            Ok(path)
        };
        Ok(Self { agent: find("agent")?, server: find("server")? })
    }
}

/// `release` beside the profile directory this program lies in (or in whose `deps` it does).
fn release_directory() -> Result<PathBuf> {
    let program = std::env::current_exe().context("cannot find this program's file")?;
    let directory = program.parent().context("a program lies in a directory")?;
    let profile =
        if directory.ends_with("deps") { directory.parent().unwrap_or(Path::new("/")) } else { directory };
    Ok(profile.with_file_name("release"))
}
