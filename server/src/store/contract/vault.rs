//! The root under a cluster key, on both databases.

use super::{enter, rename_to, reusable, setup_key};
use crate::{
    cluster::{Actor, StoredRoot, remove},
    cluster_key::{ClusterKey, RootAccess, UnlockError},
    follow::{Cluster, OpenError, WriteError},
    store::{
        Store, StoreError,
        testing::{Database, eventually},
    },
};
use std::{convert::Infallible, sync::Arc};

on_both_databases!(
    a_cluster_made_with_a_cluster_key_is_wrapped_from_the_beginning,
    wrapping_and_unwrapping_do_not_stop_a_server_that_runs,
    of_two_who_wrap_at_once_one_does_it,
    without_the_secret_only_what_signs_nothing_is_written,
);

fn key() -> ClusterKey {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cluster.key");
    ClusterKey::create(&path).unwrap();
    ClusterKey::read(&path).unwrap()
}

async fn refused(store: Arc<dyn Store>, access: RootAccess) -> UnlockError {
    match Cluster::open_with(store, access).await {
        Err(OpenError::Store(StoreError::Locked { reason, .. })) => reason,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was opened"),
    }
}

/// As `server cluster-key wrap` does.
async fn wrap(store: &dyn Store, key: &ClusterKey) {
    let founding = store.snapshot().await.unwrap().founding;
    let StoredRoot::Plain(secret) = &founding.root else { panic!("it is wrapped") };
    let wrapped = StoredRoot::Wrapped(key.wrap(founding.network_id, secret).unwrap());
    assert!(store.put_root(&founding.root, &wrapped).await.unwrap());
}

async fn a_cluster_made_with_a_cluster_key_is_wrapped_from_the_beginning(database: Database) {
    let (store, key) = (database.open().await, key());
    let with_key = RootAccess::Sign(Some(key.clone()));
    let cluster = Cluster::open_with(store.clone(), with_key.clone()).await.unwrap();
    let secret = setup_key(&cluster, &reusable()).await;
    enter(&cluster, &secret, "a").await.unwrap();
    let stored = store.snapshot().await.unwrap().founding.root;
    assert!(stored.is_wrapped());
    assert_eq!(stored.public(), cluster.state().root.public());
    let again = Cluster::open_with(store.clone(), with_key).await.unwrap();
    assert!(again.state().root.secret().is_some());
    assert_eq!(refused(store.clone(), RootAccess::Sign(None)).await, UnlockError::NeedsKey);
    let other = self::key();
    assert!(matches!(refused(store, RootAccess::Sign(Some(other))).await, UnlockError::WrongKey { .. }));
}

async fn wrapping_and_unwrapping_do_not_stop_a_server_that_runs(database: Database) {
    let (a, key) = (database.cluster().await, key());
    let secret = setup_key(&a, &reusable()).await;
    let with_key = RootAccess::Sign(Some(key.clone()));
    assert!(matches!(refused(database.open().await, with_key.clone()).await, UnlockError::NotWrapped { .. }));
    wrap(&**a.store(), &key).await;
    // Pruned past it: it loads everything again, the wrapped root too.
    let b = Cluster::open_with(database.open().await, with_key).await.unwrap();
    let node = enter(&b, &secret, "b").await.unwrap();
    eventually("it follows", async || a.state().node(node.id).is_some()).await;
    database.sql("UPDATE cluster SET epoch = epoch + 1, revision = revision + 5").await;
    a.look();
    eventually("it loaded everything again", async || a.state().version().epoch == 2).await;
    assert!(a.state().root.secret().is_some(), "it keeps the secret that it had");
    let stored = a.store().snapshot().await.unwrap().founding;
    let plain = StoredRoot::Plain(a.state().root.secret().unwrap().clone());
    assert!(a.store().put_root(&stored.root, &plain).await.unwrap());
    assert!(Cluster::open(database.open().await).await.is_ok());
}

async fn of_two_who_wrap_at_once_one_does_it(database: Database) {
    let store = database.cluster().await.store().clone();
    let founding = store.snapshot().await.unwrap().founding;
    let StoredRoot::Plain(secret) = &founding.root else { panic!("it is wrapped") };
    let wrapped =
        [key(), key()].map(|key| StoredRoot::Wrapped(key.wrap(founding.network_id, secret).unwrap()));
    let [one, other] = &wrapped;
    let (one, other) =
        tokio::join!(store.put_root(&founding.root, one), store.put_root(&founding.root, other));
    assert!(one.unwrap() != other.unwrap());
}

async fn without_the_secret_only_what_signs_nothing_is_written(database: Database) {
    let server = database.cluster().await;
    let secret = setup_key(&server, &reusable()).await;
    let node = enter(&server, &secret, "a").await.unwrap();
    wrap(&**server.store(), &key()).await;
    let command = Cluster::load(database.open().await, RootAccess::AsFound).await.unwrap();
    assert_eq!(command.state().root.public(), server.state().root.public());
    rename_to(&command, node.id, "b").await;
    let removed =
        command.write(Actor::CommandLine, |state, now| Ok::<_, Infallible>((remove(state, &node, now), ())));
    let error = removed.await.unwrap_err();
    assert!(matches!(&error, WriteError::Database(StoreError::Locked { .. })), "{error}");
    assert!(error.to_string().contains("--cluster-key"), "{error}");
    rename_to(&command, node.id, "c").await;
    eventually("nothing was lost", async || server.state().node_by_name("c").is_some()).await;
}
