//! What is to move nobody: loss, short blackouts, the client's own link; and whether clients agree, and stay where they are.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns_tests::mesh::FIVE_MS;
use netns_tests::ping::Pinger;
use netns_tests::topology::Fault;
use netns_tests::wait::{hold_for, wait_until};

use crate::Bench;
use crate::holdfast::{Holdfast, SHARED, SHARED_PREFIX, Setup, serving};
use crate::lab::{Lab, TIMEOUT, active};
use crate::table::{Row, Target};

/// What disturbs a pair that serves well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Noise {
    /// Each way between the client and everybody, in a thousand.
    Loss(u16),
    /// Of the one that serves, for 300 ms every 5 s.
    Blackouts,
    /// The client's own link, for 3 s every 15 s.
    OwnLink,
}

impl Noise {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Loss(share) => format!("false switches: {} % loss each way", share / 10),
            Self::Blackouts => "false switches: 300 ms blackout every 5 s".into(),
            Self::OwnLink => "false switches: own link cut for 3 s every 15 s".into(),
        }
    }

    fn allowed(self) -> u64 {
        match self {
            Self::Loss(share) => u64::from(share > 10),
            Self::Blackouts | Self::OwnLink => 0,
        }
    }

    /// How long it is bad, and how long good.
    fn spans(self) -> (Duration, Duration) {
        match self {
            Self::Loss(_) => (Duration::from_secs(1), Duration::ZERO),
            Self::Blackouts => (Duration::from_millis(300), Duration::from_millis(4700)),
            Self::OwnLink => (Duration::from_secs(3), Duration::from_secs(12)),
        }
    }
}

/// Pings every 5 ms for as long as false switches are looked for.
pub(crate) fn watch(bench: &Bench, name: &str, noise: Noise) -> Result<Vec<Row>> {
    let lab = Holdfast::start(&bench.root, name, &bench.binaries, &Setup::of(2))?;
    let pinger = Pinger::start("under noise", &lab.client().namespace, SHARED, FIVE_MS)?;
    pinger.first_reply_after(Instant::now(), TIMEOUT)?;
    let served_by = active(&lab)?;
    let before = lab.switches()?;
    let begun = Instant::now();
    let (port, fault) = match noise {
        Noise::Loss(share) => (&lab.client_agent().port, Fault::Loss(share)),
        Noise::Blackouts => (lab.port(served_by), Fault::Cut),
        Noise::OwnLink => (&lab.client_agent().port, Fault::Cut),
    };
    let (bad, good) = noise.spans();
    let mut struck = 0;
    while begun.elapsed() < bench.watched_for {
        if struck == 0 || !good.is_zero() {
            port.fault(fault)?;
            struck += 1;
        }
        hold_for(bad, || Ok(()))?;
        if !good.is_zero() {
            port.mend()?;
            hold_for(good, || Ok(()))?;
        }
    }
    port.mend()?;
    let switches = lab.switches()? - before;
    let report = pinger.finish()?;
    let (lost, sent) = (report.lost(), report.sent());
    let minutes = bench.watched_for.as_secs() / 60;
    let of = format!("switches in {minutes} min; {lost} of {sent} pings lost");
    Ok(vec![Row::counted(&noise.name(), "ours", switches, of, Target::AtMost(noise.allowed()))])
}

/// Two clients after each of some kills; and a third way to meet them: one client at first reaches one of them alone.
pub(crate) fn agreement(bench: &Bench, name: &str) -> Result<Vec<Row>> {
    let setup = Setup { clients: 2, ..Setup::of(2) };
    let mut lab = Holdfast::start(&bench.root, name, &bench.binaries, &setup)?;
    let pingers: Vec<Pinger> = [2, 3]
        .into_iter()
        .map(|client| Pinger::start("agreeing", &lab.agent(client).host.namespace, SHARED, FIVE_MS))
        .collect::<Result<_>>()?;
    let (mut apart, rounds) = (0, bench.rounds.min(5));
    for _ in 0..rounds {
        for pinger in &pingers {
            pinger.first_reply_after(Instant::now(), TIMEOUT)?;
        }
        let victim = active(&lab)?;
        lab.kill(victim)?;
        for (client, pinger) in [2, 3].into_iter().zip(&pingers) {
            let gone = lab.agent(victim).name.clone();
            wait_until("each client has moved", TIMEOUT, || {
                Ok(serving(lab.agent(client), SHARED_PREFIX)?.filter(|name| *name != gone))
            })?;
            pinger.first_reply_after(Instant::now(), TIMEOUT)?;
        }
        lab.start(victim)?;
        lab.wait_ready(victim)?;
        let both = [serving(lab.agent(2), SHARED_PREFIX)?, serving(lab.agent(3), SHARED_PREFIX)?];
        apart += u64::from(both[0] != both[1] || both[0].is_none());
    }
    let of = format!("of {rounds} kills after which two clients were served by different nodes");
    let killed = Row::counted("clients agree after kills", "ours", apart, of, Target::AtMost(0));
    Ok(vec![killed, met_in_another_order(&mut lab)?])
}

/// The second client starts while it reaches only the one that the first does not use.
fn met_in_another_order(lab: &mut Holdfast) -> Result<Row> {
    let preferred = active(lab)?;
    let hidden = lab.agent(preferred).underlay;
    lab.mesh.agents[3].kill()?;
    lab.agent(3).port.fault(Fault::CutFrom(hidden))?;
    lab.mesh.agents[3].launch()?;
    let pinger = Pinger::start("of the late one", &lab.agent(3).host.namespace, SHARED, FIVE_MS)?;
    pinger.first_reply_after(Instant::now(), TIMEOUT)?;
    let other = lab.agent(1 - preferred).name.clone();
    let now = serving(lab.agent(3), SHARED_PREFIX)?;
    ensure!(now.as_ref() == Some(&other), "it reaches {other} alone and is served by {now:?}");
    let mended_at = Instant::now();
    lab.agent(3).port.mend()?;
    // Whoever it is: where both claimers started within two seconds of each other, it may be the first client that moves.
    wait_until("both are served by the same", 2 * TIMEOUT, || {
        std::thread::sleep(Duration::from_millis(100));
        let both = [serving(lab.agent(2), SHARED_PREFIX)?, serving(lab.agent(3), SHARED_PREFIX)?];
        Ok((both[0].is_some() && both[0] == both[1]).then_some(()))
    })?;
    let after = mended_at.elapsed().as_secs();
    let lost = pinger.finish()?.losses_since(mended_at).into_iter().filter(|at| !at.is_zero()).count();
    let text = format!("agree {after} s after all are reachable, {lost} pings lost at that");
    Ok(Row::said("clients met them in another order", "ours", text))
}

/// The primary is killed and returns: among equals nobody moves back, for longer than any hold lasts.
pub(crate) fn no_return(bench: &Bench, name: &str) -> Result<Vec<Row>> {
    const LONGEST_HOLD: Duration = Duration::from_secs(65);
    let mut lab = Holdfast::start(&bench.root, name, &bench.binaries, &Setup::of(2))?;
    let pinger = Pinger::start("after a return", &lab.client().namespace, SHARED, FIVE_MS)?;
    pinger.first_reply_after(Instant::now(), TIMEOUT)?;
    // Who started within two seconds counts as equally old.
    hold_for(Duration::from_secs(3), || Ok(()))?;
    let victim = active(&lab)?;
    lab.kill(victim)?;
    let gone = lab.agent(victim).name.clone();
    lab.wait_client("has moved", |status| {
        status.claims.iter().all(|claim| claim.active.as_ref() != Some(&gone))
    })?;
    pinger.first_reply_after(Instant::now(), TIMEOUT)?;
    lab.start(victim)?;
    lab.wait_ready(victim)?;
    let (before, from) = (lab.switches()?, Instant::now());
    hold_for(LONGEST_HOLD, || Ok(()))?;
    let (sent, lost) = pinger.lost_between(from, Instant::now());
    let of = format!("moves in {} s after it was back; {lost} of {sent} pings lost", LONGEST_HOLD.as_secs());
    Ok(vec![Row::counted("the killed one returns", "ours", lab.switches()? - before, of, Target::AtMost(0))])
}
