//! `server node list | show | rename | expire | remove | allow-claim`. A node is named by its name, overlay address, public key or number.

use crate::{
    cluster::{Actor, Node, NodeError, Op, State, allow_claim, disallow_claim, expire, remove, rename},
    cmd::{CommonArgs, Failure, holders, text},
    follow::Cluster,
};
use clap::Subcommand;
use ipnet::IpNet;
use proto::{claim::Claim, statement::NodeId, time::UnixTime};
use serde::Serialize;
use std::{collections::BTreeSet, net::IpAddr, net::SocketAddr};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// The nodes there are
    List(CommonArgs),
    /// All that is known of a node
    Show {
        node: String,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Give a node another name
    Rename {
        node: String,
        name: String,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// End a node's login: it has to log in again
    Expire {
        node: String,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// End a node's membership, everywhere
    Remove {
        node: String,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Let a node claim a prefix
    AllowClaim {
        node: String,
        #[arg(value_parser = Claim::parse_prefix)]
        prefix: IpNet,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Take such leave back
    DisallowClaim {
        node: String,
        #[arg(value_parser = Claim::parse_prefix)]
        prefix: IpNet,
        #[command(flatten)]
        common: CommonArgs,
    },
}

/// A node as JSON.
#[derive(Serialize)]
struct Shown<'a> {
    id: NodeId,
    name: &'a str,
    public_key: String,
    addresses: [IpAddr; 2],
    online: bool,
    expired: bool,
    ephemeral: bool,
    groups: &'a [String],
    /// What it may claim.
    claims: &'a [IpNet],
    wanted_claims: Vec<IpNet>,
    refused_claims: Vec<IpNet>,
    /// Of what it claims exclusively.
    holds: Vec<IpNet>,
    hostname: &'a str,
    os: &'a str,
    os_version: &'a str,
    agent_version: &'a str,
    endpoints: &'a [SocketAddr],
    created_unix_s: u64,
    updated_unix_s: u64,
    expires_unix_s: Option<u64>,
    certificate_ends_unix_s: Option<u64>,
    certificate_ended: bool,
}

pub(crate) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::List(common) => list(common).await,
        Command::Show { node, common } => show(&node, common).await,
        Command::Rename { node, name, common } => {
            let change = |state: &State, node: &Node, now| rename(state, node, &name, now);
            let cluster = common.database.load().await?;
            change_node(&node, cluster, common.json, change, |node| format!("{} is now {name}", node.name))
                .await
        }
        Command::Expire { node, common } => {
            let change = |_: &State, node: &Node, now| Ok(expire(node, now));
            let cluster = common.database.load().await?;
            change_node(&node, cluster, common.json, change, |node| {
                format!("{} has to log in again", node.name)
            })
            .await
        }
        Command::Remove { node, common } => {
            let change = |state: &State, node: &Node, now| Ok(remove(state, node, now));
            let cluster = common.database.load_to_sign().await?;
            change_node(&node, cluster, common.json, change, |node| format!("{} is removed", node.name)).await
        }
        Command::AllowClaim { node, prefix, common } => {
            let change = |state: &State, node: &Node, now| allow_claim(state, node, prefix, now);
            let cluster = common.database.load_to_sign().await?;
            let done = |node: &Node| format!("{} may claim {prefix}", node.name);
            change_node(&node, cluster, common.json, change, done).await
        }
        Command::DisallowClaim { node, prefix, common } => {
            let change = |state: &State, node: &Node, now| disallow_claim(state, node, prefix, now);
            let cluster = common.database.load_to_sign().await?;
            let done = |node: &Node| format!("{} may no longer claim {prefix}", node.name);
            change_node(&node, cluster, common.json, change, done).await
        }
    }
}

/// Finds the node in the state that the change follows upon, so that a name means who bears it then.
async fn change_node(
    named: &str,
    cluster: Cluster,
    json: bool,
    change: impl Fn(&State, &Node, UnixTime) -> Result<Vec<Op>, NodeError> + Sync,
    done: impl Fn(&Node) -> String,
) -> Result<(), Failure> {
    let written = cluster.write(Actor::CommandLine, |state, now| {
        let node = state.find_node(named)?;
        Ok::<_, NodeError>((change(state, node, now)?, Node::clone(node)))
    });
    let before = written.await.map_err(Failure::failed)?;
    if json {
        let state = cluster.state();
        let after = state.node(before.id).map_or(&before, |node| node);
        return Ok(text::print_json(&Shown::of(&state, after, false, cluster.now()))?);
    }
    text::print(&done(&before));
    Ok(())
}

async fn list(common: CommonArgs) -> Result<(), Failure> {
    let cluster = common.database.load().await?;
    let (online, state, now) = (online(&cluster).await?, cluster.state(), cluster.now());
    if common.json {
        let nodes = state.nodes().map(|node| Shown::of(&state, node, online.contains(&node.id), now));
        return Ok(text::print_json(&nodes.collect::<Vec<_>>())?);
    }
    let rows: Vec<_> = state.nodes().map(|node| row(node, online.contains(&node.id), now)).collect();
    text::print_table(["ID", "NAME", "ADDRESS", "STATE", "OS", "AGENT", "GROUPS", "CLAIMS"], &rows);
    Ok(())
}

fn row(node: &Node, is_online: bool, now: UnixTime) -> [String; 8] {
    [
        node.id.to_string(),
        node.name.clone(),
        node.address_v4.to_string(),
        condition(node, is_online, now).to_owned(),
        node.facts.os.clone(),
        node.facts.agent_version.clone(),
        text::list(&node.groups),
        text::list(&node.claims),
    ]
}

fn condition(node: &Node, is_online: bool, now: UnixTime) -> &'static str {
    match (node.is_expired(now), is_online) {
        (true, _) => "expired",
        (false, true) => "online",
        // Peers believe it no more; it gets a new certificate when it comes back.
        (false, false) if node.is_lapsed(now) => "lapsed",
        (false, false) => "offline",
    }
}

async fn show(named: &str, common: CommonArgs) -> Result<(), Failure> {
    let cluster = common.database.load().await?;
    let (online, state, now) = (online(&cluster).await?, cluster.state(), cluster.now());
    let node = state.find_node(named).map_err(Failure::failed)?;
    let is_online = online.contains(&node.id);
    if common.json {
        return Ok(text::print_json(&Shown::of(&state, node, is_online, now))?);
    }
    let facts = &node.facts;
    let held = holders::held(&cluster, |id| id == node.id).await.map_err(Failure::failed)?;
    for (what, value) in [
        ("name", node.name.clone()),
        ("number", node.id.to_string()),
        ("key", node.key.to_string()),
        ("addresses", text::list(&node.addresses())),
        ("state", condition(node, is_online, now).to_owned()),
        ("login ends", text::moment(node.expires_at, now)),
        ("certificate ends", text::moment(node.not_after, now)),
        ("kind", if node.ephemeral { "ephemeral" } else { "lasting" }.to_owned()),
        ("groups", text::list(&node.groups)),
        ("may claim", text::list(&node.claims)),
        ("claims", text::list(&wanted(node))),
        ("refused claims", text::list(&node.refused_claims(&state).collect::<Vec<_>>())),
        ("holds", text::list(&held)),
        ("host", facts.hostname.clone()),
        ("system", format!("{} {}", facts.os, facts.os_version)),
        ("agent", facts.agent_version.clone()),
        ("endpoints", text::list(&node.endpoints)),
        ("entered", text::moment(Some(node.created_at), now)),
        ("last news", text::moment(Some(node.updated_at), now)),
    ] {
        text::print(format!("{what:18}{value}").trim_end());
    }
    Ok(())
}

/// What it claims, whether it may or not.
fn wanted(node: &Node) -> Vec<IpNet> {
    node.facts.claims.iter().map(|claim| claim.prefix).collect()
}

async fn online(cluster: &Cluster) -> Result<BTreeSet<NodeId>, Failure> {
    let (sessions, _) = cluster.store().sessions(0).await.map_err(Failure::failed)?;
    Ok(sessions.iter().filter(|seen| seen.is_online()).map(|seen| seen.row.node).collect())
}

impl<'a> Shown<'a> {
    fn of(state: &State, node: &'a Node, online: bool, now: UnixTime) -> Self {
        Self {
            id: node.id,
            name: &node.name,
            public_key: node.key.to_string(),
            addresses: node.addresses(),
            online,
            expired: node.is_expired(now),
            ephemeral: node.ephemeral,
            groups: &node.groups,
            claims: &node.claims,
            wanted_claims: wanted(node),
            refused_claims: node.refused_claims(state).collect(),
            holds: state.held_by(node.id, now).map(|holding| holding.prefix).collect(),
            hostname: &node.facts.hostname,
            os: &node.facts.os,
            os_version: &node.facts.os_version,
            agent_version: &node.facts.agent_version,
            endpoints: &node.endpoints,
            created_unix_s: node.created_at.0,
            updated_unix_s: node.updated_at.0,
            expires_unix_s: node.expires_at.map(|at| at.0),
            certificate_ends_unix_s: node.not_after.map(|at| at.0),
            certificate_ended: node.is_lapsed(now),
        }
    }
}
