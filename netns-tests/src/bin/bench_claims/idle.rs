//! The first packet after a long silence, to one that died meanwhile.
//!
//! An hour is not waited for: once the idle timeout is over and the session with who serves has ended, an hour changes nothing more. So the idle timeout is the shortest there is, and several clients share
//! the wait.

use std::time::{Duration, Instant};

use anyhow::Result;
use netns_tests::figures::Samples;
use netns_tests::mesh::FIVE_MS;
use netns_tests::ping::Pinger;

use crate::Bench;
use crate::holdfast::{Holdfast, SHARED, SHARED_PREFIX, Setup, serving, wait_state};
use crate::lab::{Lab, TIMEOUT};
use crate::table::{Row, Target};

const CLIENTS: usize = 6;
/// 4 minutes until a tunnel is idle, and 3 of a session's life.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

pub(crate) fn rows(bench: &Bench, name: &str) -> Result<Vec<Row>> {
    let options = vec!["--idle-timeout", "240"];
    let setup =
        Setup { clients: CLIENTS, client_options: options.clone(), claimer_options: options, ..Setup::of(2) };
    let mut lab = Holdfast::start(&bench.root, name, &bench.binaries, &setup)?;
    let clients = 2..2 + CLIENTS;
    for client in clients.clone() {
        let pinger = Pinger::start("once", &lab.agent(client).host.namespace, SHARED, FIVE_MS * 20)?;
        pinger.first_reply_after(Instant::now(), TIMEOUT)?;
        // It uses the one that it is to stay with.
        wait_state(lab.agent(client), TIMEOUT, "has settled", |status| {
            status.claims.iter().all(|claim| claim.active.as_ref() == claim.candidates.first())
        })?;
    }
    let active = serving(lab.client_agent(), SHARED_PREFIX)?;
    for client in clients.clone() {
        wait_state(lab.agent(client), IDLE_TIMEOUT, "has no tunnel with who serves", |status| {
            let serving = active.as_ref().and_then(|name| status.peer(name));
            serving.is_some_and(|peer| peer.tunnel == "idle")
        })?;
    }
    let victim = usize::from(active.as_ref() != Some(&lab.agent(0).name));
    lab.kill(victim)?;
    let (mut answered, mut first_lost) = (Samples::new("first packet"), 0);
    for client in clients {
        let begun = Instant::now();
        let pinger = Pinger::start("after an hour", &lab.agent(client).host.namespace, SHARED, FIVE_MS)?;
        answered.push(pinger.first_reply_after(begun, TIMEOUT)? - begun);
        let report = pinger.finish()?;
        first_lost += u64::from(report.echoes.first().is_some_and(|echo| echo.replied_at.is_none()));
    }
    let of = format!("of {CLIENTS} first packets never answered");
    Ok(vec![
        Row::spans(
            "first answer after an idle hour, active dead",
            "ours (idle timeout and session over)",
            answered,
            Target::None,
        ),
        Row::counted(
            "first packet itself",
            "ours (idle timeout and session over)",
            first_lost,
            of,
            Target::None,
        ),
    ])
}
