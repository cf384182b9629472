//! Reading a backup: line by line, each no longer than a limit, no more of them than the header says.

use super::{Backup, BackupError, FORMAT, Header, Preamble, Trailer, VERSION, check};
use crate::cluster::{Entity, Snapshot};
use blake2::{Blake2s256, Digest};
use std::io::{BufRead, Read};
use zeroize::Zeroizing;

/// A node with every claim and group that it may have is far smaller.
const LINE_LIMIT: u64 = 1 << 20;
/// Of each kind: as many as the largest overlay has addresses.
const ENTITIES_LIMIT: usize = 1 << 22;

struct Lines<R> {
    input: R,
    sum: Blake2s256,
    /// Read so far.
    number: usize,
}

impl<R: BufRead> Lines<R> {
    /// The next line, with its end. Empty at the end of the file.
    fn next(&mut self) -> Result<Zeroizing<Vec<u8>>, BackupError> {
        let mut line = Zeroizing::new(Vec::new());
        self.input.by_ref().take(LINE_LIMIT).read_until(b'\n', &mut line)?;
        self.number += 1;
        if !line.ends_with(b"\n") && line.len() as u64 == LINE_LIMIT {
            return Err(self.damaged("the line is too long"));
        }
        Ok(line)
    }

    fn damaged(&self, reason: impl ToString) -> BackupError {
        BackupError::Damaged { line: self.number, reason: reason.to_string() }
    }

    /// The next line, which is part of the checksum.
    fn entity(&mut self) -> Result<Entity, BackupError> {
        let line = self.next()?;
        if !line.ends_with(b"\n") {
            return Err(BackupError::Truncated(format!("it ends at line {}", self.number)));
        }
        self.sum.update(&*line);
        serde_json::from_slice(&line).map_err(|error| self.damaged(error))
    }

    fn header(&mut self) -> Result<Header, BackupError> {
        let line = match self.next() {
            Ok(line) => line,
            Err(BackupError::Damaged { .. }) => return Err(BackupError::Foreign),
            Err(error) => return Err(error),
        };
        let preamble: Preamble = serde_json::from_slice(&line).map_err(|_| BackupError::Foreign)?;
        if preamble.format != FORMAT {
            return Err(BackupError::Foreign);
        }
        if preamble.version > VERSION {
            return Err(BackupError::Newer { found: preamble.version });
        }
        self.sum.update(&*line);
        // The parser's message may quote a value.
        serde_json::from_slice(&line).map_err(|error| {
            self.damaged(format_args!("the header cannot be read at column {}", error.column()))
        })
    }

    fn end(&mut self) -> Result<(), BackupError> {
        let line = self.next()?;
        if line.is_empty() {
            return Err(BackupError::Truncated("its last line is missing".to_owned()));
        }
        let Trailer::End { checksum } = serde_json::from_slice(&line).map_err(|error| self.damaged(error))?;
        if self.sum.clone().finalize().as_slice() != checksum {
            return Err(self.damaged("the checksum is not that of the lines before"));
        }
        match self.next()?.is_empty() {
            true => Ok(()),
            false => Err(self.damaged("something follows the end")),
        }
    }
}

/// The whole backup, checked.
///
/// # Errors
/// [`BackupError`]
pub(crate) fn read(input: impl BufRead) -> Result<Backup, BackupError> {
    let mut lines = Lines { input, sum: Blake2s256::new(), number: 0 };
    let header = lines.header()?;
    let counts = [header.nodes, header.setup_keys, header.removals];
    if let Some(count) = counts.into_iter().find(|count| *count > ENTITIES_LIMIT) {
        return Err(BackupError::Invalid(format!("{count} entities of one kind")));
    }
    let (created_at, software) = (header.created_at, header.software.clone());
    let mut snapshot = header.begin().map_err(|reason| lines.damaged(reason))?;
    for _ in 0..counts.iter().sum() {
        take(&mut snapshot, lines.entity()?).map_err(|reason| lines.damaged(reason))?;
    }
    lines.end()?;
    if counts != [snapshot.nodes.len(), snapshot.setup_keys.len(), snapshot.removals.len()] {
        return Err(lines.damaged("the counts are not those of the header"));
    }
    check(&snapshot).map_err(BackupError::Invalid)?;
    Ok(Backup { snapshot, created_at, software })
}

fn take(snapshot: &mut Snapshot, entity: Entity) -> Result<(), &'static str> {
    match entity {
        Entity::Node(node) => snapshot.nodes.push(*node),
        Entity::SetupKey(key) => snapshot.setup_keys.push(*key),
        Entity::Removal(removed) => snapshot.removals.push(*removed),
        Entity::Recovery(_) | Entity::Settings(_) | Entity::Roots(_) | Entity::Holdings(_) => {
            return Err("it belongs into the header");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backup::write,
        cluster::{SetupKeyTerms, remove, testing},
    };
    use proptest::prelude::*;

    fn backup() -> (Snapshot, Vec<u8>) {
        let (mut state, node) = testing::with_node("gone");
        testing::enrol(&mut state, "kept");
        testing::setup_key(&mut state, &SetupKeyTerms::default());
        let ops = remove(&state, &node, testing::NOW);
        testing::apply(&mut state, ops);
        let snapshot = testing::snapshot(&state);
        let mut file = Vec::new();
        write(&snapshot, testing::NOW, &mut file).unwrap();
        (snapshot, file)
    }

    /// With a checksum that fits.
    fn forged(file: &[u8], change: impl Fn(&str) -> String) -> Vec<u8> {
        let text = change(std::str::from_utf8(file).unwrap());
        let end = text.trim_end().rfind('\n').unwrap() + 1;
        let checksum = Blake2s256::digest(&text.as_bytes()[..end]).into();
        let trailer = serde_json::to_string(&Trailer::End { checksum }).unwrap();
        format!("{}{trailer}\n", &text[..end]).into_bytes()
    }

    #[test]
    fn what_was_written_is_read_again() {
        let (snapshot, file) = backup();
        let read = read(&file[..]).unwrap();
        assert_eq!(read.created_at, testing::NOW);
        assert_eq!(read.snapshot.head, snapshot.head);
        assert_eq!(read.snapshot.next_node_id, snapshot.next_node_id);
        assert_eq!(read.snapshot.nodes, snapshot.nodes);
        assert_eq!(read.snapshot.setup_keys, snapshot.setup_keys);
        assert_eq!(read.snapshot.removals, snapshot.removals);
        assert_eq!(read.snapshot.settings, snapshot.settings);
        let founding = &read.snapshot.founding;
        assert_eq!(founding.root.public(), snapshot.founding.root.public());
        assert_eq!(founding.network, snapshot.founding.network);
        assert!(!founding.root.is_wrapped());
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_refused() {
        let (_, file) = backup();
        for length in 0..file.len() - 1 {
            assert!(read(&file[..length]).is_err(), "{length} bytes");
        }
        for position in (0..file.len()).step_by(7) {
            let mut damaged = file.clone();
            damaged[position] ^= 1;
            assert!(read(&damaged[..]).is_err(), "byte {position}");
        }
    }

    #[test]
    fn foreign_and_newer_files_are_named_as_that() {
        let (_, file) = backup();
        for foreign in
            [&b""[..], b"SQLite format 3\0", b"{}\n", b"{\"format\":\"x\",\"version\":1}\n", b"\xff\n"]
        {
            assert!(matches!(read(foreign), Err(BackupError::Foreign)), "{foreign:?}");
        }
        let newer = forged(&file, |text| text.replace("\"version\":1,", "\"version\":2,"));
        assert!(matches!(read(&newer[..]), Err(BackupError::Newer { found: 2 })));
        let endless = std::io::BufReader::new(std::io::repeat(b'x'));
        assert!(matches!(read(endless), Err(BackupError::Foreign)));
    }

    #[test]
    fn what_no_cluster_has_is_refused_although_its_checksum_fits() {
        let (snapshot, file) = backup();
        assert!(read(&forged(&file, str::to_owned)[..]).is_ok(), "the forger works");
        let node = &snapshot.nodes[0];
        let stranger = crate::cluster::Founding::generate().unwrap();
        let other = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, stranger.network_id.0);
        let ours = base64::Engine::encode(
            &base64::engine::general_purpose::STANDARD,
            snapshot.founding.network_id.0,
        );
        let cases: [(&str, String, String); 7] = [
            ("signature", ours, other),
            ("name", "\"name\":\"kept\"".into(), "\"name\":\"-x-\"".into()),
            ("address", node.address_v4.to_string(), "192.0.2.1".into()),
            ("number", format!("\"next_node_id\":{}", snapshot.next_node_id), "\"next_node_id\":1".into()),
            (
                "range",
                format!("\"revision\":{}", snapshot.head.version.revision),
                format!("\"revision\":{}", u64::MAX),
            ),
            ("counts", "\"nodes\":1,\"setup_keys\":3".into(), "\"nodes\":2,\"setup_keys\":2".into()),
            ("twice", "\"id\":2,\"hash\"".into(), "\"id\":1,\"hash\"".into()),
        ];
        for (what, from, to) in cases {
            let text = String::from_utf8(file.clone()).unwrap();
            assert!(text.contains(&from), "{what}: {from} in {text}");
            let forged = forged(&file, |text| text.replace(&from, &to));
            assert!(read(&forged[..]).is_err(), "{what}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), at in 0_usize..2000) {
            let (_, mut file) = backup();
            let at = at.min(file.len());
            file.splice(at..(at + bytes.len()).min(file.len()), bytes.iter().copied());
            read(&file[..]).ok();
            read(&bytes[..]).ok();
        }
    }
}
