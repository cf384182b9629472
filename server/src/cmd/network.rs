//! `server network show | set`: what holds for the whole cluster.

use crate::{
    cluster::{Actor, SettingsError, State, set_membership_lifetime},
    cmd::{CommonArgs, Failure, text},
    config::Span,
};
use clap::Subcommand;
use serde::Serialize;
use std::time::Duration;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// The network and its settings
    Show(CommonArgs),
    /// Change its settings; servers and nodes take them up by themselves
    Set {
        /// How long a node stays a member without being served: 90s, 12h, 30d, or `never`. Certificates are renewed while nodes are served
        #[arg(long, value_name = "SPAN", value_parser = lifetime)]
        membership_lifetime: Lifetime,
        #[command(flatten)]
        common: CommonArgs,
    },
}

#[derive(Clone, Copy)]
pub(crate) struct Lifetime(Option<Duration>);

fn lifetime(text: &str) -> Result<Lifetime, String> {
    match text {
        "never" => Ok(Lifetime(None)),
        text => text.parse().map(|Span(span)| Lifetime(Some(span))),
    }
}

/// The network as JSON.
#[derive(Serialize)]
struct Shown {
    name: String,
    overlay_v4: String,
    overlay_v6: String,
    root: String,
    /// `None`: certificates never end.
    membership_lifetime_s: Option<u64>,
    membership_renewed_after_s: Option<u64>,
    /// Nodes whose certificate still has an earlier lifetime: they get another when they are served.
    nodes_to_reissue: usize,
}

pub(crate) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Show(common) => show(common).await,
        Command::Set { membership_lifetime, common } => set(membership_lifetime, common).await,
    }
}

async fn show(common: CommonArgs) -> Result<(), Failure> {
    let cluster = common.database.load().await?;
    print(&cluster.state(), common.json)
}

async fn set(Lifetime(lifetime): Lifetime, common: CommonArgs) -> Result<(), Failure> {
    let cluster = common.database.load().await?;
    let written = cluster.write(Actor::CommandLine, |state, now| {
        Ok::<_, SettingsError>((set_membership_lifetime(state, lifetime, now)?, ()))
    });
    written.await.map_err(Failure::failed)?;
    print(&cluster.state(), common.json)
}

fn print(state: &State, json: bool) -> Result<(), Failure> {
    let shown = Shown::of(state);
    if json {
        return Ok(text::print_json(&shown)?);
    }
    let span = |seconds: Option<u64>| {
        seconds.map_or_else(|| "never".to_owned(), |s| text::span(Duration::from_secs(s)))
    };
    text::print(&format!("network              {} ({}, {})", shown.name, shown.overlay_v4, shown.overlay_v6));
    text::print(&format!("root                 {}", shown.root));
    text::print(&format!("membership lifetime  {}", span(shown.membership_lifetime_s)));
    text::print(&format!("  renewed after      {}", span(shown.membership_renewed_after_s)));
    if shown.nodes_to_reissue > 0 {
        let count = shown.nodes_to_reissue;
        text::print(&format!("  to be issued anew  {count} nodes, each when it is served"));
    }
    Ok(())
}

impl Shown {
    fn of(state: &State) -> Self {
        let settings = state.settings();
        Self {
            name: state.network.name.clone(),
            overlay_v4: state.network.overlay_v4.to_string(),
            overlay_v6: state.network.overlay_v6.to_string(),
            root: state.root.public().fingerprint().to_string(),
            membership_lifetime_s: settings.membership_lifetime().map(|span| span.as_secs()),
            membership_renewed_after_s: settings.renew_after().map(|span| span.as_secs()),
            nodes_to_reissue: state.nodes().filter(|node| !node.has_lifetime_of(settings)).count(),
        }
    }
}
