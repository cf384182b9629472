//! The same fault again and again, always on the one that serves: how long the client has no answer, or what it loses.
//!
//! An outage is the longest time between two answers around the fault, less the interval between pings; for a restart the time from the execution of
//! the new process to the next answer. After each round everything is mended, and waited for by condition.

use std::time::{Duration, Instant};

use anyhow::Result;
use netns_tests::figures::Samples;
use netns_tests::mesh::FIVE_MS;
use netns_tests::ping::Pinger;
use netns_tests::topology::Fault;

use crate::lab::{Lab, TIMEOUT, active, counts, wait_moved};

/// What happens to the one that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blow {
    Killed,
    Frozen,
    Cut,
    RequestsCut,
    RepliesCut,
    /// Killed and started again at once, while another one claims the address, too.
    Restarted,
    /// The same while nobody else does.
    RestartedAlone,
    Drained,
    Terminated,
}

/// What a row is made of.
pub(crate) struct Outcome {
    pub(crate) spans: Samples,
    /// Pings sent while somebody went in an orderly way, and those of them that were lost.
    pub(crate) sent: usize,
    pub(crate) lost: usize,
}

impl Blow {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Frozen => "frozen",
            Self::Cut => "cut off",
            Self::RequestsCut => "request path cut",
            Self::RepliesCut => "reply path cut",
            Self::Restarted => "restarted beside another, from exec",
            Self::RestartedAlone => "restarted alone, from exec",
            Self::Drained => "drained",
            Self::Terminated => "SIGTERM",
        }
    }

    /// Whether it counts what is lost, and not how long.
    pub(crate) fn is_orderly(self) -> bool {
        match self {
            Self::Drained | Self::Terminated => true,
            Self::Killed
            | Self::Frozen
            | Self::Cut
            | Self::RequestsCut
            | Self::RepliesCut
            | Self::Restarted
            | Self::RestartedAlone => false,
        }
    }
}

pub(crate) fn run(lab: &mut dyn Lab, blow: Blow, rounds: usize) -> Result<Outcome> {
    run_with(lab, blow, rounds, |_| Ok(()))
}

/// With something done before each blow, given whom it will strike.
pub(crate) fn run_with(
    lab: &mut dyn Lab,
    blow: Blow,
    rounds: usize,
    prepare: impl Fn(usize) -> Result<()>,
) -> Result<Outcome> {
    if blow == Blow::RestartedAlone {
        for other in 1..lab.claimers() {
            lab.kill(other)?;
        }
    }
    let pinger = Pinger::start("to the shared address", &lab.client().namespace, lab.target(), FIVE_MS)?;
    let mut outcome = Outcome { spans: Samples::new(blow.name()), sent: 0, lost: 0 };
    let mut windows = Vec::new();
    for _ in 0..rounds {
        pinger.first_reply_after(Instant::now(), TIMEOUT)?;
        let victim = active(lab)?;
        prepare(victim)?;
        let (span, window) = round(lab, &pinger, blow, victim)?;
        outcome.spans.push(span);
        windows.extend(window);
    }
    for (from, to) in windows {
        let (sent, lost) = pinger.lost_between(from, to);
        outcome.sent += sent;
        outcome.lost += lost;
    }
    Ok(outcome)
}

type Window = (Instant, Instant);

fn round(
    lab: &mut dyn Lab,
    pinger: &Pinger,
    blow: Blow,
    victim: usize,
) -> Result<(Duration, Option<Window>)> {
    let before = counts(lab)?;
    let at = strike(lab, blow, victim)?;
    let span = match blow {
        Blow::Restarted | Blow::RestartedAlone => {
            let executed_at = lab.start(victim)?;
            pinger.first_answer_after(executed_at, at, TIMEOUT)? - executed_at
        }
        Blow::Killed
        | Blow::Frozen
        | Blow::Cut
        | Blow::RequestsCut
        | Blow::RepliesCut
        | Blow::Drained
        | Blow::Terminated => {
            wait_moved(lab, victim, &before)?;
            pinger.first_reply_after(Instant::now(), TIMEOUT)?;
            pinger.gap_since(at).saturating_sub(FIVE_MS)
        }
    };
    let window = blow.is_orderly().then(|| (at, Instant::now()));
    heal(lab, blow, victim)?;
    lab.wait_ready(victim)?;
    Ok((span, window))
}

/// Returns the moment just before. An orderly end is waited for.
pub(crate) fn strike(lab: &mut dyn Lab, blow: Blow, victim: usize) -> Result<Instant> {
    let client = lab.client_address();
    match blow {
        Blow::Killed | Blow::Restarted | Blow::RestartedAlone => lab.kill(victim),
        Blow::Frozen => lab.process(victim)?.freeze(),
        Blow::Cut => fault(lab, victim, Fault::Cut),
        Blow::RequestsCut => fault(lab, victim, Fault::DeafTo(client)),
        Blow::RepliesCut => fault(lab, victim, Fault::MuteTo(client)),
        Blow::Drained => lab.drain(victim),
        Blow::Terminated => lab.stop(victim),
    }
}

fn fault(lab: &dyn Lab, victim: usize, fault: Fault) -> Result<Instant> {
    let at = Instant::now();
    lab.port(victim).fault(fault)?;
    Ok(at)
}

pub(crate) fn heal(lab: &mut dyn Lab, blow: Blow, victim: usize) -> Result<()> {
    match blow {
        Blow::Killed | Blow::Drained | Blow::Terminated => lab.start(victim).map(drop),
        Blow::Frozen => lab.process(victim)?.thaw().map(drop),
        Blow::Cut | Blow::RequestsCut | Blow::RepliesCut => lab.port(victim).mend(),
        Blow::Restarted | Blow::RestartedAlone => Ok(()),
    }
}
