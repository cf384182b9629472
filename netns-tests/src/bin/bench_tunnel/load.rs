//! What the pairs are put through, and what is read of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netns_tests::wait::{hold_for, wait_until};
use serde_json::Value;

use crate::pair::Pair;
use crate::table::Figure;

const TIMEOUT: Duration = Duration::from_secs(20);

/// A load by its name in the table.
pub(crate) struct Load {
    pub name: &'static str,
    pub run: fn(&Pair, Duration) -> Result<Vec<Figure>>,
}

pub(crate) const LOADS: [Load; 8] = [
    Load { name: "idle ping", run: ping },
    Load { name: "TCP, 1 stream", run: |pair, time| tcp(pair, time, &[]) },
    Load { name: "TCP, reverse", run: |pair, time| tcp(pair, time, &["-R"]) },
    Load { name: "TCP, 4 streams", run: |pair, time| tcp(pair, time, &["-P", "4"]) },
    Load { name: "TCP, both ways", run: |pair, time| tcp(pair, time, &["--bidir"]) },
    Load { name: "UDP, 100 bytes", run: |pair, time| udp(pair, time, 100) },
    Load { name: "UDP, 1300 bytes", run: |pair, time| udp(pair, time, 1300) },
    Load { name: "idle", run: idle },
];

/// Round trips of small packets, one at a time.
fn ping(pair: &Pair, _: Duration) -> Result<Vec<Figure>> {
    let text = pair.left.namespace.output("ping", &["-q", "-c", "300", "-i", "0.005", pair.target])?;
    // rtt min/avg/max/mdev = 0.030/0.056/0.214/0.012 ms
    let (_, times) = text.rsplit_once(" = ").context("ping printed no round trips")?;
    let times: Vec<&str> = times.split('/').collect();
    let mean: f64 = times.get(1).context("ping: no mean")?.parse().context("ping: no number")?;
    Ok(vec![Figure::less("mean ms", mean)])
}

fn tcp(pair: &Pair, time: Duration, options: &[&str]) -> Result<Vec<Figure>> {
    let (report, cpu) = iperf(pair, time, options)?;
    let end = &report["end"];
    let (mut bits, mut again) = (0.0, 0);
    // With --bidir there is a second pair of sums, for the other way.
    for (received, sent) in
        [("sum_received", "sum_sent"), ("sum_received_bidir_reverse", "sum_sent_bidir_reverse")]
    {
        bits += end[received]["bits_per_second"].as_f64().unwrap_or_default();
        again += end[sent]["retransmits"].as_u64().unwrap_or_default();
    }
    let seconds = end["sum_received"]["seconds"].as_f64().context("iperf3: no time")?;
    let gigabits = bits / 1e9;
    let mut figures = vec![Figure::more("Gbit/s", gigabits)];
    if !cpu.is_zero() {
        figures.push(Figure::more("Gbit per CPU s", gigabits * seconds / cpu.as_secs_f64()));
    }
    figures.push(Figure::less("retransmits", again as f64));
    Ok(figures)
}

/// As many datagrams as can be sent; counted is what arrives.
fn udp(pair: &Pair, time: Duration, payload: usize) -> Result<Vec<Figure>> {
    let length = payload.to_string();
    let (report, _) = iperf(pair, time, &["-u", "-b", "0", "-l", &length])?;
    let sum = &report["end"]["sum"];
    let number = |key: &str| sum[key].as_f64().with_context(|| format!("iperf3: no {key}"));
    let arrived = number("packets")? - number("lost_packets")?;
    Ok(vec![Figure::more("thousand/s", arrived / number("seconds")? / 1e3)])
}

/// What a tunnel costs that has nothing to do.
fn idle(pair: &Pair, time: Duration) -> Result<Vec<Figure>> {
    let (before, begun) = (pair.cpu()?, Instant::now());
    hold_for(time, || Ok(()))?;
    let used = pair.cpu()?.saturating_sub(before);
    Ok(vec![Figure::less("CPU %", 100.0 * used.as_secs_f64() / begun.elapsed().as_secs_f64())])
}

/// One run of `iperf3`, and the processor time of both programs meanwhile.
fn iperf(pair: &Pair, time: Duration, options: &[&str]) -> Result<(Value, Duration)> {
    let mut server = pair.listen()?;
    let seconds = time.as_secs().to_string();
    let fixed = ["-c", pair.target, "-t", &seconds, "-J", "--connect-timeout", "3000"];
    let before = pair.cpu()?;
    let text = pair.left.namespace.output("iperf3", &[&fixed[..], options].concat())?;
    let cpu = pair.cpu()?.saturating_sub(before);
    wait_until("iperf3's server ends", TIMEOUT, || Ok(server.ended()?.map(drop)))?;
    let report: Value = serde_json::from_str(&text).context("iperf3 printed no JSON")?;
    match report["error"].as_str() {
        Some(error) => bail!("iperf3: {error}"),
        None => Ok((report, cpu)),
    }
}
