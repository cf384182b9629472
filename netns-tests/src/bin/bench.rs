//! `make bench`: what the mesh costs and how fast it is, on real processes in the lab. Median and worst of some rounds;
//! this machine's own figures, to be compared with others only in runs on one machine.

#![expect(clippy::print_stdout, reason = "the figures are this program's output")]

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netns_tests::binaries::Binaries;
use netns_tests::figures::{Samples, ms};
use netns_tests::mesh::{Mesh, overlay_address, ping};
use netns_tests::process::Process;
use netns_tests::sandbox;
use netns_tests::scenario::Scenario;
use netns_tests::status::Status;
use netns_tests::wait::{hold_for, wait_until};

const TIMEOUT: Duration = Duration::from_secs(10);
type Bench = fn(&Scenario) -> Result<()>;

const CROWD: usize = 10_000;

fn main() -> Result<()> {
    sandbox::enter()?;
    let root = tempfile::Builder::new().prefix("holdfast-bench-").tempdir()?;
    let binaries = Binaries::locate()?;
    let benches: [(&str, Bench); 4] =
        [("throughput", throughput), ("latency", latency), ("failover", failover), ("status", status)];
    let mut failed = false;
    for (name, bench) in benches {
        if let Err(error) = one(name, bench, root.path(), &binaries) {
            println!("{name}: FAILED: {error:#}");
            failed = true;
        }
    }
    drop(root);
    std::process::exit(i32::from(failed));
}

fn one(name: &str, bench: Bench, root: &Path, binaries: &Binaries) -> Result<()> {
    bench(&Scenario::new(name, root, binaries)?)
}

/// One TCP stream through two agents, and what their processor time buys.
fn throughput(scenario: &Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 2).start(scenario)?;
    ping(&mesh.agents[0], &mesh.agents[1])?.finish()?;
    let target = overlay_address(&mesh.agents[0], &mesh.agents[1])?.to_string();
    let mut server = mesh.agents[1].host.namespace.command("iperf3");
    server.args(["-s", "--forceflush", "-B", &target]);
    let server = Process::start("iperf3", server, &scenario.directory.join("iperf3.txt"))?;
    wait_until("iperf3 listens", TIMEOUT, || Ok(server.log_tail(5).contains("listening").then_some(())))?;
    for (label, options) in
        [("TCP, 1 stream", &[][..]), ("TCP, 4 streams", &["-P", "4"]), ("TCP, reverse", &["-R"])]
    {
        let (mut speed, mut per_cpu, mut again) = (Vec::new(), Vec::new(), 0);
        for _ in 0..5 {
            let before = cpu(&mut mesh)?;
            let report = iperf(&mesh, &target, options)?;
            let used = (cpu(&mut mesh)? - before).as_secs_f64();
            let end = &report["end"];
            let gigabits = end["sum_received"]["bits_per_second"].as_f64().context("iperf3: no speed")? / 1e9;
            let seconds = end["sum_received"]["seconds"].as_f64().context("iperf3: no time")?;
            again += end["sum_sent"]["retransmits"].as_u64().unwrap_or_default();
            speed.push(gigabits);
            per_cpu.push(gigabits * seconds / used);
        }
        println!(
            "{label}: median {:.2}, worst {:.2} Gbit/s; per CPU second of the agents {:.2}; {again} retransmits",
            median(&mut speed),
            speed[0],
            median(&mut per_cpu)
        );
    }
    Ok(())
}

fn iperf(mesh: &Mesh, target: &str, options: &[&str]) -> Result<serde_json::Value> {
    let arguments = [&["-c", target, "-t", "4", "-J", "--connect-timeout", "3000"], options].concat();
    let text = mesh.agents[0].host.namespace.output("iperf3", &arguments)?;
    let report: serde_json::Value = serde_json::from_str(&text).context("iperf3 printed no JSON")?;
    match report["error"].as_str() {
        Some(error) => bail!("iperf3: {error}"),
        None => Ok(report),
    }
}

/// Processor time of both agents.
fn cpu(mesh: &mut Mesh) -> Result<Duration> {
    mesh.agents.iter_mut().map(|agent| Ok(agent.process()?.usage()?.1)).sum()
}

/// Sorts, and returns the middle: the worst is then the first.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A ping every 5 ms through an open tunnel for ten seconds.
fn latency(scenario: &Scenario) -> Result<()> {
    let mesh = Mesh::plan(1, 2).start(scenario)?;
    let pinger = ping(&mesh.agents[0], &mesh.agents[1])?;
    hold_for(Duration::from_secs(10), || Ok(()))?;
    let report = pinger.finish()?;
    let mut round_trips = Samples::new("ping through a tunnel");
    round_trips.extend(report.echoes.iter().filter_map(|echo| Some(echo.replied_at? - echo.sent_at)));
    print(&round_trips);
    Ok(())
}

/// The server that serves everybody is killed; six agents, ten rounds.
fn failover(scenario: &Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(3, 6).start(scenario)?;
    let mut moved = Samples::new("server killed, served by another");
    for _ in 0..10 {
        let victim = mesh.busiest_server()?;
        let served = mesh.served_by(victim)?;
        let at = mesh.servers[victim].kill()?;
        moved.extend(mesh.moved(&served, at, TIMEOUT)?);
        mesh.servers[victim].start()?;
    }
    print(&moved);
    Ok(())
}

/// `agent status --json` with a large map, and what the agent weighs with it.
fn status(scenario: &Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 1).start(scenario)?;
    mesh.agents[0].unfollow();
    let lean = mesh.agents[0].process()?.usage()?.0;
    let server = mesh.servers[0].url.parse()?;
    let at = Instant::now();
    netns_tests::crowd::enrol(&mesh.agents[0].host.namespace, server, &mesh.setup_key, CROWD)?;
    println!("{CROWD} enrolments: {}", ms(at.elapsed()));
    let agent = &mesh.agents[0];
    wait_until("the agent knows everybody", 6 * TIMEOUT, || {
        let status: Status = serde_json::from_str(&agent.ask(&["status", "--json"])?)?;
        Ok((status.peers.len() >= CROWD).then_some(()))
    })?;
    println!("{CROWD} peers known to an agent after {}", ms(at.elapsed()));
    let mut answered = Samples::new(format!("status --json with {CROWD} peers"));
    for _ in 0..20 {
        let asked = Instant::now();
        agent.ask(&["status", "--json"])?;
        answered.push(asked.elapsed());
    }
    print(&answered);
    let heavy = mesh.agents[0].process()?.usage()?.0;
    println!("memory of the agent: {} KB alone, {} KB with {CROWD} idle peers", lean / 1024, heavy / 1024);
    Ok(())
}

fn print(samples: &Samples) {
    println!("{samples}");
}
