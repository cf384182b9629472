//! The file format of Wireshark and tcpdump: little-endian blocks, each with its length at both ends. Written here are a section
//! header, an interface, packets with their direction and a comment that names the peer and why the packet was dropped if it was, and the
//! counts at the end. An interface per peer would be nicer, but libpcap refuses a second one of this link type.
//! Source: IETF draft-ietf-opsawg-pcapng, the numbers in brackets are its sections.
//!
//! [`next_block`] cuts a stream into blocks again, for whoever writes it to a file.

use agent_tunnel::capture::{Direction, Fate, Packets, Seen};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Names;

/// [4.1]
const SECTION: u32 = 0x0a0d_0d0a;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// [4.2]
const INTERFACE: u32 = 1;
/// [4.5]
const STATISTICS: u32 = 5;
/// [4.3]
const PACKET: u32 = 6;
/// IPv4 or IPv6 without a frame around it.
const LINKTYPE_RAW: u16 = 101;
/// Type, both lengths.
const FRAME_BYTES: usize = 12;
/// A packet of 64 KB with its options is the largest.
const MAX_BLOCK: usize = 1 << 20;

/// Options [3.5, 4.x], by block.
const END: u16 = 0;
const COMMENT: u16 = 1;
const SECTION_APPLICATION: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const INTERFACE_DESCRIPTION: u16 = 3;
const INTERFACE_RESOLUTION: u16 = 9;
const PACKET_FLAGS: u16 = 2;
const STATISTICS_RECEIVED: u16 = 4;
const STATISTICS_DROPPED: u16 = 5;
/// Ten to the minus ninth of a second.
const NANOSECONDS: u8 = 9;

/// Turns packets into blocks.
#[derive(Debug)]
pub(super) struct Encoder {
    names: Names,
    snaplen: usize,
}

impl Encoder {
    pub(super) fn new(names: Names, snaplen: usize) -> Self {
        Self { names, snaplen }
    }

    /// What a stream begins with.
    pub(super) fn head(&self, interface: &str, out: &mut Vec<u8>) {
        block(out, SECTION, |out| {
            out.extend(BYTE_ORDER.to_le_bytes());
            // Version 1.0; of a section whose length is not known.
            out.extend([1, 0, 0, 0]);
            out.extend(u64::MAX.to_le_bytes());
            option(
                out,
                SECTION_APPLICATION,
                concat!("holdfast agent ", env!("CARGO_PKG_VERSION")).as_bytes(),
            );
            option(out, END, &[]);
        });
        block(out, INTERFACE, |out| {
            out.extend(LINKTYPE_RAW.to_le_bytes());
            out.extend([0, 0]);
            out.extend(length(self.snaplen));
            option(out, INTERFACE_NAME, interface.as_bytes());
            option(out, INTERFACE_DESCRIPTION, b"Holdfast tunnel, decrypted");
            option(out, INTERFACE_RESOLUTION, &[NANOSECONDS]);
            option(out, END, &[]);
        });
    }

    pub(super) fn packets(&self, packets: &Packets, out: &mut Vec<u8>) {
        packets.iter().for_each(|(seen, bytes)| self.packet(seen, bytes, out));
    }

    fn packet(&self, seen: &Seen, bytes: &[u8], out: &mut Vec<u8>) {
        block(out, PACKET, |out| {
            out.extend(0_u32.to_le_bytes());
            out.extend(time(seen.at));
            out.extend(length(bytes.len()));
            out.extend(length(seen.len));
            out.extend(bytes);
            pad(out, bytes.len());
            let flags: u32 = match seen.direction {
                Direction::Inbound => 1,
                Direction::Outbound => 2,
            };
            option(out, PACKET_FLAGS, &flags.to_le_bytes());
            option(out, COMMENT, self.comment(seen).as_bytes());
            option(out, END, &[]);
        });
    }

    fn comment(&self, seen: &Seen) -> String {
        let name = self.names.of(&seen.peer);
        match why_dropped(seen.fate) {
            None => format!("peer {name}"),
            Some(why) => format!("peer {name}, dropped: {why}"),
        }
    }

    /// What a stream ends with: packets that are in it, and those that were lost on the way.
    pub(super) fn tail(&self, (taken, dropped): (u64, u64), out: &mut Vec<u8>) {
        block(out, STATISTICS, |out| {
            out.extend(0_u32.to_le_bytes());
            out.extend(time(SystemTime::now()));
            option(out, STATISTICS_RECEIVED, &(taken + dropped).to_le_bytes());
            option(out, STATISTICS_DROPPED, &dropped.to_le_bytes());
            option(out, END, &[]);
        });
    }
}

fn why_dropped(fate: Fate) -> Option<&'static str> {
    match fate {
        Fate::Passed => None,
        Fate::BadSource => Some("the peer may not send from this address"),
        Fate::ForgedMessage => Some("to the agents' port, but not from the peer's own address"),
        Fate::Denied => Some("denied by the filter"),
        Fate::Malformed => Some("malformed, the filter cannot read it"),
    }
}

fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    body(out);
    let len = length(out.len() - begin + 4);
    out[begin + 4..begin + 8].copy_from_slice(&len);
    out.extend(len);
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    out.extend(code.to_le_bytes());
    out.extend((value.len() as u16).to_le_bytes());
    out.extend(value);
    pad(out, value.len());
}

/// To 32 bits.
fn pad(out: &mut Vec<u8>, len: usize) {
    out.resize(out.len() + len.next_multiple_of(4) - len, 0);
}

fn length(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes()
}

/// The upper half of the nanoseconds since 1970, then the lower.
fn time(at: SystemTime) -> [u8; 8] {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&((since >> 32) as u32).to_le_bytes());
    bytes[4..].copy_from_slice(&(since as u32).to_le_bytes());
    bytes
}

/// What a block is to whoever only passes it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Block {
    Packet,
    /// Packets that were lost on the way.
    Statistics {
        dropped: u64,
    },
    Other,
}

/// Not a stream of blocks.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the agent sent what is no capture")]
pub(crate) struct Nonsense;

/// Takes a whole block off the front of `bytes`; `None` if there is none yet.
pub(crate) fn next_block<'a>(bytes: &mut &'a [u8]) -> Result<Option<(Block, &'a [u8])>, Nonsense> {
    let word =
        |at: usize| -> Option<u32> { Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?)) };
    let Some((kind, len)) = word(0).zip(word(4)) else { return Ok(None) };
    let len = len as usize;
    if !(FRAME_BYTES..=MAX_BLOCK).contains(&len) || !len.is_multiple_of(4) {
        return Err(Nonsense);
    }
    let Some((block, rest)) = bytes.split_at_checked(len) else { return Ok(None) };
    *bytes = rest;
    let kind = match kind {
        PACKET => Block::Packet,
        STATISTICS => Block::Statistics { dropped: dropped(block).unwrap_or_default() },
        _ => Block::Other,
    };
    Ok(Some((kind, block)))
}

/// Of our own statistics: behind the frame's head (8), the interface (4), the time (8) and the first option (12), the second one.
fn dropped(block: &[u8]) -> Option<u64> {
    let (code, value) = (block.get(32..34)?, block.get(36..44)?);
    (code == STATISTICS_DROPPED.to_le_bytes()).then(|| Some(u64::from_le_bytes(value.try_into().ok()?)))?
}

#[cfg(test)]
mod tests {
    use agent_tunnel::PublicKey;
    use std::{collections::HashMap, net::Ipv4Addr, process::Command};

    use super::*;

    fn packet(number: u8) -> Vec<u8> {
        // An ICMP echo of that identifier and sequence number, whose checksums are left to the imagination.
        let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 1, 0, 0];
        packet.extend(Ipv4Addr::new(100, 64, 0, 1).octets());
        packet.extend(Ipv4Addr::new(100, 64, 0, 2).octets());
        packet.extend([8, 0, 0, 0, 0, number, 0, number, 1, 2, 3, 4]);
        packet
    }

    fn seen(peer: u8, direction: Direction, fate: Fate, len: usize) -> Seen {
        let at = UNIX_EPOCH + std::time::Duration::new(1_700_000_000, 123_456_789);
        Seen { at, peer: PublicKey([peer; 32]), direction, fate, len }
    }

    /// Two peers, the first of which has a name.
    fn stream() -> Vec<u8> {
        let names = Names(HashMap::from([([1; 32], "anna".to_owned())]));
        let (encoder, mut out) = (Encoder::new(names, 32), Vec::new());
        encoder.head("hf0", &mut out);
        encoder.packet(&seen(1, Direction::Outbound, Fate::Passed, 32), &packet(1), &mut out);
        encoder.packet(&seen(2, Direction::Inbound, Fate::Denied, 32), &packet(2)[..30], &mut out);
        encoder.packet(&seen(1, Direction::Inbound, Fate::Passed, 32), &packet(3), &mut out);
        encoder.tail((3, 4), &mut out);
        out
    }

    #[test]
    fn a_stream_names_the_peer_of_each_packet_and_ends_with_the_counts() {
        use Block::{Other, Packet, Statistics};
        let stream = stream();
        let (mut rest, mut kinds, mut comments) = (&stream[..], Vec::new(), Vec::new());
        while let Some((kind, block)) = next_block(&mut rest).unwrap() {
            assert_eq!(block[4..8], block[block.len() - 4..], "both lengths");
            if kind == Packet {
                // Behind the fixed fields (28), the packet and its flags (8) the length and text of the comment.
                let text = &block[28 + 32 + 8 + 4..];
                comments
                    .push(String::from_utf8_lossy(&text[..usize::from(block[28 + 32 + 8 + 2])]).into_owned());
            }
            kinds.push(kind);
        }
        assert!(rest.is_empty());
        assert_eq!(kinds, [Other, Other, Packet, Packet, Packet, Statistics { dropped: 4 }]);
        let key = PublicKey([2; 32]);
        assert_eq!(
            comments,
            ["peer anna", &format!("peer {key}, dropped: denied by the filter"), "peer anna"]
        );
    }

    #[test]
    fn a_stream_is_cut_into_blocks_however_it_arrives_and_nonsense_is_refused() {
        let stream = stream();
        for end in 0..stream.len() {
            let mut part = &stream[..end];
            while next_block(&mut part).unwrap().is_some() {}
        }
        for nonsense in [[0; 8], [0xff; 8], [6, 0, 0, 0, 13, 0, 0, 0]] {
            assert_eq!(next_block(&mut &nonsense[..]), Err(Nonsense));
        }
    }

    #[test]
    fn tcpdump_reads_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), stream()).unwrap();
        let output = Command::new("tcpdump").args(["-nn", "-tt", "-r"]).arg(file.path()).output();
        let output = output.expect("tcpdump is missing: packaging/install-deps.sh installs it");
        let (text, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{said}");
        assert_eq!(text.lines().count(), 3, "{text}");
        for shown in ["1700000000.123456 ", "100.64.0.1 > 100.64.0.2: ICMP echo request, id 1, seq 1"] {
            assert!(text.contains(shown), "{shown:?} is missing in {text}");
        }
    }
}
