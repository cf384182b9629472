//! `agent status`

use super::{
    Context,
    failure::Failure,
    output,
    view::{Claim, Holder, Peer, View},
};
use crate::{
    local::{ClientError, Request},
    platform,
};
use std::{collections::BTreeMap, fmt::Write};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// As JSON, whose shape is a contract
    #[arg(long)]
    json: bool,
    /// Again at every change, until the agent ends
    #[arg(long)]
    watch: bool,
}

pub(super) async fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let request = if args.watch { Request::Watch { peers: true } } else { Request::Status };
    let mut watch = match context.client().ask(&request).await {
        Ok(watch) => watch,
        Err(error @ ClientError::NotRunning(_)) => {
            if args.json {
                output::line(&stopped(context).to_string())?;
            }
            return Err(error.into());
        }
        Err(error) => return Err(error.into()),
    };
    let mut told = false;
    while let Some(line) = watch.next_line().await? {
        match args.json {
            true => output::line(&line)?,
            false => output::line(&text(&serde_json::from_str(&line).map_err(Failure::failed)?))?,
        }
        told = true;
        if !args.watch {
            break;
        }
    }
    if told { Ok(()) } else { Err(ClientError::Ended.into()) }
}

/// The documented shape, of an agent that does not run.
fn stopped(context: &Context) -> serde_json::Value {
    serde_json::json!({
        "state": "stopped",
        "self": {
            "name": platform::hostname(), "public_key": "", "addresses": [],
            "interface": context.interface, "listen_port": 0,
        },
        "control": {
            "state": "offline", "server": null, "standby": null, "connected_since": null, "revision": 0,
            "failovers": 0, "map_source": "none", "map_age_seconds": null, "servers": [],
        },
        "peers": [],
        "claims": [],
        "traffic": null,
        "drops": {},
        "warnings": [],
    })
}

/// What people see of an answer.
#[cfg(any(test, fuzzing))]
pub(crate) fn shown(answer: &[u8]) -> Option<String> {
    serde_json::from_slice(answer).ok().map(|view| text(&view))
}

fn text(view: &View) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = head(&mut text, view);
    let name = view.peers.iter().map(|peer| peer.name.len()).max().unwrap_or(0);
    for peer in &view.peers {
        let address = peer.addresses.first().map_or("", String::as_str);
        let _ = writeln!(
            text,
            "{address:<16} {:<name$} {:<8} {}{}",
            peer.name,
            peer.os,
            state(peer),
            traffic(peer)
        );
    }
    text.truncate(text.trim_end().len());
    text
}

/// What a list of peers hides: who serves us, who would, and how old the map is.
fn head(text: &mut String, view: &View) -> std::fmt::Result {
    let (own, control) = (&view.own, &view.control);
    writeln!(
        text,
        "{} {} ({}, UDP port {})",
        own.addresses.join(" "),
        own.name,
        own.interface,
        own.listen_port
    )?;
    match (view.served_by(), view.is_enrolled()) {
        (Some(url), _) => {
            writeln!(text, "served by {url} for {}", span(control.connected_since.unwrap_or_default()))?
        }
        (None, true) => writeln!(text, "not served: {}", view.troubles())?,
        (None, false) => {
            writeln!(text, "not enrolled: run `agent up` with a setup key ({})", own.public_key)?
        }
    }
    if let Some(refused) = &control.refused {
        writeln!(text, "servers refuse this node: {refused}")?;
    }
    for warning in &view.warnings {
        writeln!(text, "warning: {warning}")?;
    }
    let standby = control.standby.as_ref().map_or("none", |server| server.url.as_str());
    let age = control.map_age_seconds.map_or_else(|| "unknown".into(), |age| span(age as f64));
    writeln!(text, "standby {standby}; {} failovers", control.failovers)?;
    writeln!(text, "map {}, revision {}, confirmed {age} ago", control.map_source, control.revision)?;
    for server in &control.servers {
        let rtt = server.rtt_ms.map_or_else(String::new, |rtt| format!(", {rtt:.1} ms"));
        let error = server.last_error.as_ref().map_or_else(String::new, |error| format!(" ({error})"));
        writeln!(text, "  server {} {}{rtt}{error}", server.url, server.state)?;
    }
    claims(text, view)?;
    let drops = notable(&view.drops);
    if !drops.is_empty() {
        writeln!(text, "dropped packets: {drops}")?;
    }
    writeln!(text)
}

/// What this node serves, and who serves it what.
fn claims(text: &mut String, view: &View) -> std::fmt::Result {
    for claim in &view.own.claims {
        let reason = claim.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        let holder = claim.holder.as_ref().map_or_else(String::new, held);
        writeln!(text, "claims {} {}{reason}{holder}", claim.prefix, claim.state)?;
    }
    if view.own.users > 0 {
        let peers = if view.own.users == 1 { "peer" } else { "peers" };
        writeln!(text, "used by {} {peers}", view.own.users)?;
    }
    for claim in &view.claims {
        let holder = claim.holder.as_ref().map_or_else(String::new, held);
        match &claim.unused {
            Some(why) => {
                let names = claim.candidates.join(", ");
                writeln!(text, "{} claimed by {names}{holder}; not used: {why}", claim.prefix)?;
            }
            None => writeln!(text, "{} {}{holder}", claim.prefix, serving(view, claim))?,
        }
    }
    Ok(())
}

/// Who serves it this node, and who else could.
fn serving(view: &View, claim: &Claim) -> String {
    let active = claim.active.as_deref().unwrap_or("nobody");
    let others = claim.candidates.iter().filter(|name| *name != active);
    let others: Vec<String> = others.map(|name| candidate(view, name)).collect();
    let others = if others.is_empty() { String::new() } else { format!(", else {}", others.join(", ")) };
    let switches =
        if claim.switches == 1 { "1 switch".to_owned() } else { format!("{} switches", claim.switches) };
    format!("served by {active}{others}; {switches}")
}

/// Only who is served hears who is online.
fn candidate(view: &View, name: &str) -> String {
    let is_gone = |peer: &Peer| peer.name == name && !peer.online;
    match view.served_by().is_some() && view.peers.iter().any(is_gone) {
        true => format!("{name} (offline)"),
        false => name.to_owned(),
    }
}

/// Who holds what is claimed exclusively.
fn held(holder: &Holder) -> String {
    let Holder { name, held_seconds, fence, stuck } = holder;
    let span = held_seconds.map_or_else(String::new, |seconds| format!(" for {}", span(seconds as f64)));
    let stuck = stuck.as_ref().map_or_else(String::new, |why| format!("; {why}"));
    format!("; exclusive: held by {name}{span}, fence {fence}{stuck}")
}

/// Drops that say something is wrong, most frequent first. The others are everyday: scans, stray packets, a peer that restarted.
fn notable(drops: &BTreeMap<String, u64>) -> String {
    const NOTABLE: [&str; 11] = [
        "bad_source",
        "denied",
        "malformed_inside",
        "not_authentic",
        "replayed",
        "queue_full",
        "send_failed",
        "write_failed",
        "under_load",
        "no_endpoint",
        "too_large",
    ];
    let is_notable = |(reason, count): &(&String, &u64)| **count > 0 && NOTABLE.contains(&reason.as_str());
    let mut found: Vec<_> = drops.iter().filter(is_notable).collect();
    found.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let texts: Vec<String> =
        found.into_iter().map(|(reason, count)| format!("{count} {}", reason.replace('_', " "))).collect();
    texts.join(", ")
}

/// As in `tailscale status`.
fn state(peer: &Peer) -> String {
    match (peer.tunnel.as_str(), peer.path.kind.as_str(), &peer.path.endpoint) {
        _ if peer.expired => "expired".into(),
        ("connected", "relay", Some(relay)) => format!("active; relay {relay}"),
        ("connected", _, Some(endpoint)) => format!("active; direct {endpoint}"),
        ("connected", _, None) => "active".into(),
        ("connecting", _, _) => "connecting".into(),
        _ if peer.online => "idle".into(),
        _ => "offline".into(),
    }
}

fn traffic(peer: &Peer) -> String {
    match (peer.tx_bytes, peer.rx_bytes) {
        (0, 0) => String::new(),
        (tx, rx) => format!(", tx {tx} rx {rx}"),
    }
}

fn span(seconds: f64) -> String {
    let seconds = seconds as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_explains_every_reason_for_a_drop() {
        let readme = include_str!("../../../README.md");
        let table = readme.split_once("| dropped as |").unwrap().1.split_once("\n\n").unwrap().0;
        for (reason, _) in agent_tunnel::Drops::default().named() {
            assert!(table.contains(&format!("`{reason}`")), "{reason} is missing in README.md");
        }
    }

    const STATUS: &str = r#"{
        "state": "running",
        "self": {"name": "a", "public_key": "k", "addresses": ["100.64.0.1"], "interface": "hf0", "listen_port": 51820,
            "claims": [{"prefix": "10.7.0.0/24", "priority": 0, "state": "refused", "reason": "not granted"},
                {"prefix": "10.99.0.1/32", "priority": 0, "state": "served", "reason": null}], "users": 2},
        "control": {"state": "connected", "server": {"id": "1", "url": "s1:7443"}, "standby": {"id": "2", "url": "s2:7443"},
            "connected_since": 61.5, "revision": 7, "failovers": 1, "map_source": "live", "map_age_seconds": 2,
            "servers": [{"url": "s3:7443", "state": "down", "rtt_ms": null, "last_error": "connection refused"}]},
        "peers": [
            {"name": "b", "public_key": "k2", "addresses": ["100.64.0.2"], "os": "linux", "online": true, "tunnel": "connected",
             "path": {"kind": "direct", "endpoint": "192.0.2.2:51820"}, "rx_bytes": 5, "tx_bytes": 6},
            {"name": "c", "public_key": "k3", "addresses": ["100.64.0.3"], "os": "linux", "online": false, "tunnel": "idle",
             "path": {"kind": "none", "endpoint": null}, "rx_bytes": 0, "tx_bytes": 0}],
        "claims": [{"prefix": "10.1.0.0/24", "active": "b", "standby": "c", "candidates": ["b", "c"], "switches": 1, "unused": null,
             "holder": {"name": "b", "since_unix_s": 60, "held_seconds": 130, "fence": 7, "stuck": "the database is away"}},
            {"prefix": "10.2.0.0/24", "active": "c", "standby": null, "candidates": ["c"], "switches": 0, "unused": "subnets"}],
        "drops": {"bad_source": 2, "no_route": 9, "queue_full": 7, "replayed": 0}, "warnings": ["the clock is off"]}"#;

    #[test]
    fn the_text_shows_servers_map_and_a_line_per_peer() {
        let text = text(&serde_json::from_str(STATUS).unwrap());
        for shown in [
            "served by s1:7443 for 1 min",
            "warning: the clock is off",
            "standby s2:7443; 1 failovers",
            "claims 10.7.0.0/24 refused: not granted\nclaims 10.99.0.1/32 served\nused by 2 peers\n",
            "10.1.0.0/24 served by b, else c (offline); 1 switch; exclusive: held by b for 2 min, fence 7; the database is away\n",
            "10.2.0.0/24 claimed by c; not used: subnets\n",
            "dropped packets: 7 queue full, 2 bad source\n",
            "map live, revision 7, confirmed 2 s ago",
            "server s3:7443 down (connection refused)",
            "100.64.0.2       b linux    active; direct 192.0.2.2:51820, tx 6 rx 5",
            "100.64.0.3       c linux    offline",
        ] {
            assert!(text.contains(shown), "{shown:?} is missing in:\n{text}");
        }
    }
}
