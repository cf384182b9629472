//! What the pairs are put through, and what is read of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netns_tests::wait::{hold_for, wait_until};
use serde_json::Value;

use crate::pair::Pair;
use crate::table::{Figure, percentile};

const TIMEOUT: Duration = Duration::from_secs(20);

/// A load by its name in the table.
pub(crate) struct Load {
    pub name: &'static str,
    /// Where the tunnel's speed decides.
    pub work: Option<Work>,
    pub run: fn(&Pair, Duration) -> Result<Vec<Figure>>,
}

/// What most packets of a load are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Tcp,
    SmallUdp,
    LargeUdp,
}

impl Work {
    pub(crate) const ALL: [Self; 3] = [Self::Tcp, Self::SmallUdp, Self::LargeUdp];

    /// Of the figure that tells the speed.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Tcp => GIGABITS,
            Self::SmallUdp | Self::LargeUdp => PACKETS,
        }
    }

    fn payload_bytes(self) -> usize {
        match self {
            // MTU less 20 for IP and 32 for TCP with time stamps.
            Self::Tcp => 1368,
            Self::SmallUdp => 100,
            Self::LargeUdp => 1300,
        }
    }

    /// With headers, and padding to 16.
    pub(crate) fn packet_bytes(self) -> usize {
        match self {
            Self::Tcp => 1420,
            Self::SmallUdp | Self::LargeUdp => (self.payload_bytes() + 28).next_multiple_of(16),
        }
    }

    /// The row of what encrypting one takes.
    pub(crate) fn aead_name(self) -> &'static str {
        match self {
            Self::Tcp => "seal and open 1420 bytes",
            Self::SmallUdp => "seal and open 128 bytes",
            Self::LargeUdp => "seal and open 1328 bytes",
        }
    }

    /// From a figure in [`Work::unit`].
    pub(crate) fn ns_per_packet(self, speed: f64) -> f64 {
        match self {
            Self::Tcp => 8.0 * self.payload_bytes() as f64 / speed,
            Self::SmallUdp | Self::LargeUdp => 1e6 / speed,
        }
    }
}

pub(crate) const GIGABITS: &str = "Gbit/s";
pub(crate) const PER_CPU: &str = "Gbit per CPU s";
pub(crate) const RETRANSMITS: &str = "retransmits";
pub(crate) const MEDIAN_MS: &str = "p50 ms";
pub(crate) const PACKETS: &str = "thousand/s";

const fn load(
    name: &'static str,
    work: Option<Work>,
    run: fn(&Pair, Duration) -> Result<Vec<Figure>>,
) -> Load {
    Load { name, work, run }
}

pub(crate) const PING: &str = "idle ping";
pub(crate) const TCP: &str = "TCP, 1 stream";
pub(crate) const REVERSE: &str = "TCP, reverse";
pub(crate) const STREAMS: &str = "TCP, 4 streams";
pub(crate) const BOTH_WAYS: &str = "TCP, both ways";
pub(crate) const SMALL_UDP: &str = "UDP, 100 bytes";

/// Loads that tell what parts of the data plane cost.
pub(crate) const FEW: [&str; 3] = [TCP, BOTH_WAYS, SMALL_UDP];

pub(crate) const LOADS: [Load; 8] = [
    load(PING, None, ping),
    load(TCP, Some(Work::Tcp), |pair, time| tcp(pair, time, &[])),
    load(REVERSE, Some(Work::Tcp), |pair, time| tcp(pair, time, &["-R"])),
    load(STREAMS, Some(Work::Tcp), |pair, time| tcp(pair, time, &["-P", "4"])),
    load(BOTH_WAYS, Some(Work::Tcp), |pair, time| tcp(pair, time, &["--bidir"])),
    load(SMALL_UDP, Some(Work::SmallUdp), |pair, time| udp(pair, time, Work::SmallUdp)),
    load("UDP, 1300 bytes", Some(Work::LargeUdp), |pair, time| udp(pair, time, Work::LargeUdp)),
    load("idle", None, idle),
];

/// Those of [`FEW`], with what their packets are.
pub(crate) fn few() -> impl Iterator<Item = (&'static str, Work)> {
    LOADS.into_iter().filter(|load| FEW.contains(&load.name)).filter_map(|load| Some((load.name, load.work?)))
}

/// Round trips of small packets, one at a time.
fn ping(pair: &Pair, _: Duration) -> Result<Vec<Figure>> {
    let text = pair.left.namespace.output("ping", &["-c", "300", "-i", "0.005", pair.target])?;
    // 64 bytes from 198.18.0.2: icmp_seq=1 ttl=64 time=0.056 ms
    let times = text.lines().filter_map(|line| line.rsplit_once("time=")?.1.strip_suffix(" ms"));
    let times: Vec<f64> = times.map(|time| time.parse().context("ping: no number")).collect::<Result<_>>()?;
    ensure!(!times.is_empty(), "ping printed no round trips");
    let of = |percent| percentile(&times, percent);
    Ok(vec![
        Figure::less(MEDIAN_MS, of(50)),
        Figure::less("p99 ms", of(99)),
        Figure::less("worst ms", of(100)),
    ])
}

fn tcp(pair: &Pair, time: Duration, options: &[&str]) -> Result<Vec<Figure>> {
    let (report, cpu) = iperf(pair, time, options)?;
    let end = &report["end"];
    let (mut bits, mut again) = (0.0, 0.0);
    // With --bidir there is a second pair of sums, for the other way.
    let ways: &[&str] = if options.contains(&"--bidir") { &["", "_bidir_reverse"] } else { &[""] };
    for way in ways {
        bits += number(end, &format!("sum_received{way}"), "bits_per_second")?;
        again += number(end, &format!("sum_sent{way}"), "retransmits")?;
    }
    let seconds = number(end, "sum_received", "seconds")?;
    let gigabits = bits / 1e9;
    let mut figures = vec![Figure::more(GIGABITS, gigabits)];
    if !cpu.is_zero() {
        figures.push(Figure::more(PER_CPU, gigabits * seconds / cpu.as_secs_f64()));
    }
    figures.push(Figure::less(RETRANSMITS, again));
    Ok(figures)
}

/// As many datagrams as can be sent; counted is what arrives.
fn udp(pair: &Pair, time: Duration, work: Work) -> Result<Vec<Figure>> {
    let length = work.payload_bytes().to_string();
    let (report, cpu) = iperf(pair, time, &["-u", "-b", "0", "-l", &length])?;
    let number = |key| number(&report["end"], "sum", key);
    let arrived = number("packets")? - number("lost_packets")?;
    let mut figures = vec![Figure::more(PACKETS, arrived / number("seconds")? / 1e3)];
    if !cpu.is_zero() {
        figures.push(Figure::more("thousand per CPU s", arrived / cpu.as_secs_f64() / 1e3));
    }
    Ok(figures)
}

/// What iperf3 always tells; nothing of it is taken for zero if it is missing.
fn number(end: &Value, sum: &str, key: &str) -> Result<f64> {
    end[sum][key].as_f64().with_context(|| format!("iperf3 tells no {key} in {sum}"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_names_the_size_of_its_packets() {
        for work in Work::ALL {
            assert!(work.aead_name().contains(&format!(" {} ", work.packet_bytes())), "{work:?}");
        }
    }

    #[test]
    fn what_iperf3_does_not_tell_is_an_error_and_not_zero() {
        let end = serde_json::json!({"sum_sent": {"retransmits": 0}});
        assert_eq!(number(&end, "sum_sent", "retransmits").unwrap(), 0.0);
        assert!(number(&end, "sum_sent", "seconds").is_err());
        assert!(number(&end, "sum_sent_bidir_reverse", "retransmits").is_err());
    }

    #[test]
    fn a_speed_is_a_time_per_packet() {
        assert!((Work::Tcp.ns_per_packet(10.944) - 1000.0).abs() < 1e-6);
        assert_eq!(Work::SmallUdp.ns_per_packet(500.0), 2000.0);
    }
}
