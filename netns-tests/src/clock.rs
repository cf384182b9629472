//! A wall clock of its own for one process, moved while it runs. Its monotonic clocks and its timers go on as they are.
//!
//! By a small library that the linker puts before the C library (`clock.c`); the offset is in a file that it maps.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, ensure};

const SOURCE: &str = include_str!("clock.c");

/// The clock; clones are the same one.
#[derive(Clone, Debug)]
pub struct WallClock {
    library: PathBuf,
    offset: PathBuf,
}

impl WallClock {
    /// A clock that is right, to be kept in `directory` under `name`.
    pub fn new(directory: &Path, name: &str) -> Result<Self> {
        let at = |end: &str| directory.join(format!("{name}-clock.{end}"));
        let clock = Self { library: at("so"), offset: at("offset") };
        compile(&clock.library)?;
        std::fs::write(&clock.offset, 0i64.to_ne_bytes())?;
        Ok(clock)
    }

    /// Puts the clock this many seconds ahead of the machine's, or behind.
    pub fn set(&self, seconds: i64) -> Result<()> {
        // In place: the running process has this very file mapped.
        let file = File::options().write(true).open(&self.offset)?;
        file.write_all_at(&seconds.to_ne_bytes(), 0).context("cannot set a clock")
    }

    /// What a process must be started with to go by this clock.
    pub fn environment(&self) -> Vec<(String, String)> {
        let path = |path: &Path| path.display().to_string();
        vec![("LD_PRELOAD".to_owned(), path(&self.library)), ("LAB_CLOCK".to_owned(), path(&self.offset))]
    }
}

/// With the compiler that building the workspace needs anyway.
fn compile(library: &Path) -> Result<()> {
    let mut compiler = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-x", "c", "-", "-o"])
        .arg(library)
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot run cc: is gcc installed?")?;
    compiler.stdin.take().context("a piped input is there")?.write_all(SOURCE.as_bytes())?;
    ensure!(compiler.wait()?.success(), "clock.c does not compile");
    Ok(())
}

/// How far the clock was ahead of the machine's when `log` was last written to, in seconds: by its last line with a time.
pub fn logged_offset(log: &Path) -> Result<i64> {
    let text = std::fs::read_to_string(log)?;
    let mut times = text.lines().rev().filter_map(|line| line.split_whitespace().next());
    let last =
        times.find(|word| word.starts_with('2') && word.ends_with('Z')).context("a log without a time")?;
    let output = Command::new("date").args(["-u", "-d", last, "+%s"]).output()?;
    let logged: i64 = String::from_utf8(output.stdout)?.trim().parse().context("date printed no number")?;
    let written = std::fs::metadata(log)?.modified()?.duration_since(UNIX_EPOCH)?.as_secs();
    Ok(logged - i64::try_from(written)?)
}
