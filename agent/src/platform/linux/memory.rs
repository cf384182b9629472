//! What this agent changed on the machine and must change back, kept beside its key so that the successor of a killed agent can. A restart of the machine undoes it all, and another
//! network namespace never had it: a note of either is forgotten.

use super::place::place;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

const FILE: &str = "machine";

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    path: PathBuf,
    /// The start of the machine, and the network namespace.
    place: String,
    /// IPv4, IPv6: switched on by us.
    pub(crate) forwarding: [bool; 2],
    /// The nftables table that is ours.
    pub(crate) table: Option<String>,
}

impl Memory {
    pub(crate) fn load(directory: &Path) -> Self {
        Self::read(directory.join(FILE), place())
    }

    /// What cannot be read is as if nothing had been changed: nothing is undone on a guess.
    fn read(path: PathBuf, place: String) -> Self {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let mut memory = Self { path, ..Self::default() };
        let mut lines = text.lines();
        if lines.next() == Some(place.as_str()) {
            for line in lines {
                match line.split_once(' ') {
                    Some(("forwarding", "4")) => memory.forwarding[0] = true,
                    Some(("forwarding", "6")) => memory.forwarding[1] = true,
                    Some(("table", table)) => memory.table = Some(table.to_owned()),
                    Some(_) | None => {}
                }
            }
        }
        memory.place = place;
        memory
    }

    /// Nothing to remember is no file.
    pub(crate) fn save(&self) -> io::Result<()> {
        let mut text = self.place.clone() + "\n";
        for (family, _) in [(4, self.forwarding[0]), (6, self.forwarding[1])].iter().filter(|(_, on)| *on) {
            text += &format!("forwarding {family}\n");
        }
        if let Some(table) = &self.table {
            text += &format!("table {table}\n");
        }
        if self.forwarding == [false; 2] && self.table.is_none() {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => Ok(()),
            };
        }
        let new = self.path.with_extension("new");
        fs::write(&new, text)?;
        fs::rename(new, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_is_known_to_a_successor_on_the_same_machine_and_to_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let read = |place: &str| Memory::read(path.clone(), place.to_owned());
        let mut memory = read("boot 1");
        memory.forwarding = [true, false];
        memory.table = Some("holdfast-hf0".into());
        memory.save().unwrap();
        assert_eq!(read("boot 1"), memory);
        let elsewhere = read("boot 2");
        assert_eq!((elsewhere.forwarding, elsewhere.table), ([false; 2], None));
        memory.forwarding = [false; 2];
        memory.table = None;
        memory.save().unwrap();
        assert!(!path.exists());
        memory.save().unwrap();
    }

    #[test]
    fn a_damaged_note_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        for text in ["", "x", "boot\nforwarding\ntable\nforwarding 5\n"] {
            fs::write(&path, text).unwrap();
            let memory = Memory::read(path.clone(), "boot".into());
            assert_eq!((memory.forwarding, memory.table), ([false; 2], None), "{text:?}");
        }
    }
}
