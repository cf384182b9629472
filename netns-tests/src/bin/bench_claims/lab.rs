//! What faults and figures need of a program under test: some who claim one address, and a client that pings it.
//!
//! ```text
//!   a1 ─┐
//!   a2 ─┤ switch ── client          (or: switch ── line with a delay ── switch ── client)
//!   .. ─┤
//!   s1 ─┘
//! ```

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netns_tests::process::Process;
use netns_tests::topology::{Host, Port};
use netns_tests::wait::wait_until;

/// Long enough for every program to find its peers.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(90);
/// Over which packets are counted, to see who is sent them.
const LOOK: Duration = Duration::from_millis(40);

pub(crate) trait Lab {
    fn client(&self) -> &Host;
    /// The client's address outside the tunnel.
    fn client_address(&self) -> Ipv4Addr;
    /// What the client pings.
    fn target(&self) -> Ipv4Addr;
    fn claimers(&self) -> usize;
    fn host(&self, claimer: usize) -> &Host;
    fn port(&self, claimer: usize) -> &Port;
    /// Of the tunnel, on every host.
    fn interface(&self) -> &'static str;
    fn process(&mut self, claimer: usize) -> Result<&mut Process>;
    fn kill(&mut self, claimer: usize) -> Result<Instant>;
    /// When it was executed.
    fn start(&mut self, claimer: usize) -> Result<Instant>;
    /// SIGTERM; returns the moment, when the program has ended.
    fn stop(&mut self, claimer: usize) -> Result<Instant>;
    /// By the program's own command, if it has one.
    fn drain(&mut self, claimer: usize) -> Result<Instant>;
    /// Waits until the client has this one, which was healed, in reserve again.
    fn wait_ready(&mut self, claimer: usize) -> Result<()>;
}

/// How many packets came out of the claimer's tunnel. None if there is no tunnel.
pub(crate) fn delivered(lab: &dyn Lab, claimer: usize) -> Result<u64> {
    let counters =
        lab.host(claimer).namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))?;
    let counters = counters.context("cannot read the counters of interfaces")?;
    let prefix = format!("{}:", lab.interface());
    let line = counters.lines().find_map(|line| line.trim().strip_prefix(&prefix));
    let Some(line) = line else { return Ok(0) };
    line.split_whitespace().nth(1).context("no counter of packets")?.parse().context("a counter is no number")
}

/// Whom the client's packets go to now.
pub(crate) fn active(lab: &dyn Lab) -> Result<usize> {
    wait_until("one who claims is sent packets", TIMEOUT, || {
        let before = counts(lab)?;
        std::thread::sleep(LOOK);
        let news: Vec<u64> =
            counts(lab)?.iter().zip(before).map(|(now, before)| now.saturating_sub(before)).collect();
        Ok((0..news.len()).max_by_key(|claimer| news[*claimer]).filter(|most| news[*most] >= 2))
    })
}

pub(crate) fn counts(lab: &dyn Lab) -> Result<Vec<u64>> {
    (0..lab.claimers()).map(|claimer| delivered(lab, claimer)).collect()
}

/// Waits until another than `victim` is sent packets, more than a few since `before`; returns who.
pub(crate) fn wait_moved(lab: &dyn Lab, victim: usize, before: &[u64]) -> Result<usize> {
    wait_until("another one is sent packets", TIMEOUT, || {
        let now = counts(lab)?;
        Ok((0..now.len()).find(|claimer| *claimer != victim && now[*claimer] >= before[*claimer] + 3))
    })
}
