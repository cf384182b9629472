//! `agent debug capture`: asks for a capture and writes it, until Ctrl-C or a limit. Whatever ends this process, the capture ends
//! with its connection.

use super::{
    recording::{Limits, Recording},
    size::Size,
    target::{Place, Target},
};
use crate::{
    capture::DEFAULT_SNAPLEN,
    cli::{Context, failure::Failure, output},
    config::Span,
    local::{LocalStream, Request},
    platform::StopSignals,
    wg,
};
use anyhow::anyhow;
use std::{cell::Cell, future::pending, path::PathBuf, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    sync::Notify,
    time::sleep,
};

const FILE_LIMIT: Size = Size(100_000_000);
/// What was captured before the end is waited for at most this long.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(3);
const BUFFER_BYTES: usize = 256 * 1024;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Of this peer alone: its name, public key or an address
    #[arg(long, value_name = "PEER")]
    peer: Option<String>,
    /// Where to, readable for this user alone; - is standard output [default: -, unless that is a terminal]
    #[arg(long, short, value_name = "FILE|-")]
    write: Option<PathBuf>,
    /// Replace the file if there is one
    #[arg(long)]
    force: bool,
    /// End at this size [default: 100MB for files]
    #[arg(long, value_name = "SIZE")]
    limit: Option<Size>,
    /// End after so many packets
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Of each packet no more than so many bytes
    #[arg(long, short, value_name = "BYTES", default_value_t = DEFAULT_SNAPLEN)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=DEFAULT_SNAPLEN.into()))]
    snaplen: u32,
    /// End after this time
    #[arg(long, value_name = "SPAN")]
    duration: Option<Span>,
}

pub(super) async fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let mut signals = StopSignals::new().map_err(Failure::failed)?;
    let place = Place::choose(args.write.as_deref(), args.force)?;
    place.check()?;
    let stream = begin(context, args).await?;
    let mut target = place.open()?;
    let limit = match (&place, args.limit) {
        (_, Some(limit)) => Some(limit),
        (Place::File { .. }, None) => Some(FILE_LIMIT),
        (Place::Stdout, None) => None,
    };
    let mut recording = Recording::new(Limits { bytes: limit.map(|size| size.0), packets: args.count });
    let ended = session(stream, &mut target, &mut recording, args.duration, &mut signals).await;
    output::note(&summary(&recording, &place));
    ended
}

/// From the agent, or from the interface that was asked for if that is another's.
async fn begin(context: &Context, args: &Args) -> Result<BufReader<LocalStream>, Failure> {
    if let Some(interface) = context.foreign_interface().await? {
        let stream =
            wg::Caller::connect(&interface).await?.capture(args.peer.as_deref(), args.snaplen).await?;
        return Ok(stream);
    }
    let request = Request::Capture { peer: args.peer.clone(), snaplen: args.snaplen };
    Ok(context.client().ask(&request).await?.into_stream().await?)
}

/// Writes what comes until the agent has said the last word, which it does when it is asked to end.
async fn session(
    stream: BufReader<LocalStream>,
    target: &mut Target,
    recording: &mut Recording,
    duration: Option<Span>,
    signals: &mut StopSignals,
) -> Result<(), Failure> {
    let (read, mut write) = tokio::io::split(stream);
    let (is_full, was_asked) = (Notify::new(), Cell::new(false));
    let time_is_up = async {
        match duration {
            Some(Span(duration)) => sleep(duration).await,
            None => pending().await,
        }
    };
    let ask = async {
        tokio::select! {
            () = signals.received() => {}
            () = time_is_up => {}
            () = is_full.notified() => {}
        }
        was_asked.set(true);
        // An agent that is gone has ended it.
        let _ = write.shutdown().await;
        tokio::select! {
            () = signals.received() => {}
            () = sleep(FAREWELL_TIMEOUT) => {}
        }
    };
    let recorded = tokio::select! {
        recorded = record(read, target, recording, &is_full) => recorded,
        () = ask => Err(Failure::Failed(anyhow!("the end of the capture took too long: it may lack the last packets"))),
    };
    recorded?;
    match was_asked.get() {
        true => Ok(()),
        false => Err(Failure::Failed(anyhow!("the capture ended with the tunnel, or with the agent"))),
    }
}

async fn record(
    mut read: impl AsyncRead + Unpin,
    target: &mut Target,
    recording: &mut Recording,
    is_full: &Notify,
) -> Result<(), Failure> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = match read.read(&mut buffer).await {
            // Killed, it leaves no last word.
            Ok(0) | Err(_) => return Ok(()),
            Ok(count) => count,
        };
        let blocks = recording.take(&buffer[..count]).map_err(Failure::failed)?;
        if !blocks.is_empty() {
            target.write(blocks).await?;
        }
        if recording.full.is_some() {
            is_full.notify_one();
        }
    }
}

fn summary(recording: &Recording, place: &Place) -> String {
    let dropped =
        recording.dropped.map_or_else(|| "an unknown number".to_owned(), |dropped| dropped.to_string());
    let mut text = format!("{} packets captured, {dropped} dropped", recording.packets);
    if let Place::File { path, .. } = place {
        text = format!("{text}; {} in {}", Size(recording.bytes), path.display());
    }
    match recording.full {
        Some(full) => format!("{text} ({full})"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(dropped: Option<u64>) -> Recording {
        let mut recording = Recording::new(Limits::default());
        (recording.packets, recording.dropped) = (7, dropped);
        recording
    }

    #[test]
    fn what_was_dropped_is_told_and_so_is_that_nobody_knows_it() {
        let place = Place::Stdout;
        assert_eq!(summary(&recorded(Some(3)), &place), "7 packets captured, 3 dropped");
        assert_eq!(summary(&recorded(None), &place), "7 packets captured, an unknown number dropped");
    }
}
