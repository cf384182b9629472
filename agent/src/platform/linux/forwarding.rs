//! The kernel's switches for forwarding, which all agents in a network namespace share: the last one that needs it switches it off, if one of them had switched it on.
//!
//! ```text
//! /run/holdfast/forwarding-NAMESPACE-4      a shared lock for each agent that needs it, so one that is killed holds nothing;
//!                                           "on" in it: it was off before
//! ```

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::PathBuf,
};

const DIRECTORY: &str = "/run/holdfast";
const MARK: &str = "on\n";

/// What became of forwarding that is needed here no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Released {
    SwitchedOff,
    /// Another agent needs it.
    StaysOn,
    /// No agent had switched it on.
    NotOurs,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Switch {
    path: PathBuf,
    note: PathBuf,
    /// Locked while it is needed here.
    held: Option<File>,
}

impl Switch {
    pub(super) fn ipv4() -> Self {
        Self::at("/proc/sys/net/ipv4/ip_forward", 4)
    }

    pub(super) fn ipv6() -> Self {
        Self::at("/proc/sys/net/ipv6/conf/all/forwarding", 6)
    }

    fn at(path: &str, version: u8) -> Self {
        let namespace = fs::metadata("/proc/self/ns/net").map_or(0, |found| found.ino());
        let note = format!("{DIRECTORY}/forwarding-{namespace}-{version}");
        Self { path: path.into(), note: note.into(), held: None }
    }

    pub(super) fn is_on(&self) -> io::Result<bool> {
        Ok(fs::read_to_string(&self.path)?.trim() != "0")
    }

    pub(super) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Switches it on, if it is off, and keeps others from switching it off.
    pub(super) fn hold(&mut self) -> io::Result<()> {
        if self.held.is_none() {
            match self.open() {
                Ok(note) => {
                    note.try_lock_shared().map_err(|error| busy(error, "is just switching it off"))?;
                    self.held = Some(note);
                }
                // Better without a note than not at all.
                Err(error) if self.is_on()? => {
                    tracing::debug!(%error, note = %self.note.display(), "cannot be noted");
                }
                Err(error) => {
                    let note = self.note.display();
                    tracing::warn!(%error, "{note} cannot be made: other agents do not know who needs forwarding");
                }
            }
        }
        if self.is_on()? {
            return Ok(());
        }
        self.mark()?;
        fs::write(&self.path, "1")
    }

    /// It is needed here no more. `is_ours`: we know of ourselves that it was off before.
    pub(super) fn release(&mut self, is_ours: bool) -> io::Result<Released> {
        let mut note = match self.held.take() {
            Some(note) => note,
            None if !is_ours && !self.note.exists() => return Ok(Released::NotOurs),
            None => match self.open() {
                Ok(note) => note,
                Err(_) if is_ours => return self.switch_off(),
                Err(error) => return Err(error),
            },
        };
        let is_marked = is_marked(&mut note)?;
        if is_ours && !is_marked {
            note.write_all(MARK.as_bytes())?;
        }
        match note.try_lock() {
            Ok(()) if is_ours || is_marked => {
                let released = self.switch_off()?;
                note.set_len(0)?;
                Ok(released)
            }
            Ok(()) => Ok(Released::NotOurs),
            Err(TryLockError::WouldBlock) => Ok(Released::StaysOn),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn switch_off(&self) -> io::Result<Released> {
        fs::write(&self.path, "0")?;
        Ok(Released::SwitchedOff)
    }

    fn open(&self) -> io::Result<File> {
        if let Some(directory) = self.note.parent() {
            fs::create_dir_all(directory)?;
        }
        let mut options = File::options();
        options.create(true).truncate(false).read(true).write(true).mode(0o600);
        options.custom_flags(libc::O_NOFOLLOW).open(&self.note)
    }

    fn mark(&mut self) -> io::Result<()> {
        let Some(note) = &mut self.held else { return Ok(()) };
        match is_marked(note)? {
            true => Ok(()),
            false => note.write_all(MARK.as_bytes()),
        }
    }
}

/// Leaves it at the start if there is nothing in it.
fn is_marked(note: &mut File) -> io::Result<bool> {
    let mut text = Vec::new();
    note.rewind()?;
    note.take(16).read_to_end(&mut text)?;
    Ok(!text.is_empty())
}

fn busy(error: TryLockError, what: &str) -> io::Error {
    match error {
        TryLockError::WouldBlock => io::Error::other(format!("another agent {what}")),
        TryLockError::Error(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    struct Machine(TempDir);

    impl Machine {
        fn new(is_on: bool) -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            fs::write(machine.agent().path, if is_on { "1\n" } else { "0\n" }).unwrap();
            machine
        }

        fn agent(&self) -> Switch {
            let directory = self.0.path();
            Switch { path: directory.join("switch"), note: directory.join("run/note"), held: None }
        }

        fn is_on(&self) -> bool {
            self.agent().is_on().unwrap()
        }
    }

    #[test]
    fn the_last_of_two_agents_switches_it_off_whoever_switched_it_on() {
        let machine = Machine::new(false);
        let (mut first, mut second) = (machine.agent(), machine.agent());
        first.hold().unwrap();
        second.hold().unwrap();
        assert_eq!(first.release(true).unwrap(), Released::StaysOn);
        assert!(machine.is_on());
        assert_eq!(second.release(false).unwrap(), Released::SwitchedOff);
        assert!(!machine.is_on());
        assert_eq!(machine.agent().release(false).unwrap(), Released::NotOurs);
    }

    #[test]
    fn one_that_was_killed_holds_nothing_and_its_successor_switches_off_only_what_nobody_needs() {
        let machine = Machine::new(false);
        let (mut killed, mut other) = (machine.agent(), machine.agent());
        killed.hold().unwrap();
        other.hold().unwrap();
        drop(killed);
        assert_eq!(machine.agent().release(true).unwrap(), Released::StaysOn);
        assert!(machine.is_on());
        drop(other);
        assert_eq!(machine.agent().release(false).unwrap(), Released::SwitchedOff);
        assert!(!machine.is_on());
    }

    #[test]
    fn what_somebody_else_switched_on_stays_on() {
        let machine = Machine::new(true);
        let mut agent = machine.agent();
        agent.hold().unwrap();
        assert_eq!(agent.release(false).unwrap(), Released::NotOurs);
        assert!(machine.is_on());
    }

    #[test]
    fn one_that_finds_it_off_while_it_holds_it_switches_it_on_again() {
        let machine = Machine::new(false);
        let mut agent = machine.agent();
        agent.hold().unwrap();
        fs::write(&agent.path, "0").unwrap();
        agent.hold().unwrap();
        assert!(machine.is_on());
    }

    #[test]
    fn without_a_place_for_notes_it_is_switched_all_the_same() {
        let machine = Machine::new(false);
        fs::write(machine.0.path().join("run"), "").unwrap();
        let mut agent = machine.agent();
        agent.hold().unwrap();
        assert!(machine.is_on());
        assert_eq!(agent.release(true).unwrap(), Released::SwitchedOff);
        assert!(!machine.is_on());
    }
}
