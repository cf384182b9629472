//! `server root show | rotate | retire`: which key signs for the cluster, and which are still believed.

use crate::{
    cluster::{Actor, NotSignable, State, retire, sign_anew, some_of},
    cmd::{CommonArgs, Failure, text},
    follow::Cluster,
};
use clap::Subcommand;
use proto::{root::Fingerprint, time::UnixTime};
use serde::Serialize;
use std::convert::Infallible;

/// What one change signs anew: small enough for a statement's deadline.
const BATCH: usize = 500;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// The roots that are trusted, and who still needs a former one
    Show(CommonArgs),
    /// Make the next root, signed by the current one; servers and agents take it up by themselves
    Rotate {
        /// Also while a former root is still trusted
        #[arg(long)]
        anyway: bool,
        #[command(flatten)]
        common: CommonArgs,
    },
    /// End the trust in former roots
    Retire {
        /// Sign now what a former root signed, and cut off nodes that have not yet said that they keep the new root
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        common: CommonArgs,
    },
}

/// The roots as JSON.
#[derive(Serialize)]
struct Shown {
    /// The current root's fingerprint.
    root: Fingerprint,
    /// How often the root was changed.
    number: u32,
    /// The current one first.
    roots: Vec<ShownRoot>,
    nodes: usize,
    /// Certificates and removals that a former root signed.
    to_sign_anew: usize,
    /// Of those, what no trusted root signed: nobody believes it.
    not_signable_anew: Vec<String>,
    /// Names of nodes that have not yet said that they keep the current root.
    unconfirmed: Vec<String>,
    /// Numbers of valid setup keys that were made under a former root.
    former_setup_keys: Vec<u64>,
}

#[derive(Serialize)]
struct ShownRoot {
    fingerprint: Fingerprint,
    current: bool,
    /// `None`: since the cluster was made.
    since_unix_s: Option<u64>,
    /// Nodes whose certificate it signed.
    memberships: usize,
}

pub(crate) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Show(common) => {
            let cluster = common.database.load().await?;
            // Whoever changed the root may not have come to that.
            if let Err(error) = cluster.erase_former_root().await {
                tracing::debug!(%error, "a former root's key stays in the database's file for now");
            }
            print(&cluster, common.json)
        }
        Command::Rotate { anyway, common } => {
            let cluster = common.database.load_to_sign().await?;
            let root = cluster.state().root.public();
            cluster.rotate_root(&root, anyway).await.map_err(Failure::failed)?;
            print(&cluster, common.json)?;
            eprintln!(
                "take a backup now: one of before has the former root alone. When `server root show` waits for nobody, end the former root with `server root retire`"
            );
            Ok(())
        }
        Command::Retire { force, common } => retire_former(force, common).await,
    }
}

async fn retire_former(force: bool, common: CommonArgs) -> Result<(), Failure> {
    let cluster = match force {
        true => common.database.load_to_sign().await?,
        false => common.database.load().await?,
    };
    if force {
        sign_all_anew(&cluster).await?;
    }
    let retired = cluster.write(Actor::CommandLine, |state, _| Ok((retire(state, force)?, ())));
    retired.await.map_err(|error: crate::follow::WriteError<crate::cluster::RetirementError>| {
        Failure::failed(error)
    })?;
    print(&cluster, common.json)
}

async fn sign_all_anew(cluster: &Cluster) -> Result<(), Failure> {
    while cluster.state().under_former_roots() > 0 {
        let signed = cluster.write::<_, Infallible>(Actor::CommandLine, |state, _| {
            let ops = sign_anew(state, BATCH);
            let left = state.under_former_roots() - ops.len();
            let is_stuck = ops.is_empty() && left > 0;
            Ok((ops, is_stuck.then(|| state.not_signable_anew())))
        });
        if let Some(reason) = signed.await.map_err(Failure::failed)? {
            return Err(Failure::failed(reason));
        }
    }
    Ok(())
}

fn print(cluster: &Cluster, json: bool) -> Result<(), Failure> {
    let shown = Shown::of(&cluster.state(), cluster.now());
    if json {
        return Ok(text::print_json(&shown)?);
    }
    let row = |root: &ShownRoot| {
        let since = root.since_unix_s.map(UnixTime);
        [
            root.fingerprint.to_string(),
            if root.current { "current" } else { "former, trusted" }.to_owned(),
            since.map_or_else(|| "the beginning".to_owned(), |at| text::moment(Some(at), cluster.now())),
            root.memberships.to_string(),
        ]
    };
    let rows: Vec<_> = shown.roots.iter().map(row).collect();
    text::print_table(["ROOT", "STATE", "SINCE", "MEMBERSHIPS"], &rows);
    if shown.to_sign_anew > 0 {
        text::print(&format!("\nto be signed anew   {} certificates and removals", shown.to_sign_anew));
    }
    if !shown.not_signable_anew.is_empty() {
        let names = shown.not_signable_anew.clone();
        text::print(&format!("\nnot signed anew     {}", NotSignable { names }));
    }
    if !shown.unconfirmed.is_empty() {
        let (count, names) = (shown.unconfirmed.len(), some_of(&shown.unconfirmed));
        text::print(&format!("\nnot yet confirmed   {count} of {} nodes: {names}", shown.nodes));
    }
    if !shown.former_setup_keys.is_empty() {
        let numbers: Vec<_> = shown.former_setup_keys.iter().map(u64::to_string).collect();
        let end = if shown.roots.len() > 1 { "once that is retired" } else { "any more" };
        text::print(&format!(
            "\nsetup keys          {} made under a former root ({}) let nobody in {end}: revoke them, and make new ones with `server setup-key create`",
            numbers.len(),
            some_of(&numbers)
        ));
    }
    Ok(())
}

impl Shown {
    fn of(state: &State, now: UnixTime) -> Self {
        let number = state.root_number();
        let current = state.root.public();
        let former = state.roots().map(|roots| roots.former.as_slice()).unwrap_or_default();
        let since = state.roots().map(|roots| roots.since);
        let newest_first = former.iter().rev().map(|former| (former.key, former.since));
        let roots = [(current, since)].into_iter().chain(newest_first).zip((0..=number).rev());
        let signed_by = |root: u32| state.nodes().filter(|node| node.root == root).count();
        let roots = roots.map(|((key, since), root)| ShownRoot {
            fingerprint: key.fingerprint(),
            current: root == number,
            since_unix_s: since.map(|at| at.0),
            memberships: signed_by(root),
        });
        Self {
            root: current.fingerprint(),
            number,
            roots: roots.collect(),
            nodes: state.node_count(),
            to_sign_anew: state.under_former_roots(),
            not_signable_anew: state.not_signable_anew().names,
            unconfirmed: state.unconfirmed().map(|node| node.name.clone()).collect(),
            former_setup_keys: state.setup_keys_of_former_roots(now).map(|key| key.id.0).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::{Node, Op, testing},
        store::testing::Database,
    };
    use proto::statement::NodeId;

    #[tokio::test]
    async fn what_cannot_be_signed_anew_ends_a_forced_retirement_by_name() {
        let cluster = Database::sqlite().cluster().await;
        let foreign = testing::with_node("odd").1;
        let other = testing::with_node("good").1;
        let written = cluster.write::<_, Infallible>(Actor::CommandLine, |state, now| {
            let mut good = Node { id: NodeId(9), address_v4: [100, 64, 0, 9].into(), ..other.clone() };
            good.certify(state, now);
            Ok((vec![Op::put_node(foreign.clone()), Op::put_node(good)], ()))
        });
        written.await.unwrap();
        let root = cluster.state().root.public();
        cluster.rotate_root(&root, false).await.unwrap();
        let Err(Failure::Failed(error)) = sign_all_anew(&cluster).await else { panic!("it ended") };
        assert!(error.to_string().contains("(odd)") && !error.to_string().contains("(good)"), "{error}");
        assert_eq!(cluster.state().under_former_roots(), 1, "the other one was signed");
    }
}
