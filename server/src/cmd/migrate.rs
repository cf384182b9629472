//! `server migrate FROM TO`: the cluster in another database, under traffic. FROM is marked first, so that no change is made there that the copy
//! misses; servers on it go on from memory until they are started on TO. Epoch and revision stay: no agent sees a difference. Whatever fails in between leaves FROM
//! whole, and marked: the same command goes on, and `--undo` takes the mark off.

use crate::{
    backup,
    cluster::Head,
    cmd::{Failure, backup::make_place, logging, text},
    config::{ConfigError, LogArgs},
    store::{self, DatabaseUrl, Imported, Missing, Occupied, Store, StoreError},
};
use anyhow::{Context, anyhow, bail, ensure};
use proto::map::MapVersion;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The database that the cluster is in: a URL, or file:PATH of a file that holds it (a command line can be seen by others)
    // Not parsed by clap, which would repeat the password in its error.
    from: String,
    /// An empty one, named in the same way
    #[arg(required_unless_present = "undo")]
    to: Option<String>,
    /// Take a move back: FROM takes changes again, and TO none any more. Without TO nobody looks whether it was changed meanwhile
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    log: LogArgs,
}

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let from = url(&args.from)?;
    let to = args.to.as_deref().map(url).transpose()?;
    logging::start(&args.log, logging::Verbosity::Command)?;
    if to.as_ref().is_some_and(|to| to.to_string() == from.to_string()) {
        return Err(anyhow!("{from} is both FROM and TO; name two databases").into());
    }
    let source = store::open(&from, Missing::Refuse).await.map_err(Failure::failed)?;
    match to {
        Some(to) if !args.undo => migrate(&*source, &to).await,
        to => undo(&*source, to.as_ref()).await,
    }
}

fn url(text: &str) -> Result<DatabaseUrl, Failure> {
    let Some(path) = text.strip_prefix("file:") else {
        return Ok(text.parse().map_err(ConfigError::from)?);
    };
    let content = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Ok(content.parse().map_err(ConfigError::from)?)
}

async fn migrate(source: &dyn Store, to: &DatabaseUrl) -> Result<(), Failure> {
    let (from, name) = (source.location().to_owned(), to.to_string());
    let before = source.snapshot().await.map_err(Failure::failed)?;
    backup::check(&before)
        .map_err(|reason| anyhow!("{from} holds what no cluster has: {reason}; nothing was moved"))?;
    make_place(to)?;
    let target = store::open(to, Missing::Create).await.map_err(Failure::failed)?;
    let moved_to = source.moved_to().await.map_err(Failure::failed)?;
    let is_copied = match head(&*target).await? {
        None => false,
        // An earlier attempt came as far as this.
        Some(head) if moved_to.as_deref() == Some(&*name) && head == before.head => true,
        Some(_) => return Err(anyhow!("{name} holds a cluster already; name an empty database").into()),
    };
    if !source.set_moved(Some(&name)).await.map_err(Failure::failed)? {
        let to = moved_to.unwrap_or_else(|| "another database".to_owned());
        return Err(Failure::failed(StoreError::Moved { location: from, to }));
    }
    if !is_copied {
        copy(source, &*target).await.with_context(|| {
            format!(
                "{from} is marked as moved and takes no changes; try again, or take the move back with --undo"
            )
        })?;
    }
    let MapVersion { epoch, revision } = before.head.version;
    text::print(&format!(
        "{from} was moved to {name}: {} nodes, revision {revision} of epoch {epoch}",
        before.nodes.len()
    ));
    tell_servers(source, &name).await;
    Ok(())
}

/// Nothing changes in the source any more.
async fn copy(source: &dyn Store, target: &dyn Store) -> anyhow::Result<()> {
    let frozen = source.snapshot().await?;
    match target.import(&frozen, Occupied::Refuse).await? {
        Imported::Done => {}
        Imported::Occupied | Imported::InUse { .. } => bail!("{} holds a cluster already", target.location()),
    }
    let found = target.snapshot().await?;
    let is_same = (found.head, found.nodes.len(), found.setup_keys.len(), found.removals.len())
        == (frozen.head, frozen.nodes.len(), frozen.setup_keys.len(), frozen.removals.len());
    ensure!(is_same, "{} does not hold what was copied; somebody else writes there", target.location());
    Ok(())
}

async fn tell_servers(source: &dyn Store, name: &str) {
    let servers = source.live_servers().await.map_or(0, |live| live.len());
    if servers > 0 {
        eprintln!(
            "{servers} servers still run on {}: they serve from memory, and changes wait; start them again, one after another, within the ephemeral timeout, with --database {name}",
            source.location()
        );
    }
}

async fn undo(source: &dyn Store, to: Option<&DatabaseUrl>) -> Result<(), Failure> {
    let from = source.location().to_owned();
    if source.moved_to().await.map_err(Failure::failed)?.is_none() {
        text::print(&format!("{from} is not marked as moved"));
        return Ok(());
    }
    if let Some(to) = to {
        match store::open(to, Missing::Refuse).await {
            Ok(target) => freeze(source, &*target).await?,
            Err(StoreError::NoCluster { .. }) => {}
            Err(error) => return Err(Failure::failed(error)),
        }
    }
    source.set_moved(None).await.map_err(Failure::failed)?;
    text::print(&format!("{from} takes changes again"));
    Ok(())
}

/// So that of the two only the source is changed from now on: unless the target was, already.
async fn freeze(source: &dyn Store, target: &dyn Store) -> Result<(), Failure> {
    let (from, to) = (source.location(), target.location());
    target.set_moved(Some(from)).await.map_err(Failure::failed)?;
    let (ours, theirs) = (head(source).await?, head(target).await?);
    if theirs.is_none_or(|theirs| Some(theirs) == ours) {
        return Ok(());
    }
    target.set_moved(None).await.map_err(Failure::failed)?;
    let text = format!(
        "{to} was changed since the move, which {from} would not know: stay there, or put it back with `server backup` there and `server restore --replace` here"
    );
    Err(anyhow!(text).into())
}

/// `None`: there is no cluster.
async fn head(store: &dyn Store) -> Result<Option<Head>, Failure> {
    match store.status().await {
        Ok(status) => Ok(Some(status.head)),
        Err(StoreError::NoCluster { .. }) => Ok(None),
        Err(error) => Err(Failure::failed(error)),
    }
}
