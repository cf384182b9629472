//! The kernel's switches for forwarding, which all agents in a network namespace share: the last one that needs it switches it off, if one of them had switched it on.
//!
//! ```text
//! /run/holdfast/forwarding-PLACE-4      a shared lock for each agent that needs it, so one that is killed holds nothing;
//!                                       "on" in it: it was off before; gone with the last of them
//! ```

use super::place::place;
use std::{
    fs::{self, File, Metadata, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::PathBuf,
    time::Duration,
};

const DIRECTORY: &str = "/run/holdfast";
const MARK: &str = "on\n";
/// Whoever has the lock alone does one thing and lets go.
const LOCK_TRIES: u32 = 30;
const LOCK_TRY_INTERVAL: Duration = Duration::from_millis(10);

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
        let note = format!("{DIRECTORY}/forwarding-{}-{version}", place());
        Self { path: path.into(), note: note.into(), held: None }
    }

    pub(super) fn is_on(&self) -> io::Result<bool> {
        Ok(fs::read_to_string(&self.path)?.trim() != "0")
    }

    pub(super) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Switches it on, if it is off, and keeps others from switching it off.
    pub(super) async fn hold(&mut self) -> io::Result<()> {
        if self.held.is_none() {
            match self.open() {
                Ok(note) => self.held = Some(self.locked(note).await?),
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

    /// It is needed here no more. `is_ours`: we know of ourselves that it was off before. After an error it is held as before.
    pub(super) fn release(&mut self, is_ours: bool) -> io::Result<Released> {
        let was_held = self.is_held();
        let mut note = match self.held.take() {
            Some(note) => note,
            None if !is_ours && !self.note.exists() => return Ok(Released::NotOurs),
            None => match self.open() {
                Ok(note) => note,
                Err(_) if is_ours => return self.switch_off(),
                Err(error) => return Err(error),
            },
        };
        match self.let_go(&mut note, is_ours) {
            Ok(Some(released)) => Ok(released),
            Ok(None) => self.release(is_ours),
            Err(error) => {
                if was_held {
                    // Nobody else can have it alone now: at worst we have.
                    let _ = note.try_lock_shared();
                    self.held = Some(note);
                }
                Err(error)
            }
        }
    }

    /// `None`: the last one took the note away, and there may be another.
    fn let_go(&self, note: &mut File, is_ours: bool) -> io::Result<Option<Released>> {
        let is_marked = is_marked(note)?;
        if is_ours && !is_marked {
            note.write_all(MARK.as_bytes())?;
        }
        let must_be_off = is_ours || is_marked;
        match note.try_lock() {
            Ok(()) if !self.is_there(note)? => return Ok(None),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) if must_be_off => return Ok(Some(Released::StaysOn)),
            Err(TryLockError::WouldBlock) => return Ok(Some(Released::NotOurs)),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let released = if must_be_off { self.switch_off()? } else { Released::NotOurs };
        note.set_len(0)?;
        if let Err(error) = fs::remove_file(&self.note) {
            tracing::debug!(%error, note = %self.note.display(), "an empty note stays");
        }
        Ok(Some(released))
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

    /// Waits for whoever is just switching it off, and takes the note that comes after.
    async fn locked(&self, mut note: File) -> io::Result<File> {
        for _ in 0..LOCK_TRIES {
            match note.try_lock_shared() {
                Ok(()) if self.is_there(&note)? => return Ok(note),
                Ok(()) => note = self.open()?,
                Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_TRY_INTERVAL).await,
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Err(io::Error::other("another agent is just switching it off"))
    }

    /// Whether others find the same file.
    fn is_there(&self, note: &File) -> io::Result<bool> {
        let id = |found: Metadata| (found.dev(), found.ino());
        match fs::metadata(&self.note) {
            Ok(found) => Ok(id(found) == id(note.metadata()?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
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

    #[tokio::test]
    async fn the_last_of_two_agents_switches_it_off_whoever_switched_it_on() {
        let machine = Machine::new(false);
        let (mut first, mut second) = (machine.agent(), machine.agent());
        first.hold().await.unwrap();
        second.hold().await.unwrap();
        assert_eq!(first.release(true).unwrap(), Released::StaysOn);
        assert!(machine.is_on());
        assert_eq!(second.release(false).unwrap(), Released::SwitchedOff);
        assert!(!machine.is_on());
        assert_eq!(machine.agent().release(false).unwrap(), Released::NotOurs);
    }

    #[tokio::test]
    async fn one_that_was_killed_holds_nothing_and_its_successor_switches_off_only_what_nobody_needs() {
        let machine = Machine::new(false);
        let (mut killed, mut other) = (machine.agent(), machine.agent());
        killed.hold().await.unwrap();
        other.hold().await.unwrap();
        drop(killed);
        assert_eq!(machine.agent().release(true).unwrap(), Released::StaysOn);
        assert!(machine.is_on());
        drop(other);
        assert_eq!(machine.agent().release(false).unwrap(), Released::SwitchedOff);
        assert!(!machine.is_on());
    }

    #[tokio::test]
    async fn what_somebody_else_switched_on_stays_on() {
        let machine = Machine::new(true);
        let mut agent = machine.agent();
        agent.hold().await.unwrap();
        assert_eq!(agent.release(false).unwrap(), Released::NotOurs);
        assert!(machine.is_on());
    }

    #[tokio::test]
    async fn one_that_finds_it_off_while_it_holds_it_switches_it_on_again() {
        let machine = Machine::new(false);
        let mut agent = machine.agent();
        agent.hold().await.unwrap();
        fs::write(&agent.path, "0").unwrap();
        agent.hold().await.unwrap();
        assert!(machine.is_on());
    }

    #[tokio::test]
    async fn without_a_place_for_notes_it_is_switched_all_the_same() {
        let machine = Machine::new(false);
        fs::write(machine.0.path().join("run"), "").unwrap();
        let mut agent = machine.agent();
        agent.hold().await.unwrap();
        assert!(machine.is_on());
        assert_eq!(agent.release(true).unwrap(), Released::SwitchedOff);
        assert!(!machine.is_on());
    }

    #[tokio::test]
    async fn one_that_comes_while_another_has_the_lock_alone_waits_for_it() {
        let machine = Machine::new(false);
        let (mut agent, other) = (machine.agent(), machine.agent().open().unwrap());
        other.try_lock().unwrap();
        // They take turns: it has met the lock when this lets go.
        let (held, ()) = tokio::join!(agent.hold(), async {
            fs::remove_file(&machine.agent().note).unwrap();
            drop(other);
        });
        held.unwrap();
        assert!(
            agent.is_there(agent.held.as_ref().unwrap()).unwrap(),
            "what it locked is not what others find"
        );
    }

    #[tokio::test]
    async fn a_release_that_fails_is_held_on_and_can_be_done_again() {
        let machine = Machine::new(false);
        let (mut agent, path) = (machine.agent(), machine.agent().path);
        agent.hold().await.unwrap();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(agent.release(true).is_err());
        let mut other = machine.agent();
        assert_eq!(other.release(false).unwrap(), Released::StaysOn, "it is held no more");
        fs::remove_dir(&path).unwrap();
        fs::write(&path, "1").unwrap();
        other.hold().await.unwrap();
        drop(other);
        assert_eq!(agent.release(true).unwrap(), Released::SwitchedOff);
    }

    #[tokio::test]
    async fn the_note_goes_with_the_last_one() {
        for is_on in [false, true] {
            let machine = Machine::new(is_on);
            let (mut first, mut second) = (machine.agent(), machine.agent());
            first.hold().await.unwrap();
            second.hold().await.unwrap();
            first.release(false).unwrap();
            assert!(machine.agent().note.exists());
            second.release(false).unwrap();
            assert!(!machine.agent().note.exists());
        }
    }
}
