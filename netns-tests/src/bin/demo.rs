//! `make demo`: the main job, live. Three servers, three agents, a ping every 5 ms between two of them, and everything
//! that can go wrong with the servers, one thing after the other. Ends by itself and leaves nothing behind.

#![expect(clippy::print_stdout, reason = "the story is this program's output")]

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use netns_tests::binaries::Binaries;
use netns_tests::figures::ms;
use netns_tests::mesh::{Database, FIVE_MS, Mesh, overlay_address, ping};
use netns_tests::ping::{PingReport, Pinger};
use netns_tests::sandbox;
use netns_tests::scenario::{Scenario, log_tails};
use netns_tests::wait::hold_for;

const TIMEOUT: Duration = Duration::from_secs(20);
/// How long each state is shown, so that a reader can follow and the pings have time to be lost.
const LOOK: Duration = Duration::from_secs(4);

#[derive(Parser)]
struct Arguments {
    /// What the servers share: sqlite or postgres.
    #[arg(long, default_value = "sqlite", value_parser = ["sqlite", "postgres"])]
    database: String,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    sandbox::enter()?;
    let binaries = Binaries::locate()?;
    let directory = tempfile::Builder::new().prefix("holdfast-demo-").tempdir()?;
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.path(), open)?;
    let scenario = Scenario::new("demo", directory.path(), &binaries)?;
    let mut story = Story::new();
    let result = tell(&mut story, &scenario, &arguments.database);
    let failed = story.conclude(result, &scenario);
    drop(directory);
    std::process::exit(i32::from(failed));
}

/// The story, in order.
fn tell(story: &mut Story, scenario: &Scenario, database: &str) -> Result<()> {
    let kind = if database == "postgres" { Database::Postgres } else { Database::Sqlite };
    story.say(&format!("starting 3 servers on one {database} database, and 3 agents that know all three"));
    let mut mesh = Mesh::plan(3, 3).database(kind).start(scenario)?;
    story.show(&mesh)?;
    story.pings = Some(ping(&mesh.agents[0], &mesh.agents[1])?);
    story.say("a1 pings a2 through their tunnel every 5 ms from now on");
    hold_for(LOOK / 2, || Ok(()))?;

    let first = mesh.busiest_server()?;
    fail_over(story, &mut mesh, first, "killed (kill -9)")?;
    let second = mesh.busiest_server()?;
    fail_over(story, &mut mesh, second, "frozen (SIGSTOP: its connections stay open, it just says nothing)")?;

    everybody_dies(story, &mut mesh)?;
    idle_tunnel_wakes(story, &mesh)?;
    agent_restarts(story, &mut mesh)?;
    servers_return(story, &mut mesh)?;
    hold_for(LOOK, || Ok(()))?;
    // While the mesh is there: afterwards nobody would answer.
    story.finish_pings()
}

/// One server fails; the agents it served are watched until another serves them.
fn fail_over(story: &mut Story, mesh: &mut Mesh, server: usize, how: &str) -> Result<()> {
    let name = mesh.servers[server].name.clone();
    let served = mesh.served_by(server)?;
    let killed = how.starts_with("killed");
    let at = if killed { mesh.servers[server].kill()? } else { mesh.servers[server].process()?.freeze()? };
    story.fault(&format!("{name} is {how}"));
    let spans = mesh.moved(&served, at, TIMEOUT)?;
    for (served, span) in served.iter().zip(&spans) {
        let agent = &mesh.agents[served.agent];
        let now = mesh.server_of(agent)?.map_or("nobody", |server| mesh.servers[server].name.as_str());
        story.good(&format!("{} is served by {now}, re-attached after {}", agent.name, ms(*span)));
    }
    let worst = spans.iter().max().copied().unwrap_or_default();
    let word = if killed { "server killed" } else { "server frozen" };
    story.remember(format!("{word}: {} agents served by another within {}", spans.len(), ms(worst)));
    hold_for(LOOK, || Ok(()))?;
    story.count();
    Ok(())
}

fn everybody_dies(story: &mut Story, mesh: &mut Mesh) -> Result<()> {
    for server in mesh.servers.iter_mut().filter(|server| server.is_running()) {
        server.kill()?;
    }
    story.fault("all servers are dead");
    for agent in &mesh.agents {
        agent.wait_now(TIMEOUT, "knows that nobody serves it", |status| status.served_by().is_none())?;
    }
    story.say("no agent has a server; each goes on from the map on its disk");
    hold_for(LOOK, || Ok(()))?;
    story.count();
    Ok(())
}

fn idle_tunnel_wakes(story: &mut Story, mesh: &Mesh) -> Result<()> {
    let (a1, a3) = (&mesh.agents[0], &mesh.agents[2]);
    let target = overlay_address(a1, a3)?;
    story.say("a1 sends its first packet ever to a3, while no server is there to introduce them");
    let at = Instant::now();
    let once = Pinger::start("a1 to a3", &a1.host.namespace, target, Duration::from_secs(60))?;
    let answer = once.first_reply_after(at, TIMEOUT)? - at;
    story.good(&format!("a3 answers that very packet after {}", ms(answer)));
    story.remember(format!("idle tunnel woken without servers: first packet answered after {}", ms(answer)));
    hold_for(LOOK / 2, || Ok(()))
}

fn agent_restarts(story: &mut Story, mesh: &mut Mesh) -> Result<()> {
    let target = overlay_address(&mesh.agents[0], &mesh.agents[2])?;
    mesh.agents[2].kill()?;
    story.fault("a3 itself is killed (kill -9) and started again");
    let probe = Pinger::start("a1 to a3", &mesh.agents[0].host.namespace, target, FIVE_MS)?;
    let at = mesh.agents[2].launch()?;
    let flows = probe.first_reply_after(at, TIMEOUT)? - at;
    story.good(&format!("traffic to a3 flows {} after its start, from the map on its disk", ms(flows)));
    story.remember(format!("agent restarted without servers: traffic after {}", ms(flows)));
    mesh.agents[2].follow()?;
    hold_for(LOOK / 2, || Ok(()))?;
    story.count();
    Ok(())
}

fn servers_return(story: &mut Story, mesh: &mut Mesh) -> Result<()> {
    story.say("the servers come back");
    let listening = mesh.servers[0].start()?;
    let mut worst = Duration::ZERO;
    for agent in &mesh.agents {
        let (at, _) =
            agent.wait(listening, TIMEOUT, "is served again", |status| status.served_by().is_some())?;
        worst = worst.max(at - listening);
        story.good(&format!(
            "{} is served again {} after the first server listens",
            agent.name,
            ms(at - listening)
        ));
    }
    story.remember(format!("servers back: all agents served again within {}", ms(worst)));
    mesh.servers[1].start()?;
    mesh.servers[2].start()?;
    mesh.settle()?;
    story.show(mesh)
}

/// Prints as things happen, and remembers what the summary needs.
struct Story {
    begin: Instant,
    colour: bool,
    pings: Option<Pinger>,
    report: Option<PingReport>,
    summary: Vec<String>,
}

impl Story {
    fn new() -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { begin: Instant::now(), colour, pings: None, report: None, summary: Vec::new() }
    }

    fn say(&self, text: &str) {
        self.line("0", text);
    }

    fn fault(&self, text: &str) {
        self.line("1;31", text);
    }

    fn good(&self, text: &str) {
        self.line("32", text);
    }

    fn line(&self, colour: &str, text: &str) {
        let at = self.begin.elapsed().as_secs_f64();
        match self.colour {
            true => println!("\x1b[2m{at:6.1} s\x1b[0m  \x1b[{colour}m{text}\x1b[0m"),
            false => println!("{at:6.1} s  {text}"),
        }
    }

    fn remember(&mut self, text: String) {
        self.summary.push(text);
    }

    /// Who serves whom.
    fn show(&self, mesh: &Mesh) -> Result<()> {
        for agent in &mesh.agents {
            let status = agent.status()?;
            let by = |url: Option<&str>| {
                let server =
                    mesh.servers.iter().find(|server| url.is_some_and(|url| url.contains(&server.url)));
                server.map_or("nobody", |server| server.name.as_str()).to_owned()
            };
            let active = by(status.served_by().map(|server| server.url.as_str()));
            let standby = by(status.control.standby.as_ref().map(|server| server.url.as_str()));
            self.say(&format!(
                "{} ({}): served by {active}, standby {standby}",
                agent.name,
                status.address()?
            ));
        }
        Ok(())
    }

    fn count(&self) {
        if let Some(pings) = &self.pings {
            let report = pings.so_far();
            self.say(&format!("pings from a1 to a2 so far: {}, lost: {}", report.sent(), report.lost()));
        }
    }

    fn finish_pings(&mut self) -> Result<()> {
        self.report = self.pings.take().map(Pinger::finish).transpose().context("the pings")?;
        Ok(())
    }

    /// The summary; returns whether anything was not as it must be.
    fn conclude(&self, result: Result<()>, scenario: &Scenario) -> bool {
        println!();
        self.summary.iter().for_each(|line| println!("  {line}"));
        if let Some(report) = &self.report {
            println!(
                "  pings across the open tunnel: {} sent, {} lost, longest gap {}",
                report.sent(),
                report.lost(),
                ms(report.longest_gap())
            );
        }
        let lost = self.report.as_ref().is_none_or(|report| report.lost() > 0);
        let failed = lost || result.is_err();
        if let Err(error) = result {
            println!("  FAILED: {error:#}\n{}", log_tails(&scenario.directory, 8));
        }
        println!("  {:.0} s, everything cleaned up", self.begin.elapsed().as_secs_f64());
        failed
    }
}
