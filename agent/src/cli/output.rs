//! What commands print, and the progress of those that wait.

use indicatif::{ProgressBar, ProgressStyle};
use std::{
    io::{self, Write},
    time::Duration,
};

/// A line on standard output, at once.
pub(super) fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// An error, for a person.
pub(super) fn complain(text: &str) {
    // If even this cannot be written, the exit code still tells.
    let _ = writeln!(io::stderr(), "error: {text}");
}

/// How it went, beside the output.
pub(super) fn note(text: &str) {
    // As above.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Something odd that does not stop the command.
pub(super) fn warn(text: &str) {
    // As above.
    let _ = writeln!(io::stderr(), "warning: {text}");
}

/// What is being waited for, on a terminal; nothing elsewhere. Gone when dropped.
pub(super) struct Progress(ProgressBar);

impl Progress {
    pub(super) fn start(text: &str) -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        bar.set_message(text.to_owned());
        Self(bar)
    }

    pub(super) fn say(&self, text: &str) {
        self.0.set_message(text.to_owned());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
