//! Bytes both ways at once over one TCP connection, compared with what was sent: no checksum of the way vouches for itself.
//!
//! Its own program rather than a thread, so that it runs inside a virtual machine, too.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// Of a connection that stands still.
const PATIENCE: Duration = Duration::from_secs(60);
const CHUNK_BYTES: usize = 64 << 10;

/// Both ends of a transfer; they must be told the same number of bytes.
#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum Bulk {
    /// Waits for the other end
    Listen { address: SocketAddr, bytes: usize },
    /// Connects to it
    Connect { address: SocketAddr, bytes: usize },
}

impl Bulk {
    /// Fails if anything else came than was sent.
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Listen { address, bytes } => {
                exchange(&accept(&TcpListener::bind(address)?, PATIENCE)?, bytes, 1, 2)
            }
            Self::Connect { address, bytes } => exchange(&connect(address)?, bytes, 2, 1),
        }
    }
}

fn accept(listener: &TcpListener, patience: Duration) -> Result<TcpStream> {
    let milliseconds = PollTimeout::try_from(patience)?;
    let mut readable = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    ensure!(poll(&mut readable, milliseconds)? > 0, "nobody connected within {patience:?}");
    Ok(listener.accept()?.0)
}

/// The other end may not listen yet.
fn connect(address: SocketAddr) -> Result<TcpStream> {
    let begun = Instant::now();
    loop {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) if begun.elapsed() > PATIENCE => return Err(error).context("cannot connect"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn exchange(stream: &TcpStream, bytes: usize, own_seed: u64, their_seed: u64) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(stream, bytes, own_seed));
        let received = receive(stream, bytes, their_seed);
        if received.is_err() {
            // So that the sender ends, too, and the other side learns of it.
            stream.shutdown(Shutdown::Both).ok();
        }
        received?;
        sender.join().map_err(|_| anyhow::anyhow!("the sending thread panicked"))?
    })
}

fn send(mut stream: &TcpStream, mut bytes: usize, seed: u64) -> Result<()> {
    let mut stuff = Pcg64Mcg::seed_from_u64(seed);
    let mut chunk = [0; CHUNK_BYTES];
    while bytes > 0 {
        stuff.fill_bytes(&mut chunk);
        let part = &chunk[..bytes.min(CHUNK_BYTES)];
        stream.write_all(part).context("cannot send")?;
        bytes -= part.len();
    }
    Ok(stream.shutdown(Shutdown::Write)?)
}

fn receive(mut stream: impl Read, bytes: usize, seed: u64) -> Result<()> {
    let mut stuff = Pcg64Mcg::seed_from_u64(seed);
    let (mut expected, mut got) = ([0; CHUNK_BYTES], [0; CHUNK_BYTES]);
    let mut left = bytes;
    while left > 0 {
        let part = left.min(CHUNK_BYTES);
        stuff.fill_bytes(&mut expected);
        stream
            .read_exact(&mut got[..part])
            .with_context(|| format!("{left} of {bytes} bytes are missing"))?;
        ensure!(got[..part] == expected[..part], "other bytes came than were sent, {left} before the end");
        left -= part;
    }
    ensure!(stream.read(&mut got)? == 0, "more came than was sent");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_for_a_connection_gives_up() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        assert!(accept(&listener, Duration::from_millis(1)).is_err());
        let _caller = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(accept(&listener, PATIENCE).is_ok());
    }

    #[test]
    fn what_was_sent_is_taken_and_any_other_byte_is_not() {
        let bytes = CHUNK_BYTES + 1000;
        let mut sent = vec![0; 2 * CHUNK_BYTES];
        Pcg64Mcg::seed_from_u64(7).fill_bytes(&mut sent);
        sent.truncate(bytes);
        receive(&sent[..], bytes, 7).unwrap();
        assert!(receive(&sent[..], bytes, 8).is_err());
        assert!(receive(&sent[..], bytes - 1, 7).is_err(), "more");
        assert!(receive(&sent[..], bytes + 1, 7).is_err(), "less");
        sent[bytes - 1] ^= 1;
        assert!(receive(&sent[..], bytes, 7).is_err());
    }
}
