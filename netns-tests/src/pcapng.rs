//! Captures that `agent debug capture` wrote, read without any library, so that every field is looked at.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

const SECTION: u32 = 0x0a0d_0d0a;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
const LINKTYPE_RAW: u32 = 101;
const COMMENT: u16 = 1;
const FLAGS: u16 = 2;
const DROPPED: u16 = 5;

/// A whole file.
#[derive(Debug, Default)]
pub struct Recorded {
    pub packets: Vec<Packet>,
    /// Absent if the file has no end.
    pub dropped: Option<u64>,
}

/// One packet as captured.
#[derive(Debug, Clone)]
pub struct Packet {
    pub nanoseconds: u64,
    pub is_inbound: bool,
    /// It may be longer than what is here.
    pub len: usize,
    pub bytes: Vec<u8>,
    pub comment: String,
}

impl Packet {
    /// Source and destination, if it is IPv4.
    pub fn ipv4(&self) -> Option<([u8; 4], [u8; 4])> {
        let field = |at: usize| self.bytes.get(at..at + 4)?.try_into().ok();
        (self.bytes.first()? >> 4 == 4).then(|| field(12).zip(field(16)))?
    }

    /// Kind (8 asks, 0 answers), identifier and sequence number, if it is an ICMP echo.
    pub fn echo(&self) -> Option<(u8, u16, u16)> {
        let field = |at: usize| Some(u16::from_be_bytes(self.bytes.get(at..at + 2)?.try_into().ok()?));
        let is_icmp = self.ipv4().is_some() && self.bytes.get(9) == Some(&1);
        is_icmp.then(|| Some((*self.bytes.get(20)?, field(24)?, field(26)?)))?
    }

    /// Of TCP over IPv4: the bytes it carries.
    pub fn tcp_payload(&self) -> Option<usize> {
        let is_tcp = self.ipv4().is_some() && self.bytes.get(9) == Some(&6);
        let header = is_tcp.then(|| Some(20 + usize::from(self.bytes.get(32)? >> 4) * 4))??;
        self.len.checked_sub(header)
    }
}

/// Reads a file; every block must be whole and say the same length at both ends.
pub fn read(path: &Path) -> Result<Recorded> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&bytes).with_context(|| format!("{} is no good capture", path.display()))
}

fn parse(mut bytes: &[u8]) -> Result<Recorded> {
    let (mut recorded, mut kinds) = (Recorded::default(), Vec::new());
    while !bytes.is_empty() {
        let (kind, len) = (word(bytes, 0)?, word(bytes, 4)? as usize);
        ensure!(len >= 12 && len.is_multiple_of(4), "a block of {len} bytes");
        let (block, rest) = bytes.split_at_checked(len).context("the last block is cut")?;
        ensure!(word(block, len - 4)? as usize == len, "a block's lengths differ");
        let body = &block[8..len - 4];
        match kind {
            SECTION => ensure!(word(body, 0)? == BYTE_ORDER && kinds.is_empty(), "a strange section"),
            INTERFACE => {
                ensure!(word(body, 0)? & 0xffff == LINKTYPE_RAW && kinds == [SECTION], "a strange interface")
            }
            PACKET => recorded.packets.push(packet(body)?),
            STATISTICS => {
                recorded.dropped = option(&body[12..], DROPPED)?.map(|value| word64(&value)).transpose()?
            }
            _ => bail!("an unknown kind of block: {kind}"),
        }
        kinds.push(kind);
        bytes = rest;
    }
    ensure!(kinds.len() >= 2, "no interface");
    Ok(recorded)
}

fn packet(body: &[u8]) -> Result<Packet> {
    let (kept, len) = (word(body, 12)? as usize, word(body, 16)? as usize);
    ensure!(word(body, 0)? == 0 && kept <= len, "{kept} bytes of {len} of interface {}", word(body, 0)?);
    let bytes = body.get(20..20 + kept).context("a packet is cut")?.to_vec();
    let options = &body[20 + kept.next_multiple_of(4)..];
    let flags = word(&option(options, FLAGS)?.context("no flags")?, 0)?;
    ensure!(matches!(flags, 1 | 2), "flags {flags}");
    let comment = String::from_utf8(option(options, COMMENT)?.unwrap_or_default())?;
    let nanoseconds = u64::from(word(body, 4)?) << 32 | u64::from(word(body, 8)?);
    Ok(Packet { nanoseconds, is_inbound: flags == 1, len, bytes, comment })
}

fn option(mut options: &[u8], wanted: u16) -> Result<Option<Vec<u8>>> {
    while let Some((head, rest)) = options.split_at_checked(4) {
        let (code, len) =
            (u16::from_le_bytes([head[0], head[1]]), usize::from(u16::from_le_bytes([head[2], head[3]])));
        if code == 0 {
            break;
        }
        let value = rest.get(..len).context("an option is cut")?;
        if code == wanted {
            return Ok(Some(value.to_vec()));
        }
        options = rest.get(len.next_multiple_of(4)..).context("an option is cut")?;
    }
    Ok(None)
}

fn word(bytes: &[u8], at: usize) -> Result<u32> {
    let word = bytes.get(at..at + 4).context("a field is cut")?;
    Ok(u32::from_le_bytes(word.try_into()?))
}

fn word64(bytes: &[u8]) -> Result<u64> {
    Ok(u64::from_le_bytes(bytes.get(..8).context("a field is cut")?.try_into()?))
}
