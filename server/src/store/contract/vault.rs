//! The root under a cluster key, imports and moves, on both databases.

use super::{enter, rename_to, reusable, setup_key};
use crate::{
    backup,
    cluster::{Actor, ChangeId, Snapshot, StoredRoot, remove, restored, set_membership_lifetime, testing},
    cluster_key::{ClusterKey, RootAccess, UnlockError},
    follow::{Cluster, OpenError, WriteError},
    store::{
        DatabaseUrl, Imported, Occupied, Store, StoreError,
        testing::{Database, eventually},
    },
};
use proto::statement::NodeId;
use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

on_both_databases!(
    a_cluster_made_with_a_cluster_key_is_wrapped_from_the_beginning,
    wrapping_and_unwrapping_do_not_stop_a_server_that_runs,
    of_two_who_wrap_at_once_one_does_it,
    without_the_secret_only_what_signs_nothing_is_written,
    a_backup_is_the_cluster_in_any_database_in_an_epoch_of_its_own,
    a_cluster_is_replaced_only_where_that_was_asked_and_nobody_serves_it,
    an_import_that_fails_leaves_nothing_behind,
    a_moved_cluster_is_read_and_not_changed_until_the_move_is_taken_back,
    thousands_of_nodes_are_imported_in_time,
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

/// A cluster with a node, a setup key, and a removal; and the file that it is backed up to.
async fn backed_up(cluster: &Cluster) -> (Snapshot, Vec<u8>) {
    let secret = setup_key(cluster, &reusable()).await;
    let gone = enter(cluster, &secret, "gone").await.unwrap();
    enter(cluster, &secret, "kept").await.unwrap();
    let removed =
        cluster.write(Actor::CommandLine, |state, now| Ok::<_, Infallible>((remove(state, &gone, now), ())));
    removed.await.unwrap();
    let set = cluster.write(Actor::CommandLine, |state, now| {
        set_membership_lifetime(state, Some(Duration::from_secs(3600)), now).map(|ops| (ops, ()))
    });
    set.await.unwrap();
    let snapshot = cluster.store().snapshot().await.unwrap();
    let mut file = Vec::new();
    backup::write(&snapshot, testing::NOW, &mut file).unwrap();
    (snapshot, file)
}

/// The same kind of database, and the other one.
async fn others(database: &Database) -> [Database; 2] {
    match database.url {
        DatabaseUrl::Sqlite(_) => [Database::sqlite(), Database::postgres().await],
        DatabaseUrl::Postgres(_) => [Database::postgres().await, Database::sqlite()],
    }
}

async fn a_backup_is_the_cluster_in_any_database_in_an_epoch_of_its_own(database: Database) {
    let cluster = database.cluster().await;
    wrap(&**cluster.store(), &key()).await;
    let (before, file) = backed_up(&cluster).await;
    for other in others(&database).await {
        let read = backup::read(&file[..]).unwrap().snapshot;
        let restored = restored(read, ChangeId([7; 16]), testing::NOW).unwrap();
        let store = other.open().await;
        assert_eq!(store.import(&restored, Occupied::Refuse).await, Ok(Imported::Done));
        let after = store.snapshot().await.unwrap();
        assert_eq!((&after.nodes, &after.setup_keys), (&before.nodes, &before.setup_keys));
        assert_eq!((&after.removals, &after.recovery), (&before.removals, &restored.recovery));
        assert_eq!(after.settings, before.settings);
        assert!(after.founding.root.is_wrapped());
        assert_eq!(after.founding.root.public(), before.founding.root.public());
        assert_eq!((after.head, after.next_node_id), (restored.head, restored.next_node_id));
        assert!(after.head.version > before.head.version);
        let command = Cluster::load(store, RootAccess::AsFound).await.unwrap();
        rename_to(&command, NodeId(2), "on").await;
        assert_eq!(command.state().version().revision, restored.head.version.revision + 1);
    }
}

async fn a_cluster_is_replaced_only_where_that_was_asked_and_nobody_serves_it(database: Database) {
    let (cluster, elsewhere) = (database.cluster().await, Database::sqlite().cluster().await);
    let (snapshot, _) = backed_up(&elsewhere).await;
    let (store, before) = (cluster.store(), cluster.state().head());
    let server = super::live::server(1);
    assert_eq!(store.import(&snapshot, Occupied::Refuse).await, Ok(Imported::Occupied));
    store.renew_lease(&server, Duration::from_secs(60)).await.unwrap();
    assert_eq!(store.import(&snapshot, Occupied::Replace).await, Ok(Imported::InUse { servers: 1 }));
    assert_eq!(store.status().await.unwrap().head, before);
    store.release_lease(&server).await.unwrap();
    assert_eq!(store.import(&snapshot, Occupied::Replace).await, Ok(Imported::Done));
    assert_eq!(store.snapshot().await.unwrap().nodes, snapshot.nodes);
    cluster.look();
    eventually("who follows the old one sees that it is gone", async || !cluster.health().database_ok).await;
    assert_ne!(cluster.state().network_id, snapshot.founding.network_id, "and serves no other");
}

async fn an_import_that_fails_leaves_nothing_behind(database: Database) {
    let elsewhere = Database::sqlite().cluster().await;
    let (mut snapshot, _) = backed_up(&elsewhere).await;
    let mut twice = snapshot.nodes[0].clone();
    twice.id = NodeId(twice.id.0 + 1);
    snapshot.nodes.push(twice);
    let store = database.open().await;
    assert!(store.import(&snapshot, Occupied::Refuse).await.is_err());
    assert!(matches!(store.snapshot().await, Err(StoreError::NoCluster { .. })));
    snapshot.nodes.pop();
    assert_eq!(store.import(&snapshot, Occupied::Refuse).await, Ok(Imported::Done));
}

async fn a_moved_cluster_is_read_and_not_changed_until_the_move_is_taken_back(database: Database) {
    let cluster = database.cluster().await;
    let secret = setup_key(&cluster, &reusable()).await;
    let node = enter(&cluster, &secret, "a").await.unwrap();
    let store = cluster.store();
    assert!(store.set_moved(Some("sqlite:/elsewhere")).await.unwrap());
    assert!(store.set_moved(Some("sqlite:/elsewhere")).await.unwrap(), "again is the same");
    assert!(!store.set_moved(Some("sqlite:/yet/another")).await.unwrap());
    let error = enter(&cluster, &secret, "b").await.unwrap_err();
    assert!(error.is_retriable() && error.to_string().contains("moved to sqlite:/elsewhere"), "{error}");
    cluster.look();
    assert!(cluster.health().database_ok && cluster.state().node(node.id).is_some(), "it is served on");
    let Err(error) = Cluster::open(database.open().await).await else {
        panic!("it was started on the old one")
    };
    assert!(error.to_string().contains("sqlite:/elsewhere"), "{error}");
    assert_eq!(
        Cluster::load(database.open().await, RootAccess::AsFound).await.unwrap().state().node_count(),
        1
    );
    assert!(store.set_moved(None).await.unwrap());
    enter(&cluster, &secret, "b").await.unwrap();
}

async fn thousands_of_nodes_are_imported_in_time(database: Database) {
    const NODES: u32 = 5_000;
    let (state, node) = testing::with_node("a");
    let mut snapshot = testing::snapshot(&state);
    snapshot.nodes = (0..NODES)
        .map(|number| {
            let mut node = node.clone();
            node.id = NodeId(u64::from(number) + 1);
            node.key.0[..4].copy_from_slice(&number.to_be_bytes());
            node.name = format!("n{number}");
            node.address_v4 = (u32::from(node.address_v4) + number).into();
            node.address_v6 = crate::cluster::in_ula(state.network.overlay_v6, node.address_v4);
            node
        })
        .collect();
    let store = database.open().await;
    let begun_at = Instant::now();
    assert_eq!(store.import(&snapshot, Occupied::Refuse).await, Ok(Imported::Done));
    println!("{}: {NODES} nodes imported in {:?}", database.url, begun_at.elapsed());
    assert_eq!(store.snapshot().await.unwrap().nodes, snapshot.nodes);
}
