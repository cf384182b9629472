//! The service behind the shared address ends while its node lives: the node's check finds out, and clients are sent to another.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netns_tests::figures::Samples;
use netns_tests::mesh::FIVE_MS;
use netns_tests::ping::Pinger;

use crate::Bench;
use crate::holdfast::{Holdfast, SHARED, Setup};
use crate::lab::{Lab, TIMEOUT, active, counts, wait_moved};
use crate::table::{Row, Target};
use crate::tcp::Echoes;

/// Three failures, a second apart, and the way to the client.
const FALL: Duration = Duration::from_millis(3300);

pub(crate) fn rows(bench: &Bench, name: &str, servers_down: bool) -> Result<Vec<Row>> {
    let setup = Setup { claimer_options: vec!["--claim-check", "tcp:7"], servers_down, ..Setup::of(2) };
    let mut services: Vec<Option<Echoes>> = Vec::new();
    let mut lab = Holdfast::start_with(&bench.root, name, &bench.binaries, &setup, |mesh| {
        for agent in &mesh.agents[..2] {
            services.push(Some(Echoes::start(&agent.host.namespace)?));
        }
        Ok(())
    })?;
    let pinger = Pinger::start("checked", &lab.client().namespace, SHARED, FIVE_MS)?;
    pinger.first_reply_after(Instant::now(), TIMEOUT)?;
    let (begun, mut moved) = (Instant::now(), Samples::new("check"));
    for _ in 0..bench.rounds.min(10) {
        let (victim, before) = (active(&lab)?, counts(&lab)?);
        let ended_at = Instant::now();
        drop(services[victim].take().context("the service runs")?);
        wait_moved(&lab, victim, &before)?;
        moved.push(ended_at.elapsed());
        services[victim] = Some(Echoes::start(&lab.host(victim).namespace)?);
        lab.wait_ready(victim)?;
    }
    let rounds = moved.len();
    let (sent, lost) = pinger.lost_between(begun, Instant::now());
    let who = if servers_down { "ours, every server down" } else { "ours" };
    let of = format!("lost of {sent} in {rounds} rounds");
    Ok(vec![
        Row::spans("service ends, its check fails: moved after", who, moved, Target::Worst(FALL)),
        Row::counted("service ends, its check fails", who, lost as u64, of, Target::AtMost(0)),
    ])
}
