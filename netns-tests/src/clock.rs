//! A wall clock of its own for one process, moved while it runs. Its monotonic clocks go on as they are.
//!
//! By libfaketime, which stands before the C library and reads the offset from a file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The variable by which the dynamic linker puts a library before all others.
const PRELOAD: &str = "LD_PRELOAD";
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";

/// The clock; clones are the same one.
#[derive(Clone, Debug)]
pub struct WallClock {
    library: PathBuf,
    offset: PathBuf,
}

impl WallClock {
    /// A clock that is right, to be kept in `directory` under `name`.
    pub fn new(directory: &Path, name: &str) -> Result<Self> {
        let clock = Self { library: find_library()?, offset: directory.join(format!("{name}.clock")) };
        clock.set(0)?;
        Ok(clock)
    }

    /// Puts the clock this many seconds ahead of the machine's, or behind.
    pub fn set(&self, seconds: i64) -> Result<()> {
        let new = self.offset.with_extension("new");
        std::fs::write(&new, format!("{seconds:+}\n"))?;
        std::fs::rename(&new, &self.offset).context("cannot set a clock")
    }

    /// What a process must be started with to go by this clock.
    pub fn environment(&self) -> Vec<(String, String)> {
        let path = |path: &Path| path.display().to_string();
        [
            (PRELOAD, path(&self.library)),
            ("FAKETIME_TIMESTAMP_FILE", path(&self.offset)),
            ("FAKETIME_NO_CACHE", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            // The times of files stay the kernel's.
            ("NO_FAKE_STAT", "1".into()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }
}

/// In Debian's place, which has the architecture in its name, or where others put it.
fn find_library() -> Result<PathBuf> {
    let below = |root: &str| {
        let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().join(LIBRARY)).collect::<Vec<_>>()
    };
    let direct = ["/usr/lib", "/usr/lib64"].map(|root| Path::new(root).join(LIBRARY));
    let mut candidates = below("/usr/lib").into_iter().chain(direct);
    let found = candidates.find(|library| library.is_file());
    found.context("no libfaketime here: packaging/install-deps.sh installs it")
}
