//! Which rows there are, and what each is to be.

use std::time::Duration;

use anyhow::Result;

use crate::Bench;
use crate::holdfast::{Holdfast, Setup};
use crate::jobs::{Job, Lane};
use crate::rounds::{self, Blow, Outcome};
use crate::several;
use crate::steady::{self, Noise};
use crate::table::{Row, Target};
use crate::vpncloud::{PAGE, Timing, VpnCloud};
use crate::{check, cost, idle, tcp};

const OURS: &str = "ours";
type Work = fn(&Bench, &str) -> Result<Vec<Row>>;
const NOISES: [Noise; 4] = [Noise::Loss(10), Noise::Loss(100), Noise::Blackouts, Noise::OwnLink];
const BLOWS: [Blow; 9] = [
    Blow::Killed,
    Blow::Frozen,
    Blow::Cut,
    Blow::RequestsCut,
    Blow::RepliesCut,
    Blow::Restarted,
    Blow::RestartedAlone,
    Blow::Drained,
    Blow::Terminated,
];
pub(crate) const OUTAGE: Duration = Duration::from_millis(800);
const RESTART: Duration = Duration::from_millis(300);
const TIGHT_OUTAGE: Duration = Duration::from_millis(300);
const TIGHT: [&str; 4] = ["--probe-interval", "20ms", "--dead-after", "150ms"];

pub(crate) fn jobs(bench: &Bench) -> Vec<Job> {
    let mut jobs = Vec::new();
    let pair = Setup::of(2);
    let serverless = Setup { servers_down: true, ..pair.clone() };
    jobs.extend(blows(OURS, &pair, Duration::ZERO));
    jobs.extend(blows("ours, every server down", &serverless, Duration::ZERO));
    let tight = Setup { client_options: TIGHT.to_vec(), ..pair.clone() };
    jobs.extend(
        [Blow::Killed, Blow::Frozen, Blow::Cut]
            .map(|blow| ours("ours, 20ms/150ms", blow, tight.clone(), TIGHT_OUTAGE)),
    );
    for (who, one_way) in [("ours, 40 ms of RTT", 20), ("ours, 200 ms of RTT", 100)] {
        let one_way = Duration::from_millis(one_way);
        let far = Setup { one_way: Some(one_way), ..pair.clone() };
        // A probe's answer takes a round trip, and so does the first packet's; or those of two handshakes.
        jobs.extend(blows(who, &far, 4 * one_way));
    }
    jobs.extend(NOISES.map(|noise| {
        Job::new(&noise.name(), OURS, Lane::Long, move |bench, name| steady::watch(bench, name, noise))
    }));
    let special: [(&str, Work); 9] = [
        ("check fails", |bench, name| check::rows(bench, name, false)),
        ("check fails, every server down", |bench, name| check::rows(bench, name, true)),
        ("TCP", tcp::rows),
        ("clients agree", steady::agreement),
        ("the killed one returns", steady::no_return),
        ("ten claim it", several::ten),
        ("primary and secondary", several::primary),
        ("subnet, masquerade", |bench, name| several::subnet(bench, name, true)),
        ("subnet, routed", |bench, name| several::subnet(bench, name, false)),
    ];
    jobs.extend(special.map(|(what, work)| Job::new(what, OURS, Lane::Ours, work)));
    jobs.push(Job::new("first packet after an idle hour", OURS, Lane::Long, idle::rows));
    jobs.push(Job::new("cost", "simulation", Lane::Long, cost::rows));
    if let Some((_, tightest)) = &bench.vpncloud {
        for timing in [PAGE, *tightest] {
            jobs.extend(
                BLOWS.into_iter().filter(|blow| *blow != Blow::Drained).map(|blow| theirs(blow, timing)),
            );
        }
    }
    jobs
}

/// Each of them; `more` is what the round trips explain.
fn blows(who: &'static str, setup: &Setup, more: Duration) -> impl Iterator<Item = Job> {
    BLOWS.into_iter().map(move |blow| {
        let limit = match blow {
            Blow::Restarted | Blow::RestartedAlone => RESTART,
            Blow::Killed
            | Blow::Frozen
            | Blow::Cut
            | Blow::RequestsCut
            | Blow::RepliesCut
            | Blow::Drained
            | Blow::Terminated => OUTAGE,
        };
        ours(who, blow, setup.clone(), limit + more)
    })
}

fn ours(who: &'static str, blow: Blow, setup: Setup, limit: Duration) -> Job {
    Job::new(blow.name(), who, Lane::Ours, move |bench, name| {
        let mut lab = Holdfast::start(&bench.root, name, &bench.binaries, &setup)?;
        let outcome = rounds::run(&mut lab, blow, bench.rounds)?;
        let who = match lab.round_trip {
            Some(measured) => format!("{who} (measured: {:.1} ms)", measured.as_secs_f64() * 1e3),
            None => who.to_owned(),
        };
        Ok(rows(blow, &who, outcome, Target::P99(limit), Target::AtMost(0)))
    })
}

fn theirs(blow: Blow, timing: Timing) -> Job {
    Job::new(blow.name(), &timing.name(), Lane::Theirs, move |bench, name| {
        let Some((program, _)) = &bench.vpncloud else { return Ok(Vec::new()) };
        let mut lab = VpnCloud::start(program, &bench.root.join(name), timing)?;
        let outcome = rounds::run(&mut lab, blow, bench.their_rounds)?;
        Ok(rows(blow, &timing.name(), outcome, Target::None, Target::None))
    })
}

/// Of one that goes in an orderly way: what was lost, and beside it the longest time without an answer.
fn rows(blow: Blow, who: &str, outcome: Outcome, outage: Target, loss: Target) -> Vec<Row> {
    let Outcome { spans, sent, lost } = outcome;
    if !blow.is_orderly() {
        return vec![Row::spans(blow.name(), who, spans, outage)];
    }
    let of = format!("lost of {sent} in {} rounds", spans.len());
    vec![
        Row::counted(blow.name(), who, lost as u64, of, loss),
        Row::spans(&format!("{}: longest gap", blow.name()), who, spans, Target::None),
    ]
}
