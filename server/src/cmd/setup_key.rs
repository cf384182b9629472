//! `server setup-key create | list | revoke`

use crate::{
    cluster::{Actor, NodeError, Op, SetupKey, SetupKeyId, SetupKeyState, SetupKeyTerms, State, claimable},
    cmd::{CommonArgs, Failure, text},
    config::Span,
    follow::Cluster,
};
use anyhow::{Context, anyhow};
use clap::Subcommand;
use ipnet::IpNet;
use proto::{claim::Claim, setup_key::SetupSecret, time::UnixTime};
use serde::Serialize;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a key and show it, once
    Create(CreateArgs),
    /// The keys there are, without their secrets
    List(CommonArgs),
    /// End a key; nodes that entered with it stay
    Revoke {
        id: u64,
        #[command(flatten)]
        common: CommonArgs,
    },
}

#[derive(clap::Args)]
pub(crate) struct CreateArgs {
    /// Lets in any number of nodes, not one
    #[arg(long)]
    reusable: bool,
    /// With --reusable: lets in so many nodes at most
    #[arg(long, value_name = "N", requires = "reusable", value_parser = clap::value_parser!(u64).range(1..))]
    max_uses: Option<u64>,
    /// Its nodes are removed when they have been absent for the servers' --ephemeral-timeout (10m)
    #[arg(long)]
    ephemeral: bool,
    /// Groups that its nodes are in
    #[arg(long, value_delimiter = ',', value_name = "GROUP")]
    groups: Vec<String>,
    /// Prefixes that its nodes may claim
    #[arg(long, value_delimiter = ',', value_name = "PREFIX", value_parser = Claim::parse_prefix)]
    claims: Vec<IpNet>,
    /// How long it lets nodes in: 90s, 12h, 7d, or `never`
    #[arg(long, default_value = "7d", value_name = "SPAN", value_parser = lifetime)]
    expires: Lifetime,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Clone, Copy)]
struct Lifetime(Option<Span>);

fn lifetime(text: &str) -> Result<Lifetime, String> {
    match text {
        "never" => Ok(Lifetime(None)),
        text => text.parse().map(|span| Lifetime(Some(span))),
    }
}

#[derive(Serialize)]
struct Created {
    id: SetupKeyId,
    key: String,
    /// The command to paste, where servers are known.
    up: Option<String>,
    #[serde(flatten)]
    shown: Shown,
}

/// A key as it is listed.
#[derive(Serialize)]
struct Shown {
    state: SetupKeyState,
    reusable: bool,
    ephemeral: bool,
    groups: Vec<String>,
    claims: Vec<IpNet>,
    uses: u64,
    max_uses: Option<u64>,
    created_unix_s: u64,
    expires_unix_s: Option<u64>,
    last_used_unix_s: Option<u64>,
}

#[derive(Serialize)]
struct Listed {
    id: SetupKeyId,
    #[serde(flatten)]
    shown: Shown,
}

pub(crate) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Create(args) => create(args).await,
        Command::List(common) => list(common).await,
        Command::Revoke { id, common } => revoke(SetupKeyId(id), common).await,
    }
}

async fn create(args: CreateArgs) -> Result<(), Failure> {
    let json = args.common.json;
    let cluster = args.common.database.load().await?;
    let secret = SetupSecret::generate().context("the system has no random source")?;
    let mut terms = SetupKeyTerms {
        reusable: args.reusable,
        max_uses: args.max_uses,
        ephemeral: args.ephemeral,
        groups: args.groups,
        claims: args.claims,
        lifetime: args.expires.0.map(|span| span.0),
    };
    check_groups(&terms.groups)?;
    let written = cluster.write(Actor::CommandLine, |state, now| {
        terms.claims = checked_claims(state, &terms.claims)?;
        let (record, key) = SetupKey::new(state, now, &secret, &terms);
        Ok::<_, NodeError>((vec![Op::put_setup_key(record.clone())], (record, key)))
    });
    let (record, key) = written.await.map_err(Failure::failed)?;
    let up = up_line(&cluster, &key.expose()).await;
    if json {
        let shown = Shown::of(&record, record.created_at);
        text::print_json(&Created { id: record.id, key: key.expose(), up, shown })?;
        return Ok(());
    }
    text::print(&key.expose());
    // Beside the key and not after it: so that `$(server setup-key create)` is the key.
    let ends = text::moment(record.expires_at, record.created_at);
    eprintln!("setup key {}, shown this once; ends: {ends}", record.id);
    if let Some(up) = up {
        eprintln!("on a node: {up}");
    }
    Ok(())
}

fn check_groups(groups: &[String]) -> Result<(), Failure> {
    let is_valid = |name: &String| {
        (1..=63).contains(&name.len()) && name.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c))
    };
    match groups.iter().find(|name| !is_valid(name)) {
        Some(name) => Err(anyhow!("{name:?} is no name for a group: use letters, digits, -, _ and .").into()),
        None => Ok(()),
    }
}

fn checked_claims(state: &State, prefixes: &[IpNet]) -> Result<Vec<IpNet>, NodeError> {
    prefixes.iter().map(|prefix| claimable(state, *prefix)).collect()
}

/// `None` where no server holds a lease: nobody knows what to connect to.
async fn up_line(cluster: &Cluster, key: &str) -> Option<String> {
    let servers = cluster.store().live_servers().await.ok()?;
    let urls: Vec<_> = servers.into_iter().flat_map(|live| live.server.urls).collect();
    (!urls.is_empty()).then(|| format!("agent up --servers {} --setup-key {key}", text::list(&urls)))
}

async fn list(common: CommonArgs) -> Result<(), Failure> {
    let cluster = common.database.load().await?;
    let (state, now) = (cluster.state(), cluster.now());
    if common.json {
        let keys = state.setup_keys().map(|key| Listed { id: key.id, shown: Shown::of(key, now) });
        return Ok(text::print_json(&keys.collect::<Vec<_>>())?);
    }
    let rows: Vec<_> = state.setup_keys().map(|key| row(key, now)).collect();
    text::print_table(["ID", "STATE", "KIND", "USES", "ENDS", "GROUPS", "CLAIMS"], &rows);
    Ok(())
}

fn row(key: &SetupKey, now: UnixTime) -> [String; 7] {
    let kind = match (key.reusable, key.ephemeral) {
        (true, true) => "reusable, ephemeral",
        (true, false) => "reusable",
        (false, true) => "one-off, ephemeral",
        (false, false) => "one-off",
    };
    [
        key.id.to_string(),
        key.state(now).to_string(),
        kind.to_owned(),
        key.uses.to_string(),
        text::moment(key.expires_at, now),
        text::list(&key.groups),
        text::list(&key.claims),
    ]
}

async fn revoke(id: SetupKeyId, common: CommonArgs) -> Result<(), Failure> {
    let cluster = common.database.load().await?;
    let written = cluster.write(Actor::CommandLine, |state, now| match state.setup_key(id) {
        Some(key) => Ok((key.revoke(now), key.revoked_at.is_some())),
        None => Err(Unknown(id)),
    });
    let was_revoked = written.await.map_err(Failure::failed)?;
    if common.json {
        return Ok(text::print_json(&serde_json::json!({ "id": id, "state": SetupKeyState::Revoked }))?);
    }
    text::print(&match was_revoked {
        true => format!("setup key {id} was revoked before"),
        false => format!("setup key {id} is revoked; nodes that entered with it stay"),
    });
    Ok(())
}

#[derive(Debug, thiserror::Error)]
#[error("there is no setup key {0}; `server setup-key list` shows those there are")]
struct Unknown(SetupKeyId);

impl Shown {
    fn of(key: &SetupKey, now: UnixTime) -> Self {
        Self {
            state: key.state(now),
            reusable: key.reusable,
            ephemeral: key.ephemeral,
            groups: key.groups.clone(),
            claims: key.claims.clone(),
            uses: key.uses,
            max_uses: key.max_uses,
            created_unix_s: key.created_at.0,
            expires_unix_s: key.expires_at.map(|at| at.0),
            last_used_unix_s: key.last_used_at.map(|at| at.0),
        }
    }
}
