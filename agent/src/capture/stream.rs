//! One caller's capture, from its beginning to the counts at its end.

use super::{
    CaptureError, Names, Source,
    pcapng::Encoder,
    queue::{Receiver, queue},
};
use agent_tunnel::capture::{Capture, Wanted};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

/// For what was captured before the end was asked for.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(10);

/// A capture that has begun.
pub(crate) struct Begun {
    /// Ends the queue when it is dropped.
    capture: Option<Capture>,
    interface: String,
    wanted: Wanted,
    names: Names,
    queue: Receiver,
}

impl Source {
    /// Everything from now on is in the capture.
    pub(crate) fn begin(self) -> Result<Begun, CaptureError> {
        // The tunnel must not be kept: whoever ends it waits for that.
        let tunnel = self.tunnel.upgrade().ok_or(CaptureError::NoTunnel)?;
        let (sender, queue) = queue();
        let capture = tunnel.capture(self.wanted, move |packets| sender.send(packets));
        let capture = capture.ok_or(CaptureError::TooMany)?;
        let interface = tunnel.interface().to_owned();
        Ok(Begun { capture: Some(capture), interface, wanted: self.wanted, names: self.names, queue })
    }
}

/// Writes what is captured until the caller asks for the end, goes away, or the tunnel ends.
pub(crate) async fn stream(
    begun: Begun,
    read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let Begun { capture, interface, wanted, names, mut queue } = begun;
    tracing::info!(interface, "a capture begins");
    let encoder = Encoder::new(names, wanted.snaplen);
    let mut bytes = Vec::new();
    encoder.head(&interface, &mut bytes);
    write.write_all(&bytes).await?;
    let asked = async {
        end_of(read).await;
        // The queue ends with it, once it is empty.
        drop(capture);
        tokio::time::sleep(LAST_WORDS_TIMEOUT).await;
    };
    let copied = tokio::select! {
        copied = copy(&mut queue, &encoder, &mut write) => copied,
        () = asked => Err(io::ErrorKind::TimedOut.into()),
    };
    let (taken, dropped) = queue.counts();
    tracing::info!(interface, packets = taken, dropped, "a capture has ended");
    copied?;
    bytes.clear();
    encoder.tail((taken, dropped), &mut bytes);
    timeout(LAST_WORDS_TIMEOUT, write.write_all(&bytes)).await??;
    write.shutdown().await
}

async fn copy(
    queue: &mut Receiver,
    encoder: &Encoder,
    write: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut bytes = Vec::new();
    while let Some(packets) = queue.next().await {
        bytes.clear();
        encoder.packets(&packets, &mut bytes);
        write.write_all(&bytes).await?;
    }
    Ok(())
}

/// Nothing more is expected of the caller.
async fn end_of(mut read: impl AsyncRead + Unpin) {
    let mut ignored = [0; 256];
    while read.read(&mut ignored).await.is_ok_and(|count| count > 0) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::pcapng::{Block, next_block};
    use agent_tunnel::capture::{Direction, Fate, Packets, Seen};

    /// A capture of no tunnel, and what the data plane would call.
    fn begun() -> (Begun, impl Fn(Packets)) {
        let (sender, queue) = queue();
        let wanted = Wanted { peer: None, snaplen: 100 };
        let names = Names::default();
        (Begun { capture: None, interface: "hf0".into(), wanted, names, queue }, move |packets| {
            sender.send(packets)
        })
    }

    async fn blocks(mut caller: impl AsyncRead + Unpin) -> Vec<Block> {
        let mut stream = Vec::new();
        caller.read_to_end(&mut stream).await.unwrap();
        let (mut rest, mut blocks) = (&stream[..], Vec::new());
        while let Some((block, _)) = next_block(&mut rest).unwrap() {
            blocks.push(block);
        }
        assert!(rest.is_empty());
        blocks
    }

    #[tokio::test]
    async fn when_the_tunnel_ends_so_does_the_stream_with_its_counts() {
        let (caller, daemon) = tokio::io::duplex(64);
        let (begun, sink) = begun();
        let (read, write) = tokio::io::split(daemon);
        drop(sink);
        let (streamed, blocks) = tokio::join!(stream(begun, read, write), blocks(caller));
        streamed.unwrap();
        assert_eq!(blocks.last(), Some(&Block::Statistics { dropped: 0 }));
    }

    /// As one worker gives them away in a turn.
    fn packets(count: usize, len: usize) -> Packets {
        let at = std::time::SystemTime::UNIX_EPOCH;
        let (peer, direction) = (agent_tunnel::PublicKey([1; 32]), Direction::Inbound);
        let seen = Seen { at, peer, direction, fate: Fate::Passed, len };
        std::iter::repeat_n((seen, &vec![7; len][..]), count).collect()
    }

    #[tokio::test]
    async fn what_a_caller_who_does_not_read_in_time_misses_is_counted_and_the_rest_arrives() {
        const AT_ONCE: usize = 50;
        let (caller, daemon) = tokio::io::duplex(64);
        let (begun, sink) = begun();
        let (read, write) = tokio::io::split(daemon);
        // Ten megabytes, of which the queue holds eight.
        let sent = 200 * AT_ONCE as u64;
        (0..200).for_each(|_| sink(packets(AT_ONCE, 1000)));
        drop(sink);
        let (streamed, blocks) = tokio::join!(stream(begun, read, write), blocks(caller));
        streamed.unwrap();
        let arrived = blocks.iter().filter(|block| **block == Block::Packet).count() as u64;
        assert!(arrived > sent / 2 && arrived < sent, "{arrived} of {sent} arrived");
        assert_eq!(blocks.last(), Some(&Block::Statistics { dropped: sent - arrived }));
    }

    #[tokio::test]
    async fn a_caller_who_goes_ends_the_capture() {
        let (caller, daemon) = tokio::io::duplex(4096);
        let (begun, _sink) = begun();
        let (read, write) = tokio::io::split(daemon);
        drop(caller);
        assert!(stream(begun, read, write).await.is_err());
    }
}
