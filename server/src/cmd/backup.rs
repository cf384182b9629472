//! `server backup` and `server restore`: the cluster in a file, and a cluster from one.

use crate::{
    backup::{self, Backup, BackupError},
    cluster::{ChangeId, Snapshot, restored},
    cmd::{CommonArgs, Failure, logging, text},
    identity::make_dir,
    private_file::{Existing, Pending},
    store::{self, DatabaseUrl, Imported, Missing, Occupied, Store, StoreError},
};
use anyhow::{Context, anyhow};
use proto::{root::Fingerprint, time::UnixTime};
use serde::Serialize;
use std::{
    fs::File,
    io::{BufReader, stdin, stdout},
    path::{Path, PathBuf},
};

#[derive(clap::Args)]
pub(crate) struct BackupArgs {
    /// Where to write it; `-` is standard output
    file: PathBuf,
    /// Replace the file if there is one
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(clap::Args)]
pub(crate) struct RestoreArgs {
    /// What `server backup` wrote; `-` is standard input
    file: PathBuf,
    /// Put it in the place of the cluster that the database holds, which is gone then. No server may run on it
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    common: CommonArgs,
}

/// What a backup holds, as it is told.
#[derive(Serialize)]
struct Told {
    cluster: Fingerprint,
    epoch: u64,
    revision: u64,
    nodes: usize,
    setup_keys: usize,
    removals: usize,
    /// `plain` or `wrapped`
    root: &'static str,
}

impl Told {
    fn of(snapshot: &Snapshot) -> Self {
        let root = &snapshot.founding.root;
        Self {
            cluster: root.public().fingerprint(),
            epoch: snapshot.head.version.epoch,
            revision: snapshot.head.version.revision,
            nodes: snapshot.nodes.len(),
            setup_keys: snapshot.setup_keys.len(),
            removals: snapshot.removals.len(),
            root: if root.is_wrapped() { "wrapped" } else { "plain" },
        }
    }

    fn line(&self) -> String {
        let Self { cluster, epoch, revision, nodes, setup_keys, removals, root: _ } = self;
        format!(
            "cluster {cluster}, revision {revision} of epoch {epoch}: {nodes} nodes, {setup_keys} setup keys, {removals} removals"
        )
    }
}

pub(crate) async fn backup(args: BackupArgs) -> Result<(), Failure> {
    let (store, _) = args.common.database.open().await?;
    let existing = if args.force { Existing::Replace } else { Existing::Keep };
    let is_stdout = args.file == Path::new("-");
    let unwritten = || format!("cannot write the backup {}", args.file.display());
    let pending = match is_stdout {
        true => None,
        false => Some(Pending::create(&args.file, existing).map_err(unwritable).with_context(unwritten)?),
    };
    let now = now(&*store).await?;
    let snapshot = store.snapshot().await.map_err(Failure::failed)?;
    match pending {
        None => backup::write(&snapshot, now, stdout().lock()).context("cannot write the backup")?,
        Some(mut pending) => {
            backup::write(&snapshot, now, &mut pending).with_context(unwritten)?;
            pending.put(existing).map_err(unwritable).with_context(unwritten)?;
        }
    }
    let told = Told::of(&snapshot);
    match (is_stdout, args.common.json) {
        (true, _) => eprintln!("{}", told.line()),
        (false, true) => text::print_json(&told)?,
        (false, false) => text::print(&told.line()),
    }
    match snapshot.founding.root.is_wrapped() {
        true => eprintln!("the root key is in it, wrapped: restoring it needs the cluster key"),
        false => eprintln!("the root key is in it, in the clear: whoever reads it has the network"),
    }
    // Better known now than when it is needed.
    backup::check(&snapshot).map_err(|reason| {
        anyhow!("the backup is written, but it cannot be restored as it is: the database holds what no cluster has: {reason}")
    })?;
    Ok(())
}

/// The database's clock.
async fn now(store: &dyn Store) -> Result<UnixTime, Failure> {
    Ok(UnixTime(store.now_ms().await.map_err(Failure::failed)? / 1000))
}

fn unwritable(error: std::io::Error) -> anyhow::Error {
    match error.kind() == std::io::ErrorKind::AlreadyExists {
        true => anyhow!("there is one already; name another file, or replace it with --force"),
        false => error.into(),
    }
}

pub(crate) async fn restore(args: RestoreArgs) -> Result<(), Failure> {
    let options = args.common.database.resolve()?;
    logging::start(&options.log, logging::Verbosity::Command)?;
    // The whole file is known to be good before a database is touched.
    let Backup { snapshot: copy, created_at, software } =
        read(&args.file).map_err(|error| anyhow!("{} {error}", args.file.display()))?;
    make_place(&options.url)?;
    let store = store::open(&options.url, Missing::Create).await.map_err(Failure::failed)?;
    let now = now(&*store).await?;
    let snapshot = in_new_epoch(&*store, copy, now).await?;
    let occupied = if args.replace { Occupied::Replace } else { Occupied::Refuse };
    let imported = store.import(&snapshot, occupied).await.map_err(Failure::failed)?;
    settle(imported, store.location())?;
    let told = Told::of(&snapshot);
    if args.common.json {
        text::print_json(&told)?;
    } else {
        text::print(&format!("restored {}", told.line()));
        let age = text::moment(Some(created_at), now);
        text::print(&format!(
            "the backup was made {age} by server {software}; what was changed since is not in it"
        ));
    }
    if snapshot.founding.root.is_wrapped() {
        eprintln!("its root key is wrapped: start servers with --cluster-key FILE");
    }
    Ok(())
}

fn read(file: &Path) -> Result<Backup, BackupError> {
    match file == Path::new("-") {
        true => backup::read(stdin().lock()),
        false => backup::read(BufReader::new(File::open(file)?)),
    }
}

/// On a new machine there is no data directory yet.
pub(crate) fn make_place(url: &DatabaseUrl) -> Result<(), Failure> {
    let DatabaseUrl::Sqlite(path) = url else { return Ok(()) };
    match path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        Some(directory) => {
            Ok(make_dir(directory).with_context(|| format!("cannot make {}", directory.display()))?)
        }
        None => Ok(()),
    }
}

/// Agents may have seen what came after the copy, so what is restored is newer than that; and than what it replaces, if that is the same cluster's.
async fn in_new_epoch(store: &dyn Store, mut copy: Snapshot, now: UnixTime) -> Result<Snapshot, Failure> {
    match store.snapshot().await {
        Ok(found) if found.founding.network_id == copy.founding.network_id => {
            let (seen, head) = (found.head.version, &mut copy.head.version);
            head.epoch = head.epoch.max(seen.epoch);
            head.revision = head.revision.max(seen.revision);
        }
        // What cannot be read may be what is to be replaced.
        Ok(_) | Err(StoreError::NoCluster { .. } | StoreError::Corrupt { .. }) => {}
        Err(error) => return Err(Failure::failed(error)),
    }
    let id = ChangeId::generate().context("the system has no random source")?;
    restored(copy, id, now).map_err(Failure::failed)
}

fn settle(imported: Imported, location: &str) -> Result<(), Failure> {
    match imported {
        Imported::Done => Ok(()),
        Imported::Occupied => Err(anyhow!(
            "the database {location} holds a cluster already; name an empty one, or give --replace: what it holds is lost then"
        )
        .into()),
        Imported::InUse { servers } => Err(anyhow!(
            "{servers} servers run on the cluster in {location}; stop them, and try again (one that was killed counts for 10 s)"
        )
        .into()),
    }
}
