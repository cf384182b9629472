//! Membership certificates while every server is away.
//!
//! ```text
//!   a1 ⇄ a2 ── s1, s2      certificates of 90 s: the shortest there are
//! ```

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns_tests::figures::ms;
use netns_tests::mesh::Mesh;
use netns_tests::scenario::Scenario;
use netns_tests::status::Status;
use netns_tests::wait::hold_for;

const TIMEOUT: Duration = Duration::from_secs(20);
const SHORTEST: &str = "90s";
const LIFETIME: Duration = Duration::from_secs(90);
/// Certificates are judged in whole seconds.
const LATE: Duration = Duration::from_secs(3);
const MENDED_BOUND: Duration = Duration::from_secs(5);

/// Certificates that would have ended are replaced by endless ones; then the time passes without a server.
pub(crate) fn never_ends(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(2, 2).start(s)?;
    set_lifetime(&mesh, SHORTEST, |status| status.own.certificate.not_after.is_some())?;
    set_lifetime(&mesh, "never", |status| status.own.certificate.not_after.is_none())?;
    let pings = mesh.ping_pairs()?;
    mesh.servers.iter_mut().try_for_each(|server| server.kill().map(drop))?;
    hold_for(LIFETIME + LATE, || Ok(()))?;
    for agent in &mesh.agents {
        let warnings = agent.status()?.warnings.clone();
        s.require(warnings.is_empty(), format!("{} warns of {warnings:?}", agent.name));
    }
    s.none_lost(pings)
}

/// Until the end nothing is lost, and status says when that is; then tunnels end; then one server mends it all.
pub(crate) fn ends_by_time(s: &mut Scenario) -> Result<()> {
    s.expect_warning("membership certificate");
    let mut mesh = Mesh::plan(2, 2).start(s)?;
    // One made in the second of its predecessor is dated a second later.
    let is_new = |left: i64| left <= LIFETIME.as_secs() as i64 + 1;
    set_lifetime(&mesh, SHORTEST, |status| status.own.certificate.ends_in_seconds.is_some_and(is_new))?;
    let mut pings = mesh.ping_pairs()?;
    let meter = pings.remove(0);
    let killed = Instant::now();
    mesh.servers.iter_mut().try_for_each(|server| server.kill().map(drop))?;
    let agent = &mesh.agents[0];
    let warned = agent.wait_now(LIFETIME, "warns of the end", |status| {
        status.own.certificate.state == "ending" && says(status, "ends in")
    })?;
    s.note(format!("without servers; warned {:?} s before the end", warned.own.certificate.ends_in_seconds));
    let (ended, _) = agent.wait(killed, LIFETIME, "says that it has ended", |status| {
        status.own.certificate.state == "ended" && says(status, "ended")
    })?;
    s.note(format!("the certificates ended {} after the servers", ms(ended - killed)));
    // Longer than what any machine is allowed: a tunnel that lives on is seen to.
    hold_for(3 * LATE, || Ok(()))?;
    let late = s.widened(LATE);
    let told = meter.so_far();
    let lost_before = told.losses_since(killed).into_iter().find(|at| killed + *at + late < ended);
    s.require(
        lost_before.is_none(),
        format!("pings were lost {lost_before:?} after the servers, before the end"),
    );
    let answered = told.echoes.iter().filter_map(|echo| echo.replied_at).max();
    s.require(answered.is_some_and(|last| last < ended + late), "a tunnel outlives its certificates");
    let at = mesh.servers[1].start()?;
    let flows = meter.first_reply_after(at, TIMEOUT)?;
    s.note(format!("one server back: the tunnel carries again after {}", ms(flows - at)));
    s.require(
        flows - at <= s.widened(MENDED_BOUND),
        format!("that took {}, above {}", ms(flows - at), ms(MENDED_BOUND)),
    );
    for agent in &mesh.agents {
        agent.wait_now(TIMEOUT, "is a member again and warns of nothing", |status| {
            status.own.certificate.state == "good" && status.warnings.is_empty()
        })?;
    }
    Ok(())
}

fn says(status: &Status, word: &str) -> bool {
    status.warnings.iter().any(|warning| warning.contains("certificate") && warning.contains(word))
}

/// Changes the lifetime, and waits until both agents have a certificate by it, and each other's.
fn set_lifetime(mesh: &Mesh, lifetime: &str, holds: impl Fn(&Status) -> bool) -> Result<()> {
    let output = mesh.servers[0].command(&["network", "set", "--membership-lifetime", lifetime])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for agent in &mesh.agents {
        agent.wait_now(TIMEOUT, "has a certificate of the new lifetime", &holds)?;
    }
    // Both maps are level with the database's head, where both certificates are.
    let head = mesh.servers[0].json(&["status"])?["revision"].as_u64();
    for agent in &mesh.agents {
        agent.wait_now(TIMEOUT, "has the newest map", |status| status.control.revision.as_u64() >= head)?;
    }
    Ok(())
}
