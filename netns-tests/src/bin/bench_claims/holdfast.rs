//! Ours: a server, some who claim, and one client or more.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netns_tests::agent::{Agent, INTERFACE};
use netns_tests::binaries::Binaries;
use netns_tests::delay::Line;
use netns_tests::mesh::Mesh;
use netns_tests::ping::Pinger;
use netns_tests::process::Process;
use netns_tests::scenario::Scenario;
use netns_tests::status::{Claim, Peer, Status};
use netns_tests::topology::{Host, Port, Switch};
use netns_tests::wait::{hold_for, wait_until};

use crate::lab::{Lab, TIMEOUT};

pub(crate) const SHARED: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
pub(crate) const SHARED_PREFIX: &str = "10.99.0.2/32";
/// How often a state is asked for: each time is a process.
const ASK_INTERVAL: Duration = Duration::from_millis(50);
/// A client asks one that it holds for dead once a second; nothing shows when it did.
const ASKED_AGAIN: Duration = Duration::from_millis(1200);

/// What to build.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// What each of them claims.
    pub(crate) claims: Vec<&'static str>,
    pub(crate) claimer_options: Vec<&'static str>,
    pub(crate) client_options: Vec<&'static str>,
    pub(crate) clients: usize,
    pub(crate) target: Ipv4Addr,
    /// Between the clients and everybody else.
    pub(crate) one_way: Option<Duration>,
    /// Once everything is set up.
    pub(crate) servers_down: bool,
}

impl Setup {
    /// So many who claim one address, and a client.
    pub(crate) fn of(claimers: usize) -> Self {
        Self {
            claims: vec![SHARED_PREFIX; claimers],
            claimer_options: Vec::new(),
            client_options: Vec::new(),
            clients: 1,
            target: SHARED,
            one_way: None,
            servers_down: false,
        }
    }
}

/// It runs. Those who claim come first among the agents, then the clients.
pub(crate) struct Holdfast {
    pub(crate) mesh: Mesh,
    claimers: usize,
    target: Ipv4Addr,
    /// The round trip without a tunnel, where there is a delay.
    pub(crate) round_trip: Option<Duration>,
    _line: Option<(Line, Switch)>,
}

impl Holdfast {
    pub(crate) fn start(root: &Path, name: &str, binaries: &Binaries, setup: &Setup) -> Result<Self> {
        Self::start_with(root, name, binaries, setup, |_| Ok(()))
    }

    /// With something done to the machines before their agents start.
    pub(crate) fn start_with(
        root: &Path,
        name: &str,
        binaries: &Binaries,
        setup: &Setup,
        prepare: impl FnOnce(&Mesh) -> Result<()>,
    ) -> Result<Self> {
        let scenario = Scenario::new(name, root, binaries)?;
        let mut mesh = Mesh::plan(1, 0).servers_only(&scenario)?;
        let line = match setup.one_way {
            Some(one_way) => {
                let far = Switch::new()?;
                Some((Line::between(&mesh.switch, &far, one_way)?, far))
            }
            None => None,
        };
        for (number, claim) in setup.claims.iter().enumerate() {
            let agent = mesh.add_agent(u8::try_from(number)?)?;
            agent
                .options
                .extend(["--claim", claim].iter().chain(&setup.claimer_options).map(|o| (*o).into()));
        }
        for number in setup.claims.len()..setup.claims.len() + setup.clients {
            let agent = match &line {
                Some((_, far)) => mesh.add_agent_on(far, u8::try_from(number)?)?,
                None => mesh.add_agent(u8::try_from(number)?)?,
            };
            agent.options.extend(setup.client_options.iter().map(|o| (*o).into()));
        }
        prepare(&mesh)?;
        mesh.start_agents()?;
        let claimers = setup.claims.len();
        let mut lab = Self { mesh, claimers, target: setup.target, round_trip: None, _line: line };
        lab.grant(&setup.claims)?;
        if setup.one_way.is_some() {
            lab.round_trip = Some(lab.measure_round_trip()?);
        }
        lab.settle()?;
        if setup.servers_down {
            lab.mesh.servers[0].kill()?;
        }
        Ok(lab)
    }

    fn grant(&mut self, claims: &[&str]) -> Result<()> {
        for (agent, claim) in self.mesh.agents.iter().zip(claims) {
            let output = self.mesh.servers[0].command(&["node", "allow-claim", &agent.name, claim])?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        for agent in &self.mesh.agents[..claims.len()] {
            agent.wait_now(TIMEOUT, "serves its claim", |status| {
                status.own.claims.iter().any(|claim| claim.state == "served")
            })?;
        }
        for client in &self.mesh.agents[claims.len()..] {
            client.wait_now(TIMEOUT, "knows who claims", |status| {
                status.claims.iter().any(|claim| claim.candidates.len() >= claims.len().min(2))
            })?;
        }
        // To tell each change would be work for all of them.
        self.mesh.agents.iter_mut().for_each(Agent::unfollow);
        Ok(())
    }

    fn measure_round_trip(&self) -> Result<Duration> {
        let to = self.mesh.agents[0].underlay;
        let pinger = Pinger::start("outside", &self.client().namespace, to, Duration::from_millis(10))?;
        pinger.first_reply_after(Instant::now() + Duration::from_millis(500), TIMEOUT)?;
        let echoes = pinger.finish()?.echoes;
        let mut times: Vec<Duration> =
            echoes.iter().filter_map(|echo| Some(echo.replied_at? - echo.sent_at)).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied().context("no ping was answered")
    }

    /// The client has one who serves, and where there is a pair, the other one ready.
    fn settle(&self) -> Result<()> {
        let pinger =
            Pinger::start("at first", &self.client().namespace, self.target, Duration::from_millis(50))?;
        pinger.first_reply_after(Instant::now(), TIMEOUT)?;
        if self.claimers != 2 {
            return Ok(());
        }
        let is_settled = |status: &Status| {
            let is_connected = |agent: &Agent| status.peer(&agent.name).is_some_and(Peer::is_connected);
            let is_best = |claim: &Claim| claim.active.as_ref() == claim.candidates.first();
            self.mesh.agents[..2].iter().all(is_connected) && status.claims.iter().all(is_best)
        };
        self.wait_client("has both ready", is_settled)?;
        // Who is best shows when both have told how long they are up.
        hold_for(ASKED_AGAIN, || Ok(()))?;
        self.wait_client("has both ready", is_settled)?;
        Ok(())
    }

    pub(crate) fn agent(&self, number: usize) -> &Agent {
        &self.mesh.agents[number]
    }

    /// The first of the clients.
    pub(crate) fn client_agent(&self) -> &Agent {
        &self.mesh.agents[self.claimers]
    }

    pub(crate) fn wait_client(&self, what: &str, holds: impl Fn(&Status) -> bool) -> Result<Status> {
        wait_state(self.client_agent(), TIMEOUT, what, holds)
    }

    /// How often the client has moved, any prefix.
    pub(crate) fn switches(&self) -> Result<u64> {
        Ok(state(self.client_agent())?.claims.iter().map(|claim| claim.switches).sum())
    }
}

/// What an agent says of itself now.
pub(crate) fn state(agent: &Agent) -> Result<Status> {
    serde_json::from_str(&agent.ask(&["status", "--json"])?).context("status --json is no status")
}

pub(crate) fn wait_state(
    agent: &Agent,
    timeout: Duration,
    what: &str,
    holds: impl Fn(&Status) -> bool,
) -> Result<Status> {
    wait_until(&format!("{} {what}", agent.name), timeout, || {
        // One that was just started does not answer yet.
        let status = state(agent).ok().filter(&holds);
        if status.is_none() {
            std::thread::sleep(ASK_INTERVAL);
        }
        Ok(status)
    })
}

/// Who serves a prefix, as this client has it.
pub(crate) fn serving(client: &Agent, prefix: &str) -> Result<Option<String>> {
    let claims = state(client)?.claims;
    Ok(claims.into_iter().find(|claim| claim.prefix == prefix).and_then(|claim| claim.active))
}

impl Lab for Holdfast {
    fn client(&self) -> &Host {
        &self.client_agent().host
    }

    fn client_address(&self) -> Ipv4Addr {
        self.client_agent().underlay
    }

    fn target(&self) -> Ipv4Addr {
        self.target
    }

    fn claimers(&self) -> usize {
        self.claimers
    }

    fn host(&self, claimer: usize) -> &Host {
        &self.mesh.agents[claimer].host
    }

    fn port(&self, claimer: usize) -> &Port {
        &self.mesh.agents[claimer].port
    }

    fn interface(&self) -> &'static str {
        INTERFACE
    }

    fn process(&mut self, claimer: usize) -> Result<&mut Process> {
        self.mesh.agents[claimer].process()
    }

    fn kill(&mut self, claimer: usize) -> Result<Instant> {
        self.mesh.agents[claimer].kill()
    }

    fn start(&mut self, claimer: usize) -> Result<Instant> {
        self.mesh.agents[claimer].launch()
    }

    fn stop(&mut self, claimer: usize) -> Result<Instant> {
        self.mesh.agents[claimer].stop()
    }

    fn drain(&mut self, claimer: usize) -> Result<Instant> {
        let agent = &mut self.mesh.agents[claimer];
        let at = Instant::now();
        agent.ask(&["drain"])?;
        let status = agent.process()?.wait_end(TIMEOUT)?;
        if !status.success() {
            bail!("{} was drained and ended with {status}", agent.name);
        }
        Ok(at)
    }

    fn wait_ready(&mut self, claimer: usize) -> Result<()> {
        let agent = &self.mesh.agents[claimer];
        let status = wait_state(agent, TIMEOUT, "serves its claim again", |status| {
            status.own.claims.iter().all(|claim| claim.state == "served")
        })?;
        let pinger = Pinger::start(
            "of its own",
            &self.client().namespace,
            status.address()?,
            Duration::from_millis(20),
        )?;
        pinger.first_reply_after(Instant::now(), TIMEOUT)?;
        hold_for(ASKED_AGAIN, || Ok(()))
    }
}
