//! More than two, or other than equals: ten for one address, a primary and a secondary by prefix, two routers of a subnet.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::Result;
use netns_tests::figures::Samples;
use netns_tests::mesh::FIVE_MS;
use netns_tests::ping::Pinger;
use netns_tests::topology::{Host, Switch};
use netns_tests::wait::wait_until;

use crate::Bench;
use crate::holdfast::{Holdfast, SHARED, Setup, serving};
use crate::lab::{Lab, TIMEOUT, active, counts, wait_moved};
use crate::plan::OUTAGE;
use crate::rounds::{self, Blow};
use crate::table::{Row, Target};

/// Nine of ten are killed, one after the other.
pub(crate) fn ten(bench: &Bench, name: &str) -> Result<Vec<Row>> {
    let mut lab = Holdfast::start(&bench.root, name, &bench.binaries, &Setup::of(10))?;
    let pinger = Pinger::start("ten", &lab.client().namespace, SHARED, FIVE_MS)?;
    let mut gaps = Samples::new("ten");
    for _ in 1..lab.claimers() {
        pinger.first_reply_after(Instant::now(), TIMEOUT)?;
        let (victim, before) = (active(&lab)?, counts(&lab)?);
        let at = lab.kill(victim)?;
        wait_moved(&lab, victim, &before)?;
        pinger.first_reply_after(Instant::now(), TIMEOUT)?;
        gaps.push(pinger.gap_since(at).saturating_sub(FIVE_MS));
    }
    Ok(vec![Row::spans("ten claim it, nine killed in turn", "ours", gaps, Target::Worst(OUTAGE))])
}

/// One has the address itself, one the /31 around it, and a third the other address of that.
pub(crate) fn primary(bench: &Bench, name: &str) -> Result<Vec<Row>> {
    const PRIMARY: usize = 0;
    const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 3);
    let setup = Setup {
        claims: vec!["10.99.0.2/32", "10.99.0.2/31", "10.99.0.3/32"],
        client_options: vec!["--accept-routes"],
        ..Setup::of(3)
    };
    let mut lab = Holdfast::start(&bench.root, name, &bench.binaries, &setup)?;
    // Who claims a subnet has its addresses by somebody's configuration.
    lab.host(1).namespace.ip("addr add 10.99.0.2/32 dev lo")?;
    let client = &lab.client().namespace.clone();
    let pinger = Pinger::start("primary", client, SHARED, FIVE_MS)?;
    let neighbour = Pinger::start("neighbour", client, NEIGHBOUR, FIVE_MS)?;
    neighbour.first_reply_after(Instant::now(), TIMEOUT)?;
    let (begun, mut gaps, mut lost, mut sent, mut moves) = (Instant::now(), Samples::new("primary"), 0, 0, 0);
    for _ in 0..bench.rounds.min(10) {
        wait_served(&lab, PRIMARY)?;
        pinger.first_reply_after(Instant::now(), TIMEOUT)?;
        let before = counts(&lab)?;
        let at = lab.kill(PRIMARY)?;
        wait_until("the secondary serves", TIMEOUT, || Ok((counts(&lab)?[1] > before[1] + 3).then_some(())))?;
        pinger.first_reply_after(Instant::now(), TIMEOUT)?;
        gaps.push(pinger.gap_since(at).saturating_sub(FIVE_MS));
        let (from, switches) = (Instant::now(), lab.switches()?);
        lab.start(PRIMARY)?;
        wait_served(&lab, PRIMARY)?;
        let (asked, unanswered) = pinger.lost_between(from, Instant::now() + Duration::from_millis(500));
        (sent, lost) = (sent + asked, lost + unanswered);
        moves += lab.switches()? - switches - 1;
    }
    let rounds = gaps.len();
    let (asked, unanswered) = neighbour.lost_between(begun, Instant::now());
    let who = "ours, /32 and /31";
    Ok(vec![
        Row::spans("primary killed", who, gaps, Target::P99(OUTAGE)),
        Row::counted(
            "primary returns",
            who,
            lost as u64,
            format!("lost of {sent} in {rounds} returns"),
            Target::AtMost(0),
        ),
        Row::counted("primary returns: moves more than one", who, moves, "", Target::AtMost(0)),
        Row::counted(
            "the /31's other address",
            who,
            unanswered as u64,
            format!("lost of {asked} throughout"),
            Target::AtMost(0),
        ),
    ])
}

fn wait_served(lab: &Holdfast, claimer: usize) -> Result<()> {
    let name = &lab.agent(claimer).name;
    wait_until("the primary serves", TIMEOUT, || {
        std::thread::sleep(Duration::from_millis(50));
        Ok((serving(lab.client_agent(), "10.99.0.2/32")?.as_ref() == Some(name)).then_some(()))
    })
}

/// Two routers before a subnet. Without masquerade its host sends answers to the first router, which hands them to the second one while it has no tunnel itself; where one is frozen,
/// to the other one from the start.
pub(crate) fn subnet(bench: &Bench, name: &str, masquerade: bool) -> Result<Vec<Row>> {
    const OVERLAY: &str = "100.64.0.0/10";
    let setup = Setup {
        claims: vec!["10.1.0.0/24"; 2],
        claimer_options: if masquerade { vec!["--masquerade"] } else { Vec::new() },
        client_options: vec!["--accept-routes"],
        target: Ipv4Addr::new(10, 1, 0, 10),
        ..Setup::of(2)
    };
    let lan = Switch::new()?;
    let host = Host::new("h1")?;
    let mut lab = Holdfast::start_with(&bench.root, name, &bench.binaries, &setup, |mesh| {
        lan.attach(&host, "10.1.0.10/24")?;
        for (router, other) in [(0, 1), (1, 0)] {
            let router_host = &mesh.agents[router].host;
            lan.attach(router_host, &format!("10.1.0.{}/24", router + 1))?;
            // As the machine's owner would have it: a router stays one while its agent is away.
            router_host.namespace.sysctl("net/ipv4/ip_forward", "1")?;
            router_host.route(&format!("add {OVERLAY} via 10.1.0.{} metric 1000", other + 1))?;
        }
        if !masquerade {
            host.route(&format!("add {OVERLAY} via 10.1.0.1"))?;
        }
        Ok(())
    })?;
    let who = if masquerade { "ours, two routers, masquerade" } else { "ours, two routers, routed" };
    let mut rows = Vec::new();
    for blow in [Blow::Killed, Blow::Frozen] {
        let outcome = rounds::run_with(&mut lab, blow, bench.rounds.min(20), |victim| {
            // The kernel of a frozen one keeps what comes back by it; with a dead agent there is no tunnel, and it hands it on.
            match blow == Blow::Frozen && !masquerade {
                true => host.route(&format!("replace {OVERLAY} via 10.1.0.{}", 2 - victim)),
                false => Ok(()),
            }
        })?;
        rows.push(Row::spans(blow.name(), who, outcome.spans, Target::P99(OUTAGE)));
    }
    Ok(rows)
}
