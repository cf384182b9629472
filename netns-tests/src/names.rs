//! Names of machines, for every program of the run: a file over /etc/hosts, in the mounts of the room alone.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

const HOSTS: &str = "/etc/hosts";
/// Written at once and never shortened, so that nobody reads half of it.
const SIZE: usize = 4096;

/// Who is called what, until it is dropped.
pub struct Names {
    file: PathBuf,
    before: String,
    addresses: Mutex<BTreeMap<String, Ipv4Addr>>,
}

impl Names {
    /// The names there were, in a file of `directory`.
    pub fn new(directory: &Path) -> Result<Self> {
        let before = fs::read_to_string(HOSTS).with_context(|| format!("cannot read {HOSTS}"))?;
        let names = Self { file: directory.join("hosts"), before, addresses: Mutex::default() };
        File::create(&names.file)?;
        names.write(&BTreeMap::new())?;
        let none = None::<&str>;
        mount(Some(&names.file), HOSTS, none, MsFlags::MS_BIND, none)
            .with_context(|| format!("cannot mount a file over {HOSTS}"))?;
        Ok(names)
    }

    /// Gives a name this address, in place of the one it had.
    pub fn set(&self, name: &str, address: Ipv4Addr) -> Result<()> {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.insert(name.to_owned(), address);
        self.write(&addresses)
    }

    fn write(&self, addresses: &BTreeMap<String, Ipv4Addr>) -> Result<()> {
        let mut text = self.before.trim_end().to_owned();
        addresses.iter().for_each(|(name, address)| text += &format!("\n{address} {name}"));
        ensure!(text.len() < SIZE, "too many names for {}", self.file.display());
        text += &"\n".repeat(SIZE - text.len());
        Ok(File::options().write(true).open(&self.file)?.write_all(text.as_bytes())?)
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        // The room goes with the run, and this with it.
        umount2(HOSTS, MntFlags::MNT_DETACH).ok();
    }
}
