//! `server cluster-key create | wrap | unwrap`: whether the root in the database is of use without a file that is not there.

use crate::{
    cluster::StoredRoot,
    cluster_key::ClusterKey,
    cmd::{Failure, text},
    config::DatabaseArgs,
    store::{Store, StoreError},
};
use anyhow::{Context, anyhow};
use clap::Subcommand;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a cluster key: a new file that only its owner can read
    Create { file: PathBuf },
    /// Encrypt the root key in the database under the cluster key; servers that run go on, and need the file at their next start
    Wrap(DatabaseArgs),
    /// Keep the root key in the clear again
    Unwrap(DatabaseArgs),
}

pub(crate) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Create { file } => create(&file),
        Command::Wrap(args) => wrap(args).await,
        Command::Unwrap(args) => unwrap(args).await,
    }
}

fn create(file: &Path) -> Result<(), Failure> {
    ClusterKey::create(file).map_err(Failure::failed)?;
    text::print(&format!("made the cluster key {}", file.display()));
    eprintln!(
        "keep a copy where the database's backups are not: a cluster whose root is wrapped under it is lost with it"
    );
    Ok(())
}

/// The root as it is kept, and the key that was named.
async fn open(args: DatabaseArgs) -> Result<(Arc<dyn Store>, Root, ClusterKey), Failure> {
    let (store, path) = args.open().await?;
    let path =
        path.ok_or_else(|| anyhow!("say which: --cluster-key FILE (`server cluster-key create` makes one)"))?;
    let key = ClusterKey::read(&path).map_err(Failure::failed)?;
    let founding = store.snapshot().await.map_err(Failure::failed)?.founding;
    Ok((store, Root { network: founding.network_id, stored: founding.root }, key))
}

struct Root {
    network: proto::statement::NetworkId,
    stored: StoredRoot,
}

async fn wrap(args: DatabaseArgs) -> Result<(), Failure> {
    let (store, root, key) = open(args).await?;
    let location = store.location().to_owned();
    match &root.stored {
        StoredRoot::Wrapped(wrapped) => {
            key.unwrap(root.network, wrapped).map_err(|reason| {
                Failure::failed(StoreError::Locked { location: location.clone(), reason })
            })?;
            text::print(&format!("the root key in {location} was wrapped under this cluster key before"));
        }
        StoredRoot::Plain(secret) => {
            let wrapped = key.wrap(root.network, secret).context("the system has no random source")?;
            put(&*store, &root.stored, &StoredRoot::Wrapped(wrapped)).await?;
            text::print(&format!("the root key in {location} is wrapped"));
            eprintln!(
                "servers that run go on; start them with --cluster-key from now on. Dumps and backups made before still hold the root key in the clear"
            );
        }
    }
    Ok(())
}

async fn unwrap(args: DatabaseArgs) -> Result<(), Failure> {
    let (store, root, key) = open(args).await?;
    let location = store.location().to_owned();
    match &root.stored {
        StoredRoot::Plain(_) => text::print(&format!("the root key in {location} is not wrapped")),
        StoredRoot::Wrapped(wrapped) => {
            let secret = key.unwrap(root.network, wrapped).map_err(|reason| {
                Failure::failed(StoreError::Locked { location: location.clone(), reason })
            })?;
            put(&*store, &root.stored, &StoredRoot::Plain(secret)).await?;
            text::print(&format!("the root key in {location} is kept in the clear"));
            eprintln!("start servers without --cluster-key from now on");
        }
    }
    Ok(())
}

async fn put(store: &dyn Store, was: &StoredRoot, root: &StoredRoot) -> Result<(), Failure> {
    if let Some(to) = store.moved_to().await.map_err(Failure::failed)? {
        return Err(Failure::failed(StoreError::Moved { location: store.location().to_owned(), to }));
    }
    match store.put_root(was, root).await.map_err(Failure::failed)? {
        true => {
            store.erase_former_root().await.map_err(Failure::failed)?;
            Ok(())
        }
        false => {
            Err(anyhow!("the root key in {} was changed meanwhile; look and try again", store.location())
                .into())
        }
    }
}
